"""Times and labels as vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

NULL = -1
"""The label that means no label: an unconditional sample, or a label dropped in training."""


class TimeEmbedding(nn.Module):
    """e(t) = W2 silu(W1 [sin(w t), cos(w t)]), the angular frequencies w geometric from `low` to `high`.

    t (batch,) -> (batch, width). The defaults resolve 0.01 in t, and the slowest sine is monotone on [-5, 5], so times
    in [0, 1] and log-SNR-like levels are both told apart. Higher frequencies would only make the network rough in t.
    Source: Vaswani et al. 2017 (arXiv:1706.03762); for diffusion, Ho et al. 2020 (arXiv:2006.11239).
    """

    frequencies: Tensor

    def __init__(self, width: int, count: int = 32, low: float = 0.25, high: float = 100.0) -> None:
        super().__init__()
        # on the host: the meta device, where networks are weighed before they are built, takes a second for linspace
        exponents = torch.linspace(math.log(low), math.log(high), count, dtype=torch.float64, device="cpu")
        frequencies = exponents.exp().to(torch.get_default_device(), torch.get_default_dtype())
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * count, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        embedding: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))
        return embedding


class LabelEmbedding(nn.Module):
    """e(label) = row `label` of a learned table with labels + 1 rows; NULL = -1 has the last row.

    label (batch,) integers -> (batch, width). A label outside [-1, labels) is a ValueError on the CPU, where the
    look-up itself finds it at no cost: labels are mapped so that exactly the bad ones leave the table. On an
    accelerator and in compiled code the look-up's own assertion stops the program, since a check here would make every
    call wait for the device.
    """

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.labels, self.width = labels, width
        self.table = nn.Parameter(torch.randn(labels + 1, width))

    def forward(self, label: Tensor) -> Tensor:
        label = label.long()
        # NULL -> labels, -2 -> labels + 1, ...; and labels -> labels + 1, ...: past the end, and never the null row
        row = torch.where(label < 0, self.labels - 1 - label, label + (label >= self.labels))
        if torch.compiler.is_compiling():
            return functional.embedding(row, self.table)
        try:
            return functional.embedding(row, self.table)
        except IndexError as error:
            bad = label[row > self.labels][0].item()
            raise ValueError(
                f"label {bad} is out of range: this network knows 0 to {self.labels - 1}, and NULL = {NULL} for none"
            ) from error
