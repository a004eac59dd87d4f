"""The cosine schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .gaussian import GaussianProcess


@dataclass(frozen=True)
class Cosine(GaussianProcess):
    """alpha = cos(u)/cos(u0), sigma^2 = 1 - alpha^2, u = (pi/2) (t + offset)/(1 + offset), u0 = u(0).

    offset = 0 is the trigonometric path alpha = cos(pi t/2), sigma = sin(pi t/2); offset = 0.008 is that of improved
    DDPM. Zero terminal SNR: alpha(1) = 0 exactly. With an offset sigma' is infinite at t = 0.

    Source: Nichol, Dhariwal 2021 (2102.09672); Albergo, Vanden-Eijnden 2022 (2209.15571) for offset 0.
    """

    offset: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.offset < math.inf:
            raise ValueError(f"offset must be finite and not negative: got {self.offset}")

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    @property
    def _cos0(self) -> float:
        return math.cos(self._rate * self.offset)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._rate * (1 - t)) / self._cos0  # cos(u), exactly 0 at t = 1

    def sigma(self, t: Tensor) -> Tensor:
        # cos^2 u0 - cos^2 u = sin(u - u0) sin(u + u0)
        if self.offset == 0:
            return torch.sin(self._rate * t)
        return torch.sqrt(torch.sin(self._rate * t) * torch.sin(self._rate * (t + 2 * self.offset))) / self._cos0

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self._rate * torch.sin(self._rate * (t + self.offset)) / self._cos0

    def d_sigma(self, t: Tensor) -> Tensor:
        if self.offset == 0:
            return self._rate * self.alpha(t)
        return -self.alpha(t) * self.d_alpha(t) / self.sigma(t)

    def wronskian(self, t: Tensor) -> Tensor:
        if self.offset == 0:
            return torch.full_like(t, self._rate)
        return -self.d_alpha(t) / self.sigma(t)

    def diffusion2(self, t: Tensor) -> Tensor:
        return -2 * self.drift(t)  # as alpha^2 + sigma^2 = 1

    def time(self, log_snr: Tensor) -> Tensor:
        # cos u = alpha cos u0, sin^2 u = sin^2 u0 + sigma^2 cos^2 u0, and u - u0 by its sine, which does not cancel
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        if self.offset == 0:
            return torch.atan2(sigma, alpha) / self._rate
        sin0, cos0 = math.sin(self._rate * self.offset), self._cos0
        cos, sin = alpha * cos0, torch.hypot(sigma * cos0, torch.full_like(sigma, sin0))
        apart = torch.atan2((sigma * cos0) ** 2 / (sin * cos0 + cos * sin0), cos * cos0 + sin * sin0)
        return (apart / self._rate).clamp(max=1)
