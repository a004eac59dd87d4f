"""Decoupled annealing posterior sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..linops import SVD, GaussianNoise, LinearOperator
from ..processes import GaussianProcess, Level, broadcast
from ..solvers import Solver
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Register, Writer
from .curvature import curvature, length
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Plain

_INNER = ("auto", "exact", "langevin")


@dataclass(frozen=True)
class DAPS(Method):
    """x0 ~ q(x0) ~ exp(-|x0 - m|^2/(2 r^2)) p(y | x0),    x_s = alpha_s x0 + sigma_s z

        m = x0 after `ode_steps` steps of DDIM from x_t,    r^2 = s^2 prior^2/(s^2 + prior^2),    s = sigma_t/alpha_t

    The next state depends on the last through the draw x0 alone: a level's error is not carried on. It would sample the
    posterior if q were the law of x0 given x_t and y. With one step m is the mean of x0 given x_t, and q that law for
    data N(., prior^2 I), whatever A and the noise; for other data it is off as far as N(m, r^2 I) is from the law of x0
    given x_t. Further steps carry m to where the flow ends, which has the spread of data and not of a mean, to which q
    adds its own: without a measurement the variance of the data doubles as levels get dense. The paper takes 5 steps,
    and r = s, which is `prior` far above the data's deviation.

    inner: how q is drawn. "exact" for linear operators with an SVD and normal noise, none included; "langevin" for any
        operator and noise with gradients; "auto" is the first where it can be.
    langevin, step: the number of steps (it is better spent on levels: see docs/inverse.md) of

            u <- u + h grad log q(u) + sqrt(2 h) (z_k + z_(k+1))/2,    h = step/(1/r^2 + L)

        from a draw of N(m, r^2 I), with L the largest curvature of -log p(y | u) by Gauss and Newton, at m and anew
        half way, and no drift longer than r sqrt(d): one stiff entry shortens the steps of all. A direction whose
        precision is k times the largest has c^K of its first offset left after K of them, c = 1 - step k: ln(1/e)/(step
        k) of them leave e. The variance is then right where q is normal, whatever step, but for (1 - c) c^(2K - 1) <
        1/(4K) of it: a noise of its own in each step would give 1/(1 - step k/2) of it. Of other laws an error of order
        h^2 remains. Where p(y | u) is 0 it pulls at nothing.

    Source: Zhang et al. 2024, "Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing"
    (2407.01521), algorithm 1; Leimkuhler, Matthews 2013, "Rational Construction of Stochastic Numerical Methods for
    Molecular Sampling", for the noises.
    """

    ode_steps: int = 1
    prior: float = 1.0
    inner: str = "auto"
    langevin: int = 20
    step: float = 0.5

    def __post_init__(self) -> None:
        check_positive(prior=self.prior)
        if min(self.ode_steps, self.langevin) < 1:
            raise ValueError(f"ode_steps={self.ode_steps}, langevin={self.langevin}: at least one of each")
        if self.inner not in _INNER:
            raise ValueError(f"inner={self.inner!r}: choose from {', '.join(_INNER)}")
        if not 0 < self.step <= 1:
            raise ValueError(f"step={self.step}: a share of the narrowest variance, above 0 and at most 1")

    @property
    def steps(self) -> int:
        return 100

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        if not isinstance(model.process, GaussianProcess):
            raise ValueError(f"{self!r} is for a GaussianProcess: {model.process!r} is none")
        return Plain(model, measurement)

    def solver(self, measurement: Measurement) -> Solver:
        operator, noise = measurement.operator, measurement.noise
        draw = partial(Decoupled, repr(self), self.ode_steps, self.prior)
        svd = operator.svd if isinstance(operator, LinearOperator) and self.inner != "langevin" else None
        if svd is not None and isinstance(noise, GaussianNoise):
            return draw(_Exact(svd, noise.std, measurement.y))
        if self.inner == "exact":
            raise ValueError(
                f"{self!r} is for linear operators with an SVD and normal noise: got {operator!r} and {noise!r}; "
                "choose inner='langevin'"
            )
        return draw(_Langevin(measurement.gradient(self).density(self), self.langevin, self.step))


class _Inner(ABC):
    """q(x0) ~ exp(-|x0 - m|^2/(2 r^2)) p(y | x0)."""

    @abstractmethod
    def write(self, table: Writer, m: Register, r2: Tensor, t: Level, s: Level) -> Register:
        """A draw of it."""


@dataclass(frozen=True)
class Decoupled(Solver):
    """x_s = alpha_s x0 + sigma_s z, with x0 drawn anew about where `ode_steps` of DDIM over the grid's own levels lead.

    The flow skips levels evenly, and steps that would repeat one are left out: near data there are fewer of them.
    """

    name: str
    ode_steps: int
    prior: float
    inner: _Inner

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        x, n = table.state, len(grid) - 1
        for i in range(n):
            t, s = grid[i], grid[i + 1]
            stops = sorted({i + j * (n - i) // self.ode_steps for j in range(self.ode_steps)})
            m = self._flow(table, x, [grid[stop] for stop in stops])
            r2 = (self.prior * t.sigma) ** 2 / ((self.prior * t.alpha) ** 2 + t.sigma**2)
            value = s.alpha * self.inner.write(table, m, r2, t, s)
            x = table.step(value + s.sigma * table.noise(t, s) if bool((s.sigma > 0).any()) else value, s)

    def _flow(self, table: Writer, x: Register, levels: list[Level]) -> Register:
        """x0 at the last of the levels, reached from the state x at the first."""
        x0 = table.evaluate(x, levels[0]).x0
        for t, s in pairwise(levels):
            left = s.sigma / t.sigma
            x = table.register(left * x + (s.alpha - left * t.alpha) * x0, s)
            x0 = table.evaluate(x, s).x0
        return table.register(1.0 * x0)


class _Exact(_Inner):
    """In the coefficients of A = U diag(a) V^T, with d = V^T m and b = U^T y:

    d + g (b - a d) + r sqrt(1 - g a) z,    g = r^2 a/(std^2 + r^2 a^2)
    """

    def __init__(self, svd: SVD, std: float | Tensor, y: Tensor) -> None:
        self.svd, self.a, self.b = svd, svd.spectrum(y), svd.ut(y)
        self.std2 = torch.as_tensor(std, dtype=torch.float64) ** 2

    def write(self, table: Writer, m: Register, r2: Tensor, t: Level, s: Level) -> Register:
        return table.apply(partial(self._draw, r2), m, table.noise(t, s))

    def _draw(self, r2: Tensor, m: Tensor, z: Tensor) -> Tensor:
        d, a = self.svd.vt(m), self.a
        r2, std2 = broadcast(r2, d), broadcast(self.std2, d)
        spread = torch.where(a > 0, std2 + r2 * a**2, 1.0)
        left = torch.where(a > 0, std2 / spread, 1.0)
        return self.svd.v(d + r2 * a / spread * (self.b - a * d) + (r2 * left).sqrt() * self.svd.vt(z))


class _Langevin(_Inner):
    """u <- u + h grad log q(u) + sqrt(2 h) (z_k + z_(k+1))/2."""

    def __init__(self, measurement: Measurement, steps: int, step: float) -> None:
        self.measurement, self.steps, self.step = measurement, steps, step

    def write(self, table: Writer, m: Register, r2: Tensor, t: Level, s: Level) -> Register:
        u = table.register(m + torch.sqrt(r2) * table.noise(t, s))
        z, h = table.noise(t, s), u
        for k in range(self.steps):
            if k in (0, self.steps // 2):
                h = table.apply(partial(self._length, r2), u if k else m, table.noise(t, s))
            last, z = z, table.noise(t, s)
            u = table.apply(partial(self._move, r2), u, m, h, 0.5 * last + 0.5 * z)
        return u

    def _length(self, r2: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (self.step / (1 / broadcast(r2, u) + curvature(self.measurement, u, v))).expand_as(u)

    def _move(self, r2: Tensor, u: Tensor, m: Tensor, h: Tensor, z: Tensor) -> Tensor:
        with torch.enable_grad():
            at = u.detach().requires_grad_()
            log_prob = self.measurement.noise.log_prob(self.measurement.y, self.measurement.operator(at))
            (slope,) = torch.autograd.grad(log_prob.sum(), at)
        r2 = broadcast(r2, u)
        drift = h * (slope - (u - m) / r2)
        longest = (r2 * u[0].numel()) ** 0.5
        return u + drift * (longest / length(drift)).clamp_max(1) + torch.sqrt(2 * h) * z
