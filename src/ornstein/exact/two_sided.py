"""Two laws of data and what joins them: the world of processes with two ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from .._types import Array, Cond, View
from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..numerics.dop853 import dop853
from ..prediction import Output
from ..processes import Interpolant, InterpolantLevel, Level, TwoSided
from ..processes.level import holds
from ..random import generator
from .covariance import Covariance
from .mixture import GaussianMixture
from .world import Time

TwoEnds: TypeAlias = TwoSided | Interpolant
Rows: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""(a, b, c) of a view a x0 + b x1 + (c/gamma) z, which stays finite where gamma is 0."""


class TwoSidedMixture:
    """p(x0, x1) = sum_kl plan_kl N((x0, x1); (mu_k, nu_l), [[A_k, X_kl], [X_kl^T, B_l]])

    and everything that follows from it for x_t = alpha x0 + beta x1 + gamma z (beta is `sigma` and gamma 0 in a
    `TwoSided` process). For each pair of components, with

        m = alpha mu + beta nu,    S = alpha^2 A + beta^2 B + alpha beta (X + X^T) + gamma^2 I,    d = S^-1 (x - m):

        log p_t(x) = logsumexp [log plan + log N(x; m, S)],   r = the softmax of the same terms,   score = -sum r d
        E[x0 | x] = sum r [mu + (alpha A + beta X) d],        E[x1 | x] = sum r [nu + (beta B + alpha X^T) d]
        E[z | x] = gamma sum r d,                             velocity = E[alpha' x0 + beta' x1 + gamma' z | x]

    States are (batch, *event), t a scalar or (batch,). The law of x_t is a mixture too: `at(process, t)`.

    Args:
        data: the law of x0.
        other: the law of x1.
        plan: (K, L) the weight of each pair of components, with the weights of `data` and `other` for its sums; by
            default the pairs are independent.
        cross: (K, L, d, d) the covariance X of x0 and x1 within each pair, 0 by default.

    Source: Albergo, Boffi, Vanden-Eijnden 2023 (2303.08797), appendix A, for independent ends.
    """

    def __init__(
        self,
        data: GaussianMixture,
        other: GaussianMixture,
        plan: Tensor | None = None,
        *,
        cross: Tensor | None = None,
    ) -> None:
        if data.event != other.event:
            raise ValueError(f"the ends differ: events of {tuple(data.event)} at t = 0, {tuple(other.event)} at t = 1")
        self.data, self.other, self.event, self.dim = data, other, data.event, data.dim
        weights = _plan(data.weights, other.weights, plan)
        k, j = weights.nonzero(as_tuple=True)
        self._log_plan = weights[k, j].log()
        self._means = data.means[k], other.means[j]
        own = [law.covariance.dense() for law in (data, other)]
        shape = (*weights.shape, self.dim, self.dim)
        if cross is not None and cross.shape != shape:
            raise ValueError(f"cross has shape {shape}, one matrix for each pair: got {tuple(cross.shape)}")
        x = torch.zeros(shape, dtype=torch.float64) if cross is None else cross.detach().to("cpu", torch.float64)
        self._a, self._b, self._x = own[0][k], own[1][j], x[k, j]
        joint = torch.cat([torch.cat([self._a, self._x], 2), torch.cat([self._x.mT, self._b], 2)], 1)
        self._root = Covariance.full(joint).dense(torch.sqrt)  # refuses what is no covariance

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.data!r}, {self.other!r})"

    def sample(
        self, n: int, seed: int | torch.Generator | None = 0, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """n exact pairs (x0, x1), (n, *event) each, on the host."""
        rng = generator(seed)
        pairs = torch.multinomial(self._log_plan.exp(), n, replacement=True, generator=rng)
        x0, x1 = (end.to(dtype or self.data.dtype).reshape(n, *self.event) for end in self._pairs(pairs, rng))
        return x0, x1

    def _pairs(self, pairs: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x0, x1), flat and in float64, of the named pairs of components."""
        z = torch.randn(len(pairs), 2 * self.dim, 1, dtype=torch.float64, generator=rng, device=rng.device).cpu()
        apart = (self._root[pairs] @ z).squeeze(2)
        return self._means[0][pairs] + apart[:, : self.dim], self._means[1][pairs] + apart[:, self.dim :]

    def at(self, process: TwoEnds, t: Time) -> GaussianMixture:
        """The law of x_t at one time, with its density, score, samples and moments."""
        law = self._law(process, t)
        if law.mean.dim() > 2:
            raise ValueError("the law of x_t is that of one time: give a scalar t")
        mixture = GaussianMixture(law.mean.reshape(-1, *self.event), covs=law.cov, weights=self._log_plan.exp())
        mixture.dtype = self.data.dtype
        return mixture

    def velocity(self, x: Array, process: TwoEnds, t: Time) -> Array:
        """E[alpha' x0 + beta' x1 + gamma' z | x_t = x]."""
        return self._views(x, process, t, ["velocity"])[0]

    def score(self, x: Array, process: TwoEnds, t: Time) -> Array:
        """grad log p_t(x)."""
        return self._views(x, process, t, ["score"])[0]

    def posterior_mean(self, x: Array, process: TwoEnds, t: Time) -> tuple[Array, Array]:
        """(E[x0 | x_t = x], E[x1 | x_t = x])."""
        x0, x1 = self._views(x, process, t, ["x0", "x1"])
        return x0, x1

    def posterior_sample(
        self, x: Array, process: TwoEnds, t: Time, seed: int | torch.Generator | None = 0
    ) -> tuple[Array, Array]:
        """One exact pair (x0, x1) given x_t = x for each state.

        A pair of components is drawn by its share of p_t(x), ends (x0', x1', z') from it, and both ends are moved to
        those that make x: x0 = x0' + (alpha A + beta X) S^-1 (x - x'). Source: Doucet 2010, for conditioning so.
        """
        rng, law = generator(seed), self._law(process, t)
        flat = self._flat(x).to("cpu", torch.float64)
        pairs = torch.multinomial(law.shares(flat).exp(), 1, generator=rng).squeeze(1)
        x0, x1 = self._pairs(pairs, rng)
        z = torch.randn(x0.shape, dtype=torch.float64, generator=rng, device=rng.device).cpu()
        made = _column(law.alpha) * x0 + _column(law.beta) * x1 + _column(law.gamma) * z
        moved = (_of(law.precision, pairs) @ (flat - made)[..., None]).squeeze(2)
        gains = (_of(gain, pairs) for gain in law.gains)
        x0, x1 = (
            (end + (g @ moved[..., None]).squeeze(2)).to(x).reshape(x.shape)
            for end, g in zip((x0, x1), gains, strict=True)
        )
        return x0, x1

    def denoiser(self, process: TwoEnds, predicts: View = "velocity") -> ExactTwoSidedDenoiser:
        """The exact denoiser: of an `Interpolant` with further heads for the velocity and the score, so that every
        sampler of the process runs on it."""
        return ExactTwoSidedDenoiser(self, process, predicts)

    def flow(self, process: TwoEnds, x: Array, t: float, s: float, rtol: float = 1e-10, atol: float = 1e-12) -> Array:
        """Where the flow dx/dt = velocity carries x from time t to time s, by the reference integrator and no sampler.

        Between two laws without latent noise it runs in u = x/rho over the angle phi, (alpha, sigma) = rho (cos, sin)
        phi, where du/dphi = E[cos phi x1 - sin phi x0 | u] is finite at both ends whatever the schedule; else in t.
        """
        here, there = (_level(process, float(end)) for end in (t, s))
        y = self._flat(x).to("cpu", torch.float64)
        if isinstance(process, TwoSided):
            rho = [torch.hypot(level.alpha, level.sigma) for level in (here, there)]
            ends = [float(torch.atan2(level.sigma, level.alpha)) for level in (here, there)]

            def turn(phi: float, u: Tensor) -> Tensor:
                cos, sin = torch.tensor([math.cos(phi), math.sin(phi)], dtype=torch.float64)
                zero = torch.zeros_like(cos)
                return _Law(self, cos, sin, zero).combine((-sin, cos, zero), u)(u)

            y = rho[1] * dop853(turn, y / rho[0], ends[0], ends[1], rtol=rtol, atol=atol).y
        else:

            def slope(time: float, y: Tensor) -> Tensor:
                level = _level(process, time)
                return self._law(process, level).combine(rows(process, level, "velocity"), y)(y)

            y = dop853(slope, y, float(t), float(s), rtol=rtol, atol=atol).y
        return y.to(x).reshape(x.shape)

    def _law(self, process: TwoEnds, t: Time) -> _Law:
        level = _level(process, t)
        if isinstance(level, InterpolantLevel):
            return _Law(self, level.alpha, level.beta, level.sigma)
        return _Law(self, level.alpha, level.sigma, torch.zeros_like(level.sigma))

    def _views(self, x: Tensor, process: TwoEnds, t: Time, names: Sequence[str]) -> list[Tensor]:
        flat, level = self._flat(x), _level(process, t)
        law = self._law(process, level)
        answers = [law.combine(rows(process, level, name), flat)(flat) for name in names]
        return [answer.to(x.dtype).reshape(x.shape) for answer in answers]

    def _flat(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.event:
            raise ValueError(f"states of {self!r} have shape (batch, *{tuple(self.event)}): got {tuple(x.shape)}")
        # half precisions carry the state, not the arithmetic
        return x.reshape(len(x), self.dim).to(torch.promote_types(x.dtype, torch.float32))


class _Law:
    """The law of alpha x0 + beta x1 + gamma z, coefficients () or (batch,): P pairs of components, in float64."""

    def __init__(self, world: TwoSidedMixture, alpha: Tensor, beta: Tensor, gamma: Tensor) -> None:
        self.world, self.alpha, self.beta, self.gamma = world, alpha, beta, gamma
        a, b, c = (coefficient[..., None, None, None] for coefficient in (alpha, beta, gamma))
        self.gains = a * world._a + b * world._x, b * world._b + a * world._x.mT
        self.mean = (a * world._means[0] + b * world._means[1]).reshape(*alpha.shape, -1, world.dim)
        eye = torch.eye(world.dim, dtype=torch.float64)
        cov = a * self.gains[0] + b * self.gains[1] + c**2 * eye
        self.cov = (cov + cov.mT).reshape(*alpha.shape, *world._a.shape) / 2
        factor, failed = torch.linalg.cholesky_ex(self.cov)
        if bool(failed.any()):
            raise ViewError(f"{world!r} has no density at alpha = {alpha.tolist()}: take a time inside (0, 1)")
        self.precision = torch.cholesky_inverse(factor)
        self.base = world._log_plan - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def shares(self, x: Tensor) -> Tensor:
        """log of the share that each pair has of the density at x, (batch, P)."""
        apart = x[:, None] - self.mean
        terms: Tensor = self.base - (apart * _apply(self.precision, apart)).sum(-1) / 2
        return terms.log_softmax(-1)

    def combine(self, row: Rows, like: Tensor) -> Callable[[Tensor], Tensor]:
        """E[a x0 + b x1 + (c/gamma) z | x] as a function of flat x, in the dtype and on the device of `like`."""
        a, b, c = (coefficient[..., None, None, None] for coefficient in row)
        world = self.world
        offset = (a * world._means[0] + b * world._means[1]).reshape(*row[0].shape, -1, world.dim)
        gain = a * self.gains[0] + b * self.gains[1] + c * torch.eye(world.dim, dtype=torch.float64)
        gain = gain.reshape(self.precision.shape) @ self.precision
        return partial(_mean, *(part.to(like) for part in (self.base, self.mean, self.precision, offset, gain)))


def _mean(base: Tensor, mean: Tensor, precision: Tensor, offset: Tensor, gain: Tensor, x: Tensor) -> Tensor:
    apart = x[:, None] - mean
    r = (base - (apart * _apply(precision, apart)).sum(-1) / 2).softmax(-1)
    return (r[..., None] * (offset + _apply(gain, apart))).sum(-2)


def _apply(matrices: Tensor, v: Tensor) -> Tensor:
    """M_p v_p for v (batch, P, d) and matrices (P, d, d), or (batch, P, d, d)."""
    return torch.einsum("pij,bpj->bpi" if matrices.dim() == 3 else "bpij,bpj->bpi", matrices, v)


def _of(matrices: Tensor, pairs: Tensor) -> Tensor:
    """The matrix of each sample's pair, (batch, d, d)."""
    return matrices[pairs] if matrices.dim() == 3 else matrices[torch.arange(len(pairs)), pairs]


def _column(coefficient: Tensor) -> Tensor:
    return coefficient if coefficient.dim() == 0 else coefficient[:, None]


def _plan(data: Tensor, other: Tensor, plan: Tensor | None) -> Tensor:
    """The weights of the pairs, (K, L) float64, checked."""
    if plan is None:
        return data[:, None] * other
    plan = plan.detach().to("cpu", torch.float64)
    if plan.shape != (len(data), len(other)):
        raise ValueError(f"the plan has shape {(len(data), len(other))}, a weight a pair: got {tuple(plan.shape)}")
    if not bool((plan >= 0).all()):
        raise ValueError(f"the weights of a plan are 0 or more: got {float(plan.nan_to_num(-math.inf).min()):.6g}")
    plan = plan / plan.sum()
    for name, axis, weights in (("data", 1, data), ("other", 0, other)):
        gap = (plan.sum(axis) - weights).abs()
        if not float(gap.max()) < 1e-6:
            i = int(gap.argmax())
            raise ValueError(
                f"the plan gives component {i} of `{name}` the weight {float(plan.sum(axis)[i]):.6g}, "
                f"the law itself {float(weights[i]):.6g}"
            )
    return plan


def _level(process: TwoEnds, t: Time) -> Level:
    if not isinstance(process, (TwoSided, Interpolant)):
        raise ValueError(f"a world of two ends needs a process between them, TwoSided or Interpolant: got {process!r}")
    return process.level(float(t) if isinstance(t, int) else t)


def rows(process: TwoEnds, level: Level, view: str) -> Rows:
    """(a, b, c) of a view of the process at a level."""
    zero, one = torch.zeros_like(level.t), torch.ones_like(level.t)
    own: dict[str, Rows] = {"x0": (one, zero, zero), "x1": (zero, one, zero), "score": (zero, zero, -one)}
    if isinstance(process, Interpolant):
        assert isinstance(level, InterpolantLevel)
        own["noise"] = zero, zero, level.sigma
        own["velocity"] = level.d_alpha, level.d_beta, process.d_gamma2(level.t) / 2  # gamma gamma'
    else:
        own["noise"] = zero, one, zero
        own["velocity"] = level.d_alpha, level.d_sigma, zero
        own["v"] = -level.sigma, level.alpha, zero
    row = own[view]
    if not all(holds(part.isfinite()) for part in row):
        raise ViewError(f"the {view} of {process!r} is not finite at t = {level.t.tolist()}: take a time inside (0, 1)")
    return row


class ExactTwoSidedDenoiser(BaseDenoiser):
    """The exact denoiser of a world of two ends: E[view | x_t], to rounding, at every level where the view exists."""

    process: TwoEnds

    def __init__(self, world: TwoSidedMixture, process: TwoEnds, predicts: View = "velocity") -> None:
        super().__init__()
        _level(process, 0.5)  # refuses another process
        if predicts not in process.views:
            raise ViewError(f"{process!r} has no {predicts}: choose from {', '.join(process.views)}")
        self.world, self.process, self.predicts = world, process, predicts
        both: tuple[View, ...] = ("velocity", "score") if isinstance(process, Interpolant) else ()
        self.heads = {view: view for view in both if view != predicts}

    def bind(self, levels: Level, x: Tensor, cond: Cond) -> Sequence[Callable[[Tensor], Output]]:
        flat, calls = self.world._flat(x), []
        for level in levels:
            law = self.world._law(self.process, level)
            named = {"main": self.predicts, **self.heads}
            views = {name: law.combine(rows(self.process, level, view), flat) for name, view in named.items()}
            calls.append(partial(self._answer, views))
        return calls

    def _answer(self, views: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> Output:
        flat = self.world._flat(x)
        heads = {name: view(flat).to(x.dtype).reshape(x.shape) for name, view in views.items()}
        return heads if len(heads) > 1 else heads["main"]
