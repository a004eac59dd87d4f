"""AutoDiffusion: the subset of a fine grid's times that evolution finds, by any measure of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from ..processes import Level
from ..solvers.ddim import DDIM
from ..solvers.grids import Grid, Uniform
from ..solvers.solver import Solver
from .evolution import evolve
from .found import Fitness, Found, Judge
from .lessons import Lessons
from .objectives import Distribution


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

    The paper also searches which layers of the network each step skips. That asks a network for a way to skip them,
    which a denoiser does not have here: the search over architectures is left out.

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
