"""The denoiser: a network, the process it belongs to, and the question it answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ._types import VIEWS, Cond, State, View
from .errors import ViewError
from .io.recipe import Recorded
from .numerics.tree import check_batch, parts
from .prediction import Output, heads_of, predict
from .processes import AffineProcess, Level, Process, broadcast, check_times_of

Call = Callable[[State], Output]


class BaseDenoiser(nn.Module):
    """Anything that answers (x, t): a network, an exact world, a guided combination of denoisers.

    A subclass sets `process` and `predicts` (and `heads`, the views of further named heads) and writes `bind`.
    Called on x (batch, *event), t (a scalar or (batch,)) and a condition it returns a `Prediction`; `forward` returns
    the plain output in the view `predicts` (what DDP, torch.compile and forward-mode differentiation wrap).
    States and predictions are in the model's units; `orn.sample` returns the user's (see `scaling`).
    """

    process: Process
    predicts: View
    heads: Mapping[str, View] = {}
    null: Any = None
    scaling: Codec | None

    def __init__(self) -> None:
        super().__init__()
        self.scaling = None  # not a class attribute, which would hide the registered module

    def bind(self, levels: Any, x: State, cond: Cond) -> Sequence[Call]:
        """One function of the state for each of the E levels, (E,) or (E, batch, ...): x gives batch, dtype, device.

        All that can be known before the loop is done here: host arithmetic, uploads, preparation of conditions. The
        functions returned do not synchronise.
        """
        raise NotImplementedError(f"{type(self).__name__} must write bind")

    def cost(self, levels: Any) -> list[int]:
        """Network evaluations of one sample at each level, gradient passes counted."""
        return [1] * len(levels)

    def forward(self, x: State, t: Any, cond: Cond = None) -> Output:
        return self.bind(self.process.level(t)[None], x, cond)[0](x)

    def __call__(self, x: State, t: Any, cond: Cond = None) -> Any:
        level = self.process.level(t)
        for part in parts(x):
            check_times_of(level.shape, part.shape)
        check_batch(cond, parts(x)[0].shape[0])
        output = super().__call__(x, level, cond)
        return predict(self.process, level, x, output, self.predicts, cond=cond, heads=self.heads)

    def without(self, cond: Cond) -> Cond:
        """`cond` with every entry that has a null value replaced by it: what the unconditional branch sees."""
        if self.null is None:
            raise ValueError(
                "this model has no null condition, so it has no unconditional branch: "
                'build it with Denoiser(..., null={"label": orn.nets.NULL}) and train with drop={"label": 0.1}'
            )
        if not isinstance(cond, Mapping) or not set(self.null) <= set(cond):
            raise ValueError(f"guidance needs cond with {', '.join(map(repr, self.null))}: got {_named(cond)}")
        return {**cond, **{name: torch.zeros_like(cond[name]) + value for name, value in self.null.items()}}


def _named(cond: Cond) -> str:
    return f"only {', '.join(map(repr, cond))}" if isinstance(cond, Mapping) and cond else "none"


@dataclass(frozen=True)
class EDMPrecondition:
    """x0 = c_skip (x - shift) + c_out net(c_in (x - shift), c_noise), with unit-variance input and target.

        s^2 = alpha^2 sigma_data^2 + sigma^2,   c_in = 1/s,   c_skip = alpha sigma_data^2 / s^2,
        c_out = sigma sigma_data / s,   c_noise = log(sigma/alpha)/4 (its log-SNR clipped to +-20)

    For alpha = 1 these are the paper's; for any other process they are the same in the frame x/alpha.

    Source: Karras et al. 2022 (2206.00364), section 5.
    """

    predicts: ClassVar[View] = "x0"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data is the standard deviation of the data, positive: got {self.sigma_data}")

    def coefficients(self, level: Level) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_in, c_skip, c_out, c_noise) in float64 on the host."""
        s = torch.hypot(level.alpha * self.sigma_data, level.sigma)
        c_noise = -level.log_snr.clamp(-20, 20) / 8
        return 1 / s, level.alpha * self.sigma_data**2 / s**2, level.sigma * self.sigma_data / s, c_noise


