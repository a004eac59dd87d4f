"""Variance-preserving and sub-variance-preserving diffusion with linear beta."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .gaussian import GaussianProcess


@dataclass(frozen=True)
class _LinearBeta(GaussianProcess):
    """alpha = exp(-integral of beta / 2), beta(t) = beta_min + t (beta_max - beta_min)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"need 0 < beta_min <= beta_max, both finite: got {self.beta_min}, {self.beta_max}")

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        return -(t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2) / 2

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.beta(t) * self.alpha(t) / 2

    def drift(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # the root of t^2 (beta_max - beta_min)/2 + t beta_min + 2 log_alpha = 0 in the form that does not cancel
        slope = self.beta_max - self.beta_min
        return -4 * log_alpha / (self.beta_min + torch.sqrt(self.beta_min**2 - 4 * slope * log_alpha))


@dataclass(frozen=True)
class VP(_LinearBeta):
    """dx = -beta/2 x dt + sqrt(beta) dw: alpha = exp(-B/2), sigma^2 = 1 - exp(-B), B = integral of beta.

    beta(t) = beta_min + t (beta_max - beta_min). The log-SNR at t = 1 is finite (-10.05 by default); sigma' is infinite
    at t = 0, so the velocity does not exist there.

    Source: Song et al. 2020 (2011.13456); Ho et al. 2020 (2006.11239).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.beta(t) * self.alpha(t) ** 2 / (2 * self.sigma(t))

    def wronskian(self, t: Tensor) -> Tensor:
        return self.beta(t) * self.alpha(t) / (2 * self.sigma(t))

    def diffusion2(self, t: Tensor) -> Tensor:
        return self.beta(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * self.log_alpha(t) - torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def time(self, log_snr: Tensor) -> Tensor:
        return self._time_of_log_alpha(-torch.nn.functional.softplus(-log_snr, threshold=700) / 2)


@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """dx = -beta/2 x dt + sqrt(beta (1 - exp(-2B))) dw: alpha = exp(-B/2), sigma = 1 - exp(-B), B = integral of beta.

    The variance stays below that of VP; sigma' and so the velocity are finite at t = 0.

    Source: Song et al. 2020 (2011.13456).
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.beta(t) * self.alpha(t) ** 2

    def wronskian(self, t: Tensor) -> Tensor:
        return self.beta(t) * self.alpha(t) * (1 + self.alpha(t) ** 2) / 2

    def diffusion2(self, t: Tensor) -> Tensor:
        return self.beta(t) * -torch.expm1(4 * self.log_alpha(t))

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self.log_alpha(t) - torch.log(-torch.expm1(2 * self.log_alpha(t))))

    def time(self, log_snr: Tensor) -> Tensor:
        # alpha/(1 - alpha^2) = e^(log_snr/2) solved for alpha is alpha = exp(-asinh(e^(-log_snr/2)/2))
        return self._time_of_log_alpha(-torch.asinh(torch.exp(-log_snr / 2) / 2))
