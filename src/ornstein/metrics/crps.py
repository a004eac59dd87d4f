"""The continuous ranked probability score of a forecast by samples."""

from __future__ import annotations

import torch
from torch import Tensor


def crps(samples: Tensor, truth: Tensor) -> Tensor:
    """CRPS(F, y) = int (F(z) - [y <= z])^2 dz = E|X - y| - E|X - X'|/2 of each entry, X and X' drawn from F.

    samples: (m, *shape), m >= 2 draws of each entry; truth: (*shape). Returns (*shape) in float64, in the units of the
    data: unbiased, so that for a forecast that is the truth it is E|X - X'|/2 in the mean, and for any other more.

    Errors: ValueError for shapes that do not match, or fewer than two samples.

    Source: Gneiting, Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", section 4.2.
    """
    m = len(samples)
    if samples.shape[1:] != truth.shape or m < 2:
        raise ValueError(
            f"samples (m, *shape), m >= 2, of truth (*shape): got {tuple(samples.shape)}, {tuple(truth.shape)}"
        )
    x, y = samples.detach().cpu().double().sort(0).values, truth.detach().cpu().double()
    # sum over pairs of |x_i - x_j| = 2 sum_i (2 i - m + 1) x_(i)
    rank = (2 * torch.arange(m, dtype=torch.float64) - m + 1).reshape(m, *(1,) * truth.dim())
    return (x - y).abs().mean(0) - (rank * x).sum(0) / (m * (m - 1))
