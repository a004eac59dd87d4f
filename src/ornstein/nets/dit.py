"""The diffusion transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ornstein.nets.base import Net
from ornstein.nets.blocks import TransformerBlock, modulate, zeroed


class DiT(Net):
    """h <- h + gate1 attention(modulate(norm(h))), then h <- h + gate2 mlp(modulate(norm(h))), `depth` times, over the
    patches of an image; scales, shifts and gates are linear in e and start at 0 (adaLN-Zero).

    x (batch, channels, height, width), with `size` = height = width or (height, width), cut into patches of `patch` by
    `patch` pixels that divide it; positions are fixed sines and cosines. Source: Scalable diffusion models with
    transformers, Peebles and Xie 2022 (arXiv:2212.09748). See `Net` for labels, conditions, outputs and errors.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int,
        size: int | tuple[int, int],
        labels: int = 0,
        *,
        patch: int = 2,
        width: int = 384,
        depth: int = 6,
        heads: int = 6,
        conditions: Mapping[str, int] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        super().__init__(channels, width, labels=labels, conditions=conditions, outputs=outputs)
        self.size = (size, size) if isinstance(size, int) else size
        if self.size[0] % patch or self.size[1] % patch:
            raise ValueError(f"patch={patch} does not divide the image size {self.size}")
        if width % 4:
            raise ValueError(f"width={width} is not a multiple of 4: half codes rows, half columns, in sine and cosine")
        self.patch = patch
        self.grid = (self.size[0] // patch, self.size[1] // patch)
        self.register_buffer("positions", _positions(*self.grid, width), persistent=False)
        self.first = nn.Linear(self.inputs * patch**2, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.last = zeroed(nn.Linear(width, self.answers * patch**2))

    def layout(self, x: Tensor, name: str, channels: int) -> Tensor:
        if x.shape[1:] != (channels, *self.size):
            raise ValueError(f"{name} has shape {tuple(x.shape)}: {('batch', channels, *self.size)} is expected")
        return x

    def body(self, h: Tensor, e: Tensor) -> Tensor:
        batch, (rows, columns), p = h.shape[0], self.grid, self.patch
        h = h.reshape(batch, self.inputs, rows, p, columns, p).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        h = self.first(h) + self.positions
        for block in self.blocks:
            h = block(h, e)
        scale, shift = self.modulation(e)[:, None].chunk(2, dim=-1)
        h = self.last(modulate(self.norm(h), scale, shift))
        answer: Tensor = h.reshape(batch, rows, columns, self.answers, p, p).permute(0, 3, 1, 4, 2, 5)
        return answer.reshape(batch, self.answers, *self.size)


def _positions(rows: int, columns: int, width: int) -> Tensor:
    """(rows * columns, width): sine and cosine of w * row, then of w * column, w = 10000^(-k / (width/4))."""
    quarter = width // 4
    w = torch.exp(torch.arange(quarter, dtype=torch.float64) * (-math.log(10_000.0) / quarter))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.reshape(-1, 1) * w for place in (row, column)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).to(torch.get_default_dtype())
