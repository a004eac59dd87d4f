"""What every metric does first: check its samples, flatten them, and bring them to float64 on the host."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**22
"""Most entries of a distance matrix held at once, where the whole matrix is not needed."""


def flatten(least: int = 2, /, **samples: Tensor) -> tuple[Tensor, ...]:
    """(n, *event) tensors, named by their keywords -> (n, d) float64 tensors on the host; sizes n may differ.

    ValueError if a tensor has fewer than `least` samples, an empty event, a complex or a non-finite value, or if the
    event shapes differ.
    """
    (first, reference), *_ = samples.items()
    flat = []
    for name, x in samples.items():
        if x.ndim == 0 or x.is_complex() or 0 in x.shape[1:]:
            raise ValueError(f"{name} must be real samples (n, *event), got {x.dtype} of shape {tuple(x.shape)}")
        if x.shape[1:] != reference.shape[1:]:
            raise ValueError(
                f"event shapes differ: {first} {tuple(reference.shape[1:])}, {name} {tuple(x.shape[1:])}; "
                "all samples need the same shape after the first axis"
            )
        if len(x) < least:
            raise ValueError(f"{name} has {len(x)} samples, at least {least} are needed")
        points = x.detach().cpu().double().reshape(len(x), -1)
        bad = (~points.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            value = float(points[row, column])
            raise ValueError(f"{name} has {len(bad)} non-finite values, the first in sample {row}: {value}")
        flat.append(points)
    return tuple(flat)


def check_labels(labels: Tensor, n: int) -> Tensor:
    """Labels as (n,) int64 on the host; ValueError unless they are n whole numbers."""
    if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be {n} integers, got {labels.dtype} of shape {tuple(labels.shape)}")
    return labels.detach().cpu().long()


def generator(seed: int | torch.Generator) -> torch.Generator:
    """The generator itself, or a fresh one on the host that starts from the integer."""
    return torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """D[i, j] = |x_i - y_j|^2, to rounding of the largest squared norm: (n, d), (m, d) -> (n, m)."""
    centre = y.mean(0)  # a shared offset would cost digits in |x|^2 - 2 x.y + |y|^2
    x, y = x - centre, y - centre
    return torch.addmm((y**2).sum(1), x, y.T, alpha=-2).add_((x**2).sum(1, keepdim=True)).clamp_(min=0)


def blocks(x: Tensor, columns: int) -> tuple[Tensor, ...]:
    """Rows of x in pieces, so that a piece against `columns` others has about BLOCK entries at most."""
    return torch.split(x, max(1, BLOCK // columns))
