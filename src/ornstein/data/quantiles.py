"""Quantiles: columns of numbers to normal ones and back, by their empirical distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

KNOTS = 256


class Quantiles(nn.Module):
    """z = Phi^-1(F(v)) with F the empirical distribution of the column at mid-rank, and v = F^-1(Phi(z)).

    For a value v that c of n have and b of n lie below, F jumps from b/n to (b + c)/n; v goes to the middle,
    Phi^-1((b + c/2)/n), and where c > 1 all z between the edges Phi^-1(b/n) and Phi^-1((b + c)/n) come back as v. So an
    atom (a column that is zero for six in ten) keeps its mass under any law whose z is near normal, and integers keep
    their frequencies. Between values that occur once z is linear in v; beyond the ends v is that of the least or
    greatest value.

    Of more than `knots` values the most frequent are kept, with their neighbours, and of the others as many as have
    room, half of them evenly in rank and half evenly in z (the tails).

    Columns (n, columns) may hold NaN, which counts for nothing; encode leaves it NaN.

    Source: van der Waerden's normal scores, with the mid-distribution function of Parzen 2004.
    """

    value: Tensor
    low: Tensor
    mid: Tensor
    high: Tensor

    def __init__(self, columns: int, knots: int = KNOTS) -> None:
        super().__init__()
        if columns < 0 or knots < 8:
            raise ValueError(f"quantiles need 0 or more columns and 8 or more knots: got {columns} and {knots}")
        for name in ("value", "low", "mid", "high"):
            self.register_buffer(name, torch.zeros(columns, knots))

    def fit(self, v: Tensor) -> Quantiles:
        """Take the knots from columns v (n, columns)."""
        columns, knots = self.value.shape
        if v.dim() != 2 or v.shape[1] != columns:
            raise ValueError(f"quantiles of {columns} columns are fitted to (n, {columns}): got {tuple(v.shape)}")
        for j in range(columns):
            column = v[:, j].double().cpu()
            found = _knots(column[~column.isnan()], knots)
            for buffer, row in zip((self.value, self.low, self.mid, self.high), found, strict=True):
                buffer[j] = torch.cat([row, row[-1:].expand(knots - len(row))])
            last = self.high[j, -1].clone()
            self.low[j, len(found[0]) :] = last  # what fills the row lies beyond all values
        return self

    def encode(self, v: Tensor) -> Tensor:
        """Columns v (n, columns) to normal ones."""
        value, low, mid, high = (b.to(v) for b in (self.value, self.low, self.mid, self.high))
        missing = v.isnan()
        held = v.float().to(v)  # as the knots are kept: an atom at 0.1 is met by the 0.1 of float64 too
        held = torch.where(missing, value[:, 0], held).clamp(value[:, 0], value[:, -1]).T.contiguous()
        i = torch.searchsorted(value, held)
        there = value.gather(1, i)
        before = (i - 1).clamp(min=0)
        left, start, end = value.gather(1, before), high.gather(1, before), low.gather(1, i)
        share = (held - left) / torch.where(there > left, there - left, 1)
        z = torch.where(held == there, mid.gather(1, i), start + share * (end - start)).T
        return torch.where(missing, torch.nan, z)

    def decode(self, z: Tensor) -> Tensor:
        """Normal columns z (n, columns) to values within the range of the data."""
        value, low, high = (b.to(z) for b in (self.value, self.low, self.high))
        edges = torch.stack([low, high], -1).flatten(1)
        held = z.T.contiguous()
        i = torch.searchsorted(edges, held, right=True)
        last = edges.shape[1] - 1
        before, after = (i - 1).clamp(min=0), i.clamp(max=last)
        left, right = value.gather(1, before // 2), value.gather(1, after // 2)
        start, end = edges.gather(1, before), edges.gather(1, after)
        share = ((held - start) / torch.where(end > start, end - start, 1)).clamp(0, 1)
        return torch.lerp(left, right, share).T


def _knots(v: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(values, low edges, middles, high edges) of one column without NaN, in float64, at most `most` of each."""
    if len(v) == 0:
        raise ValueError("a column without a single value has no quantiles")
    n = len(v)
    # in float32, as they will be kept: values that it cannot tell apart are one
    value, count = torch.unique(v.float().double(), return_counts=True)
    above = count.cumsum(0)
    mid = torch.special.ndtri((above - count / 2) / n)
    inside = 0.25 / n  # an edge at 0 or 1 would be infinite; nothing of the data lies beyond these
    tied = count > 1
    beside = tied.new_zeros(1)
    # an interval ends where that of an atom beside it begins, so that no value falls between them
    low = torch.where(
        tied | torch.cat([beside, tied[:-1]]), torch.special.ndtri(((above - count) / n).clamp(min=inside)), mid
    )
    high = torch.where(
        tied | torch.cat([tied[1:], beside]), torch.special.ndtri((above / n).clamp(max=1 - inside)), mid
    )
    if len(value) > most:
        frequent = (count > 4 * n / most).nonzero().flatten()
        near = torch.cat([frequent - 1, frequent, frequent + 1, torch.tensor([0, len(value) - 1])])
        near = near.clamp(0, len(value) - 1)
        rest = most - len(near)
        even = torch.linspace(0, n, rest - rest // 2, dtype=torch.float64)
        tails = torch.special.ndtr(torch.linspace(float(mid[0]), float(mid[-1]), rest // 2, dtype=torch.float64)) * n
        asked = torch.searchsorted(above.double(), torch.cat([even, tails])).clamp(max=len(value) - 1)
        kept = sorted({*near.tolist(), *asked.tolist()})
        value, low, mid, high = value[kept], low[kept], mid[kept], high[kept]
    return value, low, mid, high
