"""What every exact world answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeAlias, TypeVar, overload

import torch
from torch import Tensor

from .._types import Array, Cond, View
from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..flow_map import FlowMap
from ..numerics.dop853 import dop853
from ..prediction import Output, Prediction
from ..processes import AffineProcess, GaussianProcess, Level, LinearProcess, broadcast
from ..processes.level import holds
from ..random import generator

NULL = -1
"""The label that stands for no label: the law of all components together."""

Time: TypeAlias = float | int | Tensor | Level
Exact = TypeVar("Exact", bound=BaseDenoiser)


_DENOISERS: dict[type, tuple[Callable[..., BaseDenoiser], View]] = {}


def denoises(process: type, predicts: View = "x0") -> Callable[[type[Exact]], type[Exact]]:
    """Make a class, built of a world, a process and a view, the exact denoiser of a kind of process."""

    def enter(kind: type[Exact]) -> type[Exact]:
        _DENOISERS[process] = (kind, predicts)
        return kind

    return enter


class Law(ABC):
    """One law of a world: that of x = alpha x0 + sigma noise, for flat centred states x (batch, d) and their labels.

    Coefficients are computed in float64 on the host and meet the states in their own dtype.
    """

    @abstractmethod
    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E[x0 | x] and grad log p(x), both (batch, d)."""

    @abstractmethod
    def combine(self, a: Tensor, c: Tensor) -> Callable[[Tensor], Tensor]:
        """The function a E[x0 | x] + c grad log p(x), in one pass; a, c: float64 on the host, () or (batch,)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (batch,)."""

    @abstractmethod
    def cov(self, x: Tensor) -> Tensor:
        """Cov[x0 | x], (batch, d, d)."""


