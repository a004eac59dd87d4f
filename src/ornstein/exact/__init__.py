"""Worlds in which everything is known: samples, densities, scores, denoisers, posteriors, flow maps."""

from .box import ExactBoxDenoiser, FoldedMixture
from .correlated import ExactCorrelatedDenoiser
from .empirical import Empirical
from .enumerable import Enumerable, ExactBinomialDenoiser
from .functions import ExactFunctionsDenoiser, Functions
from .heavy_tailed import ExactHeavyTailedDenoiser
from .log_normal import LogMixture
from .mixture import Gaussian, GaussianMixture
from .phase import ExactPhaseDenoiser
from .two_sided import ExactTwoSidedDenoiser, TwoSidedMixture
from .world import ExactDenoiser, ExactPrediction, World

__all__ = [
    "Empirical",
    "Enumerable",
    "ExactBinomialDenoiser",
    "ExactBoxDenoiser",
    "ExactCorrelatedDenoiser",
    "ExactDenoiser",
    "ExactFunctionsDenoiser",
    "ExactHeavyTailedDenoiser",
    "ExactPhaseDenoiser",
    "ExactPrediction",
    "ExactTwoSidedDenoiser",
    "FoldedMixture",
    "Functions",
    "Gaussian",
    "GaussianMixture",
    "LogMixture",
    "TwoSidedMixture",
    "World",
]
