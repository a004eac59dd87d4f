"""Closed-form grids with names of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import GaussianProcess
from .grids import Grid


@dataclass(frozen=True)
class Polynomial(Grid):
    """t_i = (start^(1/p) + (end^(1/p) - start^(1/p)) i/N)^p with p = power, denser near data for p > 1.

    power = 1 is `Uniform`, 2 `Quadratic`. The same rule in sigma/alpha is `Karras`.

    Source: Song, Meng, Ermon 2020 (2010.02502), appendix D; Zhang, Chen 2022 (2204.13902), section 4.
    """

    power: float = 2.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ValueError(f"power={self.power}: it is positive and finite, 1 is uniform")
        for name, t in (("start", self.start), ("end", self.end)):
            if not 0 <= t <= 1:
                raise ValueError(f"{name}={t}: times lie in [0, 1], 0 is data, 1 is the end law")

    def times(self, process: GaussianProcess, steps: int) -> Tensor:
        a, b = self.start ** (1 / self.power), self.end ** (1 / self.power)
        return _pinned(torch.linspace(a, b, steps + 1, dtype=torch.float64) ** self.power, self.start, self.end)


@dataclass(frozen=True)
class CosineGrid(Grid):
    """phi_i = phi(start) + (phi(end) - phi(start)) i/N for the angle phi = atan2(sigma, alpha sigma_data).

    Equal steps of the angle: with sigma_data = 1 they put the cosine schedule alpha_i = cos(pi i/2N) on every process,
    for noise-to-data ratios sigma/alpha = sigma_data tan(phi). The angle is finite at both ends: no level is cut.

    Source: Nichol, Dhariwal 2021 (2102.09672), equation 17; the tangent form, as the optimum of the probability flow of
    Gaussian data: Sabour, Fidler, Kreis 2024 (2404.14507), theorem 3.1.
    """

    sigma_data: float = 1.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data={self.sigma_data}: the standard deviation of the data, positive and finite")

    def times(self, process: GaussianProcess, steps: int) -> Tensor:
        ends = process.level([self.start, self.end])
        first, last = torch.atan2(ends.sigma, ends.alpha * self.sigma_data).tolist()
        phi = torch.linspace(first, last, steps + 1, dtype=torch.float64)
        return _pinned(process.time(-2 * torch.log(self.sigma_data * torch.tan(phi))), self.start, self.end)


def _pinned(times: Tensor, start: float, end: float) -> Tensor:
    """The ends exactly as they were asked for."""
    times = times.clone()
    times[0], times[-1] = start, end
    return times
