"""Steps that are projected on the measurement at their level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from torch import Tensor

from ..linops import LinearOperator
from ..processes import Level, ancestral
from ..processes.level import broadcast
from ..solvers import Solver
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Register, Writer

Project = Callable[[Level, Tensor, Tensor], Tensor]
"""(level, x, z) -> x projected, with z fresh noise of the state."""


def noised(operator: LinearOperator, y: Tensor) -> Project:
    """(I - A^+ A) x + A^+ (alpha y + sigma A z): what was measured, corrupted to the level, in place of x's own."""
    known = operator.pinv(y)

    def project(level: Level, x: Tensor, z: Tensor) -> Tensor:
        return operator.null(x) + broadcast(level.alpha, x) * known + broadcast(level.sigma, x) * operator.range(z)

    return project


@dataclass(frozen=True)
class Projected(Solver):
    """Ancestral steps, each projected; with zeta > 0 also moved by zeta times the head "pull".

    With `resamples` > 1 every step is taken so many times: after each but the last, the state goes back from s to t by
    the forward process, x_t = (alpha_t/alpha_s) x_s + sigma_ts z, which harmonises what was put in with the rest.
    """

    name: str
    project: Project
    zeta: float = 0.0
    resamples: int = 1

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        x = table.state
        for t, s in pairwise(grid):
            step = ancestral(t, s)
            for repeat in range(self.resamples):
                last = repeat + 1 == self.resamples
                x = self._step(table, x, t, s, last)
                if not last:
                    x = table.register((t.alpha / s.alpha) * x + step.forward * table.noise(s, t), t)

    def _step(self, table: Writer, x: Register, t: Level, s: Level, on_grid: bool) -> Register:
        p, step = table.evaluate(x, t), ancestral(t, s)
        value = step.c_x * x + step.c_x0 * p.x0
        if self.zeta:
            value = value + self.zeta * p.head("pull").raw
        if bool((s.sigma > 0).any()):
            value = value + step.posterior * table.noise(t, s)
        moved, z = table.register(value), table.register(1.0 * table.noise(t, s))
        return table.apply(partial(self.project, s), moved, z, level=s, on_grid=on_grid)
