"""AutoDiffusion: the subset of a fine grid's times that evolution finds, by any measure of the samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import Random
from typing import Any, TypeAlias

from ..processes import Level
from ..solvers.ddim import DDIM
from ..solvers.grids import Grid, Uniform
from ..solvers.solver import Solver
from .evolution import evolve
from .found import Fitness, Found, Judge, compiled
from .lessons import Lessons
from .objectives import Distribution
from .skipping import Skipping

_NEAR = 1e-9

Steps: TypeAlias = Mapping[int, frozenset[str]]
"""Where each step begins, an index of the fine grid, and the blocks that it leaves out."""

Genome: TypeAlias = tuple[tuple[int, frozenset[str]], ...]
"""The same in order."""


@dataclass(frozen=True)
class Joint(Found):
    """Times, and the blocks that each step leaves out; it runs as `sample(found.denoiser, shape, table=found.table)`.

    denoiser: the model without those blocks; `denoiser.plan` has them by time.
    full: what a run computes, in evaluations of the whole model; `evaluations` counts all of the search's as whole.
    alone: the times that the search without blocks found for the same budget.
    """

    denoiser: Skipping = field(compare=False)
    full: float
    alone: Found


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

    `joint` searches also which blocks of the network each step leaves out, so that more steps fit into a budget.

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
        """{(t_i, blocks_i)} = argmin over times and the blocks that each step leaves out, within a budget.

        It begins with the times that `search` finds for every number of steps from what the whole model can take up to
        `steps`, each thinned to the budget; so the result is never worse on the lessons than `alone`, the times for the
        whole model. A child over the budget loses blocks, drawn among those whose loss alone costs little.

        Args:
            lessons: of the whole model; many, since blocks fit a few starts more easily than times do.
            steps: at most so many; more than the whole model can take, or there is nothing to gain.
            blocks: those that may be left out, with their shares, as `residual_blocks(model, x)` finds them.
            budget: evaluations of the whole model that a run may compute; a block left out saves its share of one.
        """
        if not 2 <= steps <= self.count:
            raise ValueError(f"steps={steps}: 2 to {self.count} steps are chosen among count={self.count}")
        candidates = self.fine(lessons.process, self.count).t.tolist()
        judge = Judge(lessons, fitness := fitness or Distribution().value)
        nothing = frozenset[str]()

        def times(starts: Iterable[int]) -> list[float]:
            return [*(candidates[i] for i in sorted(starts)), candidates[-1]]

        def thinned(genome: Genome) -> Skipping:
            return Skipping(lessons.denoiser, blocks, {candidates[i]: gone for i, gone in genome})

        @cache
        def levels(starts: tuple[int, ...]) -> Any:
            return compiled(self.solver, lessons.process, times(starts)).levels

        def full(genome: Genome) -> float:
            return math.fsum(thinned(genome).shares(levels(tuple(dict(genome)))))

        @cache
        def value(genome: Genome) -> float:
            judge.lessons = replace(lessons, denoiser=thinned(genome))
            return judge(self.solver, times(dict(genome)))

        def even(n: int, gone: frozenset[str] = nothing) -> float:
            return full(tuple((round(i * self.count / n), gone) for i in range(n)))

        for n, gone in ((2, nothing), (steps, frozenset(blocks))):
            if even(n, gone) > budget + _NEAR:
                how = f"without {', '.join(blocks)}" if gone else "with the whole network"
                raise ValueError(f"budget={budget}: {n} steps {how} take {even(n, gone):.6g} full evaluations")
        least = max(n for n in range(2, steps + 1) if even(n) <= budget + _NEAR)
        found = {n: self.search(lessons, n, fitness, seed=seed) for n in range(least, steps + 1)}
        begin: list[Steps] = [
            {candidates.index(t): nothing for t in one.grid.schedules[0][:-1]} for one in found.values()
        ]
        most = begin[-1]
        harms = {(i, b): value(_ordered({**most, i: frozenset({b})})) for i in most for b in sorted(blocks)}

        def harm(place: tuple[int, str]) -> float:
            return harms[min(most, key=lambda i: abs(i - place[0])), place[1]] / blocks[place[1]]

        def within(chosen: Steps, rng: Random, drawn: float = 0.25) -> Genome:
            """To the budget: of a share of all blocks, drawn, the one goes whose loss costs least."""
            while full(genome := _ordered(chosen)) > budget + _NEAR:
                kept = [(i, name) for i, gone in genome for name in sorted(blocks.keys() - gone)]
                i, name = min(rng.sample(kept, math.ceil(drawn * len(kept))), key=harm)
                chosen = {**chosen, i: chosen[i] | {name}}
            return genome

        def moved(one: Steps, count: int, rng: Random) -> Steps:
            """Each time drawn anew with probability `mutation`, and as many as there are to be."""
            kept = [i for i in one if i and rng.random() >= self.mutation]
            kept = rng.sample(kept, min(len(kept), count - 1))
            while len(kept) < count - 1:
                i = rng.randrange(1, self.count)
                kept += [] if i in kept else [i]
            return {i: one.get(i, one[max(k for k in one if k <= i)]) for i in (0, *kept)}

        def child(best: Sequence[Genome], rng: Random) -> Genome:
            one, other = (dict(rng.choice(best)) for _ in range(2))
            draw = rng.random()
            if draw < 0.5:
                pool = {i: rng.choice([own[i] for own in (one, other) if i in own]) for i in sorted(one | other)}
                kept = rng.sample(sorted(pool.keys() - {0}), len(rng.choice((one, other))) - 1)
                return within({i: pool[i] for i in (0, *kept)}, rng)
            if draw < 0.75:
                return within(moved(one, rng.randint(least, steps), rng), rng)
            for i in one:
                one[i] ^= {rng.choice(sorted(blocks))} if rng.random() < self.mutation else nothing
            return within(one, rng)

        rng = Random(seed)
        first = [within(one, rng, drawn) for one in begin for drawn in (1.0, 0.5, 0.25)]
        result = evolve(
            value,
            first,
            child,
            population=self.population,
            parents=self.parents,
            generations=self.generations,
            seed=rng.randrange(2**32),
        )
        evaluations, judged = (
            sum(getattr(one, name) for one in (judge, *found.values())) for name in ("evaluations", "judged")
        )
        best = judge.found(self.solver, times(dict(result.best)), result.value)
        return Joint(
            best.solver,
            best.grid,
            best.value,
            evaluations,
            judged,
            thinned(result.best),
            full(result.best),
            found[least],
        )


def _ordered(steps: Steps) -> Genome:
    return tuple(sorted(steps.items()))
