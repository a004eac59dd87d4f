"""SA-Solver: stochastic Adams methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import Level
from .exponential import combine, weights
from .multistep import multistep
from .solver import Solver
from .table import Evaluation, Expression, Register, Writer


@dataclass(frozen=True)
class SASolver(Solver):
    """x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t + sum_j b_j x0(node_j) + sigma_s sqrt(1 - e^(-2 tau^2 h)) z

        b_j = alpha_s int_{-h}^0 (1 + tau^2) e^((1 + tau^2) u) l_j(u) du,    u = lambda - lambda_s

    x0 interpolated by Lagrange polynomials l_j: the predictor's nodes are the last `predictor` evaluations, the
    corrector's the last `corrector` and the one at the predicted x_s. Both use the same z, and the evaluation serves
    the next step too, so that correction costs nothing (the last step is not corrected; corrector=0 has none).

    tau scales the noise of the reverse SDE, 0 for the probability flow and 1 for the usual SDE. A function of the level
    (a `Level` of the step's end, `tau=lambda level: ...`) makes it depend on time, constant within a step.

    With tau = 0 it is UniPC's exact form ("vary_coeff") with the published start, of order min(predictor, 2), with a
    corrector min(predictor + 1, corrector + 1, 3). With tau > 0 the weak order on Gaussian data is 1 for one
    evaluation and no corrector, else 2 however many, by an error that falls with tau.

    Source: Xue et al. 2023, "SA-Solver: Stochastic Adams Solver" (2309.05019), algorithm 1.
    """

    predictor: int = 3
    corrector: int = 3
    tau: float | Callable[[Level], Tensor] = 1.0
    exact_for_constant = True

    def __post_init__(self) -> None:
        if self.predictor not in (1, 2, 3, 4):
            raise ValueError(f"predictor={self.predictor}: choose 1, 2, 3 or 4 evaluations to look back on")
        if self.corrector not in (0, 1, 2, 3, 4):
            raise ValueError(f"corrector={self.corrector}: choose 1, 2, 3 or 4 evaluations to look back on, or 0")
        if not callable(self.tau) and not self.tau >= 0:
            raise ValueError(f"tau={self.tau}: 0 is the probability flow, 1 the reverse SDE; it is not negative")

    def write(self, table: Writer, grid: Level) -> None:
        multistep(table, grid, self._advance, past=self.predictor, corrector=self.corrector, tau=self._tau)

    def _tau(self, level: Level) -> Tensor:
        tau = self.tau(level) if callable(self.tau) else torch.full_like(level.t, self.tau)
        if not bool((tau >= 0).all()):
            raise ValueError(f"tau is not negative: got {float(tau.min()):.4g} at t = {float(level.t.min()):.4g}")
        return tau

    def _advance(self, x: Register, t: Level, s: Level, nodes: Sequence[Evaluation]) -> Expression:
        tau = self._tau(s)
        return combine(x, t, s, weights(t, s, [node.level for node in nodes], "x0", tau), nodes, "x0", tau)
