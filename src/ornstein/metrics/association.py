"""Pairwise association of the columns of a mixed table: one number for each pair, comparable between two tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ornstein.metrics.mixed import Kind, check_table, missing_columns, with_missingness

Correlation: TypeAlias = Literal["spearman", "pearson"]
"""How numbers count: by their mid-rank among the column's values, or by themselves."""


def association(
    x: Tensor, kinds: Sequence[Kind], numbers: Correlation = "spearman", missing: Sequence[int] | None = None
) -> Tensor:
    """A[i, j] = r_ij for two numbers, eta_ij for a category and a number, V_ij for two categories.

        r      = cov(x_i, x_j) / (std_i std_j), in [-1, 1]
        eta^2  = max(0, 1 - (1 - B/T) (n - 1)/(n - k)),  B = sum_l n_l (mean_l - mean)^2,  T = sum (x - mean)^2
        V^2    = max(0, chi^2/n - (k - 1)(k' - 1)/(n - 1)) / (min(K, K') - 1),  K = k - (k - 1)^2/(n - 1)

    k, k' are the numbers of levels met. Both corrections take away what chance alone gives (k - 1 of n - 1 in B/T), so
    that independent columns score 0 to O(1/sqrt n) whatever their number of levels, and equal ones exactly 1. Each
    pair is taken over the rows in which both values are there. With `numbers` "spearman" a number stands for its
    mid-rank among its column's values (r is Spearman's, eta that of Kruskal and Wallis), so that no far value rules the
    figure; "pearson" takes it as it is. A pair with a column that is constant or never there scores 0, the diagonal 1.

    Columns `missing` (by default those that have gaps) have their missingness as one more category each, after the
    others. Shapes: x (n, columns), NaN where missing -> (columns + missing, the same), float64, symmetric.

    Errors: ValueError for a shape that does not match `kinds`, infinite values, an unknown kind or correlation.

    Source: Kelley 1935 (the unbiased correlation ratio); Bergsma 2013, "A bias-correction for Cramér's V and
    Tschuprow's T", eqs. 4 and 5.
    """
    if numbers not in get_args(Correlation):
        raise ValueError(f"numbers is one of {', '.join(get_args(Correlation))}: got {numbers!r}")
    x, kinds = with_missingness(check_table(x, kinds), kinds, missing)
    matrix = torch.eye(len(kinds), dtype=torch.float64)
    real = [j for j, kind in enumerate(kinds) if kind == "number"]
    named = [j for j, kind in enumerate(kinds) if kind == "category"]
    values, there = _scores(x[:, real], numbers == "spearman")
    marks = [_one_hot(x[:, j]) for j in named]
    if real:
        matrix[torch.tensor(real)[:, None], torch.tensor(real)] = _correlation(values, there)
    for a, j in enumerate(named):
        if real:
            matrix[j, real] = matrix[real, j] = _correlation_ratio(values, there, marks[a])
        for b, i in enumerate(named[:a]):
            matrix[i, j] = matrix[j, i] = _cramer(marks[a].T @ marks[b])
    return matrix.fill_diagonal_(1.0)


def association_distance(x: Tensor, y: Tensor, kinds: Sequence[Kind], numbers: Correlation = "spearman") -> float:
    """d = mean_{i < j} |A_ij(x) - A_ij(y)|, A the `association` of all columns and of all missingness in x or y.

    0 for equal associations, at most 2. Between two samples of one law it is about 0.8 sqrt(1/n + 1/m) where the
    columns are independent numbers: read it beside that of two sets of real data of the same sizes.

    Shapes: x (n, columns), y (m, columns). Errors: as in `association`, and for a single column, which has no pair.
    """
    x, y = check_table(x, kinds, "x"), check_table(y, kinds, "y")
    missing = missing_columns(x, y)
    if len(kinds) + len(missing) < 2:
        raise ValueError("a table of one column has no pairs to associate")
    gap = association(x, kinds, numbers, missing) - association(y, kinds, numbers, missing)
    i, j = torch.triu_indices(len(gap), len(gap), 1)
    return float(gap[i, j].abs().mean())


def mid_ranks(v: Tensor) -> Tensor:
    """(b + (c + 1)/2) for a value that c of v have and b lie below: (n,) without NaN -> ranks 1 to n, ties shared."""
    _, place, count = torch.unique(v, return_inverse=True, return_counts=True)
    count = count.double()
    ranks: Tensor = (count.cumsum(0) - (count - 1) / 2)[place]
    return ranks


def _scores(x: Tensor, ranked: bool) -> tuple[Tensor, Tensor]:
    """Columns of numbers centred and of unit scale, 0 where missing; and 1 where they are there."""
    there = ~x.isnan()
    scores = torch.zeros_like(x)
    for j, here in enumerate(there.unbind(1)):
        v = x[here, j]
        if not len(v):
            continue
        v = mid_ranks(v) if ranked else v
        v = v - v.mean()
        scores[here, j] = v / v.abs().max().clamp(min=1e-300)
    return scores, there.double()


def _one_hot(v: Tensor) -> Tensor:
    levels: Tensor = torch.unique(v[~v.isnan()])
    return (v[:, None] == levels).double()


def _correlation(values: Tensor, there: Tensor) -> Tensor:
    """All pairs at once: the sums over the rows that both columns have are products with the masks."""
    n = (there.T @ there).clamp(min=1)
    mean = values.T @ there / n  # [i, j]: mean of column i over the rows that j has too
    var = (values**2).T @ there / n - mean**2
    return _ratio(values.T @ values / n - mean * mean.T, (var.clamp(min=0) * var.T.clamp(min=0)).sqrt()).clamp(-1, 1)


def _correlation_ratio(values: Tensor, there: Tensor, marks: Tensor) -> Tensor:
    """eta of one category (its one-hot rows) with every number: (numbers,)."""
    count, total = there.T @ marks, values.T @ marks  # (numbers, levels)
    n, k = count.sum(1), (count > 0).sum(1)
    common = total.sum(1) ** 2 / n.clamp(min=1)
    between = (total**2 / count.clamp(min=1)).sum(1) - common
    within = _ratio(((values**2).T @ marks).sum(1) - common - between, (values**2).T @ marks.sum(1) - common)
    eta2 = 1 - within * (n - 1) / (n - k).clamp(min=1)
    varies = ((values**2).T @ marks.sum(1) - common > 1e-12 * n) & (k > 1) & (n > k)
    return torch.where(varies, eta2, 0.0).clamp(0, 1).sqrt()


def _cramer(table: Tensor) -> float:
    """Bias-corrected V of a contingency table of counts."""
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    n, (k, other) = float(table.sum()), table.shape
    if n < 2 or min(k, other) < 2:
        return 0.0
    expected = torch.outer(table.sum(1), table.sum(0)) / n
    phi2 = float(((table - expected) ** 2 / expected).sum()) / n - (k - 1) * (other - 1) / (n - 1)
    most = min(size - 1 - (size - 1) ** 2 / (n - 1) for size in (k, other))
    return min(1.0, max(0.0, phi2) / most) ** 0.5 if most > 0 else 0.0


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is rounding: columns have been brought to a largest value of 1."""
    return torch.where(b > 1e-12, a / b.clamp(min=1e-300), 0.0)
