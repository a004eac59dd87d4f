"""Ornstein: generative modelling by stochastic processes, proven against ground truth.

    import ornstein as orn

One process (`orn.Flow()`, `orn.VP()`, ...), one prediction (`orn.Denoiser`), one loop with tables (`orn.sample`).
"""

from . import exact, guidance, metrics, nets
from .denoiser import BaseDenoiser, Denoiser, EDMPrecondition, Scaling
from .errors import CheckpointError, NonFiniteError, TableError, ViewError
from .flow_map import FlowMap
from .guidance import CFG, Autoguidance
from .prediction import Prediction
from .processes import EDM, VE, VP, Cosine, Flow, GaussianProcess, Level, MeanReverting, Product, SubVP
from .random import Noise, derive
from .solvers import (
    DDIM,
    DDPM,
    DPMSolverPP,
    Euler,
    Grid,
    Heun,
    Karras,
    LogSNR,
    Moment,
    Quadratic,
    Samples,
    Solver,
    Table,
    Transitions,
    Uniform,
    record,
    response,
    sample,
)

__version__ = "0.1.0"