class Codec(Recorded, nn.Module, ABC):
    """The user's data and the model's states, each from the other: a `Scaling`, or a latent model's autoencoder."""

    missing: ClassVar[bool] = False
    """Whether NaN in the user's data stands for a value that is missing, of which `encode` makes a finite state."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """The user's data to the model's states."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """The model's states to the user's data."""


class Scaling(Codec):
    """Model units = (user units - mean) / std, stored with the model; mean and std broadcast to (*event)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).clone())
        if not bool((self.std > 0).all()) or not bool(self.std.isfinite().all()):
            raise ValueError(f"a scaling's std is positive and finite: got {float(self.std.min()):.6g}")
        if not bool(self.mean.isfinite().all()):
            raise ValueError("a scaling's mean is finite: this one has NaN or infinity")

    @classmethod
    def of(cls, data: Tensor) -> Scaling:
        """The scaling that gives `data` mean 0 and standard deviation 1 over all its entries."""
        mean, std = data.mean(), data.std()
        if not bool(mean.isfinite() & std.isfinite()):  # sums of values near 1e38 are beyond float32
            mean, std = data.double().mean(), data.double().std()
        return cls(mean, std)

    def encode(self, x: Tensor) -> Tensor:
        """User units to model units."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def decode(self, x: Tensor) -> Tensor:
        """Model units to user units."""
        return x * self.std.to(x) + self.mean.to(x)


class Denoiser(BaseDenoiser):
    """A network that answers one question about x_t; the library turns the answer into any other.

        answer = net(x, t, cond)                                    read in the view `predicts`, or
        answer = c_skip x + c_out net(c_in x, c_noise, cond)        with a precondition

    Args:
        net: called as net(x, t) or, with a condition, net(x, t, cond); t is (batch,) in the dtype of x. It returns a
            tensor like x, a named tuple for a product process, or a dict of named heads whose first is "main".
        process: the forward process.
        predicts: the view that the network was (or will be) trained to answer.
        precondition: scales around the network; it decides the view that the whole answers.
        timestep: what the network is told of a level, a function of the level; by default its t. The result is given
            to the network in float32 or wider, so that a timestep of 999 survives a half-precision state.
        null: values of the condition that stand for "no condition", e.g. {"label": orn.nets.NULL}.
        scaling: data units; samples leave in the user's.
        heads: the views of further heads, by name.
    """

    def __init__(
        self,
        net: nn.Module | Callable[..., Any],
        process: Process,
        predicts: View | None = None,
        *,
        precondition: EDMPrecondition | None = None,
        timestep: Callable[[Level], Tensor] | None = None,
        null: Mapping[str, Any] | None = None,
        scaling: Codec | None = None,
        heads: Mapping[str, View] | None = None,
    ) -> None:
        super().__init__()
        if predicts is None:
            predicts = precondition.predicts if precondition else "velocity"
        if isinstance(process, type) or not isinstance(process, Process):
            raise ValueError(f"a process is an object such as orn.Flow(): got {process!r}")
        for name, view in {"predicts": predicts, **(heads or {})}.items():
            if view not in VIEWS:
                raise ViewError(f"{name}={view!r} is no view: choose from {', '.join(VIEWS)}")
        if predicts not in process.views:
            raise ViewError(f"{process!r} has no {predicts}: choose from {', '.join(process.views)}")
        if precondition is not None and predicts != precondition.predicts:
            raise ViewError(f"{precondition!r} makes the denoiser predict {precondition.predicts}, not {predicts}")
        if precondition is not None and not isinstance(process, AffineProcess):
            raise ValueError(
                f"{precondition!r} scales one state of one GaussianProcess, or another AffineProcess: "
                f"{process!r} is none"
            )
        self.net = net
        self.process = process
        self.predicts = predicts
        self.precondition = precondition
        self.timestep = timestep
        self.null = null
        self.scaling = scaling
        self.heads = heads or {}

    def bind(self, levels: Any, x: State, cond: Cond) -> Sequence[Call]:
        first = parts(x)[0]
        rest = () if cond is None else (cond,)
        pre, net = self.precondition, self.net
        dtype = first.dtype
        if self.timestep is not None:
            c_noise, dtype = self.timestep(levels), torch.promote_types(dtype, torch.float32)
        else:
            c_noise = levels.t if pre is None else pre.coefficients(levels)[3]
        if c_noise.dim() == 1:
            c_noise = c_noise[:, None]
        times = c_noise.to(device=first.device, dtype=dtype).expand(-1, *first.shape[: c_noise.dim() - 1])

        def plain(time: Tensor, x: State) -> Output:
            return net(x, time, *rest)

        if pre is None:
            return [partial(plain, time) for time in times.unbind(0)]
        process: Any = self.process

        def preconditioned(t: Tensor, time: Tensor, c_in: Tensor, c_skip: Tensor, c_out: Tensor, x: Tensor) -> Output:
            shift = process.shift(t, cond)
            centred = x if shift is None else x - shift
            heads = heads_of(net(c_in * centred, time, *rest))
            main = c_skip * centred + c_out * heads["main"]
            return {**heads, "main": main} if len(heads) > 1 else main

        scales = [[broadcast(c, first) for c in column] for column in pre.coefficients(levels)[:3]]
        return [partial(preconditioned, *row) for row in zip(levels.t, times.unbind(0), *scales, strict=True)]


class Heads(BaseDenoiser):
    """Several models of one process as one, each a named head: (main, name_1, ...) of the same (x, t).

    A view is read from the first that tells it. For an `Interpolant` whose velocity and noise were learned apart,

        both = orn.Heads(velocity, noise=latent)

    has a score too, so that every sampler of the process runs on it. The models share their units.

    Args:
        main: the model that answers first.
        others: further models of an equal process, by the name of their head.
    """

    def __init__(self, main: BaseDenoiser, **others: BaseDenoiser) -> None:
        super().__init__()
        for name, model in others.items():
            if model.process != main.process:
                raise ValueError(f"{name} is a model of {model.process!r}, the main one of {main.process!r}")
            if model.heads or main.heads:
                raise ValueError("the models that become heads have no further heads of their own")
            if not _same(model.scaling, main.scaling):
                raise ValueError(f"{name} has another scaling than the main model: train both in the same units")
        self.main, self.others = main, nn.ModuleDict(others)
        self.process, self.predicts, self.null = main.process, main.predicts, main.null
        self.scaling = main.scaling
        self.heads = {name: model.predicts for name, model in others.items()}

    @property
    def _all(self) -> dict[str, BaseDenoiser]:
        return {"main": self.main, **{name: cast(BaseDenoiser, model) for name, model in self.others.items()}}

    def bind(self, levels: Any, x: State, cond: Cond) -> Sequence[Call]:
        bound = {name: model.bind(levels, x, cond) for name, model in self._all.items()}

        def answer(calls: Mapping[str, Call], x: State) -> Output:
            return {name: heads_of(call(x))["main"] for name, call in calls.items()}

        return [partial(answer, {name: calls[i] for name, calls in bound.items()}) for i in range(len(levels))]

    def cost(self, levels: Any) -> list[int]:
        return [sum(costs) for costs in zip(*(model.cost(levels) for model in self._all.values()), strict=True)]


def _same(scaling: Codec | None, other: Codec | None) -> bool:
    """Whether two models have the same units."""
    if scaling is None or other is None or scaling is other:
        return scaling is other
    own, theirs = scaling.state_dict(), other.state_dict()
    alike = type(scaling) is type(other) and own.keys() == theirs.keys()
    return alike and all(torch.equal(value, theirs[name]) for name, value in own.items())
