"""Quantiles of the gamma law."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gamma_quantile(shape: float, z: Tensor) -> Tensor:
    """The w that stands among Gamma(shape) numbers where z stands among normal ones: P(shape, w) = Phi(z).

    z, float64 on the host, within 30 of 0. So a normal number becomes a gamma number, chi-square of k degrees for
    2 gamma_quantile(k/2, z), and two runs that share the one share the other. The logarithm of either tail is concave
    in log w, so that Newton's method on the smaller one converges from anywhere; it starts from Wilson and Hilferty's
    cube, or from the leading term w^a/Gamma(a + 1) of P where that is larger.

    Source: Wilson, Hilferty 1931, "The distribution of chi-square".
    """
    a = torch.tensor(shape, dtype=torch.float64)
    lower, target = z <= 0, torch.special.log_ndtr(-z.abs())
    cube = (1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))).clamp_min(1e-100) ** 3
    y = torch.maximum(math.log(shape) + cube.log(), (torch.special.log_ndtr(z) + math.lgamma(shape + 1)) / shape)
    for _ in range(100):
        w = y.exp()
        tail = torch.where(lower, torch.special.gammainc(a, w), torch.special.gammaincc(a, w))
        slope = torch.where(lower, 1, -1) * torch.exp(shape * y - w - math.lgamma(shape)) / tail
        step = (tail.log() - target) / slope
        y = y - step
        if not bool((step.abs() > 1e-8).any()):  # the next would be its square
            break
    return y.exp()
