"""A solver inside a solver."""

from __future__ import annotations

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


def write_from(solver: Solver, table: Writer, x: Register, grid: Level) -> Register:
    """Let `solver` write its steps along `grid` from the register x, and return the last state."""
    solver.write(_From(table, x), grid)
    return Register(len(table._rows) - 1)
