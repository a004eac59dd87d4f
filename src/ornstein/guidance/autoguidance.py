"""Autoguidance: a model guided by a worse version of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser, Call
from ..prediction import heads_of
from .guided import Guided


class Autoguidance(Guided):
    """D_w(x, t, c) = D_weak(x, t, c) + w (D(x, t, c) - D_weak(x, t, c)).

    The weak model is smaller, less trained or fed less; it has the process, the condition and the view of the model.
    It is the head "weak". Other arguments as in `Guided`.

    Source: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself" (2406.02507).
    """

    def __init__(
        self,
        model: BaseDenoiser,
        weak: BaseDenoiser,
        scale: float | Tensor,
        *,
        interval: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(model, scale, interval=interval)
        if weak.predicts != model.predicts or repr(weak.process) != repr(model.process):
            raise ValueError(
                f"the weak model predicts {weak.predicts} of {weak.process!r}, the model {model.predicts} of "
                f"{model.process!r}: they must agree"
            )
        self.weak = weak

    def weak_cost(self, levels: Any) -> list[int]:
        return self.weak.cost(levels)

    def branches(self, levels: Any, x: State, cond: Cond) -> Sequence[Callable[[State], tuple[State, State]]]:
        def pair(main: Call, weak: Call, x: State) -> tuple[State, State]:
            return heads_of(main(x))["main"], heads_of(weak(x))["main"]

        both = zip(self.model.bind(levels, x, cond), self.weak.bind(levels, x, cond), strict=True)
        return [partial(pair, main, weak) for main, weak in both]
