"""The Ornstein-Uhlenbeck process of speech enhancement, whose noise explodes while its mean decays to the condition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .mean_reverting import Restoring


@dataclass(frozen=True)
class SGMSE(Restoring):
    """dx = gamma (mean - x) dt + g dw,  g = sigma_min e^(r t) sqrt(2 r),  r = log(sigma_max/sigma_min).

        alpha = exp(-gamma t),  shift = (1 - alpha) mean,  sigma^2 = c (e^(2rt) - e^(-2 gamma t)),
        c = sigma_min^2 r/(gamma + r)

    which solves v' = g^2 - 2 gamma v, v(0) = 0; SNR = 1/(c (e^(2(gamma + r)t) - 1)) falls and is inverted in closed
    form. `mean` names the entry of `cond` with the damaged signal, like the data and in the model's units.

    With the published gamma a fifth of the data is left at t = 1 (alpha = 0.22): the end law N(mean, sigma(1)^2 I),
    from which samples begin, is alpha(1) (x0 - mean) away from that of x_1, and what is sampled keeps a part of it.
    The larger gamma, the smaller that part. sigma' is infinite at t = 0.

    Source: Richter, Welker, Lemercier, Lay, Gerkmann 2022, "Speech Enhancement and Dereverberation with Diffusion-based
    Generative Models" (2208.05830), equations 6 to 11.
    """

    gamma: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5
    mean: str = "mean"

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma, the rate at which the mean decays, is positive and finite: got {self.gamma}")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"need 0 < sigma_min < sigma_max, both finite: got {self.sigma_min}, {self.sigma_max}")

    @property
    def _growth(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def _scale(self) -> float:
        return self.sigma_min**2 * self._growth / (self.gamma + self._growth)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.gamma * t)

    def reverted(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.gamma * t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.alpha(t) * torch.sqrt(self._scale * torch.expm1(2 * (self.gamma + self._growth) * t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.gamma * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        # v' = 2c (r e^(2rt) + gamma e^(-2 gamma t)), a sum that does not cancel
        rise = self._growth * torch.exp(2 * self._growth * t) + self.gamma * self.alpha(t) ** 2
        return self._scale * rise / self.sigma(t)

    def wronskian(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.diffusion2(t) / (2 * self.sigma(t))

    def drift(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -self.gamma)

    def diffusion2(self, t: Tensor) -> Tensor:
        return 2 * self._growth * self.sigma_min**2 * torch.exp(2 * self._growth * t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -torch.log(self._scale * torch.expm1(2 * (self.gamma + self._growth) * t))

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-log_snr) / self._scale) / (2 * (self.gamma + self._growth))
