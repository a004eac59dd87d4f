"""The twisted diffusion sampler: guidance whose error is weighed away."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..linops import GaussianNoise, LinearOperator
from ..processes import Level, ancestral, broadcast
from ..solvers import Solver
from ..solvers.exponential import half_step
from ..solvers.table import Writer
from .measurement import Measurement
from .method import check_to_data
from .population import Populated, at_least, believed, share, spread_out
from .posterior import Measured

TWISTS = ("isotropic", "moments", "point")


@dataclass(frozen=True)
class TDS(Populated):
    """x_s ~ q = N(mean + std^2 grad log phi_t, std^2 I),    w <- w p(x_s | x_t)/q(x_s | x_t, y) phi_s(x_s)/phi_t(x_t)

    with p = N(mean, std^2 I) a step of the model and phi_t(x_t) the twist, a guess at p(y | x_t) that at the end is
    p(y | x0). The weighted particles have the law p(x0 | y) of the model's steps as K grows, with an error of order
    1/sqrt(K), whatever the twist; a good one wastes fewer of them. What is left is the error of the steps themselves:

        order 1     mean = c_x x_t + c_x0 x0(x_t), std = posterior of `ancestral`
        order 2     the same with x0 + (x0 - x0') h/(2 h') for x0, x0' of the step before, h in log-SNR: SDE-DPM-
                    Solver++(2M). Without it the variance is too small by a part of order h in every coordinate.

        twist          phi_t(x_t)
        "isotropic"    N(y; A x0, std^2 I + r^2 A A^T), r^2 of `PiGDM` with `prior`, the standard deviation of the data;
                       of other operators N(y; A(x0), (std^2 + r^2) I), of other noises p(y | x0)^(1 - r^2/prior^2)
        "moments"      N(y; A x0, std^2 I + A C A^T), C = Cov[x0 | x_t] of `MMPS`: m gradient passes for y (m,), not 1
        "point"        p(y | x0), of any operator and noise with gradients; far from data it is too sure of itself

    It claims the posterior. The estimate of the evidence p(y), see `Population`, is unbiased for the model's steps.

    Source: Wu, Trippe, Naesseth, Blei, Cunningham 2023, "Practical and Asymptotically Exact Conditional Sampling in
    Diffusion Models" (2306.17775), algorithm 1, whose twist is the last and whose steps are of order 1; Lu et al. 2022
    (2211.01095), section 6.
    """

    order: int = 2
    twist: str = "isotropic"
    prior: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise ValueError(f"order={self.order}: choose 1 or 2")
        if self.twist not in TWISTS:
            raise ValueError(f"twist={self.twist!r}: choose from {', '.join(TWISTS)}")
        if not 0 < self.prior < math.inf:
            raise ValueError(f"prior={self.prior}: the standard deviation of the data, positive and finite")

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        measurement.density(self)
        if self.twist == "point":
            return Pointed(model, measurement.gradient(self))
        normal = isinstance(measurement.operator, LinearOperator) and isinstance(measurement.noise, GaussianNoise)
        if self.twist == "isotropic" and not normal:
            return Pointed(model, measurement.gradient(self), partial(share, measurement, prior=self.prior))
        std = measurement.std(self)
        if self.twist == "isotropic":
            return Isotropic(model, measurement, std, self.prior)
        return Matched(model, measurement, std)

    def solver(self, measurement: Measurement) -> Solver:
        return Twisting(
            repr(self), self.order, lambda x0: measurement.noise.log_prob(measurement.y, measurement.operator(x0))
        )


Back = Callable[[Tensor], Tensor]
"""v -> J^T v, J = d x0/dx_t."""


class Twisted(Measured):
    """Heads x0 ("main"), grad log phi ("slope") and log phi ("twist"), the last spread over the event."""

    passes = 1

    def answer(self, x0: Callable[[Tensor], Tensor], level: Level, x: Tensor) -> Any:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = x0(x)

        def back(v: Tensor) -> Tensor:
            return torch.autograd.grad(mean, x, v, retain_graph=True)[0]

        known = mean.detach()
        log_phi, slope = self.twist(known, level, back)
        return {"main": known, "slope": slope, "twist": spread_out(log_phi, known)}

    @abstractmethod
    def twist(self, x0: Tensor, level: Level, back: Back) -> tuple[Tensor, Tensor]:
        """log phi (batch,), up to a constant of the level, and what is followed as its gradient at x_t."""


class Pointed(Twisted):
    """share log p(y | x0), the share one of the level."""

    def __init__(
        self, model: BaseDenoiser, measurement: Measurement, share: Callable[[Level], Tensor] | None = None
    ) -> None:
        super().__init__(model, measurement)
        self._share = share

    def twist(self, x0: Tensor, level: Level, back: Back) -> tuple[Tensor, Tensor]:
        measurement = self.measurement
        with torch.enable_grad():
            u = x0.clone().requires_grad_()
            value = at_least(measurement.noise.log_prob(measurement.y, measurement.operator(u)))
            (slope,) = torch.autograd.grad(value.sum(), u)
        if self._share is None:
            return value.detach(), back(slope)
        share = self._share(level).to(x0)
        return share * value.detach(), broadcast(share, x0) * back(slope)


class Isotropic(Twisted):
    """log N(y; A x0, std^2 I + r^2 A A^T)."""

    def __init__(self, model: BaseDenoiser, measurement: Measurement, std: float, prior: float) -> None:
        super().__init__(model, measurement)
        self._operator, self._std, self._prior = measurement.linear(self), std, prior

    def twist(self, x0: Tensor, level: Level, back: Back) -> tuple[Tensor, Tensor]:
        residual = self.measurement.residual(x0)
        white = self._operator.gram_solve(residual, self._std**2, believed(level, self._prior)[1])
        return -(residual * white).flatten(1).sum(1) / 2, back(self._operator.adjoint(white))


class Matched(Twisted):
    """log N(y; A x0, S), S = std^2 I + A C A^T written out; what is followed is its gradient with S held."""

    def __init__(self, model: BaseDenoiser, measurement: Measurement, std: float) -> None:
        super().__init__(model, measurement)
        self._operator, self._std = measurement.linear(self), std
        self.passes = math.prod(self._operator.measured)

    def twist(self, x0: Tensor, level: Level, back: Back) -> tuple[Tensor, Tensor]:
        measured, n = self._operator.measured, len(x0)
        units = torch.eye(math.prod(measured), dtype=x0.dtype, device=x0.device)
        columns = [back(self._operator.adjoint(e.reshape(1, *measured).expand(n, *measured))) for e in units]
        scale = (level.sigma**2 / level.alpha).to(x0)  # one a sample, or one
        gram = scale.reshape(-1, 1, 1) * torch.stack([self._operator(column).flatten(1) for column in columns], 2)
        values, basis = torch.linalg.eigh((gram + gram.mT) / 2)  # a network's derivative need not be a covariance
        values = values.clamp_min(0) + self._std**2
        within = (basis.mT @ self.measurement.residual(x0).flatten(1)[..., None])[..., 0]
        log_phi = -(within**2 / values + values.log()).sum(1) / 2
        white = (basis @ (within / values)[..., None])[..., 0]
        return log_phi, torch.einsum("bm,bm...->b...", white, torch.stack(columns, 1))


@dataclass(frozen=True)
class Twisting(Solver):
    """The steps of `TDS`; rows without a level are their log weights."""

    name: str
    order: int
    log_prob: Callable[[Tensor], Tensor]

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_to_data(self, grid)
        x, twist = table.state, None
        p, before = table.evaluate(x, grid[0]), None
        for t, s in pairwise(grid):
            step = ancestral(t, s)
            if bool((s.sigma > 0).any()):
                z = table.register(1.0 * table.noise(t, s), s)
                shift = table.register(step.posterior * p.head("slope").raw, s)
                x0 = 1.0 * p.x0
                if self.order == 2 and before is not None:
                    ahead = half_step(t, s) / (2 * half_step(before.level, t))
                    x0 = x0 + ahead * (p.x0 - before.x0)
                x = table.register(step.c_x * x + step.c_x0 * x0 + step.posterior * (shift + z), s)
                p, before = table.evaluate(x, s), p
                after = 1.0 * p.head("twist").raw
                factor = after + table.apply(_log_ratio, z, shift, level=s)
            else:  # of both laws it is x0 itself
                x = table.register(1.0 * p.x0, s)
                factor = after = 1.0 * table.apply(self._likelihood, x, level=s)
            table.register(factor if twist is None else factor - twist)
            twist = after
            x = table.step(1.0 * x, s)

    def _likelihood(self, x0: Tensor) -> Tensor:
        return spread_out(self.log_prob(x0), x0)


def _log_ratio(z: Tensor, shift: Tensor) -> Tensor:
    """log p/q at the mean of q plus std z, q being p moved by std times `shift`."""
    return -(z + shift / 2) * shift
