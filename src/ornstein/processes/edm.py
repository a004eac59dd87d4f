"""Variance-exploding diffusion whose time is the noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .gaussian import GaussianProcess


@dataclass(frozen=True)
class EDM(GaussianProcess):
    """x_t = x0 + sigma noise with sigma = sigma_max t: the paper's sigma is our t times sigma_max.

    Its Karras grid is `orn.Karras`, its network `orn.EDMPrecondition`.

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (2206.00364).
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_max < math.inf:
            raise ValueError(f"sigma_max must be positive and finite: got {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self.sigma(t).log()

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-log_snr / 2) / self.sigma_max
