"""Diffusion that reverts to a mean given by the condition: restoration as generation."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond
from ..random import Noise, Seed
from .gaussian import GaussianProcess
from .level import broadcast
from .vp import _LinearBeta


class Reverting(GaussianProcess):
    """x_t = alpha x0 + (1 - alpha) mean + sigma noise: the shift moves all weight from the data to a condition.

    `mean` names the entry of `cond` that the process reverts to, of the data's shape (batch, *event) and in the
    model's units; a condition without it is refused by name. In centred states every solver runs unchanged. A subclass
    that is a dataclass has it as a field with a default.
    """

    @property
    @abstractmethod
    def mean(self) -> str:
        """The name of the entry of `cond`."""

    def reverted(self, t: Tensor) -> Tensor:
        """1 - alpha."""
        return 1 - self.alpha(t)

    def mean_of(self, cond: Cond) -> Tensor:
        """What `cond` holds under the name `mean`."""
        known = cond if isinstance(cond, Mapping) else {}
        if self.mean not in known:
            name, has = type(self).__name__, f", which holds only {', '.join(map(repr, known))}" if known else ""
            raise ValueError(f"{name} needs its {self.mean} in the condition{has}: pass cond={{{self.mean!r}: tensor}}")
        mean = known[self.mean]
        if not isinstance(mean, Tensor):
            raise ValueError(f"cond[{self.mean!r}] is a tensor like the data: got {type(mean).__name__}")
        return mean

    def shift(self, t: Tensor, cond: Cond) -> Tensor:
        mean = self.mean_of(cond)
        return broadcast(self.reverted(t), mean) * mean

    def d_shift(self, t: Tensor, cond: Cond) -> Tensor:
        mean = self.mean_of(cond)
        return broadcast(-self.d_alpha(t), mean) * mean


class Restoring(Reverting):
    """A reverting process whose samples begin at the condition: the end law is N(mean, sigma(1)^2 I).

    The law of x_1 has the mean alpha(1) x0 + (1 - alpha(1)) mean; x0 is not known, and its place is taken by `mean`.
    So a sample begins alpha(1) (x0 - mean) away from where it should.
    """

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A draw of the end law N(mean, sigma(1)^2 I), of shape (batch, *event)."""
        x = super().prior(shape, seed=seed, cond=cond, dtype=dtype, device=device)
        return x + self._missing(x, cond)

    def log_prior(self, x: Tensor, cond: Cond = None) -> Tensor:
        return super().log_prior(x - self._missing(x, cond), cond)

    def _missing(self, x: Tensor, cond: Cond) -> Tensor:
        return self.level(1.0).alpha * self.mean_of(cond).to(x)


@dataclass(frozen=True)
class MeanReverting(Reverting, _LinearBeta):
    """dx = beta/2 (mean - x) dt + noise_level sqrt(beta) dw: data decays into its damaged version plus noise.

        alpha = exp(-B/2),  shift = (1 - alpha) mean,  sigma = noise_level sqrt(1 - exp(-B)),  B = integral of beta

    `mean` names the entry of `cond` that holds the damaged version, of the data's shape (batch, *event) and in the
    model's units. The end law is N(mean, noise_level^2 I) up to alpha(1). sigma' is infinite at t = 0.

    Source: Luo et al. 2023, "Image Restoration with Mean-Reverting Stochastic Differential Equations" (2301.11699).
    """

    noise_level: float = 0.3
    mean: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise_level < math.inf:
            raise ValueError(f"noise_level must be positive and finite: got {self.noise_level}")

    def sigma(self, t: Tensor) -> Tensor:
        return self.noise_level * torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.noise_level**2 * self.beta(t) * self.alpha(t) ** 2 / (2 * self.sigma(t))

    def wronskian(self, t: Tensor) -> Tensor:
        return self.noise_level**2 * self.beta(t) * self.alpha(t) / (2 * self.sigma(t))

    def diffusion2(self, t: Tensor) -> Tensor:
        return self.noise_level**2 * self.beta(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self.log_alpha(t) - torch.log(self.sigma(t)))

    def time(self, log_snr: Tensor) -> Tensor:
        # e^B = 1 + e^-log_snr / noise_level^2
        return self._time_of_log_alpha(-torch.log1p(torch.exp(-log_snr) / self.noise_level**2) / 2)

    def reverted(self, t: Tensor) -> Tensor:
        return -torch.expm1(self.log_alpha(t))
