"""Restoration: samples of what was measured, given what came out."""

from .ddnm import DDNM
from .ddrm import DDRM
from .dds import DDS
from .diffpir import DiffPIR
from .dps import DPS
from .measurement import Measurement
from .method import Method, Restored, restore
from .mmps import MMPS
from .pigdm import PiGDM
from .posterior import Corrected, Covaried, Measured, Pulled
from .renoise import Renoise

__all__ = [
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "MMPS",
    "Corrected",
    "Covaried",
    "DiffPIR",
    "Measured",
    "Measurement",
    "Method",
    "PiGDM",
    "Pulled",
    "Renoise",
    "Restored",
    "restore",
]
