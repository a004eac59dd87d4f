"""Classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..numerics.tree import like, parts, tree_zip
from ..prediction import heads_of
from .guided import Guided


class CFG(Guided):
    """D_w(x, t, c) = D(x, t, null) + w (D(x, t, c) - D(x, t, null)).

    w = 1 is the conditional model, w = 0 the unconditional one. Both branches run as one batch. The unconditional
    branch is the head "uncond". Arguments as in `Guided`; the model must have a null condition.

    Source: Ho, Salimans 2022 (2207.12598); the interval: Kynkaanniemi et al. 2024 (2404.07724).
    """

    head_name = "uncond"

    def __init__(
        self, model: BaseDenoiser, scale: float | Tensor, *, interval: tuple[float, float] | None = None
    ) -> None:
        super().__init__(model, scale, interval=interval)
        if model.null is None:
            model.without(None)  # refuses, and says how to make one

    def weak_cost(self, levels: Any) -> list[int]:
        return self.model.cost(levels)

    def branches(self, levels: Any, x: State, cond: Cond) -> Sequence[Callable[[State], tuple[State, State]]]:
        batch = parts(x)[0].shape[0]
        both = tree_zip(lambda c, u: torch.cat([c, u]) if isinstance(c, Tensor) else c, cond, self.model.without(cond))

        def split(call: Callable[[State], Any], x: State) -> tuple[State, State]:
            out = parts(heads_of(call(_twice(x)))["main"])
            return like(x, [part[:batch] for part in out]), like(x, [part[batch:] for part in out])

        calls = self.model.bind(levels.tile(2), _twice(x), both)
        return [partial(split, call) for call in calls]


def _twice(x: State) -> State:
    return like(x, [torch.cat([part, part]) for part in parts(x)])
