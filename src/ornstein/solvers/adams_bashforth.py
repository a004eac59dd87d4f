"""Adams-Bashforth: explicit linear multistep methods with exact weights for variable steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..numerics.quadrature import vandermonde
from ..processes import Level
from .exponential import jump
from .runge_kutta import EULER, HEUN, KUTTA3
from .solver import Solver
from .table import Evaluation, Expression, Writer
from .variable import VARIABLES, Variable, check_variable

# the one-step method whose local error is that of the order's global one
STARTS = {1: EULER, 2: EULER, 3: HEUN, 4: KUTTA3}


def interpolation_weights(nodes: Sequence[Tensor], a: Tensor, b: Tensor) -> list[Tensor]:
    """w_j = 1/(b - a) int_a^b l_j(u) du: the mean over [a, b] of the Lagrange polynomials of the nodes.

    They solve sum_j w_j r_j^k = 1/(k + 1) with r_j = (u_j - a)/(b - a), k = 0, 1, ...
    """
    r = torch.stack([(node - a) / (b - a) for node in nodes], -1)
    means = 1 / torch.arange(1, len(nodes) + 1, dtype=r.dtype, device=r.device)
    return list(torch.linalg.solve(vandermonde(r), means.expand_as(r)).unbind(-1))


def mean_slope(
    past: Sequence[Evaluation], nodes: Sequence[Tensor], a: Tensor, b: Tensor, variable: Variable
) -> Expression:
    """The mean over [a, b] of the polynomial through the slopes of past evaluations, at the nodes."""
    total = Expression({})
    for weight, e in zip(interpolation_weights(nodes, a, b), past, strict=True):
        total = total + weight * variable.slope(e)
    return total


@dataclass(frozen=True)
class AdamsBashforth(Solver):
    """y_s = y_t + sum_j w_j k_j,    w_j = int_{u_t}^{u_s} l_j(u) du, k_j the slopes of the last `order` evaluations.

    One evaluation a step, order 1 to 4 on any grid, since the weights belong to the actual steps.

    variable: sigma (y = x/alpha, u = sigma/alpha, slope noise): the LMS sampler of the Karras frame and rhoAB-DEIS;
    t (y = x, slope velocity); log_snr (see `Variable`). Order 1 is DDIM in sigma and Euler's method in t.

    start: with "matched" the first order - 1 steps are Runge-Kutta's of order - 1 (2 evaluations more for order 3, 6
    for order 4), so that the method has the order that it is named for; with "published" the order rises by one a
    step, and the first, Euler's, leaves an error of order 2. Where u is infinite the step is DDIM's.

    Source: Bashforth, Adams 1883; Karras et al. 2022 (2206.00364) for the variable sigma/alpha.
    """

    order: int = 4
    variable: str = "sigma"
    start: str = "matched"

    def __post_init__(self) -> None:
        check_order(self.order)
        check_variable(self.variable)
        if self.start not in ("matched", "published"):
            raise ValueError(f"start={self.start!r}: choose matched or published")

    @property
    def exact_for_constant(self) -> bool:
        return self.variable == "sigma"

    @property
    def matrices(self) -> bool:
        return self.variable == "t"

    def write(self, table: Writer, grid: Level) -> None:
        x, variable = table.state, VARIABLES[self.variable]
        past: list[Evaluation] = []  # newest first
        for t, s in pairwise(grid):
            e = table.evaluate(x, t)
            if not variable.reaches(t, s):
                x = jump(table, x, e, s)
                continue
            past = [e, *past[: self.order - 1]]
            begin = STARTS[self.order]
            if len(past) < self.order and self.start == "matched" and begin.fits(s):
                slope = begin.slope(table, e, s, variable)
            else:
                nodes = [variable.u(p.level) for p in past]
                slope = mean_slope(past, nodes, variable.u(t), variable.u(s), variable)
            x = table.step(variable.move(x, t, s, slope), s)


def check_order(order: int) -> None:
    """Refuse an order that Adams-Bashforth is not written for."""
    if order not in STARTS:
        raise ValueError(f"order={order}: choose 1, 2, 3 or 4")
