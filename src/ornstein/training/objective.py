"""The training objective: regression of a view on a draw of the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .._types import Cond, State, View
from ..denoiser import BaseDenoiser
from ..numerics.tree import like, parts
from ..processes import GaussianProcess, Level, broadcast
from ..random import derive, fresh_seed, generator
from .times import TimeLaw, UniformTime
from .weightings import UnitOutput, UnitTarget

AnyWeighting = Callable[[Level, View, GaussianProcess], Tensor]


@dataclass(frozen=True)
class Objective:
    """loss = E_t E_(x0, noise) w(t) |P(x_t, t, cond) - target|^2 / d, in the view P that the model answers.

    The target is a x0 + b noise, a linear function of the draw. For t and x_t held fixed,

        E |P - target|^2 = |P - E[target | x_t, cond]|^2 + Var[target | x_t, cond],

    and only the first term depends on P, so for any w > 0 the minimiser is the conditional expectation
    P(x, t, cond) = E[target | x_t = x, cond]: for x0 the posterior mean, for the score grad log p_t(x). The view and w
    decide which levels a network of finite size does best, not what is learned.

    Args:
        time: the law of t.
        weighting: w, by default one under which the loss is bounded for every view and process: `UnitTarget`, or
            `UnitOutput` for a model with a precondition.

    For a process with components the losses of the components are added. d is the number of entries of an event.
    """

    time: TimeLaw = field(default_factory=UniformTime)
    weighting: AnyWeighting | None = None

    def __call__(self, model: BaseDenoiser, x0: State, cond: Cond = None, *, seed: int | None = None) -> Tensor:
        """The mean loss of a batch x0 (batch, *event), in the model's units, a scalar that can be differentiated."""
        return self.losses(model, x0, cond, seed=seed)[0].mean()

    def losses(
        self, model: BaseDenoiser, x0: State, cond: Cond = None, *, seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(loss of each sample, its time), both (batch,), the times on the host; `seed` names times and noise."""
        seed = fresh_seed() if seed is None else seed
        process: Any = model.process
        t = self.time.draw(parts(x0)[0].shape[0], process, generator(derive(seed, "time")))
        draw: Any = process.corrupt(x0, process.level(t), cond=cond, seed=derive(seed, "noise"))
        answer = model(draw.x, draw.level, cond).view(model.predicts)
        error = like(x0, [p - q for p, q in zip(parts(answer), parts(draw.target(model.predicts)), strict=True)])
        if getattr(process, "project", None) is not None:
            error = process.project(error, cond)
        pairs = [(process, draw.level)]
        if isinstance(x0, tuple):
            pairs = list(zip(process.processes, draw.level.components, strict=True))
        weigh = self.weighting or default_weighting(model)
        total: Any = 0
        for (component, level), e in zip(pairs, parts(error), strict=True):
            # the root of the weight meets the error before it is squared: no overflow where a target is large
            root = weigh(level, model.predicts, component).sqrt()
            total = total + (e * broadcast(root, e)).square().flatten(1).mean(1)
        return total, t


def default_weighting(model: BaseDenoiser) -> AnyWeighting:
    """The weighting under which the loss of `model` is bounded."""
    precondition = getattr(model, "precondition", None)
    return UnitTarget() if precondition is None else UnitOutput(precondition)
