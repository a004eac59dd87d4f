"""Denoisers made from denoisers."""

from .autoguidance import Autoguidance
from .cfg import CFG
from .guided import Guided

__all__ = ["CFG", "Autoguidance", "Guided"]
