"""The exponential integral behind every solver in log-SNR."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from .._types import View
from ..numerics.quadrature import vandermonde
from ..processes import Level, Matrix, PhaseSpace
from ..processes.level import holds
from .phase import follow
from .table import Coefficient, Evaluation, Expression, Register, Writer


def half_step(t: Level, s: Level) -> Tensor:
    """h = lambda_s - lambda_t with lambda = log(alpha/sigma), infinite where a level is."""
    return (s.log_snr - t.log_snr) / 2


def moments(h: Tensor, count: int) -> Tensor:
    """I_k = h^-k int_{-h}^0 e^u u^k du for k < count, on a new last axis; I_0 alone has a limit at h = inf.

    By parts I_k = -(-1)^k e^-h - k I_(k-1)/h, which cancels for small h; there the series
    sum_n (-1)^(n+k) h^(n+1) / (n! (n+k+1)) is summed.
    """
    small = h.abs() < 1
    powers, coefficients = _series(count)
    near = torch.where(small, h, 0.0)[..., None] ** powers @ coefficients
    if not holds((~small).any()):
        return near
    v = torch.where(small, 1.0, h)
    decay = torch.exp(-v)
    far = [-torch.expm1(-v)]
    for i in range(1, count):
        far.append(-((-1.0) ** i) * decay - i * far[-1] / v)
    return torch.where(small[..., None], near, torch.stack(far, -1))


@cache
@torch.inference_mode(False)  # what is kept must serve gradients too
def _series(count: int) -> tuple[Tensor, Tensor]:
    """The powers n + 1, (n,), and the coefficients of h^(n+1) in I_k, (n, k)."""
    n = torch.arange(20, dtype=torch.float64, device="cpu")[:, None]
    k = torch.arange(count, dtype=torch.float64, device="cpu")
    return n[:, 0] + 1, (-1.0) ** (n + k) / (torch.exp(torch.lgamma(n + 1)) * (n + k + 1))


Tau = Tensor | float
"""How much noise a step replaces: 0 is the probability flow, 1 the reverse SDE."""


def transfer(t: Level, s: Level, view: View = "x0", tau: Tau = 0.0) -> Tensor:
    """What the step keeps of x_t: (sigma_s/sigma_t) e^(-tau^2 h) beside x0, alpha_s/alpha_t beside noise."""
    if view == "noise":
        return s.alpha / t.alpha
    return s.sigma / t.sigma * torch.exp(-_replaced(t, s, tau))


def fresh_std(t: Level, s: Level, view: View = "x0", tau: Tau = 0.0) -> Tensor:
    """Standard deviation of the step's fresh noise: sigma_s sqrt(1 - e^(-2 tau^2 h)) beside x0,
    tau sigma_s sqrt(e^2h - 1) beside noise."""
    if view == "noise":
        return tau * s.sigma * torch.sqrt(torch.expm1(2 * half_step(t, s)))
    return s.sigma * torch.sqrt(-torch.expm1(-2 * _replaced(t, s, tau)))


def _replaced(t: Level, s: Level, tau: Tau) -> Tensor:
    return torch.nan_to_num(tau**2 * half_step(t, s))  # no noise replaced over an infinite step is still none


def kernel(t: Level, s: Level, view: View = "x0", tau: Tau = 0.0) -> tuple[Tensor, Tensor]:
    """(c, a) with c int e^(a u/h) (a/h) p(u) du from -h to 0 what the step from t to s adds for a prediction p."""
    h = half_step(t, s)
    return ((1 + tau**2) * s.sigma, -h) if view == "noise" else (s.alpha, (1 + tau**2) * h)


def weights(t: Level, s: Level, nodes: Sequence[Level], view: View = "x0", tau: Tau = 0.0) -> list[Tensor]:
    """Coefficients w_j of the step from t to s with a view interpolated in lambda at the nodes.

        x_s = (sigma_s/sigma_t) e^(-tau^2 h) x_t + sum_j w_j x0(node_j) + sigma_s sqrt(1 - e^(-2 tau^2 h)) z,
            w_j = alpha_s int_{-h}^0 (1 + tau^2) e^((1 + tau^2) u) l_j(u) du
        x_s = (alpha_s/alpha_t) x_t + sum_j w_j noise(node_j) + tau sigma_s sqrt(e^2h - 1) z,
            w_j = -sigma_s int_{-h}^0 (1 + tau^2) e^-u l_j(u) du

    with u = lambda - lambda_s and l_j the Lagrange polynomials: the exact solution of the probability flow (tau = 0) or
    of the reverse SDE (tau = 1), whose one approximation is the polynomial. It uses no time derivative, and one node at
    t gives DDIM. With (c, a) of `kernel` the weights solve sum_j w_j (u_j/h)^k = c I_k(a): one integral for all.

    Source: Lu et al. 2022 (2211.01095), equation 9; Lu et al. 2022 (2206.00927), equation 3.4; Zhang, Chen 2022
    (2204.13902); Xue et al. 2023 (2309.05019), proposition 4.2.
    """
    scale, exponent = kernel(t, s, view, tau)
    integral = moments(exponent, len(nodes))
    if len(nodes) == 1:
        return [scale * integral[..., 0]]
    h = half_step(t, s)
    r = torch.stack([half_step(s, node) / h for node in nodes], -1)
    w = torch.linalg.solve(vandermonde(r), integral)
    return list((scale[..., None] * w).unbind(-1))


def secant_weights(t: Level, s: Level, node: Level, view: View = "x0", tau: Tau = 0.0, b: str = "bh2") -> list[Tensor]:
    """The published two-node rule: the integral of the slope is taken as half of B instead of exactly.

        w_node = B/(2 r),    w_t = (w_t + w_node of one node at t) - w_node,    r = (lambda_node - lambda_t)/h

    where B is the whole integral ("bh2"; the midpoint, 2S and 2M of DPM-Solver) or its first order in h ("bh1").
    It differs from `weights` by O(h^3).

    Source: Zhao et al. 2023 (2302.04867), section 3.4; Lu et al. 2022 (2206.00927), algorithm 1.
    """
    total = weights(t, s, [t], view, tau)[0]
    scale, exponent = kernel(t, s, view, tau)
    w = (total if b == "bh2" else scale * exponent) * half_step(t, s) / (2 * half_step(t, node))
    return [total - w, w]


def combine(
    x: Register, t: Level, s: Level, w: Sequence[Tensor], nodes: Sequence[Evaluation], view: View, tau: Tau = 0.0
) -> Expression:
    """transfer(t, s) x + sum_j w_j view(node_j)."""
    value = transfer(t, s, view, tau) * x
    for weight, node in zip(w, nodes, strict=True):
        value = value + weight * node.view(view)
    return value


def finite(level: Level) -> bool:
    """Whether the log-SNR is finite, so that lambda can be stepped in."""
    return bool(level.log_snr.isfinite().all())


def jump(table: Writer, x: Register, e: Evaluation, s: Level, tau: Tau = 0.0) -> Register:
    """The step from e.level to s that is exact for constant x0 at any levels, infinite log-SNR too: DDIM's, with fresh
    noise for tau > 0. Where sigma_t = 0 (inversion from data) it holds the noise constant instead."""
    t = e.level
    if bool((t.sigma == 0).any()):
        kept = s.alpha / t.alpha
        return table.step(kept * x + (s.sigma - kept * t.sigma) * e.noise, s)
    if isinstance(table.process, PhaseSpace):
        return table.step(follow(table.process, x, e, s), s)
    left = transfer(t, s, tau=tau)
    value = left * x + (s.alpha - left * t.alpha) * e.x0
    return table.step(with_noise(table, value, t, s, fresh_std(t, s, tau=tau)), s)


def with_noise(table: Writer, value: Expression, t: Level, s: Level, std: Coefficient) -> Expression:
    """value + std z, with fresh noise where any is asked for."""
    some = torch.as_tensor(std.value if isinstance(std, Matrix) else std) != 0
    return value + std * table.noise(t, s) if bool(some.any()) else value
