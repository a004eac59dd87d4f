"""Ornstein: generative modelling by stochastic processes, proven against ground truth.

    import ornstein as orn

One process (`orn.Flow()`, `orn.VP()`, ...), one prediction (`orn.Denoiser`), one loop with tables (`orn.sample`).
Names are imported when first read, so that the command line answers before torch is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import data as data
    from . import density as density
    from . import exact as exact
    from . import guidance as guidance
    from . import interop as interop
    from . import inverse as inverse
    from . import linops as linops
    from . import metrics as metrics
    from . import nets as nets
    from . import processes as processes
    from . import solvers as solvers
    from . import training as training
    from . import tuning as tuning
    from .data import Data as Data
    from .data import load_data as load_data
    from .denoiser import BaseDenoiser as BaseDenoiser
    from .denoiser import Codec as Codec
    from .denoiser import Denoiser as Denoiser
    from .denoiser import EDMPrecondition as EDMPrecondition
    from .denoiser import Heads as Heads
    from .denoiser import Scaling as Scaling
    from .density import log_likelihood as log_likelihood
    from .errors import CheckpointError as CheckpointError
    from .errors import NonFiniteError as NonFiniteError
    from .errors import TableError as TableError
    from .errors import ViewError as ViewError
    from .flow_map import FlowMap as FlowMap
    from .guidance import CFG as CFG
    from .guidance import Autoguidance as Autoguidance
    from .guidance import Guided as Guided
    from .interop import load as load
    from .interop import save as save
    from .inverse import Restored as Restored
    from .inverse import restore as restore
    from .prediction import Prediction as Prediction
    from .processes import EDM as EDM
    from .processes import VE as VE
    from .processes import VP as VP
    from .processes import AffineProcess as AffineProcess
    from .processes import Cosine as Cosine
    from .processes import DiscreteTime as DiscreteTime
    from .processes import Draw as Draw
    from .processes import Flow as Flow
    from .processes import GaussianProcess as GaussianProcess
    from .processes import Interpolant as Interpolant
    from .processes import Level as Level
    from .processes import MeanReverting as MeanReverting
    from .processes import Product as Product
    from .processes import SubVP as SubVP
    from .processes import TwoSided as TwoSided
    from .processes import broadcast as broadcast
    from .random import Noise as Noise
    from .random import derive as derive
    from .referee import Claims as Claims
    from .referee import certify as certify
    from .solvers import DDIM as DDIM
    from .solvers import DDPM as DDPM
    from .solvers import DEIS as DEIS
    from .solvers import RK4 as RK4
    from .solvers import AdamsBashforth as AdamsBashforth
    from .solvers import BrownianPath as BrownianPath
    from .solvers import Churn as Churn
    from .solvers import DPMSolver as DPMSolver
    from .solvers import DPMSolverPP as DPMSolverPP
    from .solvers import Euler as Euler
    from .solvers import EulerMaruyama as EulerMaruyama
    from .solvers import Grid as Grid
    from .solvers import Heun as Heun
    from .solvers import Karras as Karras
    from .solvers import LogSNR as LogSNR
    from .solvers import Moment as Moment
    from .solvers import ParticleFilter as ParticleFilter
    from .solvers import ProductTable as ProductTable
    from .solvers import Quadratic as Quadratic
    from .solvers import Restart as Restart
    from .solvers import Samples as Samples
    from .solvers import SASolver as SASolver
    from .solvers import SDEDPMSolverPP as SDEDPMSolverPP
    from .solvers import Shifted as Shifted
    from .solvers import Solver as Solver
    from .solvers import Stepper as Stepper
    from .solvers import Table as Table
    from .solvers import Timesteps as Timesteps
    from .solvers import Transitions as Transitions
    from .solvers import Uniform as Uniform
    from .solvers import UniPC as UniPC
    from .solvers import particle_filter as particle_filter
    from .solvers import record as record
    from .solvers import response as response
    from .solvers import sample as sample
    from .solvers import sample_adaptive as sample_adaptive
    from .solvers import sample_parallel as sample_parallel
    from .training import EMA as EMA
    from .training import Fit as Fit
    from .training import Objective as Objective
    from .training import fit as fit
    from .training import load_weights as load_weights
    from .training import save_weights as save_weights
    from .tuning import TunedTable as TunedTable
    from .tuning import tune as tune

__version__ = "0.1.0"

_HOME = {
    "": "data density exact guidance interop inverse linops metrics nets processes solvers training tuning",
    "data": "Data load_data",
    "denoiser": "BaseDenoiser Codec Denoiser EDMPrecondition Heads Scaling",
    "density": "log_likelihood",
    "errors": "CheckpointError NonFiniteError TableError ViewError",
    "flow_map": "FlowMap",
    "guidance": "Autoguidance CFG Guided",
    "interop": "load save",
    "inverse": "Restored restore",
    "prediction": "Prediction",
    "processes": "AffineProcess Cosine DiscreteTime Draw EDM Flow GaussianProcess Interpolant Level MeanReverting "
    "Product SubVP TwoSided VE VP broadcast",
    "random": "Noise derive",
    "referee": "Claims certify",
    "solvers": "AdamsBashforth BrownianPath Churn DDIM DDPM DEIS DPMSolver DPMSolverPP Euler EulerMaruyama Grid "
    "Heun Karras LogSNR Moment ParticleFilter ProductTable Quadratic RK4 Restart SASolver "
    "SDEDPMSolverPP Samples Shifted Solver Stepper Table Timesteps Transitions UniPC Uniform "
    "particle_filter record response sample sample_adaptive sample_parallel",
    "training": "EMA Fit Objective fit load_weights save_weights",
    "tuning": "TunedTable tune",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'ornstein' has no attribute {name!r}")
    module = import_module(f".{_MODULE[name] or name}", __name__)
    value = module if _MODULE[name] == "" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
