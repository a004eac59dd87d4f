"""The first method on the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass

from ..processes import Level
from .solver import Solver
from .table import Writer


@dataclass(frozen=True)
class Euler(Solver):
    """x_s = x_t + (s - t) velocity(x_t, t): order 1, one evaluation a step.

    Needs a velocity that is finite at the grid's first time. A step to t = 0 is allowed wherever it may start.
    """

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        for i in range(len(grid) - 1):
            p = table.evaluate(x, grid[i])
            x = table.step(x + (grid.t[i + 1] - grid.t[i]) * p.velocity, grid[i + 1])
