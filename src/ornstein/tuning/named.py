"""The named solvers that a tuned table starts from, and is compared with."""

from __future__ import annotations

from ..processes import GaussianProcess
from ..solvers.dpm_solver import DPMSolverPP
from ..solvers.grids import CosineGrid, Grid, Karras, LogSNR
from ..solvers.pndm import PNDM
from ..solvers.solver import Solver
from ..solvers.table import Table
from ..solvers.unipc import UniPC

SOLVERS: tuple[Solver, ...] = (
    DPMSolverPP(order=2),
    DPMSolverPP(order=3, start="published"),
    UniPC(order=2, variant="bh1", start="published"),
    UniPC(order=3, variant="bh1", start="published"),
    UniPC(order=3, variant="vary_coeff", start="published"),
    PNDM(order=3, start="rising"),
)
GRIDS: tuple[Grid, ...] = (
    LogSNR(),
    LogSNR(end=4.0, deepest=-3.0),
    LogSNR(end=5.0, deepest=-4.0),
    LogSNR(end=6.0, deepest=-5.0),
    CosineGrid(),
    CosineGrid(0.5),
    Karras(rho=3.0),
    Karras(),
    Karras(0.03),
)


def named(process: GaussianProcess, nfe: int) -> dict[str, Table]:
    """The named tables of `nfe` evaluations from t = 1 to 0: each of `SOLVERS` on each of `GRIDS` that fits."""
    made = {name: _table(process, nfe, *choice) for name, choice in choices().items()}
    return {name: table for name, table in made.items() if table is not None}


def choices() -> dict[str, tuple[Solver, Grid]]:
    """Solver and grid by the name of both."""
    return {f"{solver!r} on {grid!r}": (solver, grid) for solver in SOLVERS for grid in GRIDS}


def named_table(process: GaussianProcess, nfe: int, name: str) -> Table:
    """The one of `named` that has this name, alone."""
    table = _table(process, nfe, *choices()[name])
    if table is None:
        raise ValueError(f"{name} has no table of {nfe} evaluations on {process!r}")
    return table


def _table(process: GaussianProcess, nfe: int, solver: Solver, grid: Grid) -> Table | None:
    try:
        table = solver.compile(process, grid(process, nfe))
    except ValueError:  # a solver that needs more steps, levels that the process does not have
        return None
    return table if isinstance(table, Table) and table.nfe == nfe else None
