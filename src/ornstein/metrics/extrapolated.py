"""Fréchet distance at infinitely many samples, by its 1/n law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ornstein.metrics._samples import flatten, generator
from ornstein.metrics.frechet import frechet_distance
from ornstein.metrics.statistics import Statistics

POINTS = 15
"""Sizes at which the distance is taken, as in the source."""


@dataclass(frozen=True)
class Extrapolation:
    """figures ~ value + slope / sizes by least squares: `value` at infinitely many samples, `slope` n times bias."""

    value: float
    slope: float
    sizes: tuple[int, ...]
    figures: tuple[float, ...]


def frechet_extrapolated(
    x: Tensor, reference: Tensor | Statistics, seed: int | torch.Generator, sizes: Sequence[int] | None = None
) -> Extrapolation:
    """FD_n = FD_inf + c / n + O(1/n^2):  FD_inf is the intercept of FD_n over 1/n.

    FD_n is taken on a random subset of n of the samples for each n of `sizes`, by default 15 evenly spaced from a
    tenth of them to all. What the number of reference samples adds stays: keep it the same, and large. The law needs
    every n well above the number of features: below it the sample covariance is singular, and the bias no longer 1/n.
    FD_inf is less biased than FD_n and scatters more.

    Shapes: x (n, *event), features flattened; `reference` samples (m, *event) or their `Statistics`.
    Errors: ValueError as for `frechet_distance`, and on fewer than two sizes, or sizes outside 2 .. n.

    Source: Chong and Forsyth 2020 (arXiv:1911.07023), sec. 4 and alg. 1.
    """
    (points,) = flatten(x=x)
    n = len(points)
    if sizes is None:
        sizes = sorted({round(float(size)) for size in torch.linspace(max(2, n // 10), n, POINTS)})
    if len(set(sizes)) < 2 or not 2 <= min(sizes) <= max(sizes) <= n:
        raise ValueError(f"sizes must be at least two different numbers from 2 to {n} samples, got {list(sizes)}")
    if isinstance(reference, Tensor):
        flatten(x=x, reference=reference)
        reference = Statistics.of(reference)
    source = generator(seed)
    figures = [frechet_distance(points[torch.randperm(n, generator=source)[:size]], reference) for size in sizes]
    inverse = 1 / torch.tensor(list(sizes), dtype=torch.float64)
    y = torch.tensor(figures, dtype=torch.float64)
    slope = float((inverse - inverse.mean()) @ y / ((inverse - inverse.mean()) ** 2).sum())
    return Extrapolation(float(y.mean()) - slope * float(inverse.mean()), slope, tuple(sizes), tuple(figures))
