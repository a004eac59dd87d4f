"""Weighted particles of the posterior's own partial differential equation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..linops import GaussianNoise, LinearOperator
from ..processes import Level, ancestral, broadcast
from ..solvers import Solver
from ..solvers.table import Writer
from .measurement import Measurement
from .method import check_to_data
from .population import Populated, at_least, believed, share, spread_out
from .posterior import Plain


@dataclass(frozen=True)
class AFDPS(Populated):
    """The law Q_t = p_t e^(U_t), U_0 = log p(y | x0), carried from noise to data by particles x and weights w:

        dx = [-velocity + (g^2/2) score + pull g^2 grad U] dr + g dw,    r = -t
        d log w = [dU/dr along -velocity] dr + (pull - 1/2) g^2 [div grad U + (score + grad U) . grad U] dr

    which solves dQ/dr = -div(Q drift) + (g^2/2) div grad Q + (d log w/dr) Q for every U and every pull. The bracket is
    0 on average under Q: pull = 1 replaces the score by that of Q, as published, and pull = 1/2, which leaves Q
    invariant, needs no second derivative. The network is not differentiated.

    U_t(x) = log N(y; A k x, std^2 I + r^2 A A^T), with x0 given x_t as N(k x_t, r^2 I), which it is for data N(0,
    prior^2 I); of other operators and noises a share of log p(y | A(k x)) that is 1 at data, with pull = 1/2. Steps are
    ancestral, of order 1 in their number, and the weights' error in K is of order 1/sqrt(K): it claims the posterior.

    Source: Chen et al. 2025, "Solving Inverse Problems via Diffusion-Based Priors: An Approximation-Free Ensemble
    Sampling Approach" (2506.03979), which has U = log p(y | x) at all t; the rate for any U and pull is derived here.
    """

    pull: float = 0.5
    prior: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pull", "prior"):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (name == "prior" and value == 0):
                raise ValueError(f"{name}={value}: finite, not negative, and a prior deviation is not 0")

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        return Plain(model, measurement)

    def solver(self, measurement: Measurement) -> Solver:
        measurement.density(self)
        if isinstance(measurement.operator, LinearOperator) and isinstance(measurement.noise, GaussianNoise):
            path: Path = Believed(measurement, measurement.linear(self), measurement.std(self), self.prior)
        else:
            if self.pull != 0.5:
                raise ValueError(f"{self!r} needs second derivatives, known for linear operators alone: take pull=0.5")
            path = Tempered(measurement.gradient(self), self.prior)
        return Weighted(repr(self), path, self.pull)


class Path(ABC):
    """U of a level, U_0 = log p(y | x0) up to a constant of the level, and what its gradient is."""

    def __init__(self, measurement: Measurement, prior: float) -> None:
        self.measurement, self.prior = measurement, prior

    @abstractmethod
    def value(self, level: Level, x: Tensor) -> Tensor:
        """U, (batch,)."""

    @abstractmethod
    def lift(self, level: Level, x: Tensor) -> Tensor:
        """(sigma^2/alpha) grad U, finite at both ends of the process."""

    def curvature(self, level: Level) -> Tensor:
        """(sigma^2/alpha) div grad U."""
        raise NotImplementedError(f"{type(self).__name__} has no second derivatives: take pull=0.5")


class Believed(Path):
    """-r^T (std^2 I + r^2 A A^T)^-1 r/2, r = y - A k x, and the constant of log p(y | x0)."""

    def __init__(self, measurement: Measurement, operator: LinearOperator, std: float, prior: float) -> None:
        super().__init__(measurement, prior)
        self._operator, self._std = operator, std
        self._log_volume = math.prod(operator.measured) * math.log(std * math.sqrt(2 * math.pi))

    def _white(self, level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
        k, r2 = believed(level, self.prior)
        residual = self.measurement.residual(broadcast(k, x) * x)
        return residual, self._operator.gram_solve(residual, self._std**2, r2)

    def value(self, level: Level, x: Tensor) -> Tensor:
        residual, white = self._white(level, x)
        return -(residual * white).flatten(1).sum(1) / 2 - self._log_volume

    def lift(self, level: Level, x: Tensor) -> Tensor:
        return broadcast(believed(level, self.prior)[1], x) * self._operator.adjoint(self._white(level, x)[1])

    def curvature(self, level: Level) -> Tensor:
        svd = self._operator.svd
        if svd is None:
            raise ValueError(f"{self._operator!r} has no SVD, which the second derivative is told by: take pull=0.5")
        k, r2 = (part[..., None] for part in believed(level, self.prior))
        return -(k * r2 * svd.s**2 / (self._std**2 + r2 * svd.s**2)).sum(-1)


class Tempered(Path):
    """share log p(y | A(k x))."""

    def value(self, level: Level, x: Tensor) -> Tensor:
        k, measurement = believed(level, self.prior)[0], self.measurement
        power = share(measurement, level, self.prior).to(x)
        log_p = measurement.noise.log_prob(measurement.y, measurement.operator(broadcast(k, x) * x))
        return power * at_least(log_p) if bool((level.sigma > 0).all()) else log_p

    def lift(self, level: Level, x: Tensor) -> Tensor:
        k, r2 = believed(level, self.prior)
        measurement, power = self.measurement, share(self.measurement, level, self.prior)
        with torch.enable_grad():
            u = (broadcast(k, x) * x).detach().requires_grad_()
            value = at_least(measurement.noise.log_prob(measurement.y, measurement.operator(u)))
            (slope,) = torch.autograd.grad(value.sum(), u)
        return broadcast(r2 * power, x) * slope


@dataclass(frozen=True)
class Weighted(Solver):
    """The steps of `AFDPS`; rows without a level are their log weights."""

    name: str
    path: Path
    pull: float

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_to_data(self, grid)
        x = table.state
        for i, (t, s) in enumerate(pairwise(grid)):
            p, step = table.evaluate(x, t), ancestral(t, s)
            left = s.sigma / t.sigma
            flow = table.register(left * x + (s.alpha - left * t.alpha) * p.x0, s)
            moved, gain = flow, partial(self._gain, t, s, i == 0)
            if bool((s.sigma > 0).any()):
                lift = table.apply(partial(self.path.lift, t), x, level=t)
                value = step.c_x * x + step.c_x0 * p.x0 + (self.pull * step.c_x0) * lift
                moved = table.register(value + step.posterior * table.noise(t, s), s)
                if self.pull != 0.5:
                    gain = partial(self._with_rate, gain, t, step.c_x0, self.path.curvature(t))
                x0 = table.register(1.0 * p.x0, t)
                table.apply(gain, x, flow, x0, lift)
            else:
                table.apply(gain, x, flow)
            x = table.step(1.0 * moved, s)

    def _gain(self, t: Level, s: Level, first: bool, x: Tensor, flow: Tensor, *others: Tensor) -> Tensor:
        """U at s after the flow, less U at t; at first all of it."""
        after = self.path.value(s, flow)
        return spread_out(after if first else after - self.path.value(t, x), x)

    def _with_rate(
        self,
        gain: Callable[..., Tensor],
        t: Level,
        scale: Tensor,
        curvature: Tensor,
        x: Tensor,
        flow: Tensor,
        x0: Tensor,
        lift: Tensor,
    ) -> Tensor:
        score = (broadcast(t.alpha, x) * (x0 + lift) - x) / broadcast(t.sigma**2, x)  # that of Q
        stein = spread_out(curvature.to(x).expand(len(x)), x) + score * lift
        return gain(x, flow) + (self.pull - 0.5) * broadcast(scale, x) * stein
