"""Kernel distance of features (KID): maximum mean discrepancy of the cubic kernel, unbiased at every sample size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.metrics._samples import blocks, flatten, generator


@dataclass(frozen=True)
class KID:
    """A mean of unbiased estimates, each from `size` samples a side.

    `mean`: may be negative where the laws agree. `standard_error`: of the mean. `spread`: standard deviation of one
    estimate among the `subsets`, what many papers print after the sign +-.
    """

    mean: float
    standard_error: float
    spread: float
    size: int
    subsets: int


def cubic_mmd(x: Tensor, y: Tensor) -> float:
    """MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(a, b) = (a.b / d + 1)^3, unbiased.

    The averages over x, x' and y, y' leave out each sample's pair with itself. The kernel is a polynomial: MMD^2 sees
    differences of the first three moments and no others.

    Shapes: x (n, *event), y (m, *event), n, m >= 2, d entries an event. Units: none; KID is quoted for Inception
    features as they come, and their scale matters. The kernel is summed in blocks: memory does not grow with n m.

    Errors: ValueError on different event shapes, fewer than two samples, non-finite values.

    Source: Bińkowski, Sutherland, Arbel and Gretton 2018 (arXiv:1801.01401), sec. 4.
    """
    x, y = flatten(x=x, y=y)
    same_x, same_y = (_sum(z, z) - float(((z**2).mean(1) + 1).pow(3).sum()) for z in (x, y))
    n, m = len(x), len(y)
    return same_x / (n * (n - 1)) + same_y / (m * (m - 1)) - 2 * _sum(x, y) / (n * m)


def kid(x: Tensor, y: Tensor, seed: int | torch.Generator, size: int = 1000, subsets: int | None = None) -> KID:
    """KID = (1/K) sum_k MMD^2(x_k, y_k),  standard_error^2 = spread^2 (1/K + r/(1 - r)).

    Without `subsets` the samples are shuffled and cut into as many disjoint blocks of `size` as both sets fill: the
    estimates are independent, r = 0. With `subsets` = K (100 in the source), each is a random subset drawn without
    replacement from the whole set; subsets overlap, and the error takes r = size / min(n, m): given the samples the
    K estimates scatter with variance w about the estimate of all samples, whose own variance is at most r times that
    of one subset (Hoeffding), hence at most r w / (1 - r). That errs on the large side; spread / sqrt(K), the usual
    figure, leaves out that all subsets share one set of samples.

    Shapes, units as in `cubic_mmd`. Errors: ValueError as there, on size < 2, on subsets < 2, or on too few samples:
    2 size of each for blocks, size + 1 for random subsets.

    Source: Bińkowski et al. 2018 (arXiv:1801.01401), sec. 4; variance of means over subsets, Hoeffding 1948.
    """
    x, y = flatten(x=x, y=y)
    least = min(len(x), len(y))
    if size < 2:
        raise ValueError(f"size must be at least 2, got {size}")
    if subsets is not None and subsets < 2:
        raise ValueError(f"subsets must be at least 2, or None for disjoint blocks; got {subsets}")
    if least < (2 * size if subsets is None else size + 1):
        fit = least // 2 if subsets is None else least - 1
        raise ValueError(f"{least} samples do not hold two subsets of size {size}: give a size of at most {fit}")
    source = generator(seed)
    if subsets is None:
        number, shared = least // size, 0.0
        orders = [torch.randperm(len(z), generator=source)[: number * size].reshape(number, size) for z in (x, y)]
    else:
        number, shared = subsets, size / least
        orders = [torch.stack([torch.randperm(len(z), generator=source)[:size] for _ in range(number)]) for z in (x, y)]
    figures = torch.tensor([cubic_mmd(x[i], y[j]) for i, j in zip(*orders, strict=True)], dtype=torch.float64)
    spread = float(figures.std())
    return KID(float(figures.mean()), spread * math.sqrt(1 / number + shared / (1 - shared)), spread, size, number)


def _sum(x: Tensor, y: Tensor) -> float:
    """sum_ij k(x_i, y_j)."""
    return sum(float((part @ y.T / y.shape[1] + 1).pow(3).sum()) for part in blocks(x, len(y)))
