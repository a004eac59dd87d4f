"""Heavy-ball momentum: linear multistep methods with larger regions of stability."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..processes import Level
from .adams_bashforth import STARTS, check_order, mean_slope
from .exponential import jump
from .solver import Solver
from .table import Evaluation, Expression, Register, Writer
from .variable import VARIABLES, check_variable


@dataclass(frozen=True)
class _Momentum(Solver):
    """y_s = y_t + (u_s - u_t) v', where v' mixes v, the slope of the step before, with the slopes of evaluations."""

    order: int = 2
    beta: float = 0.8
    variable: str = "sigma"
    weights: str = "exact"
    start: str = "matched"

    def __post_init__(self) -> None:
        check_order(self.order)
        check_variable(self.variable)
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta={self.beta}: the damping lies in (0, 1], and 1 is no momentum")
        for name, choices in {"weights": ("exact", "published"), "start": ("matched", "published")}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(choices)}")

    @property
    def exact_for_constant(self) -> bool:
        return self.variable == "sigma"

    @abstractmethod
    def mix(self, v: Register, mean: Callable[[int, int], Expression]) -> Expression:
        """v' from v and the means of the slope: mean(1, 0) is that of the coming step, mean(2, 1) of the last."""

    def write(self, table: Writer, grid: Level) -> None:
        x, variable, begin = table.state, VARIABLES[self.variable], STARTS[self.order]
        past: list[Evaluation] = []  # newest first
        seen: list[Level] = []  # their levels, and at least the point before
        v: Register | None = None
        for t, s in pairwise(grid):
            e = table.evaluate(x, t)
            if not variable.reaches(t, s):
                x = jump(table, x, e, s)
                continue
            past = [e, *past[: self.order - 1]]
            seen = [t, *seen[: max(self.order, 2) - 1]]
            u = [variable.u(level) for level in (s, *seen)]
            if self.weights == "published":
                u = [torch.full_like(value, -float(i)) for i, value in enumerate(u)]

            def mean(a: int, b: int, past: list[Evaluation] = past, u: list[Tensor] = u) -> Expression:
                return mean_slope(past, u[1 : len(past) + 1], u[a], u[b], variable)

            if len(past) < self.order and self.start == "matched" and begin.fits(s):
                slope = begin.slope(table, e, s, variable)
            else:
                slope = mean(1, 0) if v is None else self.mix(v, mean)
            v = table.register(slope)
            x = table.step(variable.move(x, t, s, v * 1.0), s)


@dataclass(frozen=True)
class HB(_Momentum):
    """v' = (1 - beta) v + beta m(t, s),    y_s = y_t + (u_s - u_t) v'

    with m(t, s) the mean from t to s of the polynomial through the last `order` slopes, Adams and Bashforth's. The
    slope lags behind: for beta < 1 the order is 1 whatever that of the base; beta = 1 is the base, `AdamsBashforth`.
    For order 1 the region of stability on the negative axis grows from 2 to 4/beta - 2.

    variable, start: see `AdamsBashforth`. weights: "exact" for the steps as they are, or "published", the numbers of
    equal steps as in `PNDM`, whatever the steps.

    Source: Wizadwongsa et al. 2023, "Diffusion Sampling with Momentum for Mitigating Divergence Artifacts"
    (2307.11118), equation 14.
    """

    start: str = "published"

    def mix(self, v: Register, mean: Callable[[int, int], Expression]) -> Expression:
        return (1 - self.beta) * v + self.beta * mean(1, 0)


@dataclass(frozen=True)
class GHVB(_Momentum):
    """v' = m(t, s) + (1 - beta) (v - m(t', t)),    y_s = y_t + (u_s - u_t) v'

    with m(a, b) the mean from a to b of the polynomial through the last `order` slopes, t' the point before t. What
    momentum adds is only the difference of the last step from what is now known of it, so the order is kept for every
    beta; beta = 1 is `AdamsBashforth`, and towards 0 the errors are those of the order below. The paper's momentum
    number 1.8 is order 2 with beta 0.8.

    variable, start: see `AdamsBashforth`. weights: "exact" for the steps as they are, or "published", the paper's
    numbers, which are these for equal steps, as for order 2 in v' = (1 - beta) v + (1 + beta/2) k - (1 - beta/2) k'.
    On unequal steps those are of order 2 at most.

    Source: Wizadwongsa et al. 2023 (2307.11118), equations 16 and 17.
    """

    def mix(self, v: Register, mean: Callable[[int, int], Expression]) -> Expression:
        return mean(1, 0) + (1 - self.beta) * (v - mean(2, 1))
