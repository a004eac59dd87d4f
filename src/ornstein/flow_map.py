"""Flow maps: from any time to any other in one evaluation."""

from __future__ import annotations

from typing import Any

from torch import nn

from ._types import Cond, State
from .numerics.tree import check_batch, parts
from .processes import Process


class FlowMap(nn.Module):
    """X(x, t, s): where the probability flow through x at time t is at time s. The sibling of the denoiser.

        X(x, t, t) = x,    X(X(x, t, u), u, s) = X(x, t, s),    d/ds X(x, t, s) at s = t is the velocity.

    Called on x (batch, *event), times t and s, scalars or (batch,), and a condition. A subclass sets `process` and
    writes `forward(x, t, s, cond)`, which gets the levels of the two times.

    Source: Boffi, Albergo, Vanden-Eijnden 2024 (2406.07507); Kim et al. 2023 (2310.02279).
    """

    process: Process

    def forward(self, x: State, t: Any, s: Any, cond: Cond = None) -> State:
        raise NotImplementedError(f"{type(self).__name__} must write forward")

    def __call__(self, x: State, t: Any, s: Any, cond: Cond = None) -> State:
        check_batch(cond, parts(x)[0].shape[0])
        return super().__call__(x, self.process.level(t), self.process.level(s), cond)
