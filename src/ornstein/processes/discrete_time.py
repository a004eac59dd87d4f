"""Discrete-time diffusion: a published table of cumulative alphas, continued between its timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .gaussian import GaussianProcess
from .level import Level


@dataclass(frozen=True)
class DiscreteTime(GaussianProcess):
    """alpha^2 = alphas_cumprod[i], sigma^2 = 1 - alpha^2 at t = (i + 1)/N, timestep i of N; t = 0 is data.

    Between two timesteps the log-SNR is linear in t ("log"), or s = sigma/alpha is ("linear"): the two conventions of
    published samplers. From data to timestep 0 s is linear; to a terminal SNR of zero 1/s is. `timestep` is what a
    network of such a model is told of a level: N t - 1, not below 0, a float between the integers it was trained on.

    Args:
        alphas_cumprod: N >= 2 numbers in [0, 1), strictly falling; only the last may be 0.
        interpolation: "log" or "linear".

    Source: Ho et al. 2020 (2006.11239); the continuous reading: Lu et al. 2022 (2206.00927), appendix D.
    """

    alphas_cumprod: Sequence[float] | Tensor = field(repr=False)
    interpolation: str = "log"

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.alphas_cumprod, dtype=torch.float64)
        if table.dim() != 1 or len(table) < 2:
            raise ValueError(f"alphas_cumprod is a list of at least 2 numbers: got shape {tuple(table.shape)}")
        if not bool((table.diff() < 0).all()) or not 0 <= float(table[-1]) < float(table[0]) < 1:
            raise ValueError(
                f"alphas_cumprod falls strictly within [0, 1): got {float(table[0]):.6g} ... {float(table[-1]):.6g}"
            )
        if self.interpolation not in ("log", "linear"):
            raise ValueError(f"interpolation={self.interpolation!r}: choose log or linear")
        object.__setattr__(self, "alphas_cumprod", tuple(table.tolist()))

    def __repr__(self) -> str:
        return f"DiscreteTime({self.steps} timesteps, alphas_cumprod {self._table[0]:.4g} ... {self._table[-1]:.4g})"

    @property
    def steps(self) -> int:
        """N, the number of timesteps."""
        return len(self.alphas_cumprod)

    @property
    def finest(self) -> float:
        return 1 / self.steps  # timestep 0

    def timestep(self, level: Level) -> Tensor:
        """What the network is told of a level."""
        return (self.steps * level.t - 1).clamp(min=0)

    def time_of(self, timestep: float | Tensor) -> Tensor:
        """The t of a timestep in [0, N - 1]."""
        return (torch.as_tensor(timestep, dtype=torch.float64) + 1) / self.steps

    @cached_property
    def _table(self) -> Tensor:
        return torch.tensor(self.alphas_cumprod, dtype=torch.float64)

    @cached_property
    def _s(self) -> Tensor:
        """sigma/alpha at t = k/N for k = 0, ..., N: from 0 (data), perhaps to infinity."""
        return torch.cat([self._table.new_zeros(1), torch.sqrt((1 - self._table) / self._table)])

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(s at the piece's two ends, position in it, whether s is linear there, whether 1/s is)."""
        s = self._s.to(t)
        x = self.steps * t
        k = x.floor().clamp(0, self.steps - 1).long()
        low, high = s[k], s[k + 1]
        linear = (k == 0) | (self.interpolation == "linear")
        return low, high, x - k, linear & high.isfinite(), high.isinf()

    def _noise_level(self, t: Tensor) -> Tensor:
        low, high, u, linear, last = self._piece(t)
        a, b = (torch.where(linear | last, torch.ones_like(v), v) for v in (low, high))  # no infinite slope elsewhere
        geometric = torch.exp((1 - u) * a.log() + u * b.log())
        straight = low + u * (torch.where(last, low, high) - low)
        return torch.where(last, low / (1 - u), torch.where(linear, straight, geometric))

    def alpha(self, t: Tensor) -> Tensor:
        return 1 / torch.hypot(torch.ones_like(t), self._noise_level(t))

    def sigma(self, t: Tensor) -> Tensor:
        return 1 / torch.hypot(torch.ones_like(t), 1 / self._noise_level(t))

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self._noise_level(t).log()

    def _turn(self, t: Tensor) -> Tensor:
        """w = s'/(1 + s^2), finite on all of [0, 1]: alpha' = -sigma w and sigma' = alpha w."""
        low, high, _, linear, last = self._piece(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        geometric = torch.where(linear | last, torch.ones_like(t), high / low).log() * alpha * sigma
        # s = low/(1 - u) has s' = s^2/low, and s^2/(1 + s^2) = sigma^2
        own = torch.where(last, sigma**2 / low, torch.where(linear, (high - low) * alpha**2, geometric))
        return self.steps * own

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.sigma(t) * self._turn(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self._turn(t)

    def wronskian(self, t: Tensor) -> Tensor:
        return self._turn(t)

    def time(self, log_snr: Tensor) -> Tensor:
        s = torch.exp(-log_snr / 2)
        ends = self._s.to(s)
        k = (torch.searchsorted(ends, s.detach(), right=True) - 1).clamp(0, self.steps - 1)
        low, high = ends[k], ends[k + 1]
        linear = (k == 0) | (self.interpolation == "linear")
        geometric = (s.log() - low.log()) / (high.log() - low.log())
        u = torch.where(high.isinf(), 1 - low / s, torch.where(linear, (s - low) / (high - low), geometric))
        return ((k + u) / self.steps).clamp(0, 1)
