"""Multiplicative diffusion of positive data: additive noise in their logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond
from ..random import Noise, Seed
from .affine import AffineProcess, Draw
from .gaussian import GaussianProcess
from .level import Level, holds
from .scheduled import Scheduled
from .ve import VE


@dataclass(frozen=True)
class GeometricBrownian(GaussianProcess):
    """dx = (volatility^2/2) x dt + volatility x dw, of y = log x: y_t = y_0 + volatility sqrt(t) noise.

    alpha = 1, sigma = volatility sqrt(t): a base for `Multiplicative`. Another drift mu x of x moves all y_t by (mu -
    volatility^2/2) t and back, and changes no sample.

    Source: Shetty, Prasath, Seelamantula 2025 (2510.02730), section 2.
    """

    volatility: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.volatility < math.inf:
            raise ValueError(f"volatility is positive and finite: got {self.volatility}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.volatility * torch.sqrt(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.volatility / (2 * torch.sqrt(t))

    def diffusion2(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.volatility**2)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * math.log(self.volatility) - torch.log(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr) / self.volatility**2


@dataclass(frozen=True)
class Multiplicative(Scheduled, GaussianProcess):
    """x_t = x0^alpha exp(sigma noise): positive data times positive noise; states are their logarithms y = log x,

        y_t = alpha(t) log x0 + shift + sigma(t) noise,    score_y = x score_x + 1

    so that every solver, guidance and likelihood of `base` is one of positive data, and samples are positive whatever
    a network says. Data go in and samples come out as x > 0; `x_init`, hooks and the views of a prediction are of y.
    Euler-Maruyama in y is the published multiplicative update of x itself,

        x <- x exp([-(mu - s^2/2) + s^2 (1 + x score_x)] h + s sqrt(h) z),    dx = mu x dt + s x dw,

    exactly; its matching of x score_x is that of score_y, less one on both sides; and the loss of Hyvarinen for
    non-negative data, E[2 x score_x + x^2 score_x' + (x score_x)^2/2], is his for the whole line in y, less 1/2.

    base: the schedule of the logarithms; `GeometricBrownian()` is the published one.

    Raises ValueError for data that are not positive: data with zeros need an offset first.

    Source: Shetty, Prasath, Seelamantula 2025, "Dale meets Langevin: A Multiplicative Denoising Diffusion Model"
    (2510.02730), equations 10 to 14; Hyvarinen 2007 for non-negative score matching.
    """

    base: AffineProcess = field(default_factory=lambda: VE(0.01, 10.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.base, GaussianProcess) or isinstance(self.base, Multiplicative):
            raise ValueError(f"the logarithms of Multiplicative follow a GaussianProcess, as orn.VE(): {self.base!r}")

    @property
    def supports(self) -> tuple[str, ...]:
        return tuple(name for name in super().supports if name != "ELBO")

    def data_of(self, state: Tensor) -> Tensor:
        """The data of a state of logarithms: exp."""
        return state.exp()

    def state_of(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """(log x, log |d log x/dx| = -sum log x) of data (batch, *event); the second (batch,)."""
        state = torch.log(self._checked(data))
        return state, -state.flatten(1).sum(1)

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor | Level,
        x1: Tensor | None = None,
        cond: Cond = None,
        *,
        noise: Tensor | None = None,
        seed: Seed | Noise = None,
    ) -> Draw:
        """Draw y_t given positive data x0 (batch, *event) at t; the x0 of the draw, a target, is log x0."""
        return super().corrupt(torch.log(self._checked(x0)), t, x1, cond, noise=noise, seed=seed)

    def _checked(self, x0: Tensor) -> Tensor:
        seen = x0.device.type == "cpu" or not torch.is_grad_enabled()  # in training on a device no step waits for it
        if seen and not holds(x0 > 0):
            raise ValueError(
                f"data of a multiplicative process are positive: got {float(x0[~(x0 > 0)].flatten()[0]):.6g} "
                "(add an offset to data with zeros, and scale without a mean)"
            )
        return x0
