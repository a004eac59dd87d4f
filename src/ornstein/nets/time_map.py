"""Networks that are told a time for each entry of a state."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._types import Cond
from ..io.recipe import Recorded
from ..processes.level import along


class TimeMap(Recorded, nn.Module):
    """net(x, mean of t, {**cond, "time": t}): the times (batch, ...) of the entries as a condition laid out as x.

    The network has a condition "time" of x's channels: `MLP(2, conditions={"time": 2})`. One time a sample is told to
    all its entries.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None) -> Any:
        each = along(t, x).expand(x.shape)
        return self.net(x, each.flatten(1).mean(1), {**(cond or {}), "time": each})
