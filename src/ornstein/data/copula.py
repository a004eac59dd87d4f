"""The Gaussian copula: what a table says when each column is right and dependence is that of a normal law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ornstein.metrics.mixed import Kind, check_table, missing_columns, with_missingness
from ornstein.random import generator

ORDERS = 24
"""Hermite polynomials that a column's score is expanded in."""


@dataclass(frozen=True)
class GaussianCopula:
    """x_j = F_j^{-1}(Phi(z_j)),  z ~ N(0, R): the strong simple model of a table, which a generative one should beat.

    F_j is the empirical distribution of column j, so numbers leave as values that the column has; a category is the
    interval between two thresholds of its z_j, its levels in the order of their codes. The missingness of a column that
    has gaps is a column (a category of two levels) of its own, which is sampled along and then makes the gaps.

    R comes from normal scores. With s_j(z) = Phi^{-1}(mid-rank of x_j(z)) and its coefficients a_jk in the orthonormal
    Hermite polynomials (Mehler's formula),

        cov(s_i, s_j) = sum_{k >= 1} a_ik a_jk R_ij^k,

    which rises in R_ij and is solved for it. Of a continuous column a_jk = 1[k = 1], and R_ij is the correlation of the
    scores; with atoms or levels that correlation is too small (for two halves it is (2/pi) asin R_ij), and the equation
    makes up for it. Pairs count over the rows in which both are there; then negative eigenvalues of R are dropped and
    its diagonal is scaled back to 1.

    `correlation`: R (columns + missing, the same). `values`: the sorted values that each column has. Make one by `fit`.

    Source: Nelsen 2006, "An introduction to copulas"; normal scores, Hoff 2007, arXiv:math/0610413; Mehler 1866.
    """

    kinds: tuple[Kind, ...]
    missing: tuple[int, ...]
    correlation: Tensor = field(repr=False)
    values: tuple[Tensor, ...] = field(repr=False)

    @classmethod
    def fit(cls, x: Tensor, kinds: Sequence[Kind]) -> GaussianCopula:
        """The copula of a table x (n, columns), NaN where missing, with a kind for each column.

        Errors: ValueError for a shape that does not match `kinds`, infinite values, a column without values.
        """
        table = check_table(x, kinds)
        if bool((empty := table.isnan().all(0)).any()):
            raise ValueError(f"column {int(empty.nonzero()[0])} has no value to fit a copula to: leave it out")
        missing = missing_columns(table)
        table, _ = with_missingness(table, kinds, missing)
        columns = [column[~column.isnan()].sort().values for column in table.unbind(1)]
        scores, weights = [], []
        for column, known in zip(table.unbind(1), columns, strict=True):
            score, weight = _scores(column, known)
            scores.append(score)
            weights.append(weight)
        covariance = _covariance(torch.stack(scores, 1), ~table.isnan())
        correlation = _semidefinite(_invert(torch.stack(weights), covariance))
        return cls(tuple(kinds), missing, correlation, tuple(columns))

    def sample(self, n: int, seed: int | torch.Generator) -> Tensor:
        """n rows (n, columns) in float32, NaN where missing; the same for the same seed. ValueError for n < 1."""
        if n < 1:
            raise ValueError(f"n must be at least 1: got {n}")
        values, vectors = torch.linalg.eigh(self.correlation)
        z = torch.randn(n, len(values), generator=generator(seed), dtype=torch.float64)
        u = torch.special.ndtr(z @ (vectors * values.clamp(min=0).sqrt()).T)
        rows = torch.stack(
            [known[(u[:, j] * len(known)).long().clamp(max=len(known) - 1)] for j, known in enumerate(self.values)], 1
        )
        x, gaps = rows[:, : len(self.kinds)], rows[:, len(self.kinds) :]
        for mark, j in enumerate(self.missing):
            x[gaps[:, mark] == 1, j] = torch.nan
        return x.float()


def _scores(column: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Centred normal scores of a column (n,), 0 where missing, and their coefficients a_1 .. a_ORDERS.

    The score is a step function of z: v_m between thresholds c_m and c_{m+1}. As (He_{k-1} phi)' = -He_k phi, its
    coefficient is sum_m v_m [He_{k-1} phi](c_m) - [He_{k-1} phi](c_{m+1}), over sqrt(k!).
    """
    level, count = torch.unique(known, return_counts=True)
    count = count.double()
    above = count.cumsum(0) / len(known)
    value = torch.special.ndtri(above - count / (2 * len(known)))
    value = value - (value * count).sum() / len(known)
    score = value[torch.searchsorted(level, column.nan_to_num(float(level[0]))).clamp(max=len(level) - 1)]
    cut = torch.special.ndtri(above[:-1])
    jumps = value.diff()  # the sum by parts: what each threshold adds
    lower, hermite = torch.zeros_like(cut), (-(cut**2) / 2).exp() / (2 * torch.pi) ** 0.5
    found = []
    for k in range(1, ORDERS + 1):
        found.append((jumps * hermite).sum() / k**0.5)  # hermite = He_{k-1} phi / sqrt((k-1)!)
        lower, hermite = hermite, (cut * hermite - (k - 1) ** 0.5 * lower) / k**0.5
    return torch.where(column.isnan(), 0.0, score), torch.stack(found)


def _covariance(scores: Tensor, there: Tensor) -> Tensor:
    seen = there.double()
    n = (seen.T @ seen).clamp(min=1)
    mean = scores.T @ seen / n
    return scores.T @ scores / n - mean * mean.T


def _invert(weights: Tensor, covariance: Tensor) -> Tensor:
    """R from cov = sum_k w_k R^k by bisection, all pairs at once; +-1 where no R is that extreme."""
    products = weights[:, None] * weights  # (columns, columns, orders)

    def at(r: Tensor) -> Tensor:
        total = torch.zeros_like(r)
        for k in range(ORDERS - 1, -1, -1):
            total = (total + products[..., k]) * r
        return total

    low, high = -torch.ones_like(covariance), torch.ones_like(covariance)
    for _ in range(50):
        middle = (low + high) / 2
        below = at(middle) < covariance
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    constant = products.abs().sum(-1) == 0
    return torch.where(constant, 0.0, (low + high) / 2).fill_diagonal_(1.0)


def _semidefinite(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    matrix = (vectors * values.clamp(min=0)) @ vectors.T
    scale = matrix.diagonal().sqrt()
    return matrix / torch.outer(scale, scale)
