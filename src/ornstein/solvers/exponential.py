"""The exponential integral behind every solver in log-SNR."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..processes import Level


def half_step(t: Level, s: Level) -> Tensor:
    """h = lambda_s - lambda_t with lambda = log(alpha/sigma), infinite where a level is."""
    return (s.log_snr - t.log_snr) / 2


_TERMS = 20


def moments(h: Tensor, count: int) -> Tensor:
    """I_k = h^-k int_{-h}^0 e^u u^k du for k < count, on a new last axis; I_0 alone has a limit at h = inf.

    By parts I_k = -(-1)^k e^-h - k I_(k-1)/h, which cancels for small h; there the series
    sum_n (-1)^(n+k) h^(n+1) / (n! (n+k+1)) is summed.
    """
    small = h.abs() < 1
    n, k = torch.arange(_TERMS, dtype=h.dtype), torch.arange(count, dtype=h.dtype)[:, None]
    series = (-1.0) ** (n + k) / (torch.exp(torch.lgamma(n + 1)) * (n + k + 1))
    near = torch.where(small, h, torch.zeros_like(h))[..., None] ** (n + 1) @ series.T
    v = torch.where(small, torch.ones_like(h), h)
    far = [-torch.expm1(-v)]
    for i in range(1, count):
        far.append(-((-1.0) ** i) * torch.exp(-v) - i * far[-1] / v)
    return torch.where(small[..., None], near, torch.stack(far, -1))


def weights(t: Level, s: Level, nodes: Sequence[Level]) -> list[Tensor]:
    """Coefficients w_j of the step from t to s with x0 interpolated in lambda at the nodes.

        x_s = (sigma_s/sigma_t) x_t + sum_j w_j x0(node_j),    w_j = alpha_s int_{-h}^0 e^u l_j(u) du

    with u = lambda - lambda_s and l_j the Lagrange polynomials: the exact solution of the probability flow, whose one
    approximation is the polynomial. It uses no time derivative, and one node at t gives DDIM. The weights solve
    sum_j w_j (u_j/h)^k = alpha_s I_k.

    Source: Lu et al. 2022 (2211.01095), equation 9; Zhang, Chen 2022 (2204.13902).
    """
    h = half_step(t, s)
    integral = moments(h, len(nodes))
    if len(nodes) == 1:
        return [s.alpha * integral[..., 0]]
    r = torch.stack([half_step(s, node) / h for node in nodes], -1)
    vandermonde = torch.stack([r**k for k in range(len(nodes))], -2)
    w = torch.linalg.solve(vandermonde, integral)
    return list((s.alpha[..., None] * w).unbind(-1))
