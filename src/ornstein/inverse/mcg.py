"""Manifold-constrained gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..denoiser import BaseDenoiser
from ..processes import Level
from ..solvers import Solver
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Pulled
from .projected import Projected, noised


@dataclass(frozen=True)
class MCG(Method):
    """x' = c_x x_t + c_x0 x0 + std z - step grad_x |y - A x0(x_t)|^2,    x_s = (I - A^+ A) x' + A^+ y_s

    the ancestral step, a gradient step through the network, which stays near the data's manifold, and a projection on
    the measurement at the level of s, y_s = alpha_s y + sigma_s A z'. It takes the measurement as exact: noise in it is
    reproduced.

    step: of the gradient; without the projection, and divided by 2 |y - A x0|, it is the step of `DPS`.

    Source: Chung, Sim, Ryu, Ye 2022, "Improving Diffusion Models for Inverse Problems using Manifold Constraints"
    (2206.00941), algorithm 1.
    """

    step: float = 1.0

    def __post_init__(self) -> None:
        check_positive(step=self.step)

    @property
    def steps(self) -> int:
        return 1000

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        operator = measurement.linear(self)

        def pull(x0: Tensor, level: Level) -> Tensor:
            return 2 * operator.adjoint(measurement.residual(x0))

        return Pulled(model, measurement, pull)

    def solver(self, measurement: Measurement) -> Solver:
        return Projected(repr(self), noised(measurement.linear(self), measurement.y), zeta=self.step)
