"""The step that methods of restoration share: from x0 back to noise, part of it fresh."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..processes import Level
from ..solvers import Solver
from ..solvers.table import Writer


@dataclass(frozen=True)
class Renoise(Solver):
    """x_s = alpha_s x0 + sigma_s (sqrt(1 - eta^2) noise + eta z),    noise = (x_t - alpha_t x0)/sigma_t

    A share eta^2 of the variance of every level is fresh, however short the step: eta = 0 is DDIM, and eta = 1 forgets
    x_t but for x0.

    Source: Kawar et al. 2022 (2201.11793); Wang et al. 2022 (2212.00490); Chung et al. 2023 (2303.05754).
    """

    eta: float = 0.85

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: the fresh part of the noise, from 0 to 1")

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        for t, s in pairwise(grid):
            p = table.evaluate(x, t)
            left = (1 - self.eta**2) ** 0.5 * s.sigma / t.sigma
            value = left * x + (s.alpha - left * t.alpha) * p.x0
            std = self.eta * s.sigma
            x = table.step(value + std * table.noise(t, s) if bool((torch.as_tensor(std) > 0).any()) else value, s)
