"""Likelihoods and diagnostics: what a denoiser says of the density of data, and how it can be trusted."""

from .log_likelihood import LogLikelihood, log_likelihood
from .time_lipschitz import time_lipschitz
from .variational_bound import Quantised, VariationalBound, bound_term, check_chain, floor_of, variational_bound

__all__ = [
    "LogLikelihood",
    "Quantised",
    "VariationalBound",
    "bound_term",
    "check_chain",
    "floor_of",
    "log_likelihood",
    "time_lipschitz",
    "variational_bound",
]
