"""Decoupled annealing posterior sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..linops import GaussianNoise, LinearOperator
from ..processes import Level, broadcast
from ..solvers import Solver
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Register, Writer
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Corrected

INNER = ("auto", "exact", "langevin")


@dataclass(frozen=True)
class DAPS(Method):
    """x0 ~ q(x0) ~ exp(-|x0 - m|^2/(2 r^2)) p(y | x0),    x_s = alpha_s x0 + sigma_s z,    s = sigma/alpha

    with m where the probability flow from x_t ends and r^2 = s^2 prior^2/(prior^2 + s^2).
    """

    ode_steps: int = 1
    prior: float = 1.0
    inner: str = "auto"
    langevin: int = 50
    step: float = 0.5

    def __post_init__(self) -> None:
        check_positive(prior=self.prior)
        if self.inner not in INNER:
            raise ValueError(f"inner={self.inner!r}: choose from {', '.join(INNER)}")
        if min(self.ode_steps, self.langevin) < 1:
            raise ValueError(f"ode_steps={self.ode_steps}, langevin={self.langevin}: at least one of each")
        if not 0 < self.step <= 1:
            raise ValueError(f"step={self.step}: a part of the narrowest variance, from 0 to 1")

    @property
    def steps(self) -> int:
        return 50

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        return Corrected(model, measurement, lambda x0, level: x0)

    def solver(self, measurement: Measurement) -> Solver:
        operator, noise = measurement.operator, measurement.noise
        normal = isinstance(noise, GaussianNoise) and isinstance(operator, LinearOperator) and operator.svd is not None
        if self.inner == "exact" and not normal:
            raise ValueError(
                f"inner='exact' is for linear operators with an SVD and normal noise: got {operator!r}, {noise!r}"
            )
        exact = normal and self.inner != "langevin"
        return Decoupled(
            repr(self),
            self.ode_steps,
            self.prior,
            _Exact(measurement) if exact else _Langevin(measurement, self.langevin, self.step),
        )


class _Exact:
    """q drawn in the coefficients of the SVD A = U diag(a) V^T, d = V^T m, b = U^T y:

    d + g (b - a d) + r sqrt(1 - g a) z,    g = r^2 a/(std^2 + r^2 a^2)
    """

    def __init__(self, measurement: Measurement) -> None:
        operator, noise, y = measurement.operator, measurement.noise, measurement.y
        assert isinstance(operator, LinearOperator) and isinstance(noise, GaussianNoise) and operator.svd is not None
        self.svd, self.a, self.b = operator.svd, operator.svd.spectrum(y), operator.svd.ut(y)
        self.std2 = torch.as_tensor(noise.std).to(y).reshape(-1, 1) ** 2

    def write(self, table: Writer, m: Register, t: Level, r2: Tensor) -> Register:
        return table.apply(partial(self.draw, r2), m, 1.0 * table.noise(t, t))

    def draw(self, r2: Tensor, m: Tensor, z: Tensor) -> Tensor:
        d, r2 = self.svd.vt(m), r2.to(m).reshape(-1, 1)
        spread = self.std2 + r2 * self.a**2
        g = torch.where(self.a > 0, r2 * self.a / torch.where(spread > 0, spread, 1.0), 0.0)
        std = (r2 * (1 - g * self.a).clamp_min(0)).sqrt()
        return self.svd.v(d + g * (self.b - self.a * d) + std * self.svd.vt(z))


class _Langevin:
    def __init__(self, measurement: Measurement, steps: int, step: float) -> None:
        self.measurement, self.steps, self.step = measurement, steps, step

    def write(self, table: Writer, m: Register, t: Level, r2: Tensor) -> Register:
        u = table.register(m + r2.sqrt() * table.noise(t, t))
        h = table.apply(partial(self.length, r2), u, table.noise(t, t))
        z = table.noise(t, t)
        for _ in range(self.steps):
            last, z = z, table.noise(t, t)
            u = table.apply(partial(self.move, r2), u, m, h, 0.5 * last + 0.5 * z)
        return u

    def length(self, r2: Tensor, u: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            slope = self.slope(u, True)
            for _ in range(5):
                z = torch.autograd.grad(slope, u, z / norm(z), retain_graph=True)[0]
        return (self.step / (1 / broadcast(r2, u) + norm(z))).expand_as(u)

    def move(self, r2: Tensor, u: Tensor, m: Tensor, h: Tensor, z: Tensor) -> Tensor:
        return u + h * (self.slope(u) - (u - m) / broadcast(r2, u)) + (2 * h).sqrt() * z

    def slope(self, u: Tensor, graph: bool = False) -> Tensor:
        with torch.enable_grad():
            u = u if graph else u.detach().requires_grad_()
            log_prob = self.measurement.noise.log_prob(self.measurement.y, self.measurement.operator(u))
            return torch.autograd.grad(log_prob.sum(), u, create_graph=graph)[0]


def norm(z):
    return z.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(-1, *(1,) * (z.dim() - 1))


@dataclass(frozen=True)
class Decoupled(Solver):
    name: str
    ode_steps: int
    prior: float
    inner: object

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        x, n = table.state, len(grid) - 1
        for i in range(n):
            t, s = grid[i], grid[i + 1]
            r2 = (self.prior * t.sigma) ** 2 / ((self.prior * t.alpha) ** 2 + t.sigma**2)
            stops = sorted({i + j * (n - i) // self.ode_steps for j in range(self.ode_steps)})
            for a, b in zip(stops, stops[1:] + [None]):
                p = table.evaluate(x, grid[a])
                if b is None:
                    m = table.register(1.0 * p.x0)
                else:
                    left = grid[b].sigma / grid[a].sigma
                    x = table.register(left * x + (grid[b].alpha - left * grid[a].alpha) * p.x0, grid[b])
            x0 = self.inner.write(table, m, t, r2)
            fresh = s.sigma * table.noise(t, s)
            x = table.step(s.alpha * x0 + fresh if bool((s.sigma > 0).any()) else s.alpha * x0, s)
