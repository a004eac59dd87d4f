"""Tuned tables: the sampler that follows a given model best within a budget."""

from .autodiffusion import AutoDiffusion, Joint
from .dc_solver import DCSolver, Ratios
from .found import Found
from .iia import IIA, Refitted
from .lessons import Lessons, teach
from .objectives import Distribution, Endpoint, Features, Objective
from .parameters import Coefficients, Parameters, reduce
from .skipping import Skipping, residual_blocks
from .tune import tune
from .tuned_table import TunedTable
from .usf import USF, SolverSchedule, Strategy

__all__ = [
    "IIA",
    "USF",
    "AutoDiffusion",
    "Coefficients",
    "DCSolver",
    "Distribution",
    "Endpoint",
    "Features",
    "Found",
    "Joint",
    "Lessons",
    "Objective",
    "Parameters",
    "Ratios",
    "Refitted",
    "Skipping",
    "SolverSchedule",
    "Strategy",
    "TunedTable",
    "reduce",
    "residual_blocks",
    "teach",
    "tune",
]
