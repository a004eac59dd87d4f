"""DDIM, deterministic to ancestral."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..processes import Level, PhaseSpace, ancestral, broadcast
from .phase import follow
from .solver import Solver
from .table import Writer


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) noise + std z,    std = eta sigma_(s|t)

    with sigma_(s|t)^2 = sigma_s^2 (1 - SNR_t/SNR_s), the variance of x_s given x_t and x0 in the forward process. With
    noise = (x - alpha_t x0)/sigma_t no coefficient divides by alpha. eta = 0 follows the probability flow (order 1,
    exact for constant x0; in phase space see `follow`); eta = 1 is ancestral sampling. eta may exceed 1 while
    std <= sigma_s.

    Source: Song, Meng, Ermon 2020, "Denoising Diffusion Implicit Models" (2010.02502), equation 12.
    """

    eta: float = 0.0
    exact_for_constant = True

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise ValueError(f"eta={self.eta}: 0 is deterministic, 1 ancestral; it is not negative")

    @property
    def matrices(self) -> bool:
        return self.eta == 0

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        for t, s in pairwise(grid):
            p = table.evaluate(x, t)
            if isinstance(table.process, PhaseSpace):
                x = table.step(follow(table.process, x, p, s), s)
                continue
            if self.eta > 0 and bool((s.t > t.t).any()):
                raise ValueError(f"eta={self.eta} adds the noise of a reversed step: inversion needs eta=0")
            std = self.eta * s.sigma * torch.sqrt(-torch.expm1(-(s.log_snr - t.log_snr).clamp(min=0)))
            std = torch.where(s.sigma == 0, torch.zeros_like(std), std)
            if bool((std > s.sigma).any()):
                raise ValueError(f"eta={self.eta} asks for more noise than the level holds: std {float(std.max()):.4g}")
            left = torch.sqrt(s.sigma**2 - std**2) / t.sigma
            value = left * x + (s.alpha - left * t.alpha) * p.x0
            if self.eta > 0 and bool((std > 0).any()):
                value = value + std * table.noise(t, s)
            x = table.step(value, s)


@dataclass(frozen=True)
class DDPM(Solver):
    """x_s ~ N(mean, std^2): the forward process's law of x_s given x_t and x0, with the predicted x0.

        mean = (alpha_ts sigma_s^2/sigma_t^2) x + (alpha_s sigma_ts^2/sigma_t^2) x0
        alpha_ts = alpha_t/alpha_s,   sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2
        std^2 = sigma_ts^2 sigma_s^2/sigma_t^2 ("posterior"), or sigma_ts^2 ("forward"), or between them ("learned"),
                log std^2 = (1 + v)/2 log "forward" + (1 - v)/2 log "posterior", v the network's head "variance"

    The two variances are those of the paper (its beta-tilde and beta), the right ones for data at a point and, where
    alpha^2 + sigma^2 = 1, for standard normal data. The mean and the first std are DDIM's with eta = 1.

    Source: Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models" (2006.11239); for the learned variance
    Nichol, Dhariwal 2021 (2102.09672), equation 15.
    """

    variance: str = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in ("posterior", "forward", "learned"):
            raise ValueError(f"variance={self.variance!r}: choose posterior, forward or learned")

    @property
    def exact_for_constant(self) -> bool:
        return self.variance == "posterior"

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        for t, s in pairwise(grid):
            if bool((s.t > t.t).any()):
                raise ValueError("ancestral sampling runs from noise to data: this grid rises")
            p, step = table.evaluate(x, t), ancestral(t, s)
            value = step.c_x * x + step.c_x0 * p.x0
            forward, posterior = step.forward, step.posterior
            if bool((s.sigma == 0).all()):
                x = table.step(value, s)
            elif self.variance == "learned":
                draw = partial(_draw, low=posterior, ratio=forward / posterior)
                x = table.apply(draw, value, p.head("variance").raw, table.noise(t, s), level=s, on_grid=True)
            else:
                x = table.step(value + (posterior if self.variance == "posterior" else forward) * table.noise(t, s), s)


def _draw(mean: Tensor, v: Tensor, noise: Tensor, *, low: Tensor, ratio: Tensor) -> Tensor:
    """mean + low ratio^((1 + v)/2) noise."""
    return mean + broadcast(low, mean) * torch.exp((1 + v) / 2 * broadcast(ratio.log(), v)) * noise
