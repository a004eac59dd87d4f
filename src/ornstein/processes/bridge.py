"""Diffusion bridges: noise that is pinned at the data and at a given end."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .mean_reverting import Restoring


class _Bridge(Restoring):
    """A Brownian bridge from data to the given end, run by a clock from 0 to 1 - delta."""

    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise ValueError(f"delta, the part of the bridge left out at its end, lies inside (0, 1): got {self.delta}")

    @property
    @abstractmethod
    def std(self) -> float:
        """s: the standard deviation of the Brownian motion over the whole bridge."""

    @abstractmethod
    def clock(self, t: Tensor) -> Tensor:
        """The share of the motion's variance before t, from 0 to 1."""

    @abstractmethod
    def d_clock(self, t: Tensor) -> Tensor:
        """Its derivative."""

    @abstractmethod
    def time_of_clock(self, share: Tensor) -> Tensor:
        """Its inverse."""

    def reverted(self, t: Tensor) -> Tensor:
        return (1 - self.delta) * self.clock(t)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.reverted(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.std * torch.sqrt(self.reverted(t) * self.alpha(t))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -(1 - self.delta) * self.d_clock(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.diffusion2(t) * (self.alpha(t) - self.reverted(t)) / (2 * self.sigma(t))

    def wronskian(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.diffusion2(t) / (2 * self.sigma(t))

    def diffusion2(self, t: Tensor) -> Tensor:
        return self.std**2 * (1 - self.delta) * self.d_clock(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return torch.log(self.alpha(t)) - torch.log(self.std**2 * self.reverted(t))

    def time(self, log_snr: Tensor) -> Tensor:
        u = torch.sigmoid(-log_snr - 2 * math.log(self.std))
        return self.time_of_clock((u / (1 - self.delta)).clamp(max=1))


@dataclass(frozen=True)
class BrownianBridge(_Bridge):
    """dx = (x1 - x)/(1 - u) du + noise_level dw from x0 at u = 0 to x1 at u = 1, with x1 = cond["end"] given.

        x_t = (1 - u) x0 + u x1 + noise_level sqrt(u (1 - u)) noise,     u = (1 - delta) t

    so that alpha = 1 - u, shift = u x1, log-SNR = log((1 - u)/(u noise_level^2)), which falls; a solver started from x1
    draws x0 given x1, whatever the coupling of the two that the network was trained on.

    At u = 1 the bridge is in x1 and neither alpha nor sigma is left; so t = 1 stands for u = 1 - delta, and samples
    begin in N(x1, sigma(1)^2 I) in place of the law of x_t there, whose mean is delta (x0 - x1) away. With
    s = noise_level, d = |x0 - x1| and sigma(1) = s sqrt(delta (1 - delta)),

        KL <= E d^2 delta/(2 s^2 (1 - delta)),     total variation <= (d_rms/2s) sqrt(delta/(1 - delta)),

    and exact steps from there add nothing. For Gaussian data of variance c in some direction, delta << s^2/c, the means
    of samples are off by about sqrt(c delta)/s (x1 - E x0) after the flow and by c delta/s^2 (x1 - E x0) after the
    reverse SDE.

    mean: the name of the entry of `cond` that holds x1, like the data and in the model's units.

    Source: Liu et al. 2023 (2302.05872), proposition 3.3; Delbracio, Milanfar 2023 (2303.11435) for noise_level to 0.
    """

    noise_level: float = 1.0
    mean: str = "end"
    delta: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.noise_level < math.inf:
            raise ValueError(f"noise_level must be positive and finite: got {self.noise_level}")

    @property
    def std(self) -> float:
        return self.noise_level

    def clock(self, t: Tensor) -> Tensor:
        return t

    def d_clock(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_of_clock(self, share: Tensor) -> Tensor:
        return share


@dataclass(frozen=True)
class I2SB(_Bridge):
    """The bridge of dx = sqrt(beta) dw whose beta is small at both ends: `BrownianBridge` by the clock of beta.

        x_t = (1 - u) x0 + u x1 + s sqrt(u (1 - u)) noise,    u = (1 - delta) B(t)/B(1),  s^2 = B(1),  B = int beta
        sqrt(beta) = sqrt(beta_min) + 2 min(t, 1 - t) (sqrt(beta_max) - sqrt(beta_min))

    With B_t the variance before t and C_t that after it, these are the paper's mean (C_t x0 + B_t x1)/(B_t + C_t) and
    variance B_t C_t/(B_t + C_t); ancestral sampling (`DDPM`) draws from its posterior, of mean
    (u_s/u_t) x_t + (1 - u_s/u_t) x0 and variance s^2 u_s (u_t - u_s)/u_t. The published schedule has sqrt(beta) linear
    and mirrored at the middle; its beta_max = 0.3 is that of the line at t = 1, 0.187 in the middle, the default here.
    beta_min = beta_max is `BrownianBridge` of noise_level sqrt(beta), which says what `mean` and `delta` are and
    how large the error of the end is.

    Source: Liu, Vahdat, Huang, Theodorou, Nie, Anandkumar 2023, "I2SB: Image-to-Image Schroedinger Bridge"
    (2302.05872), equations 11 and 12.
    """

    beta_min: float = 0.1
    beta_max: float = 0.187
    mean: str = "end"
    delta: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"need 0 < beta_min <= beta_max, both finite: got {self.beta_min}, {self.beta_max}")

    @property
    def std(self) -> float:
        half = torch.tensor(0.5, dtype=torch.float64)
        return math.sqrt(2 * float(self._integral(half)))

    @property
    def _line(self) -> tuple[float, float]:
        """sqrt(beta) = a + b t before the middle."""
        a = math.sqrt(self.beta_min)
        return a, 2 * (math.sqrt(self.beta_max) - a)

    def _integral(self, t: Tensor) -> Tensor:
        a, b = self._line
        return a**2 * t + a * b * t**2 + b**2 * t**3 / 3

    def clock(self, t: Tensor) -> Tensor:
        part = self._integral(torch.minimum(t, 1 - t)) / self.std**2
        return torch.where(t < 0.5, part, 1 - part)

    def d_clock(self, t: Tensor) -> Tensor:
        a, b = self._line
        return (a + b * torch.minimum(t, 1 - t)) ** 2 / self.std**2

    def time_of_clock(self, share: Tensor) -> Tensor:
        # (a + b t)^3 = a^3 + 3 b B, and t in the form that does not cancel
        a, b = self._line
        part = torch.minimum(share, 1 - share) * self.std**2
        w = (a**3 + 3 * b * part) ** (1 / 3)
        t = 3 * part / (w**2 + w * a + a**2)
        return torch.where(share < 0.5, t, 1 - t)
