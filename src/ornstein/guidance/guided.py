"""What all guidance by a second opinion has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._types import Cond, State, View
from ..denoiser import BaseDenoiser, Call
from ..numerics.tree import like, parts


class Guided(BaseDenoiser):
    """D_w = D_weak + w (D - D_weak): a denoiser made from two branches, in the view of the first.

    A subclass writes `branches`, which gives both, and `weak_cost`. The combination is linear, so it is the same in
    every view. The weak branch can be read as a head of its own, named by the class.

    Args:
        model: the denoiser to improve.
        scale: w, a number or a tensor (batch,) with one a sample; w = 1 is the model, w > 1 moves away from the weak.
        interval: (low, high) times inside which guidance acts; outside w = 1 and one branch runs.
    """

    head_name: ClassVar[str] = "weak"

    def __init__(
        self, model: BaseDenoiser, scale: float | Tensor, *, interval: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(model, BaseDenoiser):
            raise ValueError(
                f"guidance is around a denoiser, as orn.Denoiser(net, process): got {type(model).__name__}"
            )
        if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"interval={interval}: times (low, high) with 0 <= low < high <= 1")
        if not bool(torch.as_tensor(scale).isfinite().all()):
            raise ValueError(f"scale must be finite: got {scale}")
        self.model, self.scale, self.interval = model, scale, interval
        self.process, self.predicts, self.null, self.scaling = model.process, model.predicts, model.null, model.scaling
        self.heads: Mapping[str, View] = {self.head_name: model.predicts}

    @abstractmethod
    def branches(self, levels: Any, x: State, cond: Cond) -> Sequence[Callable[[State], tuple[State, State]]]:
        """For each level a function of the state that returns (D, D_weak), both in the model's view."""

    @abstractmethod
    def weak_cost(self, levels: Any) -> list[int]:
        """Network evaluations of the weak branch."""

    def acts(self, levels: Any) -> list[bool]:
        """Whether the weak branch is needed at each level."""
        if not isinstance(self.scale, Tensor) and self.scale == 1:
            return [False] * len(levels)
        if self.interval is None:
            return [True] * len(levels)
        low, high = self.interval
        inside = ((levels.t >= low) & (levels.t <= high)).reshape(len(levels), -1)
        if bool((inside.any(1) != inside.all(1)).any()):
            raise ValueError(f"interval={self.interval} needs times that all samples share")
        return [bool(row) for row in inside.all(1)]

    def cost(self, levels: Any) -> list[int]:
        both = zip(self.model.cost(levels), self.weak_cost(levels), self.acts(levels), strict=True)
        return [own + weak * acts for own, weak, acts in both]

    def bind(self, levels: Any, x: State, cond: Cond) -> Sequence[Call]:
        acts = self.acts(levels)
        alone = self.model.bind(levels, x, cond)
        if not any(acts):
            return alone
        w = self._weight(parts(x)[0])

        def guide(pair: Callable[[State], tuple[State, State]], x: State) -> dict[str, State]:
            main, weak = pair(x)
            both = zip(parts(main), parts(weak), strict=True)
            return {"main": like(main, [torch.lerp(b, a, _fit(w, a)) for a, b in both]), self.head_name: weak}

        pairs = self.branches(levels, x, cond)
        return [partial(guide, pair) if act else call for act, pair, call in zip(acts, pairs, alone, strict=True)]

    def _weight(self, x: Tensor) -> float | Tensor:
        if not isinstance(self.scale, Tensor):
            return float(self.scale)
        if self.scale.shape not in ((), (x.shape[0],)):
            raise ValueError(
                f"scale has shape {tuple(self.scale.shape)}: give a number, or one a sample ({x.shape[0]},)"
            )
        return self.scale.to(x)


def _fit(w: float | Tensor, x: Tensor) -> Any:
    return w.reshape(-1, *(1,) * (x.dim() - 1)) if isinstance(w, Tensor) else w
