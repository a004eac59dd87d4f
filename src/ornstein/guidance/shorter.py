"""A model of a whole process, read as one of the process stopped early."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser, Call
from ..prediction import Output
from ..processes import EndLaw, Level, Shortened
from .wrapped import Wrapped


class Shorter(Wrapped):
    """P(x, t) = P'(x, T t), and T times it where it is a velocity: the same model, on [0, T] and from a law of x_T.

        law = orn.density.end_law(process, data, until=0.3, components=8)
        fast = orn.guidance.Shorter(model, until=0.3, law=law)
        orn.sample(fast, shape)

    Args:
        model: a denoiser of one GaussianProcess, trained on all of it or at least on [0, T].
        until, law: see `Shortened`, which is the process of the result.

    Source: Franzese et al. 2022 (2206.05173), section 3.
    """

    process: Shortened

    def __init__(self, model: BaseDenoiser, until: float, law: EndLaw | None = None) -> None:
        super().__init__(model)
        base: Any = model.process
        self.process = Shortened(base, until, law)

    def _inside(self, levels: Level) -> Level:
        until, own = self.process.until, levels
        return Level(until * own.t, own.alpha, own.sigma, own.log_snr, own.d_alpha / until, own.d_sigma / until)

    def bind(self, levels: Level, x: Tensor, cond: Cond) -> Sequence[Call]:
        return [partial(self._answer, call) for call in self.model.bind(self._inside(levels), x, cond)]

    def cost(self, levels: Level) -> list[int]:
        return self.model.cost(self._inside(levels))

    def _answer(self, call: Call, x: Tensor) -> Output:
        output, until = call(x), self.process.until
        if isinstance(output, torch.Tensor):
            return until * output if self.predicts == "velocity" else output
        views = {"main": self.predicts, **self.heads}
        return {name: until * head if views.get(name) == "velocity" else head for name, head in output.items()}
