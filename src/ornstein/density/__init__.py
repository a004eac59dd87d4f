"""Likelihoods and diagnostics: what a denoiser says of the density of data, and how it can be trusted."""

from .binomial_bound import binomial_bound, binomial_term
from .diffusion_times import DiffusionTimes, diffusion_times, end_law
from .flow_likelihood import FlowLikelihood
from .kinetic_energy import kinetic_energy, separation
from .log_likelihood import LogLikelihood, log_likelihood
from .reverse_entropy import reverse_entropy
from .time_lipschitz import time_lipschitz
from .variational_bound import Quantised, VariationalBound, bound_term, check_chain, floor_of, variational_bound

__all__ = [
    "DiffusionTimes",
    "FlowLikelihood",
    "LogLikelihood",
    "Quantised",
    "VariationalBound",
    "binomial_bound",
    "binomial_term",
    "bound_term",
    "check_chain",
    "diffusion_times",
    "end_law",
    "floor_of",
    "kinetic_energy",
    "log_likelihood",
    "reverse_entropy",
    "separation",
    "time_lipschitz",
    "variational_bound",
]
