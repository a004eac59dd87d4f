"""Fréchet distance: the Wasserstein-2 distance between the Gaussians that share two sample sets' moments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ornstein.metrics._samples import flatten
from ornstein.metrics.statistics import Statistics


def frechet_distance(
    x: Tensor | Statistics, y: Tensor | Statistics, features: Callable[[Tensor], Tensor] | None = None
) -> float:
    """FD = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^{1/2}), m and C means and covariances.

    The moments are those of features(x) and features(y), the covariances with n - 1, or the `Statistics` given in
    place of samples, of the same features. Shapes: x (n, *event), y (m, *event), n, m >= 2; `features` maps a batch to
    (n, *feature) and is the identity (flattened pixels) if None. Units: squared units of the features. Computed in
    float64 on the host.

    The estimate is biased upwards by O(1/n + 1/m): for d features of unit covariance by about
    (1/n + 1/m) (d + d (d + 1) / 4). Compare only figures of equal sample sizes, and beside that of two real sets;
    `frechet_extrapolated` takes the leading term away.

    Errors: ValueError on different event shapes, fewer than two samples, non-finite values, or features that do not
    return one row a sample.

    Source: Dowson and Landau 1982; as a score of generative models, Heusel et al. 2017, arXiv:1706.08500.
    """
    samples = {name: z for name, z in (("x", x), ("y", y)) if isinstance(z, Tensor)}
    if samples:
        flatten(**samples)
    first, second = (_statistics(features, z, name) for z, name in ((x, "x"), (y, "y")))
    return frechet_from_moments(first.mean, first.cov, second.mean, second.cov)


def frechet_from_moments(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """FD = |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^{1/2}).

    Shapes: means (d,), covariances (d, d), symmetric and positive semi-definite (singular ones are welcome).
    Errors: ValueError on shapes that do not match, non-finite values, or a covariance that is none.

    Source: Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions".
    """
    d = mean1.numel()
    named = {"mean1": (mean1, (d,)), "cov1": (cov1, (d, d)), "mean2": (mean2, (d,)), "cov2": (cov2, (d, d))}
    for name, (value, shape) in named.items():
        if tuple(value.shape) != shape or d == 0:
            raise ValueError(f"{name} must have shape {shape} for {d} features, got {tuple(value.shape)}")
        if not value.isfinite().all():
            raise ValueError(f"{name} has non-finite values")
    m1, c1, m2, c2 = (value.detach().cpu().double() for value, _ in named.values())
    # tr (C1 C2)^{1/2} = tr (C1^{1/2} C2 C1^{1/2})^{1/2} is the sum of the singular values of C1^{1/2} C2^{1/2}; taken
    # so, no rounding of a vanishing eigenvalue (1e-16) passes through a square root (1e-8)
    overlap = torch.linalg.svdvals(_sqrt(c1, "cov1") @ _sqrt(c2, "cov2")).sum()
    return max(0.0, float(((m1 - m2) ** 2).sum() + c1.trace() + c2.trace() - 2 * overlap))


def _statistics(features: Callable[[Tensor], Tensor] | None, x: Tensor | Statistics, name: str) -> Statistics:
    if isinstance(x, Statistics):
        return x
    if features is None:
        return Statistics.of(x)
    with torch.no_grad():
        out = features(x)
    if out.ndim == 0 or len(out) != len(x):
        raise ValueError(f"features({name}) must have {len(x)} rows, one a sample; got shape {tuple(out.shape)}")
    (points,) = flatten(**{f"features({name})": out})
    return Statistics.of(points)


def _sqrt(cov: Tensor, name: str) -> Tensor:
    """The symmetric square root; eigenvalues below rounding count as zero."""
    values, vectors = torch.linalg.eigh(cov)
    scale = values.abs().max()
    if (cov - cov.T).abs().max() > 1e-6 * scale or values[0] < -1e-6 * scale:
        lowest = float(values[0])
        raise ValueError(f"{name} must be symmetric, positive semi-definite; its lowest eigenvalue is {lowest:.3g}")
    rounding = len(values) * torch.finfo(values.dtype).eps * scale
    roots = torch.where(values > rounding, values, 0.0).sqrt()
    return torch.mm(vectors * roots, vectors.T)
