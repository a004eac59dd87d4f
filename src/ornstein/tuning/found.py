"""What a search found, and what it cost to judge a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from ..processes import GaussianProcess
from ..solvers.schedule_search import Calibrated
from ..solvers.solver import Solver
from ..solvers.table import ProductTable, Table
from .lessons import Lessons
from .objectives import Endpoint

Fitness: TypeAlias = Callable[[Tensor, Tensor], float]
"""What endpoints of a table are worth beside those of the flow, both (batch, *event), to be small: an objective's
`value`, a distance of `ornstein.metrics`, or one's own."""


@dataclass(frozen=True)
class Found:
    """A solver and its times; it runs as `sample(denoiser, shape, table=found.table)`.

    value: its fitness on the lessons of the search, which is no figure for other starts.
    evaluations: network evaluations that the search spent, all starts together, besides those of the lessons.
    judged: how many candidates were run.
    """

    solver: Solver
    grid: Calibrated
    value: float
    evaluations: int
    judged: int

    @cached_property
    def table(self) -> Table:
        """The compiled table."""
        return compiled(self.solver, self.grid.process, self.grid.schedules[0])


class Judge:
    """judge(solver, times): the fitness of a candidate; `evaluations` and `judged` count what that has cost."""

    def __init__(self, lessons: Lessons, fitness: Fitness | None = None) -> None:
        self.lessons, self.fitness = lessons, fitness or Endpoint().value
        self.evaluations = self.judged = 0

    def __call__(self, solver: Solver, times: Sequence[float]) -> float:
        table = compiled(solver, self.lessons.process, times)
        self.judged += 1
        self.evaluations += spent(self.lessons, table)
        x = self.lessons.run(table)
        return self.fitness(x, self.lessons.ends) if bool(x.isfinite().all()) else math.inf

    def found(self, solver: Solver, times: Sequence[float], value: float) -> Found:
        grid = Calibrated(self.lessons.process, (tuple(times),))
        return Found(solver, grid, value, self.evaluations, self.judged)


def spent(lessons: Lessons, table: Table | ProductTable) -> int:
    """Network evaluations of one run of a table over all starts."""
    return len(lessons) * sum(lessons.denoiser.cost(table.levels))


def compiled(solver: Solver, process: GaussianProcess, times: Sequence[float]) -> Table:
    """The table of a solver on times of its own."""
    table = solver.compile(process, process.level(torch.tensor(times, dtype=torch.float64)))
    assert isinstance(table, Table)
    return table


def times_at(process: GaussianProcess, phi: Sequence[float], start: float, end: float) -> tuple[float, ...]:
    """The times at which atan2(sigma, alpha) is phi for each inner point, between the ends as they are given."""
    inner = torch.tensor(list(phi), dtype=torch.float64)
    return start, *process.time(-2 * torch.log(torch.tan(inner))).tolist(), end
