"""The first method on the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass

from .runge_kutta import EULER, RungeKutta


@dataclass(frozen=True)
class Euler(RungeKutta):
    """x_s = x_t + (s - t) velocity(x_t, t): order 1, one evaluation a step.

    Needs a velocity that is finite at the grid's first time. A step to t = 0 is allowed wherever it may start. With
    variable="sigma" it is DDIM.
    """

    variable: str = "t"
    tableau = EULER
