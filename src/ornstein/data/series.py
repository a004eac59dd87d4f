"""Time series with gaps: arrays, and long tables of one row a time."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from ..denoiser import Codec
from ..io import atomic_write
from .array import check_numbers
from .data import Data
from .space import Space, write_arrays
from .table import Column, place_of, read_column, read_label

LONGEST = 10_000
"""Most times of a grid."""
RAREST = 0.01
"""Least share of a grid of times that must have been observed."""


CLOCK = Column("time", "number", "int64", decimals=0)
"""Times that are counted from 0."""


class SeriesCodec(Codec):
    """state = (x - mean) / std, channel by channel, and in a gap the line between the values on its two sides.

    mean and std are those of the observed values. Before the first value and after the last the line is level; a
    channel that was never observed is 0. What a gap holds is nobody's: train with the condition `observed`, under which
    the loss does not see it. A line looks like the series that sampling makes, which have no gaps, so that there the
    network is asked little that it was not taught; the mean would not.

    Args:
        channels: of the series, which are (n, channels, length).
    """

    mean: Tensor
    std: Tensor

    missing = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("mean", torch.zeros(channels, 1))
        self.register_buffer("std", torch.ones(channels, 1))

    def fit(self, x: Tensor) -> SeriesCodec:
        """Take means and standard deviations from series x (n, channels, length)."""
        for c in range(self.channels):
            held = x[:, c][~x[:, c].isnan()].double()
            if not len(held):
                raise ValueError(f"channel {c} has no value in the {len(x)} series to train on: leave it out")
            std = float(held.std(correction=0))
            self.mean[c] = float(held.mean())
            self.std[c] = std if std > 0 else 1.0
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Series in the user's units to states, lines in gaps."""
        return _bridged((x - self.mean.to(x)) / self.std.to(x))

    def decode(self, x: Tensor) -> Tensor:
        """States to complete series in the user's units."""
        return x * self.std.to(x) + self.mean.to(x)


def _bridged(z: Tensor) -> Tensor:
    """z (..., length) with lines over its NaN."""
    seen, length = ~z.isnan(), z.shape[-1]
    i = torch.arange(length, device=z.device).expand(z.shape)
    before = torch.where(seen, i, -1).cummax(-1).values
    after = torch.where(seen, i, length).flip(-1).cummin(-1).values.flip(-1)
    before, after = torch.where(before < 0, after, before), torch.where(after == length, before, after)
    before, after = before.clamp(0, length - 1), after.clamp(0, length - 1)  # of what was never observed
    share = (i - before) / (after - before).clamp(min=1)
    values = z.nan_to_num(0.0)
    return torch.lerp(values.gather(-1, before), values.gather(-1, after), share.to(z))


