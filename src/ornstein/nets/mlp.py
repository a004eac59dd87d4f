"""A residual network for states without geometry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ornstein.nets.base import Net
from ornstein.nets.blocks import modulate, zeroed


class MLP(Net):
    """h <- h + W2 silu(W1 (norm(h) (1 + scale(e)) + shift(e))), `depth` times, between linear maps in and out.

    x of any event shape that flattens to `features` (an int, or the event shape itself); so are `conditions`, with
    their own numbers of features. `width` is that of h and e. Source: He et al. 2016 (arXiv:1512.03385), with the
    modulation of Perez et al. 2018 (arXiv:1709.07871). See `Net` for labels, conditions, outputs and errors.
    """

    def __init__(
        self,
        features: int | tuple[int, ...],
        labels: int = 0,
        *,
        width: int = 256,
        depth: int = 4,
        conditions: Mapping[str, int | tuple[int, ...]] | None = None,
        outputs: Sequence[str] = (),
    ) -> None:
        flat = {name: _flat(size) for name, size in (conditions or {}).items()}
        super().__init__(_flat(features), width, labels=labels, conditions=flat, outputs=outputs)
        self.first = nn.Linear(self.inputs, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), zeroed(nn.Linear(width, self.answers)))

    def layout(self, x: Tensor, name: str, channels: int) -> Tensor:
        if math.prod(x.shape[1:]) != channels:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: {channels} features a sample are expected")
        return x.reshape(x.shape[0], channels)

    def body(self, h: Tensor, e: Tensor) -> Tensor:
        h = self.first(h)
        for block in self.blocks:
            h = block(h, e)
        answer: Tensor = self.last(h)
        return answer


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.branch = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.modulation(e).chunk(2, dim=1)
        out: Tensor = h + self.branch(modulate(self.norm(h), scale, shift))
        return out


def _flat(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else math.prod(size)
