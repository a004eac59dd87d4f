"""Denoisers made from denoisers."""

from .autoguidance import Autoguidance
from .cfg import CFG
from .epsilon_scaling import EpsilonScaling
from .exposure_bias import ExposureBias, exposure_bias
from .guided import Guided
from .thresholding import DynamicThresholding, StaticThresholding
from .time_shift import TimeShift
from .wrapped import Wrapped

__all__ = [
    "CFG",
    "Autoguidance",
    "DynamicThresholding",
    "EpsilonScaling",
    "ExposureBias",
    "Guided",
    "StaticThresholding",
    "TimeShift",
    "Wrapped",
    "exposure_bias",
]
