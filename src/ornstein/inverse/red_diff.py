"""RED-diff: restoration as optimisation, with the denoiser as the regulariser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..linops import GaussianNoise, LinearOperator
from ..processes import GaussianProcess, Level
from ..processes.level import along
from ..solvers import Grid, Solver, Uniform
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Writer
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Plain

_ORDERS = ("falling", "spread")
_FIRST, _SECOND = 0.9, 0.99  # what Adam keeps of its two means


@dataclass(frozen=True)
class REDDiff(Method):
    """mu <- mu - lr Adam(g),    g = A^T (A mu - y)/m + (weight/d) s^(power - 1) (mu - x0(x_t)),    s = sigma/alpha

    with x_t = alpha mu + sigma z, for m measured numbers of d, a step for each level t. As mu - x0 = s (noise - z), and
    the gradient of KL(q_t | p_t) of q_t = N(alpha mu, sigma^2 I) is E[noise(x_t)]/s, what it descends is

        |y - A mu|^2/(2 m) + (weight/d) E_t s^(power + 1) KL(q_t | p_t)

    a point estimate by a prior blurred at every level, and no sample of a posterior: for data N(mean, C) it has

        (A^T A/m + weight W/d) mu = A^T y/m + weight W mean/d,    W = E_t s^(power + 1) (C + s^2 I)^-1

    which is the posterior mean, and MAP, of data of one variance if weight W/d = std^2 C^-1/m, and of other data for no
    weight. No gradient passes the network. For noise that is not normal -log p(y | mu) is in place of |y - A mu|^2/2.

    power: 1, published, weighs noise(x_t) - z by s; 0 by nothing.
    order: "falling", published: each level once, from noise to data. It anneals, which finds better points where there
        are many, and ends where the level's prior is sharp: it minimises nothing, and moves by lr to the end. "spread":
        the same levels mixed evenly, and lr falling to 0: it converges to the minimum above.

    It starts at A^T (A A^T + std^2 I)^-1 y (0 where A is not linear or the noise not normal).

    Source: Mardani, Song, Kautz, Vahdat 2023, "A Variational Perspective on Solving Inverse Problems with Diffusion
    Models" (2305.04391), algorithm 1; Kingma, Ba 2014 (1412.6980) for Adam.
    """

    weight: float = 0.25
    power: float = 1.0
    lr: float = 0.1
    order: str = "falling"

    def __post_init__(self) -> None:
        check_positive(weight=self.weight, lr=self.lr)
        if not math.isfinite(self.power):
            raise ValueError(f"power={self.power}: a finite power of sigma/alpha")
        if self.order not in _ORDERS:
            raise ValueError(f"order={self.order!r}: choose from {', '.join(_ORDERS)}")

    @property
    def steps(self) -> int:
        return 1000

    @property
    def grid(self) -> Grid:
        return Uniform()

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        if not isinstance(model.process, GaussianProcess):
            raise ValueError(f"{self!r} is for a GaussianProcess: {model.process!r} is none")
        return Plain(model, measurement)

    def solver(self, measurement: Measurement) -> Solver:
        operator, noise, y = measurement.operator, measurement.noise, measurement.y
        measurement.gradient(self)
        start = torch.zeros(len(y), *operator.event).to(y)
        if isinstance(operator, LinearOperator) and isinstance(noise, GaussianNoise):
            start = operator.gain(y, torch.as_tensor(noise.std) ** 2, 1.0)
        return _Descent(self, partial(_slope, measurement), start)


@dataclass(frozen=True)
class _Descent(Solver):
    """The steps of a `REDDiff`."""

    method: REDDiff
    slope: Callable[[Tensor], Tensor]
    start: Tensor

    def __repr__(self) -> str:
        return repr(self.method)

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        own, size, steps = self.method, self.start[0].numel(), len(grid) - 1
        spread = own.order == "spread"
        golden = (math.sqrt(5) - 1) / 2
        levels = sorted(range(steps), key=lambda i: (i * golden) % 1) if spread else range(steps)
        mu = table.apply(lambda x: self.start, table.state)
        first: Any = None
        second: Any = None
        for i, (level, after) in enumerate(zip(levels, grid[1:], strict=True)):
            t = grid[level]
            x0 = table.evaluate(table.register(t.alpha * mu + t.sigma * table.noise(t, t), t), t).x0
            share = own.weight / size * torch.exp((1 - own.power) / 2 * t.log_snr.clamp_min(-20))
            g = table.register(share * mu - share * x0 + table.apply(self.slope, mu))
            first = table.register(_FIRST * first + (1 - _FIRST) * g if first else (1 - _FIRST) * g)
            second = table.apply(_kept, second, g) if second else table.apply(lambda g: (1 - _SECOND) * g**2, g)
            lr = own.lr * (1 - i / steps) if spread else own.lr
            move = partial(_moved, lr / (1 - _FIRST ** (i + 1)), 1 - _SECOND ** (i + 1))
            mu = table.apply(move, mu, first, second, level=after, on_grid=True)


def _kept(second: Tensor, g: Tensor) -> Tensor:
    return _SECOND * second + (1 - _SECOND) * g**2


def _moved(lr: float, weight: float, mu: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return mu - lr * first / ((second / weight).sqrt() + 1e-8)


def _slope(measurement: Measurement, mu: Tensor) -> Tensor:
    """The gradient of |y - A(mu)|^2/(2 m), or of -log p(y | mu)/m."""
    operator, noise = measurement.operator, measurement.noise
    count = along(measurement.seen.flatten(1).sum(1).clamp_min(1), mu)
    if isinstance(noise, GaussianNoise) and isinstance(operator, LinearOperator):
        return -operator.adjoint(measurement.residual(mu)) / count
    with torch.enable_grad():
        mu = mu.detach().requires_grad_()
        if isinstance(noise, GaussianNoise):
            misfit = measurement.residual(mu).square().sum() / 2
        else:
            misfit = -noise.log_prob(measurement.y, operator(mu)).sum()
        return torch.autograd.grad(misfit, mu)[0] / count
