"""The referee: the checks that prove our own solvers, run on anyone's sampler."""

from .adaptors import adapt, for_azula, for_callable, for_diffusers, for_k_diffusion, for_solver, load_object
from .candidate import Candidate, Claims, Outcome
from .certify import certify
from .report import Finding, Report

__all__ = [
    "Candidate",
    "Claims",
    "Finding",
    "Outcome",
    "Report",
    "adapt",
    "certify",
    "for_azula",
    "for_callable",
    "for_diffusers",
    "for_k_diffusion",
    "for_solver",
    "load_object",
]
