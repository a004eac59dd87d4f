"""Time series with gaps: correlation by lag over the pairs that were observed, and distances of the marginals."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein.metrics.wasserstein import wasserstein1


def autocorrelation(x: Tensor, lags: int) -> Tensor:
    """a_c(l) = mean_{i,t} (x_ic(t) - m_c)(x_ic(t + l) - m_c) / s_c^2,  l = 0 .. lags.

    The mean is over all series i and times t at which both values were observed; m_c and s_c^2 are mean and variance
    of all observed values of channel c. Where no pair of that lag was observed, or the channel is constant, NaN.
    For x(t + 1) = a x(t) + noise, in its stationary law, a(l) = a^l.

    Shapes: x (n, channels, length), NaN in gaps -> (channels, lags + 1) float64. Errors: ValueError for another shape,
    infinite values, lags outside 0 .. length - 1.

    Source: Parzen 1963, "On spectral analysis with missing observations" (the estimate of amplitude-modulated series).
    """
    return cross_correlation(x, lags).diagonal(dim1=0, dim2=1).T


def cross_correlation(x: Tensor, lags: int) -> Tensor:
    """C[c, d, l] = mean_{i,t} (x_ic(t) - m_c)(x_id(t + l) - m_d) / (s_c s_d),  l = 0 .. lags: d follows c by l.

    Its diagonal c = d is the autocorrelation; negative lags are C[d, c, l]. Shapes: x (n, channels, length) ->
    (channels, channels, lags + 1). Means, errors and source: as in `autocorrelation`.
    """
    x = check_series(x)
    length = x.shape[2]
    if not 0 <= lags < length:
        raise ValueError(f"lags must be between 0 and {length - 1}, the length less one: got {lags}")
    seen = (~x.isnan()).double()
    count = seen.sum((0, 2))[:, None]
    z = torch.where(seen > 0, x - x.nanmean((0, 2))[:, None], 0.0)
    std = ((z**2).sum((0, 2))[:, None] / count).sqrt()
    z = z / torch.where(std > 1e-12 * x.nan_to_num().abs().amax((0, 2))[:, None], std, torch.nan)
    found = []
    for lag in range(lags + 1):
        pairs = torch.einsum("nct,ndt->cd", seen[..., : length - lag], seen[..., lag:])
        found.append(torch.einsum("nct,ndt->cd", z[..., : length - lag], z[..., lag:]) / pairs)
    return torch.stack(found, -1)


def correlation_distance(x: Tensor, y: Tensor, lags: int, cross: bool = False) -> float:
    """d = mean_{c, l} |a_c^x(l) - a_c^y(l)| over l = 1 .. lags; with `cross` over c != d, l = 0 .. lags of C.

    Over those that both sets have; 1 is added for one that y has and x lacks (x is constant there). Two samples of one
    law are not at 0: read it beside that of real data. Shapes and errors: as in `autocorrelation`, with one number of
    channels, and with lags >= 1 or `cross` and two channels or more.
    """
    if x.shape[1:2] != y.shape[1:2]:
        raise ValueError(f"x has {x.shape[1]} channels and y has {y.shape[1]}: they need the same")
    a, b = cross_correlation(x, lags), cross_correlation(y, lags)
    same = torch.eye(len(a), dtype=torch.bool)
    used = ~b.isnan() & (~same[..., None] if cross else same[..., None])
    used[..., 0] &= cross
    if not bool(used.any()):
        raise ValueError(f"{len(a)} channels and {lags} lags leave no correlation to compare")
    return float((a - b)[used].abs().nan_to_num(1.0).mean())


def marginal_distances(x: Tensor, reference: Tensor) -> Tensor:
    """d_c = W_1(x_c, y_c) / std(y_c), over all observed values of channel c at any time; y is the reference.

    Shapes: (n, channels, length), (m, channels, any length) -> (channels,) float64. Of a constant reference the
    standard deviation counts as 1. Errors: ValueError for another shape, infinite values, a channel without values.
    """
    x, reference = check_series(x, "x"), check_series(reference, "reference")
    if x.shape[1] != reference.shape[1]:
        raise ValueError(f"x has {x.shape[1]} channels and reference has {reference.shape[1]}: they need the same")
    found = []
    for a, b in zip(x.unbind(1), reference.unbind(1), strict=True):
        a, b = a[~a.isnan()], b[~b.isnan()]
        found.append(wasserstein1(a, b) / (float(b.std(correction=0)) or 1.0))
    return torch.tensor(found, dtype=torch.float64)


def check_series(x: Tensor, name: str = "x") -> Tensor:
    """x (n, channels, length), NaN in gaps, in float64 on the host; ValueError for what is none."""
    if x.dim() != 3 or 0 in x.shape or x.is_complex():
        raise ValueError(f"{name} must be series (n, channels, length), got {x.dtype} of shape {tuple(x.shape)}")
    series = x.detach().cpu().double()
    if bool((bad := series.isinf()).any()):
        raise ValueError(f"{name} has infinite values, the first in series {int(bad.nonzero()[0, 0])}: NaN says a gap")
    if bool((empty := series.isnan().all(2).all(0)).any()):
        raise ValueError(f"{name} has no value in channel {int(empty.nonzero()[0])}: leave that channel out")
    return series
