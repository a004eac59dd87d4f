"""Runge-Kutta methods on the probability flow."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from ..processes import Level
from .exponential import jump
from .solver import Solver
from .table import Evaluation, Expression, Register, Writer
from .variable import VARIABLES, Variable, check_variable


@dataclass(frozen=True)
class Tableau:
    """k_i = slope(y + h sum_{j<i} a_ij k_j, u + c_i h),    y_s = y + h sum_i b_i k_i,    c_i = sum_j a_ij

    The rows of `a` are those of the stages after the first.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def fits(self, s: Level) -> bool:
        """Whether no stage is evaluated on clean data, where a network may not answer."""
        return not bool(s.no_noise.any()) or all(sum(row) < 1 for row in self.a)

    def slope(self, table: Writer, e: Evaluation, s: Level, variable: Variable) -> Expression:
        """sum_i b_i k_i of the step from the evaluation e to s."""
        t, x = e.level, Register(e.register)
        k = [variable.slope(e)]
        for row in self.a:
            c = sum(row)
            level = s if c == 1 else variable.level(table, variable.u(t) + c * variable.change(t, s))
            # y + h sum a k = y + (c h) (sum a k)/c
            stage = variable.move(x, t, level, _sum(row, k) / c)
            k.append(variable.slope(table.evaluate(table.register(stage, level), level)))
        return _sum(self.b, k)


def _sum(weights: tuple[float, ...], k: list[Expression]) -> Expression:
    total = Expression({})
    for weight, slope in zip(weights, k, strict=True):
        if weight:
            total = total + weight * slope
    return total


EULER = Tableau((), (1,))
HEUN = Tableau(((1,),), (1 / 2, 1 / 2))
MIDPOINT = Tableau(((1 / 2,),), (0, 1))
RALSTON = Tableau(((2 / 3,),), (1 / 4, 3 / 4))
KUTTA3 = Tableau(((1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6))
KUTTA4 = Tableau(((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
KUTTA38 = Tableau(((1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8))


@dataclass(frozen=True)
class RungeKutta(Solver):
    """y_s = y_t + (u_s - u_t) sum_i b_i k_i: one-step methods of the classical tableaux, in a variable u.

    variable: t (y = x, slope velocity), sigma (y = x/alpha, u = sigma/alpha, slope noise) or log_snr (see `Variable`).
    Where u is infinite the step is DDIM's, and so is one that would evaluate clean data; in t the latter is Euler's.
    """

    variable: str = "sigma"
    tableau: ClassVar[Tableau]

    def __post_init__(self) -> None:
        check_variable(self.variable)

    @property
    def exact_for_constant(self) -> bool:
        return self.variable == "sigma"

    @property
    def matrices(self) -> bool:
        return self.variable == "t"

    def write(self, table: Writer, grid: Level) -> None:
        x, variable = table.state, VARIABLES[self.variable]
        for t, s in pairwise(grid):
            e = table.evaluate(x, t)
            tableau = self.tableau if self.tableau.fits(s) else EULER
            if not variable.reaches(t, s) or (tableau is EULER and self.variable == "sigma"):
                x = jump(table, x, e, s)
            else:
                x = table.step(variable.move(x, t, s, tableau.slope(table, e, s, variable)), s)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """y_s = y_t + h k(y_t + h k_t/2, u_t + h/2): order 2, two evaluations a step.

    In sigma the stage lies at the arithmetic mean of the noise levels; `DPM2` has the geometric one.

    Source: Runge 1895.
    """

    tableau = MIDPOINT


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """y_s = y_t + h (k_t/4 + 3/4 k(y_t + 2/3 h k_t, u_t + 2/3 h)): order 2 with the least error bound.

    Source: Ralston 1962, "Runge-Kutta methods with minimum error bounds".
    """

    tableau = RALSTON


@dataclass(frozen=True)
class Kutta3(RungeKutta):
    """y_s = y_t + h (k_1 + 4 k_2 + k_3)/6, with stages at u_t, the middle and u_s: order 3, three evaluations a step.

    Source: Kutta 1901.
    """

    tableau = KUTTA3


@dataclass(frozen=True)
class RK4(RungeKutta):
    """y_s = y_t + h (k_1 + 2 k_2 + 2 k_3 + k_4)/6: the classical method of order 4, four evaluations a step.

    Source: Kutta 1901.
    """

    tableau = KUTTA4


@dataclass(frozen=True)
class Kutta38(RungeKutta):
    """y_s = y_t + h (k_1 + 3 k_2 + 3 k_3 + k_4)/8, stages at u_t, thirds and u_s: order 4, four evaluations a step.

    The 3/8 rule; its error constants are smaller than those of `RK4`.

    Source: Kutta 1901.
    """

    tableau = KUTTA38
