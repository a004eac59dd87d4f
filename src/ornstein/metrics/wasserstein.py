"""Wasserstein distances: of numbers, by sorting; sliced, by sorting projections; exact, by optimal transport."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.metrics._samples import flatten, generator, squared_distances


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int, seed: int | torch.Generator, p: float = 2.0) -> float:
    """SW_p = (E_u W_p(u.x, u.y)^p)^{1/p},  W_p^p = int_0^1 |F_x^{-1}(q) - F_y^{-1}(q)|^p dq,  u uniform, |u| = 1.

    The integral over quantiles is exact for any two sample sizes; the expectation is over `projections` directions
    drawn from `seed`. For two laws that differ by a shift s in d dimensions SW_2 = |s| / sqrt(d).

    Shapes: x (n, *event), y (m, *event). Units: those of x. Errors: ValueError on different event shapes, no samples,
    non-finite values, projections < 1, p not a finite number >= 1.

    Source: Rabin, Peyré, Delon and Bernot 2011; Bonneel, Rabin, Peyré and Pfister 2015.
    """
    if projections < 1:
        raise ValueError(f"projections must be at least 1, got {projections}")
    if not 1 <= p < math.inf:
        raise ValueError(f"p must be a finite number, at least 1; got {p}")
    x, y = flatten(1, x=x, y=y)
    directions = torch.randn(x.shape[1], projections, generator=generator(seed), dtype=x.dtype)
    directions /= directions.norm(dim=0)
    i, j, width = _quantile_steps(len(x), len(y))
    gap = (x @ directions).sort(dim=0).values[i] - (y @ directions).sort(dim=0).values[j]
    return float((width @ gap.abs() ** p).mean() ** (1 / p))


def wasserstein1(x: Tensor, y: Tensor) -> float:
    """W_1 = int_0^1 |F_x^{-1}(q) - F_y^{-1}(q)| dq of two sets of numbers: exact for any two sizes.

    Shapes: x (n,), y (m,). Units: those of x. Errors: ValueError for another shape, no samples, non-finite values.
    """
    if x.dim() != 1 or y.dim() != 1:
        raise ValueError(f"x and y must be numbers (n,): got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = flatten(1, x=x, y=y)
    i, j, width = _quantile_steps(len(x), len(y))
    return float(width @ (x[:, 0].sort().values[i] - y[:, 0].sort().values[j]).abs())


def wasserstein2(x: Tensor, y: Tensor) -> float:
    """W_2 = (min_pi sum_ij pi_ij |x_i - y_j|^2)^{1/2} over the couplings pi of the two uniform sample sets: exact.

    Shapes: x (n, *event), y (m, *event). Units: those of x. Cost: memory 8 n m bytes, time about cubic in n; solved by
    network simplex (POT, the extra `metrics`).

    Errors: ValueError on different event shapes, no samples, non-finite values; ImportError without POT; RuntimeError
    if the simplex stops before its optimum.

    Source: Bonneel, van de Panne, Paris and Heidrich 2011 (network simplex).
    """
    ot = require("ot", extra="metrics")
    x, y = flatten(1, x=x, y=y)
    uniform = [torch.full((len(z),), 1 / len(z), dtype=z.dtype).numpy() for z in (x, y)]
    plan, log = ot.emd(*uniform, squared_distances(x, y).numpy(), numItermax=10_000_000, log=True)
    if log["warning"]:
        raise RuntimeError(f"optimal transport of {len(x)} to {len(y)} samples stopped early: {log['warning']}")
    coupling = torch.from_numpy(plan)
    i, j = coupling.nonzero(as_tuple=True)  # the cost anew from differences: exact where the sets almost agree
    return float((coupling[i, j] @ ((x[i] - y[j]) ** 2).sum(1)).sqrt())


def _quantile_steps(n: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pieces of [0, 1] on which both quantile functions are constant: rank among n, rank among m, width.

    In units of 1 / (n m) all jumps are whole numbers, so no piece is lost or made by rounding.
    """
    ends = torch.cat((torch.arange(1, n + 1) * m, torch.arange(1, m) * n)).sort().values
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    return starts // m, starts // n, (ends - starts).double() / (n * m)
