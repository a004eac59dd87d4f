"""Time laws: where in [0, 1] a training step looks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..processes import AffineProcess, Level, Process

_EDGE = 2.0**-53  # half the spacing of float64 below 1: times stay inside (0, 1), where every view exists


class TimeLaw(ABC):
    """t = Q(u), with u uniform and Q the quantile function of the law: the times of a batch, on the host in float64.

    The u of a batch are u_i = frac(u + i/n) with one uniform u: each is uniform on its own, whatever its place in the
    batch, and together they cover (0, 1) evenly, so that the mean loss of a batch varies less. Times lie in the open
    interval (0, 1); what a law puts beyond the process's range of log-SNR moves to the nearer end.

    Source: Kingma et al. 2021 (2107.00630), appendix I.1, for the even cover.
    """

    def draw(self, n: int, process: Process, generator: torch.Generator) -> Tensor:
        """n times, (n,) float64."""
        u = torch.rand((), generator=generator, dtype=torch.float64) + torch.arange(n, dtype=torch.float64) / n
        return self.quantile((u % 1.0).clamp(_EDGE, 1 - _EDGE), process).clamp(_EDGE, 1 - _EDGE)

    @abstractmethod
    def quantile(self, u: Tensor, process: Process) -> Tensor:
        """The time below which the law puts the mass u in (0, 1)."""

    @abstractmethod
    def density(self, level: Level) -> Tensor:
        """The density of the law at level.t, by dt."""

    def mass(self, t: Tensor, process: Process) -> Tensor:
        """The mass below t, the inverse of `quantile`: by bisection, unless a law knows it."""
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(53):
            middle = (low + high) / 2
            below = self.quantile(middle.clamp(_EDGE, 1 - _EDGE), process) <= t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low


@runtime_checkable
class Remembering(Protocol):
    """A law that learns from the losses: what it has seen belongs to a checkpoint."""

    def state_dict(self) -> dict[str, Tensor]:
        """What it has seen."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what another law of the same make had seen."""


@dataclass(frozen=True)
class UniformTime(TimeLaw):
    """t ~ U(0, 1)."""

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return u

    def density(self, level: Level) -> Tensor:
        return torch.ones_like(level.t)

    def mass(self, t: Tensor, process: Process) -> Tensor:
        return t


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    """t = sigmoid(z), z ~ N(mean, std^2): more of the middle of the path, where the question is hardest.

    Source: Esser et al. 2024 (2403.03206), section 3.1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _positive(std=self.std)

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def density(self, level: Level) -> Tensor:
        return _normal(torch.logit(level.t), self.mean, self.std) / (level.t * (1 - level.t))

    def mass(self, t: Tensor, process: Process) -> Tensor:
        below: Tensor = torch.special.ndtr((torch.logit(t) - self.mean) / self.std)
        return below


@dataclass(frozen=True)
class UShapedTime(TimeLaw):
    """p(t) = a cosh(a (t - 1/2))/(2 sinh(a/2)), as e^(a t) + e^(a (1 - t)): more of both ends of the path.

    For pairs of a flow the middle is easy, the ends are not: near t = 1 the sample must be told from the noise. The
    quantile function is Q(u) = 1/2 + asinh((2u - 1) sinh(a/2))/a. (The paper prints e^(a t) + e^(-a t), which on [0, 1]
    only rises; its published code draws the law above.)

    Source: Lee, Lin, Fanti 2024 (2405.20320), section 4.1.
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        _positive(a=self.a)

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a

    def density(self, level: Level) -> Tensor:
        return self.a * torch.cosh(self.a * (level.t - 0.5)) / (2 * math.sinh(self.a / 2))

    def mass(self, t: Tensor, process: Process) -> Tensor:
        return 0.5 + torch.sinh(self.a * (t - 0.5)) / (2 * math.sinh(self.a / 2))


@dataclass(frozen=True)
class LogNormalSigma(TimeLaw):
    """log(sigma/alpha) ~ N(mean, std^2): the noise levels of EDM, for any process.

    Source: Karras et al. 2022 (2206.00364), table 1.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        _positive(std=self.std)

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return _gaussian(process, self).time(-2 * (self.mean + self.std * torch.special.ndtri(u)))

    def density(self, level: Level) -> Tensor:
        return _normal(-level.log_snr / 2, self.mean, self.std) * fall(level) / 2

    def mass(self, t: Tensor, process: Process) -> Tensor:
        below: Tensor = torch.special.ndtr((-_gaussian(process, self).log_snr(t) / 2 - self.mean) / self.std)
        return below


@dataclass(frozen=True)
class UniformLogSNR(TimeLaw):
    """log_snr ~ U(low, high): every octave of noise alike. With the weighting `ELBO` its loss is a constant weight.

    Source: Kingma, Gao 2023 (2303.00848), for the loss as a weighted integral over log-SNR.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"log-SNR is drawn between low < high, both finite: got {self.low}, {self.high}")

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return _gaussian(process, self).time(self.high - (self.high - self.low) * u)

    def density(self, level: Level) -> Tensor:
        inside = (level.log_snr >= self.low) & (level.log_snr <= self.high)
        return torch.where(inside, fall(level) / (self.high - self.low), 0.0)

    def mass(self, t: Tensor, process: Process) -> Tensor:
        return ((self.high - _gaussian(process, self).log_snr(t)) / (self.high - self.low)).clamp(0, 1)


def fall(level: Level) -> Tensor:
    """-d log_snr/dt = 2 (alpha sigma' - sigma alpha')/(alpha sigma) > 0, how fast the log-SNR falls."""
    return 2 * (level.alpha * level.d_sigma - level.sigma * level.d_alpha) / (level.alpha * level.sigma)


def _normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-(((x - mean) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi))


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite: got {value}")


def _gaussian(process: Process, law: TimeLaw) -> AffineProcess:
    if not isinstance(process, AffineProcess):
        raise ValueError(f"{law!r} needs the log-SNR of one process: for {process!r} use UniformTime or LogitNormal")
    return process
