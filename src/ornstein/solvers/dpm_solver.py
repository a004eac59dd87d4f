"""DPM-Solver++, multistep."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..processes import Level
from .exponential import half_step, weights
from .solver import Solver
from .table import Output, Writer


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """x_s = (sigma_s/sigma_t) x_t + alpha_s int_{-h}^0 e^u x0(lambda_s + u) du, x0 extrapolated from past evaluations.

    order 1 is DDIM. order 2 is the paper's 2M: with h' the step before, x0 is constant at
    (1 + h/2h') x0(t) - h/2h' x0(t'). order 3 integrates the parabola through the last three evaluations exactly
    (the published 3M halves its last term and so is of order 2).

    start: with "matched" the first step of order 3 is a predictor and a corrector (one more evaluation), so that the
    method has the order it is named for; with "published" it is DDIM, and the order is 2. Evaluations at infinite
    log-SNR carry no slope and are not extrapolated from, so that steps from pure noise and to data are exact for
    constant x0.

    Source: Lu et al. 2022, "DPM-Solver++" (2211.01095), algorithm 2.
    """

    order: int = 2
    start: str = "matched"
    exact_for_constant = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order={self.order}: choose 1, 2 or 3")
        if self.start not in ("matched", "published"):
            raise ValueError(f"start={self.start!r}: choose matched or published")

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        past: list[tuple[Level, Output]] = []  # newest first
        for t, s in pairwise(grid):
            past = [(t, table.evaluate(x, t).x0), *past][: self.order]
            h = half_step(t, s)
            known = [(level, x0) for level, x0 in past if bool(level.log_snr.isfinite().all())]
            if not bool(h.isfinite().all()):
                known = past[:1]
            ratio = s.sigma / t.sigma
            if len(known) == 2 and self.order == 2:
                r = half_step(known[1][0], t) / h
                total = weights(t, s, [t])[0]
                w = [total * (1 + 1 / (2 * r)), -total / (2 * r)]
            elif len(known) == 1 and self.order == 3 and self.start == "matched" and bool(h.isfinite().all()):
                predicted = table.register(ratio * x + weights(t, s, [t])[0] * known[0][1], s)
                known = [*known, (s, table.evaluate(predicted, s).x0)]
                w = weights(t, s, [t, s])
            else:
                w = weights(t, s, [level for level, _ in known])
            value = ratio * x
            for weight, (_, x0) in zip(w, known, strict=True):
                value = value + weight * x0
            x = table.step(value, s)