class World(ABC):
    """A law of data in which everything about every x_t = alpha x0 + shift + sigma noise is known in closed form.

    States are (batch, *event), t a scalar or (batch,), `cond={"label": y}` with y (batch,) restricts the world to the
    components of that label (-1: all of them) and may hold what the process needs besides. Answers have the dtype and
    device of the state; where one does not exist (the score of a point mass at sigma = 0) ViewError says so.
    """

    def __init__(
        self, count: int, event: Sequence[int], dtype: torch.dtype, labels: Tensor | None, weights: Tensor | None
    ) -> None:
        self.event, self.dtype = torch.Size(event), dtype
        self.dim = math.prod(event)
        self.labels = torch.arange(count) if labels is None else labels.detach().cpu().long()
        if self.labels.shape != (count,):
            raise ValueError(f"labels have shape {tuple(self.labels.shape)}, one for each component is ({count},)")
        if bool((self.labels < 0).any()):
            raise ValueError(f"a label is not negative ({NULL} stands for none): got {int(self.labels.min())}")
        weights = torch.ones(count) if weights is None else weights.detach().cpu()
        weights = weights.to(torch.float64)
        if weights.shape != (count,):
            raise ValueError(f"weights have shape {tuple(weights.shape)}, one for each component is ({count},)")
        if not bool(((weights > 0) & weights.isfinite()).all()):
            bad = weights[~((weights > 0) & weights.isfinite())][0]
            raise ValueError(f"weights must be positive and finite: got {float(bad):.6g}")
        self.log_weights = weights.log().log_softmax(0)
        self._known, self._inverse = torch.unique(self.labels, return_inverse=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(components={len(self.labels)}, event={tuple(self.event)})"

    @property
    def weights(self) -> Tensor:
        """The weights of the components, (k,) in float64, summing to one."""
        return self.log_weights.exp()

    @property
    @abstractmethod
    def singular(self) -> bool:
        """Whether some component has no density of its own, so that the world has one only where sigma > 0."""

    @abstractmethod
    def _law(self, alpha: Tensor, sigma: Tensor, like: Tensor, label: Tensor | None) -> Law:
        """The law at (alpha, sigma), float64 on the host of shape () or (batch,), for flat states like `like`."""

    def _bound(
        self, levels: Level, a: Tensor, c: Tensor, like: Tensor, label: Tensor | None
    ) -> Iterable[Callable[[Tensor], Tensor]]:
        """`combine` at each of the levels (E,) or (E, batch)."""
        for level, own, other in zip(levels, a, c, strict=True):
            yield self._law(level.alpha, level.sigma, like, label).combine(own, other)

    @abstractmethod
    def _draw(self, component: Tensor, seed: torch.Generator) -> Tensor:
        """One exact sample (n, d) in float64 of each component named in (n,)."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (*event) and covariance (d, d) of the data, in float64."""

    @abstractmethod
    def posterior(
        self, y: Tensor, a: Tensor, noise_std: float | int | Tensor | None = None, noise_cov: Tensor | None = None
    ) -> World:
        """The law of x0 given y = A x0 + e, e ~ N(0, R), another world."""

    @overload
    def sample(
        self,
        n: int,
        seed: int | torch.Generator | None = 0,
        labels: Literal[False] = False,
        *,
        cond: Cond = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...

    @overload
    def sample(
        self,
        n: int,
        seed: int | torch.Generator | None = 0,
        *,
        labels: Literal[True],
        cond: Cond = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def sample(
        self,
        n: int,
        seed: int | torch.Generator | None = 0,
        labels: bool = False,
        *,
        cond: Cond = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """n exact samples (n, *event), and with `labels=True` the label (n,) of each; on the host.

        Drawn in float64 and returned in `dtype`, by default that of the world's parameters.
        """
        rng, label = generator(seed), self._label(cond, n)
        component = torch.empty(n, dtype=torch.long)
        chosen = torch.full((n,), NULL) if label is None else label.cpu()
        for value in sorted(set(chosen.tolist())):
            allowed = self.weights if value == NULL else self.weights * (self.labels == value)
            rows = (chosen == value).nonzero().squeeze(1)
            component[rows] = torch.multinomial(allowed, len(rows), replacement=True, generator=rng)
        x = self._draw(component, rng).to(dtype or self.dtype).reshape(n, *self.event)
        return (x, self.labels[component]) if labels else x

    def log_prob(
        self, x: Array, process: GaussianProcess | None = None, t: Time | None = None, cond: Cond = None
    ) -> Tensor:
        """log p_t(x) in nats, the data's own density without a process."""
        law, flat, sigma = self._at(x, process, t, cond)
        self._needs_density(sigma, "density")
        return law.log_prob(flat).to(x.dtype)

    def score(
        self, x: Array, process: GaussianProcess | None = None, t: Time | None = None, cond: Cond = None
    ) -> Array:
        """grad log p_t(x)."""
        law, flat, sigma = self._at(x, process, t, cond)
        self._needs_density(sigma, "score")
        return law.pair(flat)[1].to(x.dtype).reshape(x.shape)

    def posterior_mean(self, x: Array, process: GaussianProcess, t: Time, cond: Cond = None) -> Array:
        """E[x0 | x_t = x]."""
        law, flat, _ = self._at(x, process, t, cond)
        return law.pair(flat)[0].to(x.dtype).reshape(x.shape)

    def posterior_cov(self, x: Array, process: GaussianProcess, t: Time, cond: Cond = None) -> Tensor:
        """Cov[x0 | x_t = x] of the flattened event, (batch, d, d)."""
        law, flat, _ = self._at(x, process, t, cond)
        return law.cov(flat).to(x.dtype)

    @overload
    def denoiser(self, process: GaussianProcess, predicts: View | None = None) -> ExactDenoiser: ...

    @overload
    def denoiser(self, process: LinearProcess, predicts: View | None = None) -> BaseDenoiser: ...

    def denoiser(self, process: LinearProcess, predicts: View | None = None) -> BaseDenoiser:
        """The exact denoiser of this world under `process`, answering in any view: x0, in phase space the noise, if
        none is named."""
        for kind in type(process).__mro__:
            if kind in _DENOISERS:
                make, view = _DENOISERS[kind]
                return make(self, process, predicts or view)
        known = ", ".join(kind.__name__ for kind in _DENOISERS)
        raise ValueError(
            f"an exact world has a denoiser under {known}: got {process!r} (two ends and boxes have worlds of their "
            "own, TwoSidedMixture and FoldedMixture)"
        )

    def flow_map(self, process: GaussianProcess, rtol: float = 1e-10, atol: float = 1e-12) -> ExactFlowMap:
        """`flow` as a FlowMap: X(x, t, s) of this world under `process`."""
        return ExactFlowMap(self, process, rtol, atol)

    def flow(
        self,
        process: GaussianProcess,
        x: Array,
        t: Time,
        s: Time,
        rtol: float = 1e-10,
        atol: float = 1e-12,
        cond: Cond = None,
    ) -> Array:
        """The exact probability-flow map from time t to time s, by the reference integrator and no sampler.

        Every linear-Gaussian path is one path in other clothes: with phi = atan2(sigma, alpha) and
        rho = sqrt(alpha^2 + sigma^2), u = (x - shift)/rho = cos(phi) x0 + sin(phi) noise. The flow moves u by the mean
        of its derivative given u,

            du/dphi = -sin(phi) E[x0 | u] + cos(phi) E[noise | u],

        which is finite at both ends, and rho u + shift at time s is the state that the flow of the process reaches. It
        is integrated in float64 on the host. At the default tolerances the error is below 1e-9 of the state, on
        separated mixtures times the stretch of the flow between modes. t and s may be (batch,).

        A world with components that have no density (a finite data set) has no flow to or from sigma = 0, where all
        mass is in points: stop at a small sigma, and take E[x0 | x] for the last jump.
        """
        here, there = self._level(process, t), self._level(process, s)
        for level in (here, there):
            if self.singular and bool((level.sigma == 0).any()):
                raise ViewError(
                    f"{self!r} has no density at sigma = 0, so the flow stops above it: choose a time with sigma > 0 "
                    "and jump from there by posterior_mean"
                )
        start, label = self._centred(process, here, x, cond), self._label(cond, len(x))
        start = start.to("cpu", torch.float64)
        phi = torch.atan2(here.sigma, here.alpha)
        turn = torch.atan2(there.sigma, there.alpha) - phi

        def field(tau: float, u: Tensor) -> Tensor:
            cos, sin = torch.cos(phi + tau * turn), torch.sin(phi + tau * turn)
            x0, score = self._law(cos, sin, u, label).pair(u)
            # E[noise | u] = -sin score
            return -broadcast(turn * sin, u) * (x0 + broadcast(cos, u) * score)

        u = start / broadcast(torch.hypot(here.alpha, here.sigma), start)
        u = dop853(field, u, 0.0, 1.0, rtol=rtol, atol=atol).y
        end = (broadcast(torch.hypot(there.alpha, there.sigma), u) * u).to(x).reshape(x.shape)
        shift = process.shift(there.t, cond)
        return end if shift is None else end + shift

    def _label(self, cond: Cond, batch: int) -> Tensor | None:
        if cond is None:
            return None
        if not isinstance(cond, Mapping):
            raise ValueError(f'an exact world reads its label from cond={{"label": y}}: got {type(cond).__name__}')
        label = cond.get("label")
        if label is None:
            return None
        if not isinstance(label, Tensor) or label.is_floating_point() or label.shape != (batch,):
            got = f"{label.dtype} {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
            raise ValueError(f'cond["label"] holds one integer a sample, shape ({batch},): got {got}')
        unknown = ~torch.isin(label, torch.cat([self._known, self._known.new_tensor([NULL])]).to(label.device))
        if not holds(~unknown):
            raise ValueError(
                f"label {int(label[unknown][0])} is out of range: this world has {len(self._known)} labels from "
                f"{int(self._known[0])} to {int(self._known[-1])}, and {NULL} for none"
            )
        return label

    def _log_mass(self, label: Tensor | None) -> Tensor:
        """log of the total weight of each sample's label, () or (batch,), float64 on the host."""
        if label is None:
            return torch.zeros((), dtype=torch.float64)
        label = label.cpu()
        mass = torch.zeros(len(self._known), dtype=torch.float64).index_add(0, self._inverse, self.weights)
        index = torch.searchsorted(self._known, label.clamp_min(0)).clamp_max(len(self._known) - 1)
        return torch.where(label == NULL, 0.0, mass.log()[index])

    def _level(self, process: GaussianProcess, t: Time) -> Level:
        if not isinstance(process, GaussianProcess):
            raise ValueError(f"an exact world needs a process x_t = alpha x0 + shift + sigma noise: got {process!r}")
        return process.level(float(t) if isinstance(t, int) else t)

    def _centred(self, process: GaussianProcess | None, level: Level | None, x: Tensor, cond: Cond) -> Tensor:
        """x - shift, flattened to (batch, d)."""
        if level is not None and level.t.dim() > 1:
            raise ValueError(f"{self!r} is exact at one level a sample: got levels of shape {tuple(level.shape)}")
        if x.shape[1:] != self.event:
            raise ValueError(f"states of {self!r} have shape (batch, *{tuple(self.event)}): got {tuple(x.shape)}")
        shift = None if process is None or level is None else process.shift(level.t, cond)
        x = x if shift is None else x - shift
        # half precisions carry the state, not the arithmetic
        return x.reshape(len(x), self.dim).to(torch.promote_types(x.dtype, torch.float32))

    def _at(self, x: Tensor, process: GaussianProcess | None, t: Time | None, cond: Cond) -> tuple[Law, Tensor, Tensor]:
        if (process is None) != (t is None):
            raise ValueError("a process and a time belong together: give both, or neither for the data's own law")
        level = None if process is None or t is None else self._level(process, t)
        flat = self._centred(process, level, x, cond)
        alpha, sigma = torch.tensor((1.0, 0.0), dtype=torch.float64) if level is None else (level.alpha, level.sigma)
        return self._law(alpha, sigma, flat, self._label(cond, len(x))), flat, sigma

    def _needs_density(self, sigma: Tensor, what: str) -> None:
        if self.singular and bool((sigma == 0).any()):
            raise ViewError(
                f"{self!r} has components without a density, so no {what} at sigma = 0: take a time above 0"
            )


class ExactFlowMap(FlowMap):
    """X(x, t, s) of an exact world, by its reference integrator: see `World.flow`."""

    process: GaussianProcess

    def __init__(self, world: World, process: GaussianProcess, rtol: float, atol: float) -> None:
        super().__init__()
        self.world, self.process, self.rtol, self.atol = world, process, rtol, atol

    def forward(self, x: Array, t: Time, s: Time, cond: Cond = None) -> Array:
        return self.world.flow(self.process, x, t, s, self.rtol, self.atol, cond)


class ExactPrediction(Prediction):
    """The views of an exact world, each formed from its own E[x0 | x] and score: no conversion between views.

    x0 and score are native; noise = -sigma score, velocity = alpha' x0 - sigma sigma' score + shift',
    v = -sigma x0 - alpha sigma score.
    """

    world: World
    process: GaussianProcess

    def head(self, name: str) -> Prediction:
        """The one head of an exact world is this prediction itself."""
        return self if name == "main" else super().head(name)

    def _form(self, name: View) -> Tensor:
        if not hasattr(self, "_pair"):
            law, flat, _ = self.world._at(self.x, self.process, self.level, self.cond)
            self._pair = tuple(part.to(self.x.dtype).reshape(self.x.shape) for part in law.pair(flat))
        a, c = coefficients(self.world, self.process, self.level, name)
        x0, score = self._pair
        if name in ("x0", "score"):
            return x0 if name == "x0" else score
        view = broadcast(a, x0) * x0 + broadcast(c, x0) * score
        slope = self.process.d_shift(self.level.t, self.cond) if name == "velocity" else None
        return view if slope is None else view + slope


@denoises(GaussianProcess)
class ExactDenoiser(BaseDenoiser):
    """The exact denoiser of a world: E[view | x_t], to rounding, at every level where the view exists.

    Its null condition is the label -1, so guidance works on it as on a trained model. It has no parameters.
    """

    process: GaussianProcess

    def __init__(self, world: World, process: GaussianProcess, predicts: View = "x0") -> None:
        super().__init__()
        if not isinstance(process, GaussianProcess):
            raise ValueError(f"an exact world needs a process x_t = alpha x0 + shift + sigma noise: got {process!r}")
        process.level(0.5).rows(predicts)  # refuses a view that does not exist
        self.world, self.process, self.predicts = world, process, predicts
        self.null = {"label": NULL}

    def bind(self, levels: Level, x: Tensor, cond: Cond) -> Sequence[Callable[[Tensor], Output]]:
        """One function of the state for each level, its coefficients computed and cast beforehand."""
        flat = self.world._centred(self.process, levels[0], x, cond)
        label = self.world._label(cond, len(x))
        views = self.world._bound(levels, *coefficients(self.world, self.process, levels, self.predicts), flat, label)
        return [partial(self._answer, view, level, cond) for view, level in zip(views, levels, strict=True)]

    def _answer(self, view: Callable[[Tensor], Tensor], level: Level, cond: Cond, x: Tensor) -> Tensor:
        out = view(self.world._centred(self.process, level, x, cond)).to(x.dtype).reshape(x.shape)
        slope = self.process.d_shift(level.t, cond) if self.predicts == "velocity" else None
        return out if slope is None else out + slope

    def __call__(self, x: Tensor, t: Time, cond: Cond = None) -> ExactPrediction:
        plain = super().__call__(x, float(t) if isinstance(t, int) else t, cond)
        exact = ExactPrediction(plain.process, plain.level, x, plain.output, self.predicts, cond=cond)
        exact.world = self.world
        return exact


def coefficients(world: World, process: AffineProcess, level: Level, view: View) -> tuple[Tensor, Tensor]:
    """(a, c) with view = a E[x0 | x] + c score (to which the velocity of a process with a shift adds d shift/dt).

    They are finite at sigma = 0 wherever the view exists: sigma sigma' = g^2/2 there, even where sigma' is infinite.
    """
    zero, one = torch.zeros_like(level.t), torch.ones_like(level.t)
    match view:
        case "x0":
            return one, zero
        case "noise":
            return zero, -level.sigma
        case "score":
            world._needs_density(level.sigma, "score")
            return zero, one
        case "v":
            return -level.sigma, -level.alpha * level.sigma
        case "velocity":
            spread = level.sigma * level.d_sigma
            if not holds(spread.isfinite()):
                spread = torch.where(level.sigma == 0, process.diffusion2(level.t) / 2, spread)
                world._needs_density(level.sigma, "velocity")
            finite = spread.isfinite() & level.d_alpha.isfinite()
            if not holds(finite):
                t = float(level.t[~finite].flatten()[0])
                raise ViewError(f"the velocity of {process!r} is not finite at t = {t:.6g}: start a little above 0")
            return level.d_alpha, -spread
    raise ViewError(f"no view is called {view!r}")
