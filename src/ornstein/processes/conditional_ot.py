"""The conditional optimal-transport path, which stops a little above data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gaussian import GaussianProcess


@dataclass(frozen=True)
class ConditionalOT(GaussianProcess):
    """x_t = (1 - t) x0 + (sigma_min + (1 - sigma_min) t) noise; the velocity is (1 - sigma_min) noise - x0.

    Given x0 it is the optimal transport between N(0, I) at t = 1 and N(x0, sigma_min^2 I) at t = 0: there the state is
    the data blurred by sigma_min, and so are the samples. sigma_min = 0 is `Flow`.

    Source: Lipman et al. 2022, "Flow Matching for Generative Modeling" (2210.02747), equations 20 to 23, with time
    running from data to noise.
    """

    sigma_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"sigma_min={self.sigma_min}: the blur of the data, in [0, 1)")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min + (1 - self.sigma_min) * t

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.sigma_min)

    def wronskian(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t) - self.sigma(t).log())

    def time(self, log_snr: Tensor) -> Tensor:
        # s (1 - t) = sigma_min + (1 - sigma_min) t at s = sigma/alpha, with the infinite s of t = 1 in the other form
        s, inverse = torch.exp(-log_snr / 2), torch.exp(log_snr / 2)
        near = (s - self.sigma_min) / (s + 1 - self.sigma_min)
        far = (1 - self.sigma_min * inverse) / (1 + (1 - self.sigma_min) * inverse)
        return torch.where(s < 1, near, far).clamp(0, 1)
