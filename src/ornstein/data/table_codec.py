"""The codec of tables: columns of any kind to features of about unit variance, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Codec
from .quantiles import KNOTS, Quantiles

SMALLEST = 0.1
"""Least standard deviation by which a feature is divided: what 1 % of the rows have stays within 10 of the mean."""


class TableCodec(Codec):
    """state = (features - mean) / std, with the features of a column

        number:    Phi^-1(F(v)), F the empirical distribution at mid-rank (`Quantiles`)
        category:  one-hot(v), decoded by argmax: cells of equal shape, whatever the order of the categories
        missing:   of numbers an indicator, read as > 1/2, beside a value at its mean; of categories one more of them

    so that every margin is that of the data for states near the data's own law: atoms, integers and categories keep
    their shares, and no value leaves the range of its column. decode(encode(x)) is x: exactly for categories, missing
    values and integers (of fewer than about 10^5 different ones), to rounding for other numbers.

    The user's tensor is (n, columns), float32: numbers, codes of categories, NaN for missing; states are (n, features).

    Args:
        columns: for each one ("number", decimals or None, missing) or ("category", number of categories, missing);
            numbers with decimals are rounded to them, and `missing` says whether values may be missing.
        knots: of the empirical distributions.
    """

    mean: Tensor
    std: Tensor

    missing = True

    def __init__(self, columns: Sequence[Sequence[Any]], knots: int = KNOTS) -> None:
        super().__init__()
        self.columns = tuple((str(kind), detail, bool(missing)) for kind, detail, missing in columns)
        if not self.columns or any(kind not in ("number", "category") for kind, _, _ in self.columns):
            raise ValueError(f"a table has columns, each 'number' or 'category': got {columns!r:.200}")
        self.numbers = [j for j, (kind, _, _) in enumerate(self.columns) if kind == "number"]
        self.quantiles = Quantiles(len(self.numbers), knots)
        widths = [1 + m if kind == "number" else int(detail) + m for kind, detail, m in self.columns]
        self.register_buffer("mean", torch.zeros(sum(widths)))
        self.register_buffer("std", torch.ones(sum(widths)))
        self._spans = [slice(sum(widths[:j]), sum(widths[: j + 1])) for j in range(len(widths))]

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of a state, (features,)."""
        return tuple(self.mean.shape)

    def fit(self, x: Tensor) -> TableCodec:
        """Take quantiles, means and standard deviations from user samples x (n, columns)."""
        self._check(x)
        for j, (kind, _, missing) in enumerate(self.columns):
            held = x[:, j].isnan()
            if not missing and bool(held.any()):
                raise ValueError(f"column {j} has no missing values by its kind, but row {int(held.nonzero()[0])} is")
            if kind == "number" and bool(held.all()):
                raise ValueError(f"column {j} has no value in the {len(x)} rows that the codec is fitted to")
        self.quantiles.fit(x[:, self.numbers])
        raw = self._features(x).double()
        for (kind, _, _), span in zip(self.columns, self._spans, strict=True):
            part = raw[:, span]
            mean = part.nanmean(0)
            std = (part - mean).square().nanmean(0).sqrt()
            if kind == "category":  # one scale for all, so that no category is nearer than another
                std = std.square().mean().sqrt().expand(part.shape[1])
            self.mean[span] = mean.float()
            self.std[span] = torch.where(std > 0, std.clamp(min=SMALLEST), 1).float()
        return self

    def encode(self, x: Tensor) -> Tensor:
        """User samples (n, columns) to states (n, features)."""
        self._check(x)
        state = (self._features(x) - self.mean.to(x)) / self.std.to(x)
        return state.nan_to_num(0.0)  # a missing number has the mean's place

    def decode(self, x: Tensor) -> Tensor:
        """States (n, features) to user samples (n, columns)."""
        raw = x * self.std.to(x) + self.mean.to(x)
        values = self.quantiles.decode(raw[..., [self._spans[j].start for j in self.numbers]])
        found = list[Tensor]()
        for j, ((kind, detail, missing), span) in enumerate(zip(self.columns, self._spans, strict=True)):
            if kind == "category":
                code = raw[:, span].argmax(1)
                column, gone = code.to(x), code == int(detail)
            else:
                column, gone = values[:, self.numbers.index(j)], raw[:, span.stop - 1] > 0.5
                column = column if detail is None else torch.round(column, decimals=int(detail))
            found.append(torch.where(gone, torch.nan, column) if missing else column)
        return torch.stack(found, 1)

    def _features(self, x: Tensor) -> Tensor:
        """Features before they are centred and scaled, (n, features), NaN for a missing number."""
        z = self.quantiles.encode(x[:, self.numbers])
        found = list[Tensor]()
        for j, (kind, detail, missing) in enumerate(self.columns):
            gone = x[:, j].isnan()
            if kind == "category":
                code = torch.where(gone, float(detail), x[:, j])
                found.append(code[:, None] == torch.arange(int(detail) + missing, device=x.device))
            else:
                found.append(z[:, self.numbers.index(j), None])
                found.extend([gone[:, None]] if missing else [])
        return torch.cat([part.to(x) for part in found], 1)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != len(self.columns):
            raise ValueError(
                f"a table of {len(self.columns)} columns is (n, {len(self.columns)}): got {tuple(x.shape)}"
            )
