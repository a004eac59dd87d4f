"""Networks whose answers are probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..io.recipe import Recorded


class Probability(Recorded, nn.Module):
    """sigmoid(net(x, t, cond)): a network of log-odds as one of probabilities, in [0, 1], for a `Binomial` process."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        return torch.sigmoid(self.net(x, t, *rest))
