"""Distances between the columns of two mixed tables, one by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ornstein.metrics.mixed import Kind, check_table, missing_columns, with_missingness
from ornstein.metrics.wasserstein import wasserstein1


def column_distances(x: Tensor, reference: Tensor, kinds: Sequence[Kind]) -> Tensor:
    """d_j = W_1(x_j, y_j) / std(y_j) for numbers,  d_j = (1/2) sum_l |p_l - q_l| for categories, y the reference.

    Over the values that are there; the missingness of each column that has gaps in x or y is one more category, after
    the others: its distance is |share missing in x - share missing in y|. A shift of a number by s standard deviations
    has distance s; categories are between 0 and 1. Of a constant reference the standard deviation counts as 1. A column
    that has no value in one of the tables is at distance 1.

    Shapes: x (n, columns), reference (m, columns), NaN where missing -> (columns + missing,) float64. Errors:
    ValueError as in `association`.
    """
    x, reference = check_table(x, kinds, "x"), check_table(reference, kinds, "reference")
    missing = missing_columns(x, reference)
    (x, every), (reference, _) = (with_missingness(table, kinds, missing) for table in (x, reference))
    found = []
    for j, kind in enumerate(every):
        a, b = (table[:, j][~table[:, j].isnan()] for table in (x, reference))
        if not len(a) or not len(b):
            found.append(float(len(a) != len(b)))
        elif kind == "number":
            found.append(wasserstein1(a, b) / (float(b.std(correction=0)) or 1.0))
        else:
            levels = torch.unique(torch.cat((a, b)))
            p, q = ((v[:, None] == levels).double().mean(0) for v in (a, b))
            found.append(float((p - q).abs().sum()) / 2)
    return torch.tensor(found, dtype=torch.float64)
