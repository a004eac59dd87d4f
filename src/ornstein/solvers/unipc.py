"""UniPC: a predictor and a corrector of any order from one formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .._types import View
from ..processes import Level
from .exponential import combine, secant_weights, weights
from .multistep import multistep
from .solver import Solver
from .table import Evaluation, Expression, Register, Writer


@dataclass(frozen=True)
class UniPC(Solver):
    """x_s = transfer x_t + c_1 view(t) + B(h) sum_m a_m (view(node_m) - view(t))/r_m,    r_m = (lambda_m - lambda_t)/h

    with a solving sum_m r_m^(k-1) a_m B(h) = k-th moment, k = 1..p. UniP-p: the nodes are the p - 1 evaluations before
    t; UniC-p: and the one at the predicted x_s, kept for the next step, so that correction costs nothing (the last step
    is not corrected). UniP-1 is DDIM, UniPC-p has order p + 1.

    The system is that of polynomial interpolation, and B cancels where it is solved. B(h) matters only in UniP-2 and
    UniC-1, where the paper sets the single a_1 = 1/2: "bh1" is B = h, "bh2" B = e^h - 1; "vary_coeff" solves these too.
    (The published vary_coeff code is of order 1; this is the exact integral.)

    predicts: the view interpolated, "x0" or "noise". corrector=False is UniP alone, of order p. start: with "matched"
    orders 3 and 4 begin, where the steps are short (see `multistep`), with 2 and 6 more evaluations, so that the method
    has the order it is named for; with "published" order p begins with UniPC-1, 2, ..., and the order is 3.

    Source: Zhao et al. 2023, "UniPC" (2302.04867), equations 3 and 8, theorem 3.1.
    """

    order: int = 2
    variant: str = "bh2"
    predicts: View = "x0"
    corrector: bool = True
    start: str = "matched"
    exact_for_constant = True

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order={self.order}: choose 1, 2, 3 or 4")
        for name, choices in {
            "variant": ("bh1", "bh2", "vary_coeff"),
            "predicts": ("x0", "noise"),
            "start": ("matched", "published"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {', '.join(choices)}")

    def write(self, table: Writer, grid: Level) -> None:
        order = self.order + self.corrector
        begun = order - 2 if self.order > 2 and self.start == "matched" else 0
        corrector = self.order if self.corrector else 0
        multistep(table, grid, self._advance, past=self.order, corrector=corrector, start=begun)

    def _advance(self, x: Register, t: Level, s: Level, nodes: Sequence[Evaluation]) -> Expression:
        levels = [node.level for node in nodes]
        if len(nodes) == 2 and self.variant != "vary_coeff":
            w = secant_weights(t, s, levels[1], self.predicts, b=self.variant)
        else:
            w = weights(t, s, levels, self.predicts)
        return combine(x, t, s, w, nodes, self.predicts)
