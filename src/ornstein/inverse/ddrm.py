"""Denoising diffusion restoration models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..processes import Level
from ..processes.level import broadcast
from ..solvers import Solver
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Writer
from .measurement import Measurement
from .method import Method, check_share


@dataclass(frozen=True)
class DDRM(Method):
    """In the coefficients of A = U diag(a) V^T, x = V^T x_t/alpha, d = V^T x0, b = U^T y/a, with s = sigma/alpha:

        a = 0:            x_s = d + s [sqrt(1 - eta^2) (x - d)/s_t + eta z]
        s < std/a:        x_s = d + s [sqrt(1 - eta^2) (b - d) a/std + eta z]
        s >= std/a:       x_s = (1 - eta_b) d + eta_b b + sqrt(s^2 - eta_b^2 std^2/a^2) z

    directions that were not measured, that the measurement knows worse than the level s, and better: x_s has the
    level's noise in all. Without noise, eta_b = 1 and the same eta for what is not measured it is `DDNM` but for the
    measured part of x_s, which is drawn anew.

    Source: Kawar et al. 2022, "Denoising Diffusion Restoration Models" (2201.11793), equations 7 and 8.
    """

    eta: float = 0.85
    eta_b: float = 1.0

    def __post_init__(self) -> None:
        check_share(eta=self.eta, eta_b=self.eta_b)

    @property
    def steps(self) -> int:
        return 20

    def solver(self, measurement: Measurement) -> Solver:
        operator, std = measurement.linear(self), measurement.std(self)
        if operator.svd is None:
            raise ValueError(f"{self!r} works in the SVD of the operator, {operator!r} has none: choose DDS()")
        svd, y = operator.svd, measurement.y
        a = svd.spectrum(y)
        seen = a > 0
        target = torch.where(seen, svd.ut(y) / torch.where(seen, a, 1.0), 0.0)
        floor = torch.where(seen, std / torch.where(seen, a, 1.0), torch.inf)  # what y leaves of a coefficient

        def step(t: Level, s: Level, x: Tensor, x0: Tensor, z: Tensor) -> Tensor:
            own, d, fresh = svd.vt(x), svd.vt(x0), svd.vt(z)
            after, keep = broadcast(s.sigma / s.alpha, d), (1 - self.eta**2) ** 0.5
            noise = (own - broadcast(t.alpha, d) * d) / broadcast(t.sigma, d)
            hidden = d + after * (keep * noise + self.eta * fresh)
            coarse = d + keep * (target - d) * (after / floor.clamp_min(1e-30)) + after * self.eta * fresh
            left = (after**2 - self.eta_b**2 * torch.where(seen, floor, 0.0) ** 2).clamp_min(0).sqrt()
            fine = (1 - self.eta_b) * d + self.eta_b * target + left * fresh
            new = torch.where(seen, torch.where(after < floor, coarse, fine), hidden)
            return broadcast(s.alpha, x) * svd.v(new)

        return _Spectral(repr(self), step)


@dataclass(frozen=True)
class _Spectral(Solver):
    """x_s = step(t, s, x_t, x0, z)."""

    name: str
    step: Callable[[Level, Level, Tensor, Tensor, Tensor], Tensor]

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        x = table.state
        for t, s in pairwise(grid):
            x0, z = 1.0 * table.evaluate(x, t).x0, 1.0 * table.noise(t, s)
            x = table.apply(partial(self.step, t, s), x, x0, z, level=s, on_grid=True)
