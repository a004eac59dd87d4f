"""A solver inside a solver."""

from __future__ import annotations

from typing import Any

from ..processes import Level
from .solver import Solver
from .table import Register, Writer


class _From(Writer):
    """The same table, written on from one of its registers."""

    def __init__(self, table: Writer, register: Register) -> None:
        self.__dict__.update(vars(table))  # the rows, evaluations and noises are shared
        self._first = register

    @property
    def state(self) -> Register:
        return self._first


class _Aside(_From):
    """The same, what is written being no step of the table's own."""

    def register(self, value: Any, level: Level | None = None, *, on_grid: bool = False) -> Register:
        return super().register(value, level)

    def apply(self, *values: Any, level: Level | None = None, on_grid: bool = False) -> Register:
        return super().apply(*values, level=level)


def write_from(solver: Solver, table: Writer, x: Register, grid: Level, *, aside: bool = False) -> Register:
    """Let `solver` write its steps along `grid` from the register x, and return the last state.

    aside: as stages, to look ahead, and not as points of the grid.
    """
    solver.write((_Aside if aside else _From)(table, x), grid)
    return Register(len(table._rows) - 1)