@dataclass(frozen=True)
class SeriesSpace(Space):
    """Series (n, channels, length) on one grid of times; those with gaps bring the condition `observed`.

    Args:
        gaps: whether the training series have any.
        times: what the times are, and their values as its numbers; by default 0, 1, ...
        channels: the names of the values.
        id: the name of the column that says which series a row is of.
        label: the column that is the labels, if one is.
        values: the types and decimals of the channels; by default they leave as they are in the tensor.
    """

    kind = "series"
    formats = (".csv", ".parquet", ".npz")

    gaps: bool = False
    time: Column = CLOCK
    times: tuple[float, ...] = ()
    channels: tuple[str | int, ...] = ()
    id: str | int = "series"
    label: Column | None = None
    values: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        if len(self.event) != 2 or self.event != (len(self.channels), len(self.times)):
            held = f"{len(self.channels)} channels at {len(self.times)} times"
            raise ValueError(f"series are (n, channels, length): got {self.event} with {held}")
        if len(self.values) not in (0, self.event[0]) or any(c.kind != "number" for c in self.values):
            raise ValueError(f"the values of {self.event[0]} channels are as many columns of numbers: {self.values}")

    def codec(self, x: Tensor | None = None) -> Codec:
        """A `SeriesCodec` of these channels."""
        made = SeriesCodec(self.event[0])
        return made if x is None else made.fit(x)

    @property
    def conditions(self) -> dict[str, int]:
        """`observed`, a channel for each of the series', if there are gaps."""
        return {"observed": self.event[0]} if self.gaps else {}

    def cond(self, x: Tensor) -> dict[str, Tensor]:
        """observed (n, channels, length): 1 where a value is, 0 in a gap."""
        return {"observed": (~x.isnan()).to(x)} if self.gaps else {}

    def complete(self, n: int) -> dict[str, Tensor]:
        """observed = 1 everywhere, (n, channels, length)."""
        return {"observed": torch.ones(n, *self.event)} if self.gaps else {}

    def to_user(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """A long DataFrame: series, time, the channels, and the label if there are labels."""
        pandas = require("pandas", extra="data")
        n, (channels, length) = len(x), self.event
        values = x.detach().cpu().double().numpy()
        found: dict[Any, Any] = {self.id: np.repeat(np.arange(n), length)}
        found[self.time.name] = self.time.to_user(np.tile(np.array(self.times), n))
        kinds = self.values or (None,) * channels
        found |= {self.channels[c]: _typed(kinds[c], values[:, c].reshape(-1)) for c in range(channels)}
        if labels is not None and self.label is not None:
            found[self.label.name] = self.label.to_user(np.repeat(labels.cpu().double().numpy(), length))
        return pandas.DataFrame(found)

    def _write_csv(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        atomic_write(path, self.to_user(x, labels).to_csv(index=False).encode())

    def _write_parquet(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        require("pyarrow", extra="data")
        buffer, table = io.BytesIO(), self.to_user(x, labels)
        table.columns = [str(name) for name in table.columns]
        table.to_parquet(buffer, engine="pyarrow", index=False)
        atomic_write(path, buffer.getvalue())

    def _write_npz(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        arrays = {"x": x.numpy()} | ({} if labels is None else {"y": labels.cpu().numpy()})
        write_arrays(path, arrays)


def _typed(column: Column | None, x: Any) -> Any:
    """Values (k,) in the type of their column: integers within its range, and nullable ones where there are gaps."""
    if column is None:
        return x
    dtype = column.dtype.replace("int", "Int").replace("uInt", "UInt") if np.isnan(x).any() else column.dtype
    if "int" in dtype.lower():
        limits = np.iinfo(dtype.lower())
        x = np.clip(x, limits.min, min(limits.max, 2**63 - 1024))  # the last float64 before int64 ends
    return replace(column, dtype=dtype).to_user(x)


def read_series(name: str, x: Any, labels: Tensor | None, names: tuple[str, ...]) -> Data:
    """An array (n, channels, length), NaN in its gaps, as data.

    Errors: ValueError for another shape, infinite values, or a series or channel without a value.
    """
    if x.ndim != 3:
        raise ValueError(f"{name}: series are (n, channels, length), got {tuple(x.shape)}; of one channel x[:, None]")
    values = check_numbers(name, x, missing=True)
    observed = ~values.isnan()
    if not bool(observed.flatten(1).any(1).all()):
        empty = int((~observed.flatten(1).any(1)).nonzero()[0])
        raise ValueError(f"{name}: series {empty} has no value at all: remove such series")
    if not bool(observed.transpose(0, 1).flatten(1).any(1).all()):
        empty = int((~observed.transpose(0, 1).flatten(1).any(1)).nonzero()[0])
        raise ValueError(f"{name}: channel {empty} has no value in any series: leave it out")
    _, channels, length = values.shape
    space = SeriesSpace(
        (channels, length), names, None, not bool(observed.all()),
        times=tuple(float(i) for i in range(length)), channels=tuple(f"x{c}" for c in range(channels)),
    )  # fmt: skip
    return Data(values, labels, space, name)


def read_long(
    frame: Any,
    *,
    name: str,
    series: str | int | None = None,
    time: str | int | None = None,
    step: float | str | None = None,
    label: str | int | None = None,
    drop: Sequence[str | int] = (),
    lines: bool = False,
) -> Data:
    """A long DataFrame (which series, which time, values) as data on the grid of all its times.

    Args:
        frame: a row for each time at which a series was observed; values may be missing.
        name: what the data are called in messages.
        series, time: the columns that say which; by default the first two.
        step: a grid of this step from the first time on, each observation at the nearest point and their mean where
            two meet; a number, or a duration such as "1h" where times are dates. By default all times that occur.
        label: a column that is the labels, one value a series.
        drop: columns to leave out.
        lines: messages name lines of a CSV instead of rows.

    Errors: ValueError as `read_table`, and for values that are no numbers, a time twice in one series, or times that
    hardly ever coincide.
    """
    pandas = require("pandas", extra="data")
    for asked in (*drop, *(n for n in (series, time, label) if n is not None)):
        if asked not in frame.columns:
            raise ValueError(f"{name} has no column {asked!r}: choose from {', '.join(map(str, frame.columns))}")
    frame = frame.drop(columns=list(drop)).reset_index(drop=True)
    free = [n for n in frame.columns if n not in (series, time, label)]
    series = free.pop(0) if series is None and free else series
    time = free.pop(0) if time is None and free else time
    if not free or len(frame) < 2 or series is None or time is None:
        raise ValueError(
            f"{name} has {len(frame)} rows of columns {', '.join(map(str, frame.columns))}: a long table of series has "
            "rows of a series, a time and values"
        )
    for key in (series, time):
        if (gone := frame[key].isna()).any():
            raise ValueError(f"{name}: {key!r} is missing in row {int(gone.argmax())}: remove such rows, or fill them")
    clock, numbers, _ = read_column(frame[time], time, name, lines)
    if clock.kind == "category":
        raise ValueError(f"{name}: the times in {time!r} are neither numbers nor dates")
    if clock.kind == "number":  # float64, which times are kept in, needs no offset
        numbers = frame[time].to_numpy(dtype=np.float64)
        whole = pandas.api.types.is_integer_dtype(frame[time].dtype)
        clock = Column(time, "number", clock.dtype, decimals=0 if whole else None)
    channels, kinds = list[Any](), list[Column]()
    for column in free:
        made, *_ = read_column(frame[column], column, name, lines)
        if made.kind != "number":
            raise ValueError(f"{name}: column {column!r} holds no numbers, as values of series do: drop it")
        kinds.append(replace(made, offset=0, unit=1))  # the tensor holds the values themselves
        channels.append(frame[column].to_numpy(dtype=np.float64, na_value=np.nan))
    which, ids = pandas.factorize(frame[series])
    if step is None:
        grid, at = np.unique(numbers, return_inverse=True)
        twice = pandas.Series(which * len(grid) + at).duplicated()
        if twice.any():
            row = int(twice.argmax())
            raise ValueError(
                f"{name}: series {ids[which[row]]!r} has time {frame[time].iloc[row]} twice, again in "
                f"{place_of(row, lines)}: remove one, or give step= to average"
            )
    else:
        width = _width(step, clock, pandas)
        at = np.rint((numbers - numbers.min()) / width).astype(np.int64)
        if int(at.max()) >= LONGEST:
            raise ValueError(
                f"{name}: step={step} makes {int(at.max()) + 1} times, more than {LONGEST}: make it longer"
            )
        grid = numbers.min() + width * np.arange(int(at.max()) + 1)
        if clock.decimals == 0 and (grid != np.rint(grid)).any():
            clock = replace(clock, dtype="float64", decimals=None)
    n, length = len(ids), len(grid)
    if length > LONGEST or len(set(zip(which.tolist(), at.tolist(), strict=True))) < RAREST * n * length:
        raise ValueError(
            f"{name}: {n} series have {length} different times and hardly ever the same: give step= for a regular grid"
        )
    count, total = np.zeros((n, len(free), length)), np.zeros((n, len(free), length))
    for c, value in enumerate(channels):
        held = ~np.isnan(value)
        np.add.at(count, (which[held], c, at[held]), 1)
        np.add.at(total, (which[held], c, at[held]), value[held])
    x = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    if (empty := (count.sum((1, 2)) == 0)).any():
        raise ValueError(f"{name}: series {ids[int(empty.argmax())]!r} has no value at all: remove its rows")
    labels, labelled, names = _labels(frame, which, label, name, lines)
    read = read_series(name, x, labels, names)
    assert isinstance(read.space, SeriesSpace)
    values = tuple(kinds) if step is None else ()  # means of several values have no decimals
    space = replace(
        read.space, values=values, time=clock, times=tuple(grid.tolist()), channels=tuple(free), id=series,
        label=labelled,
    )  # fmt: skip
    return replace(read, space=space)


def _width(step: float | str, clock: Column, pandas: Any) -> float:
    """The step in the numbers of the clock."""
    if clock.kind == "number":
        width = step if isinstance(step, int | float) else math.nan
    else:
        unit = clock.dtype[clock.dtype.index("[") + 1 :].rstrip("]").split(",")[0]
        try:
            width = pandas.Timedelta(step) / pandas.Timedelta(1, unit) / clock.unit
        except ValueError:
            width = math.nan
    if not 0 < width < math.inf:
        kind = "a positive number, as its times are" if clock.kind == "number" else "a duration such as '1h' or '1D'"
        raise ValueError(f"step is {kind}: got {step!r}")
    return width


def _labels(
    frame: Any, which: Any, label: str | int | None, name: str, lines: bool
) -> tuple[Tensor | None, Column | None, tuple[str, ...]]:
    """(labels of the series, their column, the names of the classes)."""
    if label is None:
        return None, None, ()
    labelled, values = read_label(frame[label], label, name, lines)
    first = np.zeros(int(which.max()) + 1, np.int64)
    first[which[::-1]] = values[::-1]
    if (other := first[which] != values).any():
        row = int(other.argmax())
        raise ValueError(f"{name}: the label {label!r} changes within a series in {place_of(row, lines)}")
    return torch.tensor(first), labelled, tuple(str(level) for level in labelled.levels)
