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
    made: dict[str, Table] = {}
    for solver in SOLVERS:
        for grid in GRIDS:
            try:
                table = solver.compile(process, grid(process, nfe))
            except ValueError:  # a solver that needs more steps, levels that the process does not have
                continue
            if isinstance(table, Table) and table.nfe == nfe:
                made[f"{solver!r} on {grid!r}"] = table
    return made
