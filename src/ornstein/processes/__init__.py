"""Forward processes: how data becomes noise."""

from inspect import isabstract

from .affine import AffineProcess, Draw, check_shift
from .ancestral import Ancestral, ancestral
from .binomial import Binomial, BinomialDraw, BinomialLevel
from .bridge import I2SB, BrownianBridge
from .conditional_ot import ConditionalOT
from .constant_acceleration import ConstantAcceleration, GivenVelocity
from .correlated import Coloured, Correlated
from .cosine import Cosine
from .discrete_time import DiscreteTime
from .edm import EDM
from .flow import Flow
from .functional import GaussianProcessNoise
from .gaussian import GaussianProcess
from .indi import indi
from .interpolant import Interpolant, InterpolantDraw, InterpolantLevel
from .kernels import OU, RBF, Kernel, Sine
from .kinetic_optimal import KineticOptimal, Separation
from .learned import LearnedSchedule
from .learned_coupling import CoupledDraw, LearnedCoupling
from .learned_rates import LearnedRates
from .level import Level, along, broadcast, check_times_of
from .linear import LinearProcess
from .matrix import Matrix
from .mean_reverting import MeanReverting, Reverting
from .multiplicative import GeometricBrownian, Multiplicative
from .pfgmpp import PFGMPP
from .phase_space import CLD, PSLD, Phase, PhaseLevel, PhaseSpace, mix
from .product import Product, ProductDraw, ProductLevel
from .protocol import Process
from .reflected import Reflected, ReflectedDraw, ReflectedLevel, heat_kernel
from .residual import Powers, Residual, SeparateSchedules
from .scheduled import Scheduled
from .sgmse import SGMSE
from .shortened import EndLaw, Shortened
from .two_sided import TwoSided
from .ve import VE
from .vp import VP, SubVP

__all__ = [
    "CLD",
    "EDM",
    "I2SB",
    "OU",
    "PFGMPP",
    "PSLD",
    "RBF",
    "SGMSE",
    "VE",
    "VP",
    "AffineProcess",
    "Ancestral",
    "Binomial",
    "BinomialDraw",
    "BinomialLevel",
    "BrownianBridge",
    "Coloured",
    "ConditionalOT",
    "ConstantAcceleration",
    "Correlated",
    "Cosine",
    "CoupledDraw",
    "DiscreteTime",
    "Draw",
    "EndLaw",
    "Flow",
    "GaussianProcess",
    "GaussianProcessNoise",
    "GeometricBrownian",
    "GivenVelocity",
    "Interpolant",
    "InterpolantDraw",
    "InterpolantLevel",
    "Kernel",
    "KineticOptimal",
    "LearnedCoupling",
    "LearnedRates",
    "LearnedSchedule",
    "Level",
    "LinearProcess",
    "Matrix",
    "MeanReverting",
    "Multiplicative",
    "Phase",
    "PhaseLevel",
    "PhaseSpace",
    "Powers",
    "Process",
    "Product",
    "ProductDraw",
    "ProductLevel",
    "Reflected",
    "ReflectedDraw",
    "ReflectedLevel",
    "Residual",
    "Reverting",
    "Scheduled",
    "SeparateSchedules",
    "Separation",
    "Shortened",
    "Sine",
    "SubVP",
    "TwoSided",
    "along",
    "ancestral",
    "broadcast",
    "check_shift",
    "check_times_of",
    "heat_kernel",
    "indi",
    "mix",
]

NAMED: tuple[type, ...] = tuple(
    kind
    for kind in map(globals().get, __all__)
    if isinstance(kind, type) and issubclass(kind, (LinearProcess, Separation, OU, RBF, Sine)) and not isabstract(kind)
)
"""The classes, with what they are made of, that a file of a model may name."""
