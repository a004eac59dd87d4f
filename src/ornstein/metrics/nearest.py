"""Nearest-neighbour distances: whether a model repeats its training data, or misses it by noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein.metrics._samples import blocks, flatten, squared_distances


def nearest_distance(x: Tensor, reference: Tensor) -> Tensor:
    """d_i = min_j |x_i - reference_j|: (n, *event), (m, *event) -> (n,) float64 on the host, in the units of x.

    Neighbours are found in blocks (memory does not grow with n m) and their distances then taken from differences, so a
    copy is at distance zero exactly. Errors: ValueError on different event shapes, no samples, non-finite values.
    """
    return nearest_neighbour(x, reference)[0]


def nearest_neighbour(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """(d_i, j_i) with d_i = |x_i - reference_(j_i)| = min_j |x_i - reference_j|, as `nearest_distance`: both (n,)."""
    x, reference = flatten(1, x=x, reference=reference)
    which = [squared_distances(part, reference).argmin(dim=1) for part in blocks(x, len(reference))]
    places = torch.cat(which)
    distances = [(part - reference[j]).norm(dim=1) for part, j in zip(blocks(x, len(reference)), which, strict=True)]
    return torch.cat(distances), places


def nearest_neighbour_ratio(samples: Tensor, train: Tensor, held_out: Tensor) -> float:
    """ratio = median_i min_j |samples_i - train_j| / median_i min_j |held_out_i - train_j|.

    Fresh data of the same law has a ratio near 1. Below 0.95 a model memorises (0: it copies), above 1.15 its samples
    are noisy or far from the data. Both medians are against the same training set, so the sizes of `samples` and
    `held_out` are free.

    Shapes: (n, *event) each. Errors: ValueError on different event shapes, no samples, non-finite values, or held-out
    data of which half repeats training data.

    Source: Meehan, Chaudhuri and Dasgupta 2020, arXiv:2004.05675 (a rank test of the same two distances).
    """
    flatten(1, samples=samples, train=train, held_out=held_out)
    usual = nearest_distance(held_out, train).quantile(0.5)
    if usual == 0:
        raise ValueError("half of held_out or more repeats samples of train: hold out data that training does not have")
    return float(nearest_distance(samples, train).quantile(0.5) / usual)
