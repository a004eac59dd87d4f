"""Conjugate integrators: Euler's method after a change of variables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..numerics.quadrature import between
from ..processes import Level, PhaseSpace
from .exponential import jump
from .phase import advance_phase
from .solver import Solver
from .table import Writer
from .variable import VARIABLES

_POINTS = 64


@dataclass(frozen=True)
class Conjugate(Solver):
    """xhat = A x with A = exp(rate t)/alpha:    xhat_s = xhat_t + (s - t) rate xhat_t + (Phi_s - Phi_t) noise

    where dPhi = A dx along a constant noise, that is exp(rate t) d(sigma/alpha). The linear part of the flow that A
    takes up is exact, what is left of it (B = rate) is stepped by Euler's method. rate = 0 leaves nothing and is DDIM;
    any other is of order 1 too, with another error and another region of stability.

    Phi has no closed form; int exp(rate t) d rho, rho = sigma/alpha, is taken by parts and by Gauss's rule in sqrt(t).
    Steps from alpha = 0 are DDIM's. A step to data is Euler's in xhat, like the others.

    In phase space alpha stands for the transition Phi(t) of the drift, a matrix, and the noise is that which the flow
    of a point mass keeps (see `PhaseSpace.flow_root`), so that rate = 0 is DDIM there too.

    Source: Pandey, Rudolph, Mandt 2023, "Efficient Integrators for Diffusion Generative Models" (2310.07894):
    lambda-DDIM.
    """

    rate: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.rate):
            raise ValueError(f"rate={self.rate}: it is finite, and 0 is DDIM")

    @property
    def exact_for_constant(self) -> bool:
        return self.rate == 0

    @property
    def matrices(self) -> bool:
        return True

    def write(self, table: Writer, grid: Level) -> None:
        x, sigma = table.state, VARIABLES["sigma"]
        phase = table.process if isinstance(table.process, PhaseSpace) else None
        for t, s in pairwise(grid):
            e = table.evaluate(x, t)
            to_data = phase is not None and not bool((s.t > 0).all())
            if self.rate == 0 or to_data or not sigma.reaches(t, s):
                x = jump(table, x, e, s)
                continue
            ratio = torch.exp(self.rate * (t.t - s.t))  # A_t/A_s but for the alphas
            left = ratio * (1 + self.rate * (s.t - t.t))
            if phase is None:
                right = sigma.u(s) - ratio * sigma.u(t) - self.rate * self._integral(table, t, s)
                value = (s.alpha / t.alpha * left) * x + (s.alpha * right) * e.noise
            else:
                value = advance_phase(phase, x, t, s, [e], partial(_carried, rate=self.rate, s=s), left)
            x = table.step(value, s)

    def _integral(self, table: Writer, t: Level, s: Level) -> Tensor:
        """int_t^s exp(rate (tau - s)) rho(tau) dtau; rho is smooth in sqrt(tau), for VP too."""
        v, dv = between(torch.sqrt(t.t), torch.sqrt(s.t), _POINTS)
        level = table.level(v**2)
        rho = level.sigma / level.alpha
        return (torch.exp(self.rate * (level.t - s.t[..., None])) * rho * 2 * v * dv).sum(-1)


def _carried(level: Level, rate: float, s: Level) -> Tensor:
    """exp(rate (tau - s)), of the one evaluation."""
    return torch.exp(rate * (level.t - s.t[..., None]))[..., None]
