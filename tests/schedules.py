"""The built-in schedules a second time, in multiple precision from the papers' formulas: the judge of the library's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from mpmath import MPContext

from ornstein.processes import EDM, VE, VP, Cosine, Flow, GaussianProcess, MeanReverting, SubVP

mp = MPContext()
mp.dps = 110  # at 1e-40 from an end too
EPS = 2.0**-52
STEP = mp.mpf(10) ** -30  # of numerical derivatives: truncation (STEP/t)^2, cancellation 10^-dps/STEP

PROCESSES: dict[str, GaussianProcess] = {
    "VP": VP(),
    "SubVP": SubVP(),
    "VE": VE(),
    "Cosine": Cosine(),
    "CosineOffset": Cosine(offset=0.008),
    "EDM": EDM(),
    "Flow": Flow(),
    "MeanReverting": MeanReverting(),
}
# The largest exponent of an exponential in the formulas: rounding it by eps/2 moves the exponential by this many eps/2.
EXPONENT = {"VP": 10.05, "SubVP": 10.05, "MeanReverting": 10.05, "VE": 17.04}
ZERO_TERMINAL_SNR = {"Cosine", "CosineOffset", "Flow"}
INFINITE_SLOPE = {"VP", "VE", "CosineOffset", "MeanReverting"}  # sigma' at t = 0


def _integral_of_beta(t: Any) -> Any:
    low, high = mp.mpf(0.1), mp.mpf(20)
    return low * t + (high - low) * t**2 / 2


def alpha(name: str, t: Any) -> Any:
    if name in ("VP", "SubVP", "MeanReverting"):
        return mp.exp(-_integral_of_beta(t) / 2)
    if name in ("VE", "EDM"):
        return mp.mpf(1)
    if name == "Flow":
        return 1 - t
    offset = mp.mpf(0.008 if name == "CosineOffset" else 0)
    return mp.cos(mp.pi / 2 * (t + offset) / (1 + offset)) / mp.cos(mp.pi / 2 * offset / (1 + offset))


def sigma(name: str, t: Any) -> Any:
    if name == "VE":
        low, high = mp.mpf(0.01), mp.mpf(50)
        return mp.sqrt((low * (high / low) ** t) ** 2 - low**2)
    if name == "EDM":
        return 80 * t
    if name == "Flow":
        return t
    variance = 1 - alpha(name, t) ** 2
    if name == "SubVP":
        return variance
    return mp.sqrt(variance) * (mp.mpf(0.3) if name == "MeanReverting" else 1)


@dataclass(frozen=True)
class Truth:
    """alpha, sigma and their derivatives at one time, to 24 digits."""

    alpha: Any
    sigma: Any
    d_alpha: Any
    d_sigma: Any

    @classmethod
    @cache
    def at(cls, name: str, t: Any) -> Truth:
        t = mp.mpf(t)
        h = min(STEP, t / 10**12, (1 - t) / 10**12)
        slopes = [(f(name, t + h) - f(name, t - h)) / (2 * h) for f in (alpha, sigma)]
        return cls(alpha(name, t), sigma(name, t), *slopes)

    @property
    def wronskian(self) -> Any:
        return self.alpha * self.d_sigma - self.sigma * self.d_alpha

    @property
    def drift(self) -> Any:
        return self.d_alpha / self.alpha

    @property
    def diffusion2(self) -> Any:
        """From v' = 2 f v + g^2 with v = sigma^2."""
        return 2 * self.sigma * self.d_sigma - 2 * self.drift * self.sigma**2

    @property
    def log_snr(self) -> Any:
        return 2 * mp.log(self.alpha / self.sigma)

    @property
    def d_log_snr(self) -> Any:
        return 2 * (self.d_alpha / self.alpha - self.d_sigma / self.sigma)

    def row(self, view: str) -> tuple[Any, Any]:
        """(a, b) with view = a x0 + b noise."""
        return {
            "x0": (mp.mpf(1), mp.mpf(0)),
            "noise": (mp.mpf(0), mp.mpf(1)),
            "score": (mp.mpf(0), -1 / self.sigma),
            "velocity": (self.d_alpha, self.d_sigma),
            "v": (-self.sigma, self.alpha),
        }[view]

    def conversion(self, source: str, target: str) -> tuple[Any, Any]:
        """(c_x, c_p) by Cramer's rule on c_x (alpha, sigma) + c_p (p, q) = (a, b)."""
        if source == target:
            return mp.mpf(0), mp.mpf(1)
        (p, q), (a, b) = self.row(source), self.row(target)
        system = self.alpha * q - self.sigma * p
        return (a * q - b * p) / system, (self.alpha * b - self.sigma * a) / system


def double(value: Any) -> torch.Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def long(value: Any) -> np.longdouble:
    return np.longdouble(mp.nstr(value, 25))
