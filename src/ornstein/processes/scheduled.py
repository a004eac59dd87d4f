"""A process that takes its schedule from another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .._types import Cond
from .affine import AffineProcess


@dataclass(frozen=True)
class Scheduled(AffineProcess):
    """x_t = alpha(t) x0 + shift(t, cond) + sigma(t) noise with the alpha, sigma and shift of `base`.

    The base of processes that change one thing of another: the law of its noise, its mean, its end. They take any
    schedule, and write the one thing. Inherited first: `class Mine(Scheduled, GaussianProcess)`.

    base: the process whose schedule it is.
    """

    base: AffineProcess

    def __post_init__(self) -> None:
        if not isinstance(self.base, AffineProcess):
            raise ValueError(f"{type(self).__name__} takes its schedule from a process, as orn.VP(): got {self.base!r}")

    @property
    def finest(self) -> float:
        return self.base.finest

    def alpha(self, t: Tensor) -> Tensor:
        return self.base.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.base.sigma(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.base.d_alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.base.d_sigma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.base.log_snr(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.base.time(log_snr)

    def wronskian(self, t: Tensor) -> Tensor:
        return self.base.wronskian(t)

    def drift(self, t: Tensor) -> Tensor:
        return self.base.drift(t)

    def diffusion2(self, t: Tensor) -> Tensor:
        return self.base.diffusion2(t)

    def shift(self, t: Tensor, cond: Cond) -> Tensor | None:
        return self.base.shift(t, cond)

    def d_shift(self, t: Tensor, cond: Cond) -> Tensor | None:
        return self.base.d_shift(t, cond)
