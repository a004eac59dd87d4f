"""Diffusion that reverts to a mean given by the condition: restoration as generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond
from .level import broadcast
from .vp import _LinearBeta


@dataclass(frozen=True)
class MeanReverting(_LinearBeta):
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

    def _mean(self, cond: Cond) -> Tensor:
        if not isinstance(cond, Mapping) or self.mean not in cond:
            raise ValueError(f"MeanReverting needs its mean in the condition: pass cond={{{self.mean!r}: tensor}}")
        mean = cond[self.mean]
        assert isinstance(mean, Tensor)
        return mean

    def shift(self, t: Tensor, cond: Cond) -> Tensor:
        mean = self._mean(cond)
        return broadcast(-torch.expm1(self.log_alpha(t)), mean) * mean

    def d_shift(self, t: Tensor, cond: Cond) -> Tensor:
        mean = self._mean(cond)
        return broadcast(-self.d_alpha(t), mean) * mean
