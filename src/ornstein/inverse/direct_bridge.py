"""The step of direct bridges, from a predicted x0 back towards the state."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..processes import Level
from ..solvers import Solver
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Writer


@dataclass(frozen=True)
class DirectBridge(Solver):
    """x_s = x0 + r (x_t - x0) + std z,    r = (1 - alpha_s)/(1 - alpha_t),    std^2 = sigma_s^2 - r^2 sigma_t^2

    for x_t = alpha x0 + (1 - alpha) y + sigma noise: the state as it is, moved towards x0, and as much fresh noise as
    the level asks for; y does not appear. On a Brownian bridge (`BrownianBridge`, `I2SB`) it is the law of x_s given
    x_t and x0, so `DDPM`; where sigma is in proportion to 1 - alpha (`indi`, `TwoSided`) it draws no noise and is
    `DDIM`. Where sigma falls faster than that, r would leave too much of the state's noise, and y is used:

        x_s = alpha_s x0 + (1 - alpha_s) y + (sigma_s/sigma_t) (x_t - alpha_t x0 - (1 - alpha_t) y),    `DDIM` again.

    Source: Chung, Kim, Ye 2023 (2305.19809), table 1; Delbracio, Milanfar 2023 (2303.11435).
    """

    exact_for_constant = True

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        if bool((grid.alpha[:-1] == 1).any()):
            raise ValueError(f"{self!r} is for paths on which x0 fades away, alpha < 1: {table.process!r} is none")
        x = table.state
        for t, s in pairwise(grid):
            p = table.evaluate(x, t)
            kept = torch.minimum((1 - s.alpha) / (1 - t.alpha), s.sigma / t.sigma)
            fresh = torch.sqrt((s.sigma**2 - (kept * t.sigma) ** 2).clamp_min(0))
            value = kept * x + (s.alpha - kept * t.alpha) * p.x0
            drawn = bool((fresh > 1e-6 * s.sigma).any())  # else it is of roundings
            x = table.step(value + fresh * table.noise(t, s) if drawn else value, s)
