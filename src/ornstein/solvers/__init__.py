"""Samplers: tables, the loop that runs them, and the solvers and grids that write them."""

from .ddim import DDIM, DDPM
from .dpm_solver import DPMSolverPP
from .euler import Euler
from .grids import Grid, Karras, LogSNR, Quadratic, Uniform
from .heun import Heun
from .loop import Hook, Loop, Moment, Stepper
from .moments import Response, response
from .sample import Samples, sample
from .solver import Solver, compile_table
from .table import ProductTable, Table, Writer
from .transitions import Transitions, record

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolverPP",
    "Euler",
    "Grid",
    "Heun",
    "Hook",
    "Karras",
    "LogSNR",
    "Loop",
    "Moment",
    "ProductTable",
    "Quadratic",
    "Response",
    "Samples",
    "Solver",
    "Stepper",
    "Table",
    "Transitions",
    "Uniform",
    "Writer",
    "compile_table",
    "record",
    "response",
    "sample",
]
