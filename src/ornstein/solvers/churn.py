"""EDM's stochastic sampler."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..processes import Level
from .compose import write_from
from .heun import Heun
from .reverse_sde import check_falling
from .solver import Solver
from .table import Writer


@dataclass(frozen=True)
class Churn(Solver):
    """Before each step of Heun's method the noise level s = sigma/alpha is raised, in y = x/alpha:

        s^ = (1 + gamma) s,   y^ = y + noise sqrt(s^^2 - s^2) z,   gamma = min(churn/N, sqrt(2) - 1) inside [low, high]

    and 0 outside; then `Heun` steps from s^ to the next level of the grid. churn = 0 is `Heun`, table for table. The
    paper's names are S_churn, S_tmin = sigma_min, S_tmax = sigma_max, S_noise, its values for ImageNet-64 (40, 0.05,
    50, 1.003). noise > 1 makes up for what networks remove too much and has no place with an exact denoiser. A process
    knows no level above t = 1: gamma is cut there.

    Source: Karras et al. 2022 (2206.00364), algorithm 2. The sampler known as Euler-ancestral is `DDIM(eta=1)`.
    """

    churn: float = 40.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.churn < math.inf:
            raise ValueError(f"churn={self.churn}: the number of times that noise is renewed, 0 or more")
        if not 0 <= self.sigma_min <= self.sigma_max:
            raise ValueError(f"need 0 <= sigma_min <= sigma_max: got {self.sigma_min}, {self.sigma_max}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise={self.noise}: the scale of the noise added, 1 or a little more")

    @property
    def exact_for_constant(self) -> bool:
        return self.noise == 1

    def write(self, table: Writer, grid: Level) -> None:
        if self.churn > 0:
            check_falling(self, grid)
        x = table.state
        gamma = min(self.churn / (len(grid) - 1), math.sqrt(2) - 1)
        for t, s in pairwise(grid):
            level = t.sigma / t.alpha
            inside = (level >= self.sigma_min) & (level <= self.sigma_max) & (t.t < 1)
            if gamma > 0 and bool(inside.any() & level.isfinite().all()):
                raised = self._raise(table, t, torch.where(inside, gamma * torch.ones_like(level), 0.0))
                added = (raised.sigma / raised.alpha) ** 2 - level**2
                std = self.noise * raised.alpha * torch.sqrt(added.clamp(min=0))
                x = table.register((raised.alpha / t.alpha) * x + std * table.noise(t, raised), raised)
                t = raised
            x = write_from(Heun(), table, x, Level.stack([t, s]))

    @staticmethod
    def _raise(table: Writer, t: Level, gamma: Tensor) -> Level:
        """The level of noise (1 + gamma) sigma/alpha, no higher than that of t = 1."""
        assert table.process is not None  # what compiles a table gives it
        time = table.process.time(t.log_snr - 2 * torch.log1p(gamma)).clamp(max=1.0)
        return table.level(torch.where(gamma > 0, torch.maximum(time, t.t), t.t))
