"""A denoiser asked several times at a level, with a gradient for all but the last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from .._types import Cond
from ..denoiser import Call
from ..guidance.wrapped import calls_in
from .posterior import Pulled


class Repeated(Pulled):
    """`Pulled` for solvers that revise a state before they step: an evaluation has the head "pull" where the next is
    at the same level, and costs no gradient elsewhere."""

    def bind(self, levels: Any, x: Any, cond: Cond) -> Sequence[Call]:
        reached = self._reached(levels)
        calls = calls_in("x0", self.model, reached, x, cond)
        return [
            partial(self.answer, call, level) if more else call
            for call, level, more in zip(calls, reached, _again(levels), strict=True)
        ]

    def cost(self, levels: Any) -> list[int]:
        own = self.model.cost(self._reached(levels))
        return [each * (1 + more) for each, more in zip(own, _again(levels), strict=True)]


def _again(levels: Any) -> list[bool]:
    """Whether each level is that of the next evaluation too."""
    return [torch.equal(now, after) for now, after in pairwise(levels.t)] + [False]
