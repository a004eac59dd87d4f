"""Gauss-Legendre quadrature and Lagrange interpolation."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


@cache
@torch.inference_mode(False)  # what is kept must serve gradients too
def gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Points and weights on [-1, 1], float64, exact for polynomials below degree 2 count.

    The points are the eigenvalues of the tridiagonal matrix with k/sqrt(4k^2 - 1) beside its diagonal, the weights
    twice the squared first entries of its eigenvectors.

    Source: Golub, Welsch 1969, "Calculation of Gauss quadrature rules".
    """
    k = torch.arange(1, count, dtype=torch.float64, device="cpu")
    beside = k / torch.sqrt(4 * k**2 - 1)
    points, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return points, 2 * vectors[0] ** 2


def between(a: Tensor, b: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The Gauss-Legendre points and weights of the intervals [a, b], on a new last axis."""
    points, weights = gauss_legendre(count)
    half = (b - a)[..., None] / 2
    return a[..., None] + half * (points + 1), half * weights


def vandermonde(nodes: Tensor) -> Tensor:
    """node_j^k for k below their number, of nodes (..., J): (..., K, J)."""
    return torch.stack([nodes**k for k in range(nodes.shape[-1])], -2)


def lagrange(at: Tensor, nodes: Tensor) -> Tensor:
    """The polynomials l_j with l_j(node_k) = 1 if j = k else 0, at (..., P) for nodes (..., K): (..., P, K)."""
    total = []
    for j in range(nodes.shape[-1]):
        others = torch.cat([nodes[..., :j], nodes[..., j + 1 :]], -1)
        factors = (at[..., None] - others[..., None, :]) / (nodes[..., j, None] - others)[..., None, :]
        total.append(factors.prod(-1))
    return torch.stack(total, -1)
