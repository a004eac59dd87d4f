"""Weightings: how much an error at a level counts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import View
from ..denoiser import EDMPrecondition
from ..processes import Level, LinearProcess, PhaseLevel
from .times import TimeLaw, UniformTime, fall


class Weighting(ABC):
    """w(t) in the loss E w(t) |answer - target|^2, for an answer in a given view; (batch,) float64 on the host.

    The error of one view is that of another times a number: P = c_x x + c_p x0 with (c_x, c_p) from
    `level.conversion("x0", view)`, so a weight w on errors of x0 is the weight w / c_p^2 on errors of P, and the loss
    is the same whichever view the network answers in. Any callable with these arguments is a weighting.
    """

    @abstractmethod
    def __call__(self, level: Level, view: View, process: LinearProcess) -> Tensor:
        """The weight of a squared error of `view` at `level`."""


@dataclass(frozen=True)
class UnitTarget(Weighting):
    """w = 1/(a^2 + b^2) for the view a x0 + b noise: targets of unit size. The default.

    x0 1, noise 1, score sigma^2, velocity 1/(alpha'^2 + sigma'^2), v 1/(alpha^2 + sigma^2). For data with second moment
    m and an answer of 0 the loss is (a^2 m + b^2)/(a^2 + b^2) <= max(m, 1): bounded for every view, process and time.
    """

    def __call__(self, level: Level, view: View, process: LinearProcess) -> Tensor:
        a, b = level.rows(view)
        return 1 / (a**2 + b**2)


@dataclass(frozen=True)
class UnitOutput(Weighting):
    """w = 1/c_out^2: what the network inside a precondition must answer has unit size. The default with one.

    Source: Karras et al. 2022 (2206.00364), equation 8 (lambda = (sigma^2 + sigma_data^2)/(sigma sigma_data)^2).
    """

    precondition: EDMPrecondition

    def __call__(self, level: Level, view: View, process: LinearProcess) -> Tensor:
        _, _, c_out, _ = self.precondition.coefficients(level)
        return c_out**-2


@dataclass(frozen=True)
class MinSNR(Weighting):
    """w = min(SNR, gamma) on errors of x0, SNR = alpha^2/sigma^2: noise weight 1, kept from growing where x0 is easy.

    Source: Hang et al. 2023 (2303.09556), equation 5.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma must be positive and finite: got {self.gamma}")

    def __call__(self, level: Level, view: View, process: LinearProcess) -> Tensor:
        return level.log_snr.exp().clamp_max(self.gamma) / _scalar(self, level, "x0", view) ** 2


@dataclass(frozen=True)
class ELBO(Weighting):
    """w = -(d log_snr/dt) / (2 p(t)) on errors of the noise: the diffusion part of -log p(x0), in nats.

        E_t w |noise - E[noise|x_t]|^2 = 1/2 int |noise - E[noise|x_t]|^2 d log_snr

    with t drawn from the density p, that of `time`: give the same law to the `Objective`. The integral is over the
    levels that the law covers; where they reach infinite log-SNR it diverges, so use `UniformLogSNR(low, high)`.
    The loss is a mean over the event: times its number of entries it is the bound's, per sample.

    Source: Kingma et al. 2021 (2107.00630), equation 17.
    """

    time: TimeLaw = field(default_factory=UniformTime)

    def __call__(self, level: Level, view: View, process: LinearProcess) -> Tensor:
        density = self.time.density(level)
        weight = fall(level) / (2 * density * _scalar(self, level, "noise", view) ** 2)
        return torch.where(density > 0, weight, 0.0)


def _scalar(weighting: Weighting, level: Level, source: View, view: View) -> Tensor:
    """What an error of one view is multiplied by in another; ValueError where that is a matrix."""
    if isinstance(level, PhaseLevel):
        raise ValueError(f"{weighting!r} weighs errors by numbers, phase space has matrices: take UnitTarget()")
    return level.conversion(source, view)[1]
