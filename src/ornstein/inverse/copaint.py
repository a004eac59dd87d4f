"""Coherent inpainting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..processes import Level, ancestral, broadcast
from ..solvers import Solver
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Register, Writer
from .measurement import Measurement
from .method import Method, check_positive
from .repeated import Repeated

_STEPS, _LR_GROWS, _WEIGHT_GROWS = 250, 1.012, 1.01  # as published: factors a step


@dataclass(frozen=True)
class CoPaint(Method):
    """x_t <- argmin_x |y - A x0(x)|^2 + weight |x - x_t|^2 before each DDIM step, by `iterations` gradient steps

    the most likely state given the measurement, with x0 taken as right to xi and x_t to tau, weight = xi^2/tau^2: seen
    and hidden parts are moved together, through the network, where replacement puts in the seen ones only. A gradient
    step is lr alpha times the gradient, and per sample at most misfit/|gradient|^2 times it (Polyak's), past which it
    would overshoot. The measurement is taken as exact: noise in it is reproduced.

    It is a mode-seeking method: what has been fitted at one level is fitted again at the next, so hidden parts follow
    the seen ones too closely, and spread too little. Which of two modes, it decides at high noise, by which is nearer,
    not by weight.

    Args:
        iterations: gradient steps a level, an evaluation and a gradient pass each.
        lr, weight: at noise, for the published 250 steps; they grow by 1.012 and 1.01 a step. With n steps the growth
            over all is the same, and lr is 250/n times as large.
        travel: how often every stretch of `jump` steps is taken, going back to its start by the forward process; the
            published 1, or 2 with jump=10.

    Source: Zhang, Ji, Zhang, Yu, Jaakkola, Chang 2023, "Towards Coherent Image Inpainting Using Denoising Diffusion
    Implicit Models" (2304.03322), algorithm 1. The published code shortens the step of a whole batch until its loss
    falls; Polyak's bound is each sample's own.
    """

    iterations: int = 2
    lr: float = 0.02
    weight: float = 1e-4
    travel: int = 1
    jump: int = 10

    def __post_init__(self) -> None:
        check_positive(lr=self.lr, weight=self.weight)
        for name, count in (("iterations", self.iterations), ("travel", self.travel), ("jump", self.jump)):
            if count < 1:
                raise ValueError(f"{name}={count}: at least one")

    @property
    def steps(self) -> int:
        return _STEPS

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        operator = measurement.linear(self)

        def slope(x0: Tensor, level: Level) -> Tensor:
            return -2 * operator.adjoint(measurement.residual(x0))

        return Repeated(model, measurement, slope, self.iterations)

    def solver(self, measurement: Measurement) -> Solver:
        operator, y = measurement.linear(self), measurement.y
        y = y if operator.svd is None else operator(operator.pinv(y))  # what no x explains is no misfit of x
        return Coherent(self, replace(measurement, y=y))


@dataclass(frozen=True)
class Coherent(Solver):
    """DDIM's steps, each after gradient steps down the misfit, whose slope is the head "pull" of a `Repeated`."""

    method: CoPaint
    measurement: Measurement

    def __repr__(self) -> str:
        return repr(self.method)

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        x, steps, passes = table.state, len(grid) - 1, self.method.travel
        for first in range(0, steps, self.method.jump):
            stretch = range(first, min(first + self.method.jump, steps))
            for k in range(passes):
                for i in stretch:
                    x = self._step(table, x, grid, i, on_grid=k + 1 == passes)
                if k + 1 < passes:
                    t, s = grid[first], grid[stretch[-1] + 1]
                    x = table.register((t.alpha / s.alpha) * x + ancestral(t, s).forward * table.noise(s, t), t)

    def _step(self, table: Writer, x: Register, grid: Level, i: int, *, on_grid: bool) -> Register:
        t, s, stride = grid[i], grid[i + 1], _STEPS / (len(grid) - 1)
        lr = self.method.lr * stride * _LR_GROWS ** (i * stride) * t.alpha
        revise = partial(self.revise, lr, self.method.weight * _WEIGHT_GROWS ** (i * stride))
        before = x
        for _ in range(self.method.iterations):
            p = table.evaluate(x, t)
            x = table.apply(revise, x, before, p.x0, p.head("pull").raw, level=t)
        left = s.sigma / t.sigma
        return table.register(left * x + (s.alpha - left * t.alpha) * table.evaluate(x, t).x0, s, on_grid=on_grid)

    def revise(self, lr: Tensor, weight: float, x: Tensor, before: Tensor, x0: Tensor, slope: Tensor) -> Tensor:
        """A gradient step down |y - A x0(x)|^2 + weight |x - before|^2, `slope` being that of the first."""
        away = x - before
        misfit = _square(self.measurement.residual(x0)) + weight * _square(away)
        slope = slope + 2 * weight * away
        longest = misfit / _square(slope).clamp_min(torch.finfo(x.dtype).tiny)
        return x - broadcast(torch.minimum(longest, lr.to(longest)), x) * slope


def _square(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1)
