"""What denoisers that alter one other denoiser have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .._types import Cond, State, View
from ..denoiser import BaseDenoiser, Call
from ..prediction import heads_of, predict


class Wrapped(BaseDenoiser):
    """A denoiser with the process, condition, units and cost of the one inside.

    It predicts that one's view unless a subclass says otherwise.
    """

    def __init__(self, model: BaseDenoiser) -> None:
        super().__init__()
        if not isinstance(model, BaseDenoiser):
            raise ValueError(f"give a denoiser, as orn.Denoiser(net, process): got {type(model).__name__}")
        self.model = model
        self.process, self.predicts, self.null, self.scaling = model.process, model.predicts, model.null, model.scaling
        self.heads = model.heads

    def cost(self, levels: Any) -> list[int]:
        return self.model.cost(levels)


def calls_in(view: View, model: BaseDenoiser, levels: Any, x: State, cond: Cond) -> Sequence[Callable[[State], State]]:
    """The model's calls at the levels, each answering in `view`; refused where the view does not exist."""
    for component in getattr(levels, "components", (levels,)):
        component.conversion(model.predicts, view)

    def answer(level: Any, call: Call, x: State) -> State:
        output = call(x)
        if model.predicts == view:
            return heads_of(output)["main"]
        return predict(model.process, level, x, output, model.predicts, cond=cond).view(view)

    return [partial(answer, level, call) for level, call in zip(levels, model.bind(levels, x, cond), strict=True)]
