"""Moment matching: guidance by the covariance that the denoiser itself has."""

from __future__ import annotations

from dataclasses import dataclass

from ..denoiser import BaseDenoiser
from ..solvers import DDIM, Solver
from .measurement import Measurement
from .method import Method, check_share
from .posterior import Covaried


@dataclass(frozen=True)
class MMPS(Method):
    """x0' = x0 + C A^T (A C A^T + std^2 I)^-1 (y - A x0),    C = Cov[x0 | x_t] = (sigma^2/alpha) d x0/dx_t

    the mean of x0 given x_t and y where x0 given x_t is N(x0(x_t), C), with the covariance that the network's
    derivative gives (Tweedie's formula): exact for every Gaussian prior, whatever the operator. The system is solved by
    `iterations` conjugate gradients, a gradient pass each.

    eta: of DDIM; 1 draws noise as the reverse SDE does.

    Source: Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation Maximization" (2405.13712),
    section 4.2; Boys et al. 2023, "Tweedie Moment Projected Diffusions for Inverse Problems" (2310.06721).
    """

    guides = True

    iterations: int = 3
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_share(eta=self.eta)
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: at least one conjugate gradient")

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        measurement.linear(self)
        return Covaried(model, measurement, measurement.std(self), self.iterations)

    def solver(self, measurement: Measurement) -> Solver:
        return DDIM(self.eta)
