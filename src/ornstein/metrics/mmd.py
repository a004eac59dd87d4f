"""Maximum mean discrepancy, and the exact permutation test built on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.metrics._samples import blocks, flatten, generator, squared_distances

MEDIAN_POINTS = 2_000
"""Points among which the median distance is taken."""


@dataclass(frozen=True)
class MMDTest:
    """MMD^2 between two sample sets and how often relabelled sets reach it.

    `mmd2`: the unbiased estimate. `p_value`: in [1 / (permutations + 1), 1]; under equal laws P(p_value <= u) <= u.
    `bandwidths`: those used.
    """

    mmd2: float
    p_value: float
    bandwidths: tuple[float, ...]


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float] | None = None) -> float:
    """MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(a, b) = mean_h exp(-|a - b|^2 / (2 h^2)), unbiased.

    The averages over x, x' and y, y' leave out each sample's pair with itself, so the estimate has mean zero, and is
    often negative, when the laws agree. It lies in [-2, 2].

    Shapes: x (n, *event), y (m, *event), n, m >= 2. `bandwidths` h are in the units of x; by default half, once and
    twice the median distance between pooled samples (`median_distance`). The distances are taken in blocks: memory
    does not grow with n m.

    Errors: ValueError on different event shapes, fewer than two samples, non-finite values, bandwidths not positive.

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola 2012, "A kernel two-sample test", eq. 3.
    """
    x, y = flatten(x=x, y=y)
    scales = _bandwidths(bandwidths, x, y)
    n, m = len(x), len(y)
    same_x, same_y, cross = (_kernel_sum(a, b, scales) for a, b in ((x, x), (y, y), (x, y)))
    return (same_x - n) / (n * (n - 1)) + (same_y - m) / (m * (m - 1)) - 2 * cross / (n * m)  # k(a, a) = 1


def mmd_test(
    x: Tensor,
    y: Tensor,
    seed: int | torch.Generator,
    permutations: int = 200,
    bandwidths: Sequence[float] | None = None,
) -> MMDTest:
    """p = (1 + #{relabellings with MMD^2 >= observed}) / (1 + permutations): do x and y share a law?

    Shapes, units and errors as in `mmd`; also ValueError if permutations < 1. The kernel matrix of the pooled samples
    is held whole: 8 (n + m)^2 bytes. The test is exact at every sample size, since the default bandwidths depend on
    the pooled set only.

    Source: Gretton et al. 2012; counting the observed labelling too, Phipson and Smyth 2010, arXiv:1603.05766.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    x, y = flatten(x=x, y=y)
    scales = _bandwidths(bandwidths, x, y)
    n, m = len(x), len(y)
    pooled = torch.cat((x, y))
    kernel = _kernel(squared_distances(pooled, pooled), scales)
    source = generator(seed)
    orders = [torch.arange(n + m)] + [torch.randperm(n + m, generator=source) for _ in range(permutations)]
    in_x = torch.zeros(n + m, len(orders), dtype=kernel.dtype)  # a column a labelling, the observed one first
    for column, order in enumerate(orders):
        in_x[order[:n], column] = 1
    product = kernel @ in_x
    same_x = (in_x * product).sum(0)
    cross = product.sum(0) - same_x
    same_y = kernel.sum() - same_x - 2 * cross
    mmd2 = (same_x - n) / (n * (n - 1)) + (same_y - m) / (m * (m - 1)) - 2 * cross / (n * m)
    reached = int((mmd2[1:] >= mmd2[0] - 1e-12).sum())  # equal labellings differ by rounding, and must count
    return MMDTest(float(mmd2[0]), (1 + reached) / (1 + permutations), scales)


def median_distance(x: Tensor, y: Tensor) -> float:
    """median of |a - b| over pairs of pooled samples: the usual bandwidth of a kernel, in the units of x.

    Among more than `MEDIAN_POINTS` samples it is taken over evenly spaced ranks of their norms, a choice that does not
    depend on which sample came from where. Shapes and errors as in `mmd`; ValueError if most samples coincide.
    """
    x, y = flatten(x=x, y=y)
    pooled = torch.cat((x, y))
    if len(pooled) > MEDIAN_POINTS:
        ranks = torch.linspace(0, len(pooled) - 1, MEDIAN_POINTS, dtype=torch.float64).round().long()
        pooled = pooled[(pooled - pooled.mean(0)).norm(dim=1).argsort()[ranks]]
    i, j = torch.triu_indices(len(pooled), len(pooled), offset=1)
    median = float(squared_distances(pooled, pooled)[i, j].median().sqrt())
    if median == 0:
        raise ValueError("the median distance between samples is 0: most of them coincide; give bandwidths")
    return median


def _bandwidths(bandwidths: Sequence[float] | None, x: Tensor, y: Tensor) -> tuple[float, ...]:
    if bandwidths is None:
        median = median_distance(x, y)
        return (median / 2, median, 2 * median)
    scales = tuple(float(h) for h in bandwidths)
    if not scales or not all(0 < h < float("inf") for h in scales):
        raise ValueError(f"bandwidths must be positive finite numbers, at least one; got {scales}")
    return scales


def _kernel(squared: Tensor, bandwidths: tuple[float, ...]) -> Tensor:
    return torch.stack([torch.exp(squared / (-2 * h**2)) for h in bandwidths]).mean(0)


def _kernel_sum(x: Tensor, y: Tensor, bandwidths: tuple[float, ...]) -> float:
    return sum(float(_kernel(squared_distances(part, y), bandwidths).sum()) for part in blocks(x, len(y)))
