"""Quantiles of the Poisson law."""

from __future__ import annotations

import torch
from torch import Tensor


def poisson_quantile(rate: Tensor, z: Tensor) -> Tensor:
    """The count k that stands among Poisson(rate) numbers where z stands among normal ones: the least k with
    P[K <= k] >= Phi(z).

    rate >= 0 and z, float64 on the host, of one shape. So a normal number becomes a count, and two runs that
    share the one share the other. P[K <= k] = Q(k + 1, rate), the upper incomplete gamma function; the smaller of the
    two tails is compared. The search starts from Cornish and Fisher's expansion, which is within a count or two.

    Source: Cornish, Fisher 1938, "Moments and cumulants in the specification of distributions".
    """
    low, tail = z <= 0, torch.special.ndtr(-z.abs())

    def reached(k: Tensor) -> Tensor:
        below = torch.special.gammaincc(k + 1, rate) >= tail
        above = torch.special.gammainc(k + 1, rate) <= tail
        return (k >= 0) & (torch.where(low, below, above) | (rate == 0))

    k = (rate + z * rate.sqrt() + (z**2 - 1) / 6).round().clamp_min(0)
    while bool((more := ~reached(k)).any()):
        k = k + more.to(k)
    while bool((less := reached(k - 1)).any()):
        k = k - less.to(k)
    return k
