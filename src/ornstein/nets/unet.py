"""A convolutional U-Net for images and for series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ornstein.nets.base import Net
from ornstein.nets.blocks import Attention, modulate, zeroed

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d}


class UNet(Net):
    """Down: h_i = stage_i(halve h_{i-1}); up: h = stage'_i([h_i, grow h]); stages of residual blocks, at level i of
    width * levels[i] channels.

    x (batch, channels, height, width), or (batch, channels, length) with `axes` = 1, of any size, odd ones too: a level
    halves and rounds up, and growing returns to the size that was. `levels` are multiples of `width`, one a resolution;
    `blocks` residual blocks a stage; the levels named in `attention` (from the top, negative from the bottom) end their
    stages with self-attention of `heads` heads.
    Source: Ronneberger et al. 2015 (arXiv:1505.04597); for diffusion, Ho et al. 2020 (arXiv:2006.11239) and Dhariwal
    and Nichol 2021 (arXiv:2105.05233). See `Net` for labels, conditions, outputs and errors.
    """

    def __init__(
        self,
        channels: int,
        labels: int = 0,
        *,
        width: int = 64,
        levels: Sequence[int] = (1, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (-1,),
        heads: int = 4,
        axes: int = 2,
        conditions: Mapping[str, int] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        if axes not in CONVOLUTIONS:
            raise ValueError(f"axes={axes}: 2 for images, 1 for series")
        embedding = 4 * width
        super().__init__(channels, embedding, labels=labels, conditions=conditions, outputs=outputs)
        conv, self.axes = CONVOLUTIONS[axes], axes
        count = len(levels)
        if bad := [level for level in attention if not -count <= level < count]:
            raise ValueError(f"attention at level {bad[0]}: this network has levels 0 to {count - 1}")
        sizes = [width * level for level in levels]
        head = [heads if level in {a % count for a in attention} else 0 for level in range(count)]
        self.enter = nn.ModuleList(
            [
                conv(self.inputs, width, 3, padding=1),
                *(conv(size, size, 3, stride=2, padding=1) for size in sizes[:-1]),
            ]
        )
        self.down = nn.ModuleList(
            _Stage(before, after, embedding, blocks, head[i], axes)
            for i, (before, after) in enumerate(zip([width, *sizes], sizes, strict=False))
        )
        self.up = nn.ModuleList(
            _Stage(sizes[i + 1] + sizes[i], sizes[i], embedding, blocks, head[i], axes)
            for i in reversed(range(count - 1))
        )
        self.last = nn.Sequential(_norm(sizes[0]), nn.SiLU(), zeroed(conv(sizes[0], self.answers, 3, padding=1)))

    def layout(self, x: Tensor, name: str, channels: int) -> Tensor:
        if x.ndim != 2 + self.axes or x.shape[1] != channels:
            sides = "height, width" if self.axes == 2 else "length"
            raise ValueError(f"{name} has shape {tuple(x.shape)}: (batch, {channels}, {sides}) is expected")
        return x

    def body(self, h: Tensor, e: Tensor) -> Tensor:
        skips = []
        for enter, stage in zip(self.enter, self.down, strict=True):
            h = stage(enter(h), e)
            skips.append(h)
        h = skips.pop()
        for stage in self.up:
            skip = skips.pop()
            h = stage(torch.cat([skip, functional.interpolate(h, size=skip.shape[2:], mode="nearest")], dim=1), e)
        answer: Tensor = self.last(h)
        return answer


class _Stage(nn.Module):
    """`blocks` residual blocks, the first of which changes the channels, and attention if heads > 0."""

    def __init__(self, before: int, after: int, embedding: int, blocks: int, heads: int, axes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(after if i else before, after, embedding, axes) for i in range(blocks))
        self.attention = _ImageAttention(after, heads) if heads else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        for block in self.blocks:
            h = block(h, e)
        out: Tensor = self.attention(h)
        return out


class _Block(nn.Module):
    """skip(h) + conv(silu(modulate(norm(conv(silu(norm(h)))), e)))."""

    def __init__(self, before: int, after: int, embedding: int, axes: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.norm1, self.norm2 = _norm(before), _norm(after)
        self.conv1 = conv(before, after, 3, padding=1)
        self.conv2 = zeroed(conv(after, after, 3, padding=1))
        self.modulation = nn.Linear(embedding, 2 * after)
        self.skip = conv(before, after, 1) if before != after else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.modulation(e)[(..., *[None] * (h.ndim - 2))].chunk(2, dim=1)
        branch = self.conv1(functional.silu(self.norm1(h)))
        branch = self.conv2(functional.silu(modulate(self.norm2(branch), scale, shift)))
        out: Tensor = self.skip(h) + branch
        return out


class _ImageAttention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.attention = Attention(channels, heads)
        zeroed(self.attention.out)

    def forward(self, h: Tensor) -> Tensor:
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        mixed: Tensor = self.attention(tokens)
        return h + mixed.transpose(1, 2).reshape(h.shape)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)
