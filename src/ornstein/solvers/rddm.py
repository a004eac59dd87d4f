"""The sampler of residual diffusion, which takes away residual and noise as two heads answer them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..processes import Level
from .reverse_sde import check_falling
from .solver import Solver
from .table import Writer


@dataclass(frozen=True)
class RDDM(Solver):
    """x_s = x_t + (alpha_s - alpha_t) x0 - (sigma_t - sqrt(sigma_s^2 - std^2)) noise + std z    (centred)

        std^2 = eta sigma_s^2 (1 - sigma_s^2/sigma_t^2)

    x0 is read from the head `signal` and noise from the head `noise`, each by itself; both views of one head fit the
    state, x_t = alpha_t x0 + sigma_t noise, and the step is then DDIM's (its eta with the same std). In the paper's
    letters, with a = 1 - alpha, b = sigma and the residual I_res = mean - x0, it is

        I_s = I_t - (a_t - a_s) I_res - (b_t - sqrt(b_s^2 - std^2)) eps + std z.

    eta = 0 is deterministic, eta = 1 the law of I_s given I_t in a forward process in which the residual is fixed. As
    the steps shrink every eta >= 0 is a reverse SDE, that of diffusion epsilon^2 = eta d sigma^2/dt (at most g^2 for
    eta = 1): all keep the marginals. Order 1; eta > 0 needs sigma that falls along the steps.

    Source: Liu et al. 2023, "Residual Denoising Diffusion Models" (2308.13712), equations 12 and 13.
    """

    eta: float = 0.0
    signal: str = "main"
    noise: str = "noise"
    exact_for_constant = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: from 0, deterministic, to 1")

    def write(self, table: Writer, grid: Level) -> None:
        if self.eta > 0:
            check_falling(self, grid)
            if bool((grid.sigma[1:] > grid.sigma[:-1]).any()):
                raise ValueError(f"eta={self.eta} takes noise away, and sigma rises along this grid: take eta=0")
        x = table.state
        for t, s in pairwise(grid):
            p = table.evaluate(x, t)
            std = s.sigma * torch.sqrt(self.eta * (1 - (s.sigma / t.sigma) ** 2)) if self.eta else 0 * s.sigma
            kept = torch.sqrt(s.sigma**2 - std**2)
            value = x + (s.alpha - t.alpha) * p.head(self.signal).x0 + (kept - t.sigma) * p.head(self.noise).noise
            if bool((std > 0).any()):
                value = value + std * table.noise(t, s)
            x = table.step(value, s)
