"""Denoising diffusion null-space model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..denoiser import BaseDenoiser
from ..processes import Level
from ..solvers import Solver
from .measurement import Measurement
from .method import Method, check_share
from .posterior import Corrected
from .renoise import Renoise


@dataclass(frozen=True)
class DDNM(Method):
    """x0' = A^+ y + (I - A^+ A) x0: what was measured, and of x0 what was not; then `Renoise`.

    The measurement is met to rounding, so it should have no noise: with some, see `DDRM`, of which this is the limit.

    Source: Wang, Yu, Zhang 2022, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model" (2212.00490),
    equation 13.
    """

    guides = True

    eta: float = 0.85

    def __post_init__(self) -> None:
        check_share(eta=self.eta)

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        operator = measurement.linear(self)
        if measurement.std(self) > 0:
            raise ValueError(f"{self!r} takes the measurement as exact: with noise choose DDRM() or DDS()")
        known = operator.pinv(measurement.y)

        def correct(x0: Tensor, level: Level) -> Tensor:
            return known + operator.null(x0)

        return Corrected(model, measurement, correct)

    def solver(self, measurement: Measurement) -> Solver:
        return Renoise(self.eta)
