"""Restoration: samples of what was measured, given what came out."""

from .cddb import CDDB
from .cdim import CDIM
from .copaint import CoPaint
from .ddnm import DDNM
from .ddrm import DDRM
from .dds import DDS
from .diffpir import DiffPIR
from .direct_bridge import DirectBridge
from .dps import DPS
from .mcg import MCG
from .measurement import Measurement
from .method import Method, Restored, restore
from .mmps import MMPS
from .pigdm import PiGDM
from .pmrf import PMRF
from .posterior import Corrected, Covaried, Measured, Pulled
from .projected import Projected
from .renoise import Renoise
from .repaint import RePaint
from .score_prior import Fitted, ScorePrior
from .variational import Family, Normal, RealNVP

__all__ = [
    "CDDB",
    "CDIM",
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "MCG",
    "MMPS",
    "PMRF",
    "CoPaint",
    "Corrected",
    "Covaried",
    "DiffPIR",
    "DirectBridge",
    "Family",
    "Fitted",
    "Measured",
    "Measurement",
    "Method",
    "Normal",
    "PiGDM",
    "Projected",
    "Pulled",
    "RePaint",
    "RealNVP",
    "Renoise",
    "Restored",
    "ScorePrior",
    "restore",
]
