"""Decomposed diffusion sampling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..denoiser import BaseDenoiser
from ..numerics.conjugate_gradients import cg
from ..processes import Level
from ..solvers import Solver
from .measurement import Measurement
from .method import Method, check_positive, check_share
from .posterior import Corrected
from .renoise import Renoise


@dataclass(frozen=True)
class DDS(Method):
    """x0' = M conjugate gradients from x0 on (I + gamma A^T A) u = x0 + gamma A^T y, then `Renoise`

    towards argmin |u - x0|^2 + gamma |y - A u|^2, inside the Krylov space of A^T (y - A x0), without a gradient of the
    network. One iteration is the gradient step of the best length.

    Source: Chung, Lee, Ye 2023, "Decomposed Diffusion Sampler for Accelerating Large-Scale Inverse Problems"
    (2303.05754), algorithm 1.
    """

    guides = True

    gamma: float = 1.0
    iterations: int = 5
    eta: float = 0.85

    def __post_init__(self) -> None:
        check_positive(gamma=self.gamma)
        check_share(eta=self.eta)
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}: at least one conjugate gradient")

    @property
    def steps(self) -> int:
        return 50

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        operator = measurement.linear(self)
        back = operator.adjoint(measurement.y)

        def system(u: Tensor) -> Tensor:
            return u + self.gamma * operator.adjoint(operator(u))

        def correct(x0: Tensor, level: Level) -> Tensor:
            return cg(system, x0 + self.gamma * back, x0, limit=self.iterations).x

        return Corrected(model, measurement, correct)

    def solver(self, measurement: Measurement) -> Solver:
        return Renoise(self.eta)
