"""Measurement operators y = A(x), measurement noise, and the check of an operator of one's own."""

from .blur import Blur, NonuniformBlur, SeparableBlur
from .check import Checked, check, check_adjoint
from .compose import Composed, LinearComposed, Stack, Truncated
from .fourier import Fourier
from .function import BlackBox, Function
from .hadamard import Hadamard
from .kernel import gaussian_kernel
from .mask import Mask
from .matrix import Matrix
from .noise import GaussianNoise, NoiseModel, PoissonNoise, QuantisationNoise
from .nonlinear import Clipping, PhaseRetrieval, Quantisation
from .operator import LinearOperator, Operator
from .radon import Radon
from .separable import Colour, Downsample, Separable
from .svd import SVD

__all__ = [
    "SVD",
    "BlackBox",
    "Blur",
    "Checked",
    "Clipping",
    "Colour",
    "Composed",
    "Downsample",
    "Fourier",
    "Function",
    "GaussianNoise",
    "Hadamard",
    "LinearComposed",
    "LinearOperator",
    "Mask",
    "Matrix",
    "NoiseModel",
    "NonuniformBlur",
    "Operator",
    "PhaseRetrieval",
    "PoissonNoise",
    "Quantisation",
    "QuantisationNoise",
    "Radon",
    "Separable",
    "SeparableBlur",
    "Stack",
    "Truncated",
    "check",
    "check_adjoint",
    "gaussian_kernel",
]
