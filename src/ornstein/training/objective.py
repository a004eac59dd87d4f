"""The training objective: regression of a view on a draw of the process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from .._types import Cond, State, View
from ..denoiser import BaseDenoiser
from ..numerics.tree import like, parts
from ..processes import Level, LinearProcess, broadcast
from ..random import Noise, Share, derive, fresh_seed, generator
from .times import TimeLaw, UniformTime
from .weightings import UnitOutput, UnitTarget

AnyWeighting = Callable[[Level, View, LinearProcess], Tensor]


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
        penalty: what the errors sqrt(w) (P - target) of a sample, (batch, *event), cost it, (batch,); by default the
            mean of their squares. Another penalty has another minimiser.
        observed: the name of a condition like x0, 1 where an entry was observed and 0 where not: errors at the others
            count nothing, and the mean of squares is over those observed. The model sees the condition too.

    For a process with components the losses of the components are added. d is the number of entries of an event.
    A subclass changes one of the pieces: `times`, `pair`, `draw` or `compare`.
    """

    time: TimeLaw = field(default_factory=UniformTime)
    weighting: AnyWeighting | None = None
    penalty: Callable[[Tensor], Tensor] | None = None
    observed: str | None = None

    def __call__(
        self,
        model: BaseDenoiser,
        x0: State,
        cond: Cond = None,
        *,
        seed: int | None = None,
        share: Share | None = None,
    ) -> Tensor:
        """The mean loss of a batch x0 (batch, *event), in the model's units, a scalar that can be differentiated."""
        return self.losses(model, x0, cond, seed=seed, share=share)[0].mean()

    def losses(
        self,
        model: BaseDenoiser,
        x0: State,
        cond: Cond = None,
        *,
        seed: int | None = None,
        share: Share | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(loss of each sample, its time), both (batch,), the times on the host; `seed` names times and noise.

        `share` says which rows of a larger batch x0 is: their times and noise are those of that batch.
        """
        seed = fresh_seed() if seed is None else seed
        batch = parts(x0)[0].shape[0]
        share = share or Share(0, batch, batch)
        t = self.times(model, x0, cond, seed, share)
        drawn, cond = self.draw(model, x0, t, cond, seed, share)
        return self.compare(model, model(drawn.x, drawn.level, cond), drawn, cond), t

    def times(self, model: BaseDenoiser, x0: State, cond: Cond, seed: int, share: Share) -> Tensor:
        """The times of the share's samples, (batch,) float64 on the host."""
        return share(self.time.draw(share.total, model.process, generator(derive(seed, "time"))))

    def draw(self, model: BaseDenoiser, x0: State, t: Tensor, cond: Cond, seed: int, share: Share) -> tuple[Any, Cond]:
        """x_t with what it was made of, and the condition that the model is asked under."""
        first, process = parts(x0)[0], cast(Any, model.process)
        noise = Noise(derive(seed, "noise"), batch=len(share), dtype=first.dtype, device=first.device, share=share)
        given, cond = self.pair(model, x0, cond, seed, share)
        return process.corrupt(x0, process.level(t), cond=cond, seed=noise, **given), cond

    def pair(
        self, model: BaseDenoiser, x0: State, cond: Cond, seed: int, share: Share
    ) -> tuple[dict[str, State], Cond]:
        """What is given of each draw beside x0, by the names of `corrupt`, and the condition left for the network.

        Here the other end x1, for a process between two laws: the entry of `cond` that it names."""
        end = getattr(model.process, "end", None)
        if end is None or not isinstance(cond, Mapping) or end not in cond:
            return {}, cond
        return {"x1": cond[end]}, {name: c for name, c in cond.items() if name != end} or None

    def compare(self, model: BaseDenoiser, prediction: Any, drawn: Any, cond: Cond) -> Tensor:
        """What the prediction costs each sample, (batch,)."""
        process, x0 = cast(Any, model.process), drawn.x0
        answer = parts(prediction.view(model.predicts))
        error = like(x0, [p - q for p, q in zip(answer, parts(drawn.target(model.predicts)), strict=True)])
        if getattr(process, "project", None) is not None:
            error = process.project(error, cond)
        pairs = [(process, drawn.level)]
        if isinstance(x0, tuple):
            pairs = list(zip(process.processes, drawn.level.components, strict=True))
        if self.observed is not None and self.penalty is not None:
            raise ValueError(f"observed={self.observed!r} takes the mean of squares over what was seen: no penalty")
        seen = None if self.observed is None else parts(cast(Any, cond)[self.observed])
        weigh = self.weighting or default_weighting(model)
        costs = []
        for i, ((component, level), e) in enumerate(zip(pairs, parts(error), strict=True)):
            # the root of the weight meets the error before it is squared: no overflow where a target is large
            root = weigh(level, model.predicts, component).sqrt()
            costs.append(self._cost(e * broadcast(root, e), None if seen is None else seen[i]))
        return sum(costs[1:], costs[0])

    def _cost(self, error: Tensor, seen: Tensor | None) -> Tensor:
        if seen is None:
            return (self.penalty or mean_square)(error)
        known = seen.flatten(1).mean(1)  # the share of entries observed
        return mean_square(error * seen) / known.clamp_min(1 / seen[0].numel())


def mean_square(error: Tensor) -> Tensor:
    """|error|^2 / d of each sample: (batch, *event) -> (batch,)."""
    return error.square().flatten(1).mean(1)


def default_weighting(model: BaseDenoiser) -> AnyWeighting:
    """The weighting under which the loss of `model` is bounded."""
    precondition = getattr(model, "precondition", None)
    return UnitTarget() if precondition is None else UnitOutput(precondition)
