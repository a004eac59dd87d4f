"""A transformer over points in time, in whatever order and number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ornstein.nets.base import Net
from ornstein.nets.blocks import TransformerBlock, modulate, zeroed
from ornstein.nets.embedding import TimeEmbedding


class SetTransformer(Net):
    """h_i = W [x_i, conditions_i] + e(times_i), then `depth` transformer blocks (adaLN-Zero) over the points i.

    x (batch, n), or (batch, channels, n), at the times cond["times"], (batch, n), which may be irregular: the answer at
    a point depends on what is at which time, and not on the order of the points, whose number may change from call to
    call. e tells times apart that differ by 0.01 or more, within a few units of 0. `conditions` are further values at
    the points, such as those observed and where: {"values": 1, "observed": 1}. Source: Vaswani et al. 2017
    (arXiv:1706.03762), over a set as Lee et al. 2019 (arXiv:1810.00825). See `Net` for labels, conditions, outputs and
    errors.
    """

    def __init__(
        self,
        channels: int = 1,
        labels: int = 0,
        *,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        times: str = "times",
        conditions: Mapping[str, int] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        if times in (conditions or {}):
            raise ValueError(f"conditions names the times {times!r}, which every such network has")
        super().__init__(channels, width, labels=labels, conditions={times: 1, **(conditions or {})}, outputs=outputs)
        self.clock = TimeEmbedding(width)
        self.first = nn.Linear(self.inputs - 1, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, self.answers))

    def layout(self, x: Tensor, name: str, channels: int) -> Tensor:
        x = x[:, None] if x.dim() == 2 else x
        if x.dim() != 3 or x.shape[1] != channels:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: (batch, n) or (batch, {channels}, n) is expected")
        return x

    def body(self, h: Tensor, e: Tensor) -> Tensor:
        times, values = h[:, self.channels], torch.cat([h[:, : self.channels], h[:, self.channels + 1 :]], dim=1)
        h = self.first(values.mT) + self.clock(times.flatten()).unflatten(0, times.shape)
        for block in self.blocks:
            h = block(h, e)
        scale, shift = self.modulation(e)[:, None].chunk(2, dim=-1)
        answer: Tensor = self.last(modulate(self.norm(h), scale, shift))
        return answer.mT
