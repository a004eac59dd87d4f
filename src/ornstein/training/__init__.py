"""Training: objectives, time laws, weightings, the average of weights, and the trainer."""

from .ambient import Ambient
from .binomial import BinomialVLB, CrossEntropy
from .checkpoint import load_weights, save_weights
from .condition_perturbation import ConditionPerturbation, corrupt_labels
from .couplings import C2OT, MinibatchOT, Shuffled, unpaired
from .ema import EMA
from .fit import Fit, fit
from .forecast import Forecast
from .hybrid import VLB, HybridLoss
from .learned_coupling import MinimumCurvature
from .loss_second_moment import LossSecondMoment
from .objective import Objective, default_weighting
from .power_ema import PowerEMA, post_hoc, profile
from .pseudo_huber import PseudoHuber
from .recompute import recomputed
from .reflow import Coupled, OneStep, Pairs, invert_pairs, reflow_pairs
from .run import Training
from .schedule_bound import ScheduleBound
from .shared_timestep import SharedTimestep
from .times import LogitNormal, LogNormalSigma, TimeLaw, UniformLogSNR, UniformTime, UShapedTime
from .weightings import ELBO, MinSNR, UnitOutput, UnitTarget, Weighting

__all__ = [
    "C2OT",
    "ELBO",
    "EMA",
    "VLB",
    "Ambient",
    "BinomialVLB",
    "ConditionPerturbation",
    "Coupled",
    "CrossEntropy",
    "Fit",
    "Forecast",
    "HybridLoss",
    "LogNormalSigma",
    "LogitNormal",
    "LossSecondMoment",
    "MinSNR",
    "MinibatchOT",
    "MinimumCurvature",
    "Objective",
    "OneStep",
    "Pairs",
    "PowerEMA",
    "PseudoHuber",
    "ScheduleBound",
    "SharedTimestep",
    "Shuffled",
    "TimeLaw",
    "Training",
    "UShapedTime",
    "UniformLogSNR",
    "UniformTime",
    "UnitOutput",
    "UnitTarget",
    "Weighting",
    "corrupt_labels",
    "default_weighting",
    "fit",
    "invert_pairs",
    "load_weights",
    "post_hoc",
    "profile",
    "recomputed",
    "reflow_pairs",
    "save_weights",
    "unpaired",
]
