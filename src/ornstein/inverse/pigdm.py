"""Pseudo-inverse guidance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..denoiser import BaseDenoiser
from ..processes import Level
from ..solvers import DDIM, Solver
from .measurement import Measurement
from .method import Method, check_positive, check_share
from .posterior import Pulled


@dataclass(frozen=True)
class PiGDM(Method):
    """score(x_t | y) = score(x_t) + J^T A^T (r^2 A A^T + std^2 I)^-1 (y - A x0),    r^2 = s^2/(1 + s^2)

    with s = sigma/alpha: the posterior's score if x0 given x_t were N(x0(x_t), r^2 I), which it is for data N(0, I).
    J = d x0/dx_t is the network's own. Any solver runs on it; by default DDIM with fresh noise.

    eta: of DDIM. prior: the standard deviation of the data, 1 in the paper: r^2 = s^2 prior^2/(prior^2 + s^2).

    Source: Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", equations 7 to 10; its
    equation for the step weighs J^T by r^2 where the score has sigma^2/alpha.
    """

    guides = True

    eta: float = 1.0
    prior: float = 1.0

    def __post_init__(self) -> None:
        check_positive(prior=self.prior)
        check_share(eta=self.eta)

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        operator, std = measurement.linear(self), measurement.std(self)

        def pull(x0: Tensor, level: Level) -> Tensor:
            s2 = (level.sigma / level.alpha) ** 2
            r2 = s2 * self.prior**2 / (self.prior**2 + s2)
            return operator.gain(measurement.residual(x0), std**2, r2)

        return Pulled(model, measurement, pull, into=True)

    def solver(self, measurement: Measurement) -> Solver:
        return DDIM(self.eta)
