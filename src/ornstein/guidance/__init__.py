"""Denoisers made from denoisers."""

from .autoguidance import Autoguidance
from .cfg import CFG
from .change_of_process import ChangeOfProcess
from .epsilon_scaling import EpsilonScaling
from .exposure_bias import ExposureBias, exposure_bias
from .guided import Guided
from .shorter import Shorter
from .thresholding import DynamicThresholding, StaticThresholding
from .time_shift import TimeShift
from .wrapped import Wrapped

__all__ = [
    "CFG",
    "Autoguidance",
    "ChangeOfProcess",
    "DynamicThresholding",
    "EpsilonScaling",
    "ExposureBias",
    "Guided",
    "Shorter",
    "StaticThresholding",
    "TimeShift",
    "Wrapped",
    "exposure_bias",
]
