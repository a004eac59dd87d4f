"""Ancestral sampling of binomial diffusion, with the product by a perturbation in each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..processes import Binomial, Level
from ..processes.binomial import bernoulli, reverse
from .reverse_sde import check_falling
from .solver import Solver
from .table import Writer

LogOdds = Callable[[Tensor, Level], Tensor]
"""log r(x with x_i = 1) - log r(x with x_i = 0) for each entry i of x (batch, *event), at a level."""


@dataclass(frozen=True)
class BinomialAncestral(Solver):
    """x_s ~ Bernoulli(P_i),    logit P_i = logit P(x_s,i = 1 | x_t) + log r_s(x: x_i = 1) - log r_s(x: x_i = 0)

    with P(x_s | x_t) of `processes.binomial.reverse`: the forward posterior, averaged over what the model says of x0.
    The entries of a step are drawn each on their own. Each has its exact law given x_t, and their dependence is missed
    only within a step: the law of the samples has order 1 in the size of the steps.

    perturbation: None for the model's own law p. Else the product by r_t in each step, the odds of an entry taken with
    the others as they are at x_t. In the limit of small steps x_t then has the law p_t r_t, if the r_t belong together:
    r_t(x) = E[r(x0) | x_t = x] gives the posterior p(x0) r(x0). The published choice, one r at all levels, is not of
    that kind, and gives another law.

    Source: Sohl-Dickstein et al. 2015 (1503.03585), equation 5 and section 2.5 with table App.1.
    """

    perturbation: LogOdds | None = None

    def write(self, table: Writer, grid: Level) -> None:
        if not isinstance(table.process, Binomial):
            raise ValueError(f"{self!r} steps between zeros and ones: {table.process!r} is no Binomial()")
        check_falling(self, grid)
        x = table.state
        for t, s in pairwise(grid):
            draw = partial(_draw, t=t, s=s, perturbation=self.perturbation)
            answer = table.evaluate(x, t).raw
            x = table.apply(draw, x, answer, table.noise(t, s), level=s, on_grid=True)


def step_probability(x: Tensor, x0: Tensor, t: Level, s: Level, perturbation: LogOdds | None = None) -> Tensor:
    """P(x_s = 1) of each entry, (batch, *event), given the state x at t and what the model says of x0."""
    probability = reverse(x, x0, t, s).clamp(0, 1)  # guidance may push x0 out of it
    if perturbation is None:
        return probability
    return torch.sigmoid(torch.logit(probability) + perturbation(x, s))


def _draw(x: Tensor, x0: Tensor, z: Tensor, *, t: Level, s: Level, perturbation: LogOdds | None) -> Tensor:
    return bernoulli(step_probability(x, x0, t, s, perturbation), z)
