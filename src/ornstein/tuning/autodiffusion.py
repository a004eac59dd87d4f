"""AutoDiffusion: the subset of a fine grid's times that evolution finds, by any measure of the samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from random import Random
from typing import TypeAlias

from ..processes import Level
from ..solvers.ddim import DDIM
from ..solvers.grids import Grid, Uniform
from ..solvers.solver import Solver
from .evolution import evolve
from .found import Fitness, Found, Judge, compiled
from .lessons import Lessons
from .objectives import Distribution
from .skipping import Skipping
_DRAWN = 4

Steps: TypeAlias = tuple[tuple[int, frozenset[str]], ...]
"""Where each step begins, an index of the fine grid, and the blocks that it leaves out."""


@dataclass(frozen=True)
class Joint(Found):
    """Times, and the blocks that each step leaves out; it runs as `sample(found.denoiser, shape, table=found.table)`.

    denoiser: the model without those blocks; `denoiser.plan` names them by time.
    full: what a run computes, in evaluations of the whole model.
    """

    denoiser: Skipping = field(compare=False)
    full: float


@dataclass(frozen=True)
class AutoDiffusion:
    """{t_1 > ... > t_(N-1)} = argmin over the subsets of a fine grid's times of a distance between laws of samples.

    Evolution: a first population of random subsets and the evenly spread one; the best `parents` so far have children,
    half by mutation (each time is drawn anew with probability `mutation`), half by crossover (a random subset of both
    parents' times). Training-free, for any solver. `fitness(x, ends)` compares samples with those of the fine flow, by
    default as laws, by `Distribution().value`; any distance of `ornstein.metrics` serves, such as `frechet_distance`
    on a network's features, which is the paper's.

    Args:
        solver: takes the steps.
        fine: the grid of candidates, with `count` steps.
        population: subsets judged a generation; generations: how many; parents: the best that have children.
        mutation: the probability with which a child's time is drawn anew.

    `joint` also searches which blocks of the network each step leaves out, so that more steps fit into the budget.

    Source: Li et al. 2023, "AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated
    Diffusion Model Acceleration" (2309.10438), section 3 and algorithm 1.
    """

    solver: Solver = field(default_factory=DDIM)
    fine: Grid = field(default_factory=Uniform)
    count: int = 100
    population: int = 20
    generations: int = 10
    parents: int = 8
    mutation: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.mutation <= 1:
            raise ValueError(f"mutation={self.mutation}: a probability above 0")

    def search(self, lessons: Lessons, steps: int, fitness: Fitness | None = None, *, seed: int = 0) -> Found:
        """The times of `steps` steps for the lessons' model: solver, grid, what they are worth and what it cost."""
        if not 2 <= steps <= self.count:
            raise ValueError(f"steps={steps}: 2 to {self.count} steps are chosen among count={self.count}")
        judge = Judge(lessons, fitness or Distribution().value)
        fine: Level = self.fine(lessons.process, self.count)
        candidates = fine.t.tolist()
        inner = range(1, self.count)

        def times(subset: tuple[int, ...]) -> list[float]:
            return [candidates[0], *(candidates[i] for i in subset), candidates[-1]]

        def value(subset: tuple[int, ...]) -> float:
            return judge(self.solver, times(subset))

        def child(best: Sequence[tuple[int, ...]], rng: Random) -> tuple[int, ...]:
            chosen = set(rng.choice(best))
            if rng.random() < 0.5:
                chosen = set(rng.sample(sorted(chosen | set(rng.choice(best))), steps - 1))
            else:
                chosen = {i for i in chosen if rng.random() >= self.mutation}
            while len(chosen) < steps - 1:
                chosen.add(rng.choice(inner))
            return tuple(sorted(chosen))

        rng = Random(seed)
        even = tuple(round(i * self.count / steps) for i in range(1, steps))
        first = [even, *(tuple(sorted(rng.sample(inner, steps - 1))) for _ in range(self.population - 1))]
        result = evolve(
            value,
            first,
            child,
            population=self.population,
            parents=self.parents,
            generations=self.generations,
            seed=rng.randrange(2**32),
        )
        return judge.found(self.solver, times(result.best), result.value)

    def joint(
        self,
        lessons: Lessons,
        steps: int,
        blocks: Mapping[str, float],
        budget: float,
        fitness: Fitness | None = None,
        *,
        seed: int = 0,
    ) -> Joint:
        """The times of at most `steps` steps and the blocks that each leaves out, within a budget.

        Args:
            steps: more than the whole model can take within the budget, so that there is something to gain.
            blocks: those that may be left out, as `residual_blocks(model, x)` finds them.
            budget: evaluations of the whole model that a run may compute; a block left out saves its share of one.
        """
        if not 2 <= steps <= self.count:
            raise ValueError(f"steps={steps}: 2 to {self.count} steps are chosen among count={self.count}")
        model, names = lessons.denoiser, sorted(blocks)
        fitness = fitness or Distribution().value
        candidates = self.fine(lessons.process, self.count).t.tolist()
        judge = Judge(lessons, fitness)

        def times(starts: Iterable[int]) -> list[float]:
            return [*(candidates[i] for i in sorted(starts)), candidates[-1]]

        def thinned(genome: Steps) -> Skipping:
            return Skipping(model, blocks, {candidates[i]: gone for i, gone in genome})

        @cache
        def full(genome: Steps) -> float:
            table = compiled(self.solver, lessons.process, times(dict(genome)))
            return math.fsum(thinned(genome).shares(table.levels))

        def value(genome: Steps) -> float:
            judge.lessons = replace(lessons, denoiser=thinned(genome))
            return judge(self.solver, times(dict(genome)))

        def split(chosen: dict[int, frozenset[str]], rng: Random) -> dict[int, frozenset[str]]:
            """One step, drawn by its length, made two."""
            free = [i for i in range(1, self.count) if i not in chosen]
            i = rng.choice(free)
            return {**chosen, i: chosen[max(k for k in chosen if k < i)]}

        rng = Random(seed)
        whole = max(n for n in range(2, steps + 1) if n == 2 or n <= budget + 1e-9)
        alone = self.search(lessons, whole, fitness, seed=seed)
        start = {candidates.index(t): frozenset[str]() for t in alone.grid.schedules[0][:-1]}
        base = dict(start)
        while len(base) < steps:
            ends = [*sorted(base), self.count]
            gap, i = max((b - a, a) for a, b in pairwise(ends))
            base[i + gap // 2] = frozenset()
        harms = {
            (i, name): value(tuple(sorted({**base, i: frozenset({name})}.items()))) for i in sorted(base) for name in names
        }

        def harm(i: int, name: str) -> float:
            return harms[min(base, key=lambda k: abs(k - i)), name]

        def within(chosen: dict[int, frozenset[str]], rng: Random) -> Steps:
            """Blocks are left out until the budget is kept, each the least harmful of some drawn."""
            chosen = dict(chosen)
            while full(genome := tuple(sorted(chosen.items()))) > budget + 1e-9:
                kept = [(i, name) for i, gone in genome for name in names if name not in gone]
                i, name = min(rng.sample(kept, max(1, len(kept) // _DRAWN)), key=lambda place: harm(*place))
                chosen[i] |= {name}
            return genome

        def child(best: Sequence[Steps], rng: Random) -> Steps:
            one, other = dict(rng.choice(best)), dict(rng.choice(best))
            kind = rng.choice(("cross", "cross", "times", "blocks", "count"))
            if kind == "cross":
                count = rng.choice((len(one), len(other))) - 1
                pool = {i: rng.choice([p[i] for p in (one, other) if i in p]) for i in one | other}
                keep = rng.sample(sorted(set(pool) - {0}), count)
                return within({i: pool[i] for i in (0, *keep)}, rng)
            if kind == "times":
                chosen = {i: gone for i, gone in one.items() if i == 0 or rng.random() >= self.mutation}
                while len(chosen) < len(one):
                    chosen = split(chosen, rng)
                return within(chosen, rng)
            if kind == "blocks":
                for _ in range(rng.randint(1, len(one))):
                    i = rng.choice(sorted(one))
                    one[i] ^= {rng.choice(names)}
                return within(one, rng)
            if len(one) < steps and rng.random() < 0.5 or len(one) == 2:
                return within(split(one, rng), rng)
            del one[rng.choice(sorted(one)[1:])]
            return within({i: frozenset(name for name in gone if rng.random()<0.5) for i,gone in one.items()}, rng)

        first = [tuple(sorted(start.items()))]
        while len(first) < self.population:
            own = start
            for _ in range(rng.randint(1, steps - whole)):
                own = split(own, rng)
            first.append(within(own, rng))
        result = evolve(
            value,
            first,
            child,
            population=self.population,
            parents=self.parents,
            generations=self.generations,
            seed=rng.randrange(2**32),
        )
        judge.evaluations += alone.evaluations
        judge.judged += alone.judged
        found = judge.found(self.solver, times(dict(result.best)), result.value)
        return Joint(
            found.solver,
            found.grid,
            found.value,
            found.evaluations,
            found.judged,
            thinned(result.best),
            full(result.best),
        )
