"""Restoration: samples of what was measured, given what came out."""

from .afdps import AFDPS
from .cddb import CDDB
from .cdim import CDIM
from .copaint import CoPaint
from .daps import DAPS
from .ddnm import DDNM
from .ddrm import DDRM
from .dds import DDS
from .diffpir import DiffPIR
from .direct_bridge import DirectBridge
from .dps import DPS
from .enkg import EnKG
from .langevin import Langevin
from .mcg import MCG
from .measurement import Measurement
from .method import Method, Restored, restore
from .mmps import MMPS
from .pigdm import PiGDM
from .pmrf import PMRF
from .population import Populated, Population
from .posterior import Corrected, Covaried, Measured, Pulled
from .projected import Projected
from .red_diff import REDDiff
from .renoise import Renoise
from .repaint import RePaint
from .score_prior import Fitted, ScorePrior
from .tds import TDS
from .variational import Family, Normal, RealNVP

__all__ = [
    "AFDPS",
    "CDDB",
    "CDIM",
    "DAPS",
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "MCG",
    "MMPS",
    "PMRF",
    "TDS",
    "CoPaint",
    "Corrected",
    "Covaried",
    "DiffPIR",
    "DirectBridge",
    "EnKG",
    "Family",
    "Fitted",
    "Langevin",
    "Measured",
    "Measurement",
    "Method",
    "Normal",
    "PiGDM",
    "Populated",
    "Population",
    "Projected",
    "Pulled",
    "REDDiff",
    "RePaint",
    "RealNVP",
    "Renoise",
    "Restored",
    "ScorePrior",
    "restore",
]
