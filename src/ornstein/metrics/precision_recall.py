"""Fidelity and diversity apart: manifolds of nearest-neighbour balls, and who lies inside whose."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.metrics._samples import blocks, flatten, squared_distances


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of `samples` inside the reference's manifold, and of the reference inside theirs; both in [0, 1]."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """`density` >= 0 has mean 1 if the laws agree; `coverage` is in [0, 1] with mean `equal_coverage` then."""

    density: float
    coverage: float
    equal_coverage: float


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> PrecisionRecall:
    """precision = (1/n) sum_j 1[y_j in B(x)],  recall = (1/m) sum_i 1[x_i in B(y)],  B(x) = U_i {|. - x_i| <= r_i}.

    y are the n `samples`, x the m of `reference`, and r_i the distance from x_i to its k-th nearest other one in its
    own set. Equal laws do not score 1: balls leave gaps. In one dimension they miss the share 4^{-k} of a smooth law
    however many samples there are, in more dimensions somewhat more: k = 3 gives 0.984 at best. One outlier of the
    reference makes a large ball: for that see `density_coverage`.

    Shapes: (n, *event), (m, *event), n, m > k. No units. Distances are taken in blocks of float64: memory does not
    grow with n m. Points on a sphere, to rounding, count as inside.
    Errors: ValueError on different event shapes, k < 1, no more than k samples, non-finite values.

    Source: Kynkäänniemi, Karras, Laine, Lehtinen and Aila 2019 (arXiv:1904.06991), eqs. 1 and 2.
    """
    samples, reference = _points(samples, reference, k)
    return PrecisionRecall(
        float((_hits(samples, reference, k).inside > 0).double().mean()),
        float((_hits(reference, samples, k).inside > 0).double().mean()),
    )


def density_coverage(samples: Tensor, reference: Tensor, k: int = 5) -> DensityCoverage:
    """density = (1/(k n)) sum_ij 1[|y_j - x_i| <= r_i],  coverage = (1/m) sum_i 1[min_j |y_j - x_i| <= r_i].

    y are the n `samples`, x the m of `reference`, r_i as in `precision_recall` and of the reference only. If both laws
    agree then, exactly and for every continuous law, E density = 1 and E coverage = `expected_coverage(n, m, k)`.
    A copy of the reference has density (k + 1) / k and coverage 1: neither sees memorisation.

    Shapes, units and errors as in `precision_recall`.

    Source: Naeem, Oh, Uh, Choi and Yoo 2020 (arXiv:2002.09797), eqs. 4 and 5.
    """
    samples, reference = _points(samples, reference, k)
    hits = _hits(samples, reference, k)
    n, m = len(samples), len(reference)
    return DensityCoverage(
        float(hits.inside.sum()) / (k * n), float(hits.met.double().mean()), expected_coverage(n, m, k)
    )


def expected_coverage(n: int, m: int, k: int) -> float:
    """E coverage = 1 - prod_{i=1}^{k} (m - i) / (n + m - i) if n samples and m of reference share a continuous law.

    The ball of x_i is empty of samples just if the k nearest of its n + m - 1 exchangeable fellows are all reference.
    k above 5 or so brings it near 1 with n = m, where coverage has most to say: 1 - 2^{-k} for many of both.

    Errors: ValueError unless n >= 1 and 1 <= k < m. Source: Naeem et al. 2020 (arXiv:2002.09797), sec. 3.4.
    """
    if n < 1 or not 1 <= k < m:
        raise ValueError(f"n must be at least 1 and k in 1 .. m - 1; got n {n}, m {m}, k {k}")
    return 1 - math.prod((m - i) / (n + m - i) for i in range(1, k + 1))


@dataclass(frozen=True)
class _Hits:
    inside: Tensor  # of each query, the number of balls it lies in
    met: Tensor  # of each ball, whether a query lies in it


def _hits(queries: Tensor, centres: Tensor, k: int) -> _Hits:
    """Which queries lie in which balls |. - centre_i| <= r_i."""
    origin = centres.mean(0)
    queries, centres = queries - origin, centres - origin
    # distances come as |a|^2 - 2 a.b + |b|^2: what they lose to rounding must not put a point off its own sphere
    largest = max(float((z**2).sum(1).max()) for z in (queries, centres))
    limit = _radii2(centres, k) + 64 * torch.finfo(centres.dtype).eps * largest
    inside, met = [], torch.zeros(len(centres), dtype=torch.bool)
    for part in blocks(queries, len(centres)):
        within = squared_distances(part, centres) <= limit
        inside.append(within.sum(1))
        met |= within.any(0)
    return _Hits(torch.cat(inside), met)


def _radii2(x: Tensor, k: int) -> Tensor:
    """r_i^2, the squared distance from x_i to its k-th nearest other point."""
    found, start = [], 0
    for part in blocks(x, len(x)):
        squared = squared_distances(part, x)
        squared[torch.arange(len(part)), torch.arange(start, start + len(part))] = math.inf
        found.append(squared.topk(k, dim=1, largest=False).values[:, -1])
        start += len(part)
    return torch.cat(found)


def _points(samples: Tensor, reference: Tensor, k: int) -> tuple[Tensor, ...]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return flatten(k + 1, samples=samples, reference=reference)
