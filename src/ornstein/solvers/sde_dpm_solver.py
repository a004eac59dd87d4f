"""SDE-DPM-Solver++ and SDE-DPM-Solver: the exponential integrators of the reverse SDE."""

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
class SDEDPMSolverPP(Solver):
    """x_s = (sigma_s/sigma_t) e^-h x_t + alpha_s int_{-h}^0 2 e^2u x0(lambda_s + u) du + sigma_s sqrt(1 - e^-2h) z

    h = lambda_s - lambda_t. order 1 holds x0 constant, which is DDIM with eta = 1 and so ancestral sampling; order 2 is
    the paper's 2M, with x0 constant at (1 + h/2h') x0(t) - h/2h' x0(t').

    predicts="noise" is SDE-DPM-Solver: the same SDE with the noise held or extrapolated,

        x_s = (alpha_s/alpha_t) x_t - 2 sigma_s int_{-h}^0 e^-u noise(lambda_s + u) du + sigma_s sqrt(e^2h - 1) z.

    The steps are exact but for the extrapolation. Weak order (measured exactly on Gaussian data) is `order`; strong
    order on a shared path is 1 for both, as x0 moves with the noise within a step. Stochastic: grids fall.

    Source: Lu et al. 2022, "DPM-Solver++" (2211.01095), section 6 and appendix B.
    """

    order: int = 2
    predicts: View = "x0"

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order={self.order}: choose 1 or 2")
        if self.predicts not in ("x0", "noise"):
            raise ValueError(f"predicts={self.predicts!r}: choose x0 or noise")

    @property
    def exact_for_constant(self) -> bool:
        return self.predicts == "x0"

    def write(self, table: Writer, grid: Level) -> None:
        multistep(table, grid, self._advance, past=self.order, tau=lambda level: 1.0, view=self.predicts)

    def _advance(self, x: Register, t: Level, s: Level, nodes: Sequence[Evaluation]) -> Expression:
        if len(nodes) == 2:
            w = secant_weights(t, s, nodes[1].level, self.predicts, 1.0)
        else:
            w = weights(t, s, [t], self.predicts, 1.0)
        return combine(x, t, s, w, nodes, self.predicts, 1.0)
