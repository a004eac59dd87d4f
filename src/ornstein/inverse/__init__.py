"""Restoration: samples of what was measured, given what came out."""

from .ddnm import DDNM
from .ddrm import DDRM
from .dds import DDS
from .diffpir import DiffPIR
from .dps import DPS
from .mcg import MCG
from .measurement import Measurement
from .method import Method, Restored, restore
from .mmps import MMPS
from .pigdm import PiGDM
from .posterior import Corrected, Covaried, Measured, Pulled
from .projected import Projected
from .renoise import Renoise
from .repaint import RePaint

__all__ = [
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "MCG",
    "MMPS",
    "Corrected",
    "Covaried",
    "DiffPIR",
    "Measured",
    "Measurement",
    "Method",
    "PiGDM",
    "Projected",
    "Pulled",
    "RePaint",
    "Renoise",
    "Restored",
    "restore",
]
