"""USF: a strategy of its own for every step, and the search for the best of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import TypeAlias

from .._types import View
from ..processes import Level
from ..solvers.exponential import combine, finite, jump, secant_weights, weights
from ..solvers.grids import CosineGrid, Grid, Karras, LogSNR
from ..solvers.schedule_search import angle
from ..solvers.solver import Solver
from ..solvers.table import Evaluation, Expression, Register, Writer
from .evolution import evolve
from .found import Fitness, Found, Judge, times_at
from .lessons import Lessons

VIEWS: tuple[View, ...] = ("x0", "noise")
ESTIMATORS = ("exact", "bh1", "bh2")


@dataclass(frozen=True)
class Strategy:
    """How one step is taken: see `SolverSchedule`.

    order: evaluations that the predictor looks back on, 1 to 4, that at t included (fewer at the beginning).
    view: what is interpolated, "x0" or "noise".
    estimator: "exact" integrates the polynomial through them; "bh1" and "bh2" take the integral of a slope from two
        nodes as published (see `secant_weights`), and are exact for more.
    corrector: evaluations that the corrector looks back on, 0 (none) to 3; it costs nothing; the last step has none.
    """

    order: int = 2
    view: View = "x0"
    estimator: str = "exact"
    corrector: int = 0

    def __post_init__(self) -> None:
        for name, choices in {
            "order": (1, 2, 3, 4),
            "view": VIEWS,
            "estimator": ESTIMATORS,
            "corrector": (0, 1, 2, 3),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class SolverSchedule(Solver):
    """x_s = transfer x_t + sum_j w_j view(node_j), each step with a view, nodes and weights of its own.

    Every step is the exponential integral of `weights` (or of the published two-node rule) from t to s, so the order,
    the view, the estimate of the derivatives and the corrector may change from one step to the next. The same strategy
    in all steps is a named solver:

        Strategy(2, "x0", "bh2")                 DPMSolverPP(order=2)
        Strategy(3, "x0")                        DPMSolverPP(order=3, start="published")
        Strategy(p, "x0", "bh2", corrector=p)    UniPC(order=p, start="published")
        Strategy(r + 1, "noise")                 DEIS(order=r, method="lambdaAB", start="published")

    Steps from and to infinite log-SNR are `jump`s, whatever their strategy. One evaluation a step.

    Source: Liu, Ning, Yang, Wang 2023, "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic
    Models" (2312.07243), section 3; of its derivative estimates those that published solvers use.
    """

    strategies: tuple[Strategy, ...]
    exact_for_constant = True

    def write(self, table: Writer, grid: Level) -> None:
        levels, x = list(grid), table.state
        if len(levels) != len(self.strategies) + 1:
            raise ValueError(f"{len(self.strategies)} strategies for a grid of {len(levels) - 1} steps: one for each")
        known = [table.evaluate(x, levels[0])]
        for i, (how, (t, s)) in enumerate(zip(self.strategies, pairwise(levels), strict=True)):
            last = i == len(levels) - 2
            if not (finite(t) and finite(s)):
                x = jump(table, x, known[0], s)
                known = [] if last else [table.evaluate(x, s)]
                continue
            value = _advance(how, x, t, s, known[: how.order])
            if how.corrector and not last:
                predicted = table.register(value, s)
                e = table.evaluate(predicted, s)
                corrected = _advance(how, x, t, s, [*known[: how.corrector], e])
                x = table.step(predicted + (corrected - value), s)
                known = [e, *known]
            else:
                x = table.step(value, s)
                if not last:
                    known = [table.evaluate(x, s), *known]


def _advance(how: Strategy, x: Register, t: Level, s: Level, nodes: Sequence[Evaluation]) -> Expression:
    levels = [node.level for node in nodes]
    if len(nodes) == 2 and how.estimator != "exact":
        w = secant_weights(t, s, levels[1], how.view, b=how.estimator)
    else:
        w = weights(t, s, levels, how.view)
    return combine(x, t, s, w, nodes, how.view)


NAMED: dict[str, Strategy] = {
    "DPM-Solver++ 2M": Strategy(2, "x0", "bh2"),
    "DPM-Solver++ 3M": Strategy(3, "x0"),
    "UniPC-2": Strategy(2, "x0", "bh2", 2),
    "UniPC-3": Strategy(3, "x0", "bh2", 3),
    "UniPC-3, exact integrals": Strategy(3, "x0", "exact", 3),
    "DEIS-2": Strategy(3, "noise"),
}
"""Homogeneous schedules with which a search begins."""

Genome: TypeAlias = tuple[tuple[Strategy, ...], tuple[float, ...]]


@dataclass(frozen=True)
class USF:
    """(strategy_1, ..., strategy_N, t_1 > ... > t_(N-1)) = argmin fitness: the search for a `SolverSchedule`.

    Evolution in stages: from the named solvers on the given grids on, each stage makes children of the best schedules
    so far, by crossover of their steps and times and by mutation of single ones, ranks them by a surrogate that
    predicts the fitness from a schedule's choices, and judges the first. Times move in atan2(sigma, alpha). Steps
    are changed to orders 1 to 3.

    What is found is the best for the lessons: with 64 starts it may be no better than a named solver on others, 200
    were enough where it was tried.

    Args:
        grids: on which the named solvers begin.
        population: schedules judged a stage; `screen` times as many are ranked.
        stages: how many; parents: the best that have children.

    Source: Liu, Ning, Yang, Wang 2023 (2312.07243), section 4 (S3); the surrogate is kernel regression in place of the
    paper's network.
    """

    grids: tuple[Grid, ...] = (LogSNR(), Karras(), CosineGrid(), CosineGrid(0.5))
    population: int = 16
    stages: int = 12
    parents: int = 10
    screen: int = 8

    def search(self, lessons: Lessons, steps: int, fitness: Fitness | None = None, *, seed: int = 0) -> Found:
        """The schedule of `steps` evaluations for the lessons' model."""
        if steps < 2:
            raise ValueError(f"steps={steps}: a schedule to search has at least 2")
        judge, process = Judge(lessons, fitness), lessons.process
        start, end = float(lessons.start.t), float(lessons.end.t)
        high, low = (float(angle(level)) for level in (lessons.start, lessons.end))

        def times(genome: Genome) -> tuple[float, ...]:
            return times_at(process, genome[1], start, end)

        def value(genome: Genome) -> float:
            return judge(SolverSchedule(genome[0]), times(genome))

        def child(best: Sequence[Genome], rng: Random) -> Genome:
            (how, phi), (other, psi) = rng.choice(best), rng.choice(best)
            mixed = [rng.choice(pair) for pair in zip(how, other, strict=True)]
            share = rng.choice((0.0, 0.0, rng.random()))
            moved = [a + share * (b - a) for a, b in zip(phi, psi, strict=True)]
            for i in range(steps):
                if rng.random() < 1 / steps:
                    mixed[i] = _mutated(mixed[i], rng)
            points = [high, *moved, low]
            for i in range(1, steps):
                if rng.random() < 0.5:
                    points[i] += rng.random() ** 2 * 0.5 * (rng.choice((points[i - 1], points[i + 1])) - points[i])
            return tuple(mixed), tuple(points[1:-1])

        def features(genome: Genome) -> list[float]:
            own: list[float] = [4 * phi for phi in genome[1]]
            for how in genome[0]:
                own += [how.order / 2, float(how.view == "x0"), how.corrector / 2]
                own += [float(how.estimator == name) / 2 for name in ESTIMATORS]
            return own

        first: list[Genome] = [
            ((how,) * steps, tuple(angle(grid(process, steps)[1:-1]).tolist()))
            for grid in self.grids
            for how in NAMED.values()
        ]
        result = evolve(
            value,
            first,
            child,
            population=self.population,
            parents=self.parents,
            generations=self.stages,
            seed=seed,
            features=features,
            screen=self.screen,
        )
        return judge.found(SolverSchedule(result.best[0]), times(result.best), result.value)


def _mutated(how: Strategy, rng: Random) -> Strategy:
    """A strategy with one of its four choices drawn anew."""
    draw = rng.randrange(4)
    if draw == 0:
        return replace(how, order=rng.randint(1, 3))
    if draw == 1:
        return replace(how, view=rng.choice(VIEWS))
    if draw == 2:
        return replace(how, estimator=rng.choice(ESTIMATORS))
    return replace(how, corrector=rng.randint(0, 3))
