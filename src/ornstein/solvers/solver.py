"""A solver is a small compiler: from a process and a grid it writes a table."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..processes import Level, LinearProcess, PhaseSpace, Process, ProductLevel
from .grids import check_grid
from .table import ProductTable, Table, Writer


class Solver(ABC):
    """The base of fixed-step solvers. A subclass is a frozen dataclass of its options and writes one method, `write`.

    `write(table, grid)` states the method as the paper does, in expressions of registers, views and noises; grid is a
    `Level` of shape (N+1,) and grid[i] has t, alpha, sigma, log_snr and the derivatives. States are centred by the
    process's shift. `exact_for_constant` declares that a denoiser whose x0 does not depend on x is followed exactly,
    by its law where the solver is stochastic.
    """

    @property
    def exact_for_constant(self) -> bool:
        """Whether a denoiser of constant x0 is followed exactly."""
        return False

    @property
    def matrices(self) -> bool:
        """Whether the method is written for coefficients that are matrices too, as in phase space."""
        return False

    @abstractmethod
    def write(self, table: Writer, grid: Level) -> None:
        """Write all steps from grid[0] to grid[-1]."""

    def compile(self, process: Process, grid: Level | ProductLevel) -> Table | ProductTable:
        """The table for a process, on a grid made by `grid(process, steps=...)` or `process.level(times)`."""
        if not isinstance(grid, (Level, ProductLevel)):
            raise ValueError(f"compile takes levels, grid(process, steps=...) or process.level(times): got {grid!r}")
        if isinstance(grid, ProductLevel):
            return compile_table([self] * len(grid.components), process, grid)
        check_grid(grid)
        if isinstance(process, PhaseSpace):
            if not self.matrices:
                raise ValueError(
                    f"{self!r} steps by scalars, and {process!r} has matrices: choose Euler(), Heun(variable='t'), "
                    "DDIM(), DEIS(), Conjugate(), EulerMaruyama(), Splitting() or ReducedSymplecticEuler()"
                )
        elif not isinstance(process, LinearProcess):
            raise ValueError(f"{process!r} has several components: give levels of all of them, process.level(times)")
        table = Writer(repr(self), grid[0], process)
        self.write(table, grid)
        self._check_reads(table, process)
        made = table.table()
        made.check_process(process)  # the grid's levels may be another's
        return made

    def _check_reads(self, table: Writer, process: LinearProcess) -> None:
        """Refuse a method that asks the process for what it does not have, by name."""
        unknown = [view for view in table.reads if view not in ("raw", *process.readable)]
        if unknown and not process.readable:
            raise ViewError(f"{self!r} does not step {process!r}: leave the solver out, and its own is taken")
        if unknown:
            raise ViewError(
                f"{self!r} reads {unknown[0]}, which {process!r} does not have (it has {', '.join(process.readable)}). "
                "Choose one in t: Euler(), Heun(variable='t'), RK4(variable='t') or AdamsBashforth(variable='t')"
            )
        if table.draws and not process.diffuses:
            raise ValueError(f"{self!r} draws noise, and {process!r} is no diffusion: choose a deterministic solver")


def compile_table(
    solver: Solver | Sequence[Solver], process: Process, grid: Level | ProductLevel
) -> Table | ProductTable:
    """The table of a solver, or of one solver for each component of a product process."""
    if isinstance(solver, Solver):
        return solver.compile(process, grid)
    if not isinstance(solver, (list, tuple)) or not all(isinstance(s, Solver) for s in solver):
        raise ValueError(f"a solver is an object such as orn.DDIM(), or one for each component: got {solver!r}")
    processes: tuple[Any, ...] = getattr(process, "processes", ())
    if not isinstance(grid, ProductLevel) or len(solver) != len(processes):
        raise ValueError(f"{len(solver)} solvers for {process!r}: give one, or one for each of its components")
    tables = [s.compile(p, g) for s, p, g in zip(solver, processes, grid.components, strict=True)]
    return ProductTable(tuple(component for table in tables for component in table.components))


def steps_within(
    nfe: int,
    solver: Solver | Sequence[Solver],
    denoiser: BaseDenoiser,
    grid: Callable[[int | None], Level | ProductLevel],
) -> int:
    """The largest number of steps whose evaluations, as this denoiser counts them, stay within `nfe`."""

    def cost(steps: int) -> int:
        return sum(denoiser.cost(compile_table(solver, denoiser.process, grid(steps)).levels))

    fits, over, steps, last, limit = 0, math.inf, max(nfe, 1), (0, 0), None
    while True:  # by secants, since a table is compiled to know its cost: of most solvers two are
        slope = 0.0
        try:
            spent = cost(steps)
            slope, last = (spent - last[1]) / (steps - last[0]), (steps, spent)
        except ValueError as refused:  # some solvers need a few steps, and some grids have no more
            spent = 0 if last[0] > steps else nfe + 1
            limit = limit if spent == 0 else (steps, refused)
        fits, over = (steps, over) if spent <= nfe else (fits, steps)
        if over - fits <= 1:
            break
        guess = steps + (nfe - spent) / slope if slope > 0 else min(2 * steps, (fits + over) // 2)
        steps = int(min(max(guess, fits + 1), over - 1))
    if limit is not None and limit[0] == over:
        raise limit[1]
    if fits == 0:
        raise ValueError(f"nfe={nfe} is too few: one step of {solver!r} takes {cost(1)} evaluations")
    return fits
