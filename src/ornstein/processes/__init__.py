"""Forward processes: how data becomes noise."""

from .ancestral import Ancestral, ancestral
from .conditional_ot import ConditionalOT
from .cosine import Cosine
from .discrete_time import DiscreteTime
from .edm import EDM
from .flow import Flow
from .gaussian import Draw, GaussianProcess, check_shift
from .level import Level, broadcast
from .linear import LinearProcess
from .matrix import Matrix
from .mean_reverting import MeanReverting
from .phase_space import CLD, PSLD, Phase, PhaseLevel, PhaseSpace, mix
from .product import Product, ProductDraw, ProductLevel
from .protocol import Process
from .ve import VE
from .vp import VP, SubVP

__all__ = [
    "CLD",
    "EDM",
    "PSLD",
    "VE",
    "VP",
    "Ancestral",
    "ConditionalOT",
    "Cosine",
    "DiscreteTime",
    "Draw",
    "Flow",
    "GaussianProcess",
    "Level",
    "LinearProcess",
    "Matrix",
    "MeanReverting",
    "Phase",
    "PhaseLevel",
    "PhaseSpace",
    "Process",
    "Product",
    "ProductDraw",
    "ProductLevel",
    "SubVP",
    "ancestral",
    "broadcast",
    "check_shift",
    "mix",
]
