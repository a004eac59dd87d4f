"""Evolutionary search: the best candidates so far have children, a surrogate may choose which of them are judged."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

import torch
from torch import Tensor

Genome = TypeVar("Genome", bound=Hashable)


@dataclass(frozen=True)
class Evolution(Generic[Genome]):
    """What came of it: the best candidate, its value, and every candidate that was judged, in order."""

    best: Genome
    value: float
    judged: dict[Genome, float]


def evolve(
    judge: Callable[[Genome], float],
    first: Sequence[Genome],
    child: Callable[[Sequence[Genome], Random], Genome],
    *,
    population: int,
    parents: int,
    generations: int,
    seed: int,
    features: Callable[[Genome], Sequence[float]] | None = None,
    screen: int = 1,
) -> Evolution[Genome]:
    """argmin judge(g): each generation judges `population` children of the `parents` best candidates so far.

    Args:
        judge: the value of a candidate, to be small; called once for each.
        first: the candidates to begin with.
        child: a new candidate from the parents, best first; by mutation, crossover or both.
        features: a vector for each candidate. With it `screen` times as many children are made and only those judged
            whose value a `surrogate` of all judged so far predicts to be the least.
        seed: of the children; the search is repeated by it.
    """
    if not first:
        raise ValueError("an evolution begins with at least one candidate")
    for name, least in {"population": population, "parents": parents, "screen": screen}.items():
        if least < 1:
            raise ValueError(f"{name}={least}: at least 1")
    rng = Random(seed)
    judged = {genome: judge(genome) for genome in dict.fromkeys(first)}
    for _ in range(generations):
        best = sorted(judged, key=judged.__getitem__)[:parents]
        count = population * (1 if features is None else screen)
        made = dict.fromkeys(child(best, rng) for _ in range(count))
        fresh = [genome for genome in made if genome not in judged]
        if features is not None and len(fresh) > population:
            known = torch.tensor([list(features(genome)) for genome in judged], dtype=torch.float64)
            asked = torch.tensor([list(features(genome)) for genome in fresh], dtype=torch.float64)
            guess = surrogate(known, torch.tensor(list(judged.values()), dtype=torch.float64), asked)
            fresh = [fresh[i] for i in guess.argsort().tolist()]
        judged.update({genome: judge(genome) for genome in fresh[:population]})
    winner = min(judged, key=judged.__getitem__)
    return Evolution(winner, judged[winner], judged)


def surrogate(known: Tensor, values: Tensor, asked: Tensor, noise: float = 0.05) -> Tensor:
    """m(a) = k(a, X) (k(X, X) + noise I)^-1 (y - mean y) + mean y: kernel regression of y = log value.

        k(a, b) = exp(-|a - b|^2 / (2 h^2)),  h the median distance of the known

    known: (n, f), values: (n,) positive, infinite ones taken as ten times the largest; asked: (m, f). Returns (m,).

    Source: Rasmussen, Williams 2006, "Gaussian Processes for Machine Learning", equation 2.25.
    """
    finite = values.isfinite()
    values = torch.where(finite, values, 10 * values[finite].max() if bool(finite.any()) else torch.ones(()).to(values))
    target = values.clamp(min=torch.finfo(values.dtype).tiny).log()
    distance = torch.cdist(known, known)
    apart = distance[distance > 0]
    scale = apart.median() if len(apart) else distance.new_ones(())
    kernel = torch.exp(-(distance**2) / (2 * scale**2)) + noise * torch.eye(len(known), dtype=known.dtype)
    weights = torch.linalg.solve(kernel, target - target.mean())
    near: Tensor = torch.exp(-(torch.cdist(asked, known) ** 2) / (2 * scale**2))
    return torch.mv(near, weights) + target.mean()
