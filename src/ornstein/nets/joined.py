"""Networks of states with components."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..io.recipe import Recorded
from ..numerics.tree import like, parts


class Joined(Recorded, nn.Module):
    """net((x, m), t, cond) as one network of the components side by side, along the first axis of the event.

    A component (batch, c, ...) is c of the network's channels, (batch, d) is d of its features, so that phase space of
    images with c channels takes a `UNet(2 * c)`, of vectors an `MLP(2 * d)`. The answer is cut again like the state.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, state: Any, t: Tensor, *rest: Any) -> Any:
        answer = self.net(torch.cat(parts(state), 1), t, *rest)
        return like(state, answer.split([part.shape[1] for part in parts(state)], 1))
