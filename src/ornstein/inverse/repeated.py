"""A denoiser asked several times at a level, with a gradient for all but the last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from .._types import Cond
from ..denoiser import BaseDenoiser, Call
from ..guidance.wrapped import calls_in
from .measurement import Measurement
from .posterior import Pull, Pulled


class Repeated(Pulled):
    """`Pulled` for solvers that move a state `times` times before they step from it, and then ask a last time.

    Of the evaluations at one level that follow each other, that last one, and every one before it by 1 + times, has no
    head "pull" and costs no gradient.
    """

    def __init__(self, model: BaseDenoiser, measurement: Measurement, pull: Pull, times: int) -> None:
        super().__init__(model, measurement, pull)
        self._times = times

    def bind(self, levels: Any, x: Any, cond: Cond) -> Sequence[Call]:
        reached = self._reached(levels)
        calls = calls_in("x0", self.model, reached, x, cond)
        return [
            partial(self.answer, call, level) if pulled else call
            for call, level, pulled in zip(calls, reached, self._which(levels), strict=True)
        ]

    def cost(self, levels: Any) -> list[int]:
        own = self.model.cost(self._reached(levels))
        return [each * (1 + pulled) for each, pulled in zip(own, self._which(levels), strict=True)]

    def _which(self, levels: Any) -> list[bool]:
        """Whether each evaluation is one before a move."""
        which, to_come = list[bool](), 0
        for i in reversed(range(len(levels))):
            same = i + 1 < len(levels) and torch.equal(levels.t[i], levels.t[i + 1])
            to_come = to_come + 1 if same else 0
            which.append(to_come % (1 + self._times) > 0)
        return which[::-1]
