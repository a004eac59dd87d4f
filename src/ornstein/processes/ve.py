"""Variance-exploding diffusion with a geometric scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .gaussian import GaussianProcess


@dataclass(frozen=True)
class VE(GaussianProcess):
    """dx = sigma_min r^t sqrt(2 log r) dw, r = sigma_max/sigma_min: alpha = 1, sigma^2 = sigma_min^2 (r^(2t) - 1).

    This is the exact kernel of the process, so that t = 0 is data (the paper adds sigma_min^2 to it).
    sigma' is infinite at t = 0.

    Source: Song et al. 2020 (2011.13456).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"need 0 < sigma_min < sigma_max, both finite: got {self.sigma_min}, {self.sigma_max}")

    @property
    def log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.sqrt(torch.expm1(2 * self.log_ratio * t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.diffusion2(t) / (2 * self.sigma(t))

    def diffusion2(self, t: Tensor) -> Tensor:
        return 2 * self.log_ratio * self.sigma_min**2 * torch.exp(2 * self.log_ratio * t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * math.log(self.sigma_min) - torch.log(torch.expm1(2 * self.log_ratio * t))

    def time(self, log_snr: Tensor) -> Tensor:
        # log(1 + e^u) without overflow, u = log(sigma^2 / sigma_min^2)
        u = -log_snr - 2 * math.log(self.sigma_min)
        return torch.nn.functional.softplus(u, threshold=700) / (2 * self.log_ratio)
