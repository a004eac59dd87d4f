"""Training: objectives, time laws, weightings, the average of weights, and the trainer."""

from .checkpoint import load_weights, save_weights
from .ema import EMA
from .fit import Fit, fit
from .objective import Objective, default_weighting
from .run import Training
from .times import LogitNormal, LogNormalSigma, TimeLaw, UniformLogSNR, UniformTime
from .weightings import ELBO, MinSNR, UnitOutput, UnitTarget, Weighting

__all__ = [
    "ELBO",
    "EMA",
    "Fit",
    "LogNormalSigma",
    "LogitNormal",
    "MinSNR",
    "Objective",
    "TimeLaw",
    "Training",
    "UniformLogSNR",
    "UniformTime",
    "UnitOutput",
    "UnitTarget",
    "Weighting",
    "default_weighting",
    "fit",
    "load_weights",
    "save_weights",
]
