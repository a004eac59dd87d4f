"""The reverse SDE, whose diffusion is chosen after training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..processes import InterpolantLevel, Level, Matrix, PhaseSpace
from .exponential import with_noise
from .phase import follow
from .solver import Solver
from .table import Coefficient, Evaluation, Expression, Register, Writer

Diffusion: TypeAlias = float | Callable[[Level], Tensor]
"""epsilon^2: a number is a multiple of g^2; a function gives epsilon^2 itself, of the level's shape."""


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """x_s = x_t - h [velocity - (epsilon^2/2) score] + epsilon sqrt(h) z,    h = t - s

    on the reverse SDE dx = [velocity - (epsilon^2/2) score] dt + epsilon dw with time running backward. Its marginals
    are those of the process for every epsilon(t) >= 0: since p score = grad p, the Fokker-Planck equation in r = -t
    reads dp/dr = -div(p [-velocity + (epsilon^2/2) score]) + (epsilon^2/2) div grad p = div(p velocity), the continuity
    equation of the flow. epsilon = 0 is the flow, epsilon^2 = g^2 the reverse of the forward SDE.

    diffusion: epsilon^2, a multiple of g^2 = 2 sigma (alpha sigma' - sigma alpha')/alpha, or a function of the level,
    which may stay finite where g^2 does not. The noise does not depend on x, so this is Milstein's method too: order 1
    both weakly and along paths. A step from alpha = 0 or to sigma = 0 is exact for constant x0 instead:

        x_s = alpha_s x0 + sigma_s (k noise + sqrt(1 - k^2) z),   k = (SNR_t/SNR_s)^(epsilon^2/2g^2)

    Between two laws with latent noise (`Interpolant`) the grid may rise as well: dx = [velocity + (epsilon^2/2) score]
    dt + epsilon dw carries data to the other end.

    Source: Song et al. 2020 (2011.13456), equation 6; Ma et al. 2024, "SiT" (2401.08740), equation 6.
    """

    diffusion: Diffusion = 1.0

    def __post_init__(self) -> None:
        check_diffusion(self.diffusion)

    @property
    def matrices(self) -> bool:
        return not callable(self.diffusion)

    def write(self, table: Writer, grid: Level) -> None:
        check_direction(self, grid)
        x = table.state
        for t, s in pairwise(grid):
            if at_an_end(t, s):
                x = table.step(exact_step(table, x, t, s, self.diffusion), s)
                continue
            p = table.evaluate(x, t)
            h, variance = t.t - s.t, (t.t - s.t).abs() * diffusion2(self.diffusion, t)
            value = x - h * p.velocity + drawn(variance / 2, p)
            x = table.step(with_noise(table, value, t, s, _root(variance)), s)


@dataclass(frozen=True)
class StochasticHeun(Solver):
    """x' = x_t + h a(x_t, t) + n,   x_s = x_t + (h/2) [a(x_t, t) + a(x', s)] + n,   n = sqrt(h (e_t + e_s)/2) z

    with a = -velocity + (e/2) score, e = epsilon^2 and h = t - s: the stochastic Runge-Kutta method of weak order 2
    for the reverse SDE of `EulerMaruyama`, two evaluations a step. The noise is independent of x, and its variance is
    the trapezoidal rule of that of the step; with its value at t alone the order would be 1. Along paths the order
    stays 1. Steps at infinite levels are those of `EulerMaruyama`; with diffusion=0 this is Heun's method in t.

    Source: Kloeden, Platen 1992, "Numerical Solution of Stochastic Differential Equations", section 14.2; for the
    reverse SDE, Song et al. 2020 (2011.13456).
    """

    diffusion: Diffusion = 1.0

    def __post_init__(self) -> None:
        check_diffusion(self.diffusion)

    @property
    def matrices(self) -> bool:
        return not callable(self.diffusion)

    def write(self, table: Writer, grid: Level) -> None:
        check_direction(self, grid)
        x = table.state
        for t, s in pairwise(grid):
            if at_an_end(t, s):
                x = table.step(exact_step(table, x, t, s, self.diffusion), s)
                continue
            h = t.t - s.t
            e_t, e_s = (h.abs() * diffusion2(self.diffusion, level) for level in (t, s))
            p = table.evaluate(x, t)
            first = drawn(e_t / 2, p) - h * p.velocity
            start = with_noise(table, x * 1.0, t, s, _root((e_t + e_s) / 2))
            q = table.evaluate(table.register(start + first, s), s)
            x = table.step(start + 0.5 * first + drawn(e_s / 4, q) - (h / 2) * q.velocity, s)


def diffusion2(diffusion: Diffusion, level: Level) -> Any:
    """epsilon^2 at a level."""
    if callable(diffusion):
        value = torch.as_tensor(diffusion(level), dtype=torch.float64)
        if value.shape not in ((), level.shape) or not bool((value >= 0).all()):
            raise ValueError(f"the diffusion is epsilon^2 >= 0 of the level's shape {tuple(level.shape)}: got {value}")
        return value.expand(level.shape)
    return diffusion * level.diffusion2


def drawn(factor: Any, p: Evaluation) -> Expression:
    """factor score, nothing where nothing is diffused: there the score need not exist."""
    if isinstance(factor, Tensor) and not bool((factor > 0).any()):
        return Expression({})
    share: Expression = p.score * factor
    return share


def _root(variance: Any) -> Coefficient:
    """The standard deviation of a step's noise."""
    return variance.root() if isinstance(variance, Matrix) else torch.sqrt(variance)


def at_an_end(t: Level, s: Level) -> bool:
    """Whether the step from t to s touches an infinite level."""
    return bool(t.no_data.any() | s.no_noise.any())


def exact_step(table: Writer, x: Register, t: Level, s: Level, diffusion: Diffusion) -> Expression:
    """The reverse SDE from t to s with x0 held: noise forgets itself at the rate epsilon^2/(2 sigma^2)."""
    p = table.evaluate(x, t)
    if isinstance(table.process, PhaseSpace):
        return follow(table.process, x, p, s)
    if callable(diffusion):  # its ratio to g^2 at t, 0 where g^2 is infinite
        ratio = torch.nan_to_num(diffusion2(diffusion, t) / diffusion2(1.0, t), nan=1.0)
    else:
        ratio = torch.full_like(t.t, diffusion)
    gain = ratio * (s.log_snr - t.log_snr)
    k = torch.where(ratio == 0, torch.ones_like(gain), torch.exp(-gain / 2))
    left = s.sigma * k / t.sigma
    value = left * x + (s.alpha - left * t.alpha) * p.x0
    std = s.sigma * torch.sqrt(1 - k**2)
    return value + std * table.noise(t, s) if bool((std > 0).any()) else value


def check_diffusion(diffusion: Diffusion) -> None:
    if not callable(diffusion) and not 0 <= diffusion < float("inf"):
        raise ValueError(f"diffusion={diffusion} is a multiple of g^2, 0 or more, or a function of the level")


def check_direction(solver: Solver, grid: Level) -> None:
    """Refuse a grid that rises, but between two laws of data, where both directions sample."""
    if not isinstance(grid, InterpolantLevel):
        check_falling(solver, grid)


def check_falling(solver: Solver, grid: Level) -> None:
    """Refuse a grid that rises: noise cannot be taken back."""
    if bool((grid.t[1] > grid.t[0]).any()):
        raise ValueError(f"{solver!r} draws noise and runs from noise to data: this grid rises; invert with DDIM()")
