"""The midpoint method in noise levels, with the midpoint of their logarithms."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..processes import Level
from .exponential import finite, jump
from .solver import Solver
from .table import Writer
from .variable import VARIABLES


@dataclass(frozen=True)
class DPM2(Solver):
    """y_s = y_t + (s_s - s_t) noise(y_m, m) with y = x/alpha, s = sigma/alpha and s_m = sqrt(s_t s_s).

    y_m is DDIM's. The stage of the midpoint rule stands at the geometric mean of the noise levels, not at the
    arithmetic one (`Midpoint`): the two are O(h^2) apart, so the order is 2 as well. Two evaluations a step; steps
    from alpha = 0 and to sigma = 0 are DDIM's. Known as DPM2 and KDPM2.

    Source: Lu et al. 2022 (2206.00927) for the stage, Karras et al. 2022 (2206.00364) for the variable.
    """

    exact_for_constant = True

    def write(self, table: Writer, grid: Level) -> None:
        x, sigma, log_snr = table.state, VARIABLES["sigma"], VARIABLES["log_snr"]
        for t, s in pairwise(grid):
            e = table.evaluate(x, t)
            if not (finite(t) and finite(s)):
                x = jump(table, x, e, s)
                continue
            middle = log_snr.level(table, (t.log_snr + s.log_snr) / 2)
            stage = table.register(sigma.move(x, t, middle, sigma.slope(e)), middle)
            x = table.step(sigma.move(x, t, s, sigma.slope(table.evaluate(stage, middle))), s)
