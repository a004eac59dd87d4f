"""RED-diff: restoration as optimisation, with the denoiser as the regulariser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..linops import GaussianNoise, LinearOperator
from ..processes import Level
from ..solvers import Grid, Solver, Uniform
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Writer
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Corrected


@dataclass(frozen=True)
class REDDiff(Method):
    """x"""

    weight: float = 0.25
    power: float = 1.0
    lr: float = 0.1
    order: str = "falling"
    decay: bool = False

    def __post_init__(self) -> None:
        check_positive(weight=self.weight, lr=self.lr)

    @property
    def steps(self) -> int:
        return 1000

    @property
    def grid(self) -> Grid:
        return Uniform()

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        return Corrected(model, measurement, lambda x0, level: x0)

    def solver(self, measurement: Measurement) -> Solver:
        operator = measurement.operator
        start = operator.gain(measurement.y, float(measurement.noise.std) ** 2, 1.0)
        m, d = measurement.y[0].numel(), start[0].numel()
        return Descent(
            repr(self),
            start,
            lambda mu: -operator.adjoint(measurement.residual(mu)) / m,
            self.weight / d,
            self.power,
            self.lr,
            self.order,
            self.decay,
        )


@dataclass(frozen=True)
class Descent(Solver):
    name: str
    start: Tensor
    slope: Callable[[Tensor], Tensor]
    weight: float
    power: float
    lr: float
    order: str
    decay: bool

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        mu = table.apply(lambda x: self.start.to(x), table.state)
        n = len(grid) - 1
        levels = list(range(n)) if self.order == "falling" else spread(n)
        first = second = None
        for i in range(n):
            t, s = grid[levels[i]], grid[i + 1]
            p = table.evaluate(table.register(t.alpha * mu + t.sigma * table.noise(t, t), t), t)
            share = self.weight * torch.exp((1 - self.power) / 2 * t.log_snr.clamp(min=-20.0))
            g = table.register(share * (mu - p.x0) + table.apply(self.slope, mu))
            first = table.register(0.1 * g if first is None else 0.9 * first + 0.1 * g)
            second = (
                table.apply(square, g, g if second is None else second)
                if second is None
                else table.apply(track, second, g)
            )
            lr = self.lr * (1 - i / n if self.decay else 1.0)
            mu = table.apply(
                partial(move, lr / (1 - 0.9 ** (i + 1)), 1 - 0.99 ** (i + 1)), mu, first, second, level=s, on_grid=True
            )


def spread(n):
    return sorted(range(n), key=lambda i: (i * 0.6180339887498949) % 1)


def square(g, _):
    return 0.01 * g**2


def track(v, g):
    return 0.99 * v + 0.01 * g**2


def move(lr, c, mu, first, second):
    return mu - lr * first / ((second / c).sqrt() + 1e-8)
