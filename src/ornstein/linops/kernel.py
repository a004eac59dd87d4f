"""Kernels of blurs, and their matrices along one axis."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Boundary: TypeAlias = Literal["zero", "reflect", "circular"]
"""What lies beyond the edge: nothing, the mirror image without the edge itself, or the other side."""


def gaussian_kernel(std: float, size: int | None = None) -> Tensor:
    """k[l] ~ exp(-l^2/(2 std^2)), summing to 1, (size,) in float64; 2 ceil(3 std) + 1 entries if size is not given.

    std: > 0, in entries.
    """
    if not std > 0:
        raise ValueError(f"the width of a kernel is positive: got std={std}")
    size = 2 * math.ceil(3 * std) + 1 if size is None else size
    place = torch.arange(size, dtype=torch.float64) - size // 2
    return torch.softmax(-(place**2) / (2 * std**2), 0)


def convolution(kernel: Tensor, size: int, boundary: Boundary | str) -> Tensor:
    """The matrix (size, size) of y[i] = sum_l kernel[l] x[i - l + len(kernel)//2], float64 on the host."""
    if boundary not in get_args(Boundary):
        raise ValueError(f"boundary is one of {', '.join(get_args(Boundary))}: got {boundary!r}")
    if kernel.dim() != 1 or not len(kernel) or not bool(kernel.isfinite().all()):
        raise ValueError(f"a kernel is a row of finite numbers: got shape {tuple(kernel.shape)}")
    values = kernel.to("cpu").to(torch.float64)
    place = torch.arange(size)[:, None] - torch.arange(len(values)) + len(values) // 2
    weight = values.expand(size, -1)
    if boundary == "zero":
        weight = torch.where((place >= 0) & (place < size), weight, 0.0)
        place = place.clamp(0, size - 1)
    elif boundary == "circular":
        place = place % size
    else:
        if len(values) // 2 >= size:
            raise ValueError(f"a kernel of {len(values)} entries reaches beyond the mirror image of {size}")
        place = (size - 1) - ((size - 1) - place.abs()).abs()
    return torch.zeros(size, size, dtype=torch.float64).scatter_add(1, place, weight)
