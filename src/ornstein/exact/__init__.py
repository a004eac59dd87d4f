"""Worlds in which everything is known: samples, densities, scores, denoisers, posteriors, flow maps."""

from .empirical import Empirical
from .mixture import Gaussian, GaussianMixture
from .phase import ExactPhaseDenoiser
from .world import ExactDenoiser, ExactPrediction, World

__all__ = [
    "Empirical",
    "ExactDenoiser",
    "ExactPhaseDenoiser",
    "ExactPrediction",
    "Gaussian",
    "GaussianMixture",
    "World",
]
