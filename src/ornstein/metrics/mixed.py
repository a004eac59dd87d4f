"""Mixed tables: columns of numbers and of categories with missing values, as what a metric can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Kind: TypeAlias = Literal["number", "category"]
"""What a column holds: numbers, or the codes of categories without order."""


def check_table(x: Tensor, kinds: Sequence[Kind], name: str = "x") -> Tensor:
    """x (n, columns), NaN where a value is missing, in float64 on the host.

    Errors: ValueError for another shape, a kind that is none, fewer than two rows, infinite values.
    """
    if x.dim() != 2 or x.shape[1] != len(kinds) or x.is_complex() or not len(kinds):
        raise ValueError(f"{name} must be a table (n, {len(kinds)}), a kind for each column: got {tuple(x.shape)}")
    if unknown := [kind for kind in kinds if kind not in get_args(Kind)]:
        raise ValueError(f"a column's kind is one of {', '.join(get_args(Kind))}: got {unknown[0]!r}")
    if len(x) < 2:
        raise ValueError(f"{name} has {len(x)} rows, at least 2 are needed")
    table = x.detach().cpu().double()
    if bool((bad := table.isinf()).any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"{name} has infinite values, the first in row {row}, column {column}: NaN says missing")
    return table


def missing_columns(*tables: Tensor) -> tuple[int, ...]:
    """The columns in which any of the tables (n, columns) has a missing value."""
    found = torch.stack([table.isnan().any(0) for table in tables]).any(0)
    return tuple(int(j) for j in found.nonzero())


def with_missingness(
    x: Tensor, kinds: Sequence[Kind], missing: Sequence[int] | None = None
) -> tuple[Tensor, tuple[Kind, ...]]:
    """[x, 1[x_j is missing] for j in missing]: the table with the missingness of columns as categories of its own.

    `missing` are by default the columns that have missing values. Shapes: (n, columns) -> (n, columns + missing).
    """
    missing = missing_columns(x) if missing is None else missing
    marks = x[:, list(missing)].isnan().to(x)
    mark: Kind = "category"
    return torch.cat((x, marks), 1), (*kinds, *(mark for _ in missing))


def table_features(kinds: Sequence[Kind], *tables: Tensor, scale: int | None = None) -> tuple[Tensor, ...]:
    """f = [(x_j - m_j)/s_j, 1[x_j = level]/sqrt 2, 1[x_j missing]]: tables as points, all in the same coordinates.

    m and s are the mean and standard deviation of column j, of table number `scale` or of all of them; a missing number
    goes to 0, a missing category to no level. Two rows that differ in one category only are at distance 1, like two
    that differ by a standard deviation. Shapes: (n_i, columns) each -> (n_i, features) in float64.

    Errors: ValueError as in `check_table`.
    """
    checked = [check_table(table, kinds, f"table {i}") for i, table in enumerate(tables)]
    reference = torch.cat(checked) if scale is None else checked[scale]
    parts: list[list[Tensor]] = [[] for _ in checked]
    for j, kind in enumerate(kinds):
        if kind == "number":
            known = reference[:, j][~reference[:, j].isnan()]
            mean, spread = known.mean(), (float(known.std(correction=0)) if len(known) else 0.0) or 1.0
            for part, table in zip(parts, checked, strict=True):
                part.append(((table[:, j] - mean) / spread).nan_to_num(0.0)[:, None])
        else:
            levels = torch.cat([table[:, j] for table in checked])
            levels = torch.unique(levels[~levels.isnan()])
            for part, table in zip(parts, checked, strict=True):
                part.append((table[:, j, None] == levels).double() / 2**0.5)
    gaps = list(missing_columns(*checked))
    for part, table in zip(parts, checked, strict=True):
        part.append(table[:, gaps].isnan().double())
    return tuple(torch.cat(part, 1) for part in parts)
