"""Covariance functions of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Kernel: TypeAlias = Callable[[Tensor], Tensor]
"""Times (batch, n) to the covariances (batch, n, n) of a function there, float64 to float64."""


@dataclass(frozen=True)
class _Stationary:
    length: float = 0.2
    nugget: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.length < math.inf:
            raise ValueError(f"length={self.length}: a length of time, positive and finite")
        if not 0 <= self.nugget < 1:
            raise ValueError(f"nugget={self.nugget}: the share of the variance that is white, in [0, 1)")

    def correlation(self, apart: Tensor) -> Tensor:
        """The correlation of two values at times `apart`, in units of `length`."""
        raise NotImplementedError(f"{type(self).__name__} must write correlation")

    def __call__(self, times: Tensor) -> Tensor:
        smooth = self.correlation((times[..., :, None] - times[..., None, :]).abs() / self.length)
        return (1 - self.nugget) * smooth + self.nugget * torch.eye(times.shape[-1], dtype=times.dtype)


@dataclass(frozen=True)
class OU(_Stationary):
    """k(t, s) = (1 - nugget) exp(-|t - s|/length) + nugget [t = s]: the Ornstein-Uhlenbeck process, continuous.

    Its covariances are well conditioned, unless two times are all but equal.
    """

    def correlation(self, apart: Tensor) -> Tensor:
        return torch.exp(-apart)


@dataclass(frozen=True)
class RBF(_Stationary):
    """k(t, s) = (1 - nugget) exp(-(t - s)^2/(2 length^2)) + nugget [t = s]: a function with all derivatives.

    Of close times such covariances are singular to rounding: the nugget, a share of white variance, bounds the least
    eigenvalue from below.
    """

    nugget: float = 1e-4

    def correlation(self, apart: Tensor) -> Tensor:
        return torch.exp(-apart.square() / 2)


@dataclass(frozen=True)
class Sine(_Stationary):
    """k(t, s) = (1 - nugget) cos(2 pi (t - s)/length) + nugget [t = s]: a sine of period `length`, its phase uniform
    and its squared amplitude exponential, seen with white noise."""

    length: float = 1.0
    nugget: float = 1e-2

    def correlation(self, apart: Tensor) -> Tensor:
        return torch.cos(2 * math.pi * apart)
