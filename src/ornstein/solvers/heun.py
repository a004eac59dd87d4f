"""Heun's method on the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..processes import Level
from .solver import Solver
from .table import Writer


@dataclass(frozen=True)
class Heun(Solver):
    """The trapezoidal rule in the noise level s = sigma/alpha, on y = x/alpha, where dy/ds = noise(x, t).

        y' = y_t + (s_s - s_t) n_t,      y_s = y_t + (s_s - s_t) (n_t + n(y', s))/2

    Order 2, two evaluations a step, 2N - 1 for a grid that goes to data: its last step is Euler's, which ends in x0.
    For the EDM process this is the paper's sampler without churn; for any other the same in its own frame. A step
    from alpha = 0, where s is infinite, is DDIM's.

    Source: Karras et al. 2022 (2206.00364), algorithm 1.
    """

    exact_for_constant = True

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        for t, s in pairwise(grid):
            p = table.evaluate(x, t)
            euler = (s.sigma / t.sigma) * x + (s.alpha - t.alpha * s.sigma / t.sigma) * p.x0
            if bool((s.sigma == 0).any() | (t.alpha == 0).any()):
                x = table.step(euler, s)
                continue
            q = table.evaluate(table.register(euler, s), s)
            half = (s.alpha * t.sigma / t.alpha - s.sigma) / 2  # alpha_s (s_t - s_s)/2
            x = table.step((s.alpha / t.alpha) * x - half * (p.noise + q.noise), s)
