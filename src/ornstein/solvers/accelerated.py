"""Accelerated DDIM and DDPM with proven rates."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..processes import Level
from .exponential import finite, jump
from .solver import Solver
from .table import Evaluation, Expression, Writer


def _scale(level: Level) -> Tensor:
    """sqrt(alpha^2 + sigma^2), by which a state is divided to preserve variance."""
    return torch.hypot(level.alpha, level.sigma)


def _beta(t: Level, s: Level) -> Tensor:
    """1 - a with a = (alpha_t/alpha_s)^2 in the variance-preserving frame: the variance of the forward step s to t."""
    # a = (1 + 1/SNR_s)/(1 + 1/SNR_t)
    ratio = (t.alpha * _scale(s)) / (s.alpha * _scale(t))
    return (1 - ratio) * (1 + ratio)


def _score(e: Evaluation) -> Expression:
    """The score of the variance-preserving state, scale times that of x."""
    return _scale(e.level) * e.score


@dataclass(frozen=True)
class AcceleratedDDIM(Solver):
    """y_s = [y + b/2 score(y, t) + b^2/(4 b') (score(y, t) - sqrt(a') score(y', t'))]/sqrt(a)

        y' = sqrt(a') (y - b'/2 score(y, t)),      a = 1 - b,  a' = 1 - b'

    where y = x/sqrt(alpha^2 + sigma^2) preserves variance, b is the variance of the forward step s to t, and t' is the
    point of the grid before t, of which b' is the step. The state is carried back to t' to see how the score changes:
    order 2, two evaluations a step. Without the last term (the paper's DDIM, `plain=True`) the order is 1. The first
    step has no point before it and is the library's DDIM, and so are steps at infinite log-SNR.

    Source: Li, Huang, Efimov, Wei, Chi, Chen 2024, "Accelerating Convergence of Score-Based Diffusion Models,
    Provably" (2403.03852), deterministic sampler.
    """

    plain: bool = False

    def write(self, table: Writer, grid: Level) -> None:
        x, before = table.state, None
        for t, s in pairwise(grid):
            e = table.evaluate(x, t)
            if not (finite(t) and finite(s)) or before is None:
                x = jump(table, x, e, s)
            else:
                y, score, b = x / _scale(t), _score(e), _beta(t, s)
                value = y + (b / 2) * score
                if not self.plain:
                    back = _beta(before, t)  # b'
                    fade = torch.sqrt(1 - back)
                    earlier = table.register((_scale(before) * fade) * (y - (back / 2) * score), before)
                    change = score - fade * _score(table.evaluate(earlier, before))
                    value = value + (b**2 / (4 * back)) * change
                x = table.step((_scale(s) / torch.sqrt(1 - b)) * value, s)
            before = t if finite(t) else None


@dataclass(frozen=True)
class AcceleratedDDPM(Solver):
    """y' = y + sqrt(b/2) z_1,    y_s = [y' + b score(y', t) + sqrt(b/2) z_2]/sqrt(1 - b)

    with y = x/sqrt(alpha^2 + sigma^2) and b the variance of the forward step s to t: half of the noise comes before the
    evaluation. One evaluation a step, weak order 2 where ancestral sampling has 1. `plain=True` adds all noise
    afterwards: the paper's DDPM. Steps from alpha = 0 are ancestral, steps to data end in x0.

    Source: Li et al. 2024 (2403.03852), stochastic sampler.
    """

    plain: bool = False

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        for t, s in pairwise(grid):
            if bool((s.t > t.t).any()):
                raise ValueError("ancestral sampling runs from noise to data: this grid rises")
            if not (finite(t) and finite(s)):
                x = jump(table, x, table.evaluate(x, t), s, tau=1.0)
                continue
            b, middle = _beta(t, s), table.level((t.t + s.t) / 2)
            first, second = table.noise(t, middle), table.noise(middle, s)
            half = torch.sqrt(b / 2)
            early = x * 1.0 if self.plain else x + (_scale(t) * half) * first
            late = half * (first + second) if self.plain else half * second
            y = table.register(early, t)
            value = y / _scale(t) + b * _score(table.evaluate(y, t)) + late
            x = table.step((_scale(s) / torch.sqrt(1 - b)) * value, s)
