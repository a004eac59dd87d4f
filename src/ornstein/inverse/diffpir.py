"""Denoising diffusion models for plug-and-play image restoration."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..denoiser import BaseDenoiser
from ..processes import Level
from ..processes.level import broadcast
from ..solvers import Solver
from .measurement import Measurement
from .method import Method, check_positive, check_share
from .posterior import Corrected
from .renoise import Renoise


@dataclass(frozen=True)
class DiffPIR(Method):
    """x0' = argmin_u |y - A u|^2/(2 std^2) + (weight/2) |u - x0|^2/s^2, s = sigma/alpha; then `Renoise` with sqrt(zeta)

    half-quadratic splitting: the data step in closed form, the prior step by the denoiser, as far apart as the noise.
    zeta is the fresh share of the noise's variance. With weight = 1 it is the mean of x0 given x_t and y for a flat
    prior, x0 given x_t as N(x0, s^2 I).

    Source: Zhu et al. 2023, "Denoising Diffusion Models for Plug-and-Play Image Restoration" (2305.08995), algorithm 1.
    """

    guides = True

    weight: float = 1.0
    zeta: float = 1.0

    def __post_init__(self) -> None:
        check_positive(weight=self.weight)
        check_share(zeta=self.zeta)

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        operator, std = measurement.linear(self), measurement.std(self)
        if std == 0:
            raise ValueError(f"{self!r} weighs the measurement by its noise: without any choose DDNM()")
        back = operator.adjoint(measurement.y)

        def correct(x0: Tensor, level: Level) -> Tensor:
            rho = self.weight * (std * level.alpha / level.sigma) ** 2
            return operator.solve(back + broadcast(rho, x0) * x0, rho.to(x0))

        return Corrected(model, measurement, correct)

    def solver(self, measurement: Measurement) -> Solver:
        return Renoise(self.zeta**0.5)
