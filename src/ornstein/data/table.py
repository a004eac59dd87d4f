"""Tables: CSV, Parquet and DataFrames, each column with its name and type, and back."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from math import gcd
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from ..denoiser import Codec
from ..io import atomic_write
from .data import Data
from .space import Space, write_arrays
from .table_codec import TableCodec

CATEGORIES = 100
"""Most categories of a column."""
EXACT = 1 << 24
"""Integers up to here are exact in float32."""
DTYPE = re.compile(
    r"(u?int|U?Int)(8|16|32|64)|(float|Float)(16|32|64)|bool|boolean|object|str|string|category|"
    r"(datetime64\[(s|ms|us|ns)(, [\w/:+-]+)?\]|timedelta64\[(s|ms|us|ns)\])"
)
"""Types that a column may have; a space read from a file makes no others."""

DURATION = r"-?\d+ days( [+-]?\d\d:\d\d:\d\d(\.\d+)?)?"
"""Durations as a DataFrame writes them to a CSV."""

DATE = r"\d{4}-\d\d-\d\d"
NUMBER = r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
COMMA = NUMBER.replace(r"\.", ",")
"""Numbers as they are written with a decimal point, and with a decimal comma."""
GAPS = ("", "NaN", "nan")
"""What stands for a missing value in every column of a CSV."""
MARKS = ("NA", "N/A", "#N/A", "n/a", "NULL", "null", "None", "<NA>", "NaT", "-NaN", "-nan")
"""What does among numbers and dates, and is a word among words."""

Level = bool | int | float | str


@dataclass(frozen=True)
class Column:
    """One column of a table: what the numbers of the user's tensor mean in it.

    Args:
        name: as in the table.
        kind: "number", "category" (the tensor holds the place in `levels`) or "time" (dates and durations).
        dtype: that of the DataFrame's column.
        missing: whether values may be missing (NaN in the tensor).
        decimals: to which the numbers are rounded, None if they are not.
        offset, unit: value = offset + unit * number, in integers and so exact: dates, and integers beyond 2^24, keep
            in float32 what sets their rows apart. They are counted in the unit of the dtype (nanoseconds, say).
        levels: the categories.
        ordered: of a categorical dtype, whether they have an order; None for other dtypes.
    """

    name: str | int
    kind: Literal["number", "category", "time"]
    dtype: str
    missing: bool = False
    decimals: int | None = None
    offset: int = 0
    unit: int = 1
    levels: tuple[Level, ...] = ()
    ordered: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("number", "category", "time"):
            raise ValueError(f"column {self.name!r} is a number, category or time: got {self.kind!r}")
        if not DTYPE.fullmatch(self.dtype):
            raise ValueError(f"column {self.name!r} has dtype {self.dtype!r}, which no table here has")
        if not 0 < self.unit < 1 << 63 or not abs(self.offset) < 1 << 63 or not 0 <= (self.decimals or 0) < 16:
            raise ValueError(f"column {self.name!r}: offset and unit are of 64 bits, and decimals 0 to 15")
        if (self.kind == "category") != bool(self.levels):
            raise ValueError(f"column {self.name!r}: categories, and they alone, have levels")

    @property
    def spec(self) -> list[str | int | bool | None]:
        """What `TableCodec` is told of it."""
        if self.kind == "category":
            return ["category", len(self.levels), self.missing]
        return ["number", self.decimals, self.missing]

    def to_user(self, x: Any) -> Any:
        """Numbers (n,), float64 with NaN, as a Series of the column's dtype."""
        pandas, missing = require("pandas", extra="data"), np.isnan(x)
        if self.kind == "category":
            codes = np.clip(np.rint(np.where(missing, 0, x)), 0, len(self.levels) - 1).astype(np.int64)
            if self.ordered is not None:
                codes[missing] = -1
                return pandas.Series(pandas.Categorical.from_codes(codes, list(self.levels), self.ordered))
            values = np.array([*self.levels, None], dtype=object)[np.where(missing, len(self.levels), codes)]
            return pandas.Series(values, dtype=object).astype(self.dtype)
        if self.decimals == 0 or self.kind == "time":
            counts = np.rint(np.where(missing, 0, x)).astype(np.int64) * self.unit + self.offset
            if self.kind == "time":
                plain = "m8" if self.dtype.startswith("time") else "M8"
                unit = re.search(r"\[(\w+)", self.dtype)
                stamps = pandas.Series(counts.view(f"{plain}[{unit[1] if unit else 'ns'}]"))
                stamps[missing] = pandas.NaT
                return stamps.dt.tz_localize("UTC").astype(self.dtype) if "," in self.dtype else stamps
            if not missing.any():
                return pandas.Series(counts).astype(self.dtype)
            if self.dtype[0] in "UI":  # no detour by float64, which ends at 2^53
                return pandas.Series(pandas.arrays.IntegerArray(counts, missing)).astype(self.dtype)
            x = np.where(missing, np.nan, counts.astype(np.float64))
        elif self.decimals is not None:
            x = np.round(x, self.decimals)
        made = pandas.Series(x)
        if self.dtype[0] in "UIF" and missing.any():
            made = made.astype("Float64" if self.dtype[0] == "F" else "Int64")
        return made.astype(self.dtype)


@dataclass(frozen=True)
class TableSpace(Space):
    """Rows of a table, (n, columns); they leave as a DataFrame with its column names, order and types.

    Args:
        columns: of the tensor.
        label: the column that is the labels, if one is, and its place in the table.
    """

    kind = "table"
    formats = (".csv", ".parquet", ".npz")

    columns: tuple[Column, ...] = ()
    label: Column | None = None
    label_at: int = 0

    def __post_init__(self) -> None:
        if self.event != (len(self.columns),):
            raise ValueError(f"a table of {len(self.columns)} columns has event ({len(self.columns)},): {self.event}")

    def codec(self, x: Tensor | None = None) -> Codec:
        """A `TableCodec` of these columns."""
        made = TableCodec([column.spec for column in self.columns])
        if x is None:
            return made
        for j, column in enumerate(self.columns):
            if bool(x[:, j].isnan().all()):
                raise ValueError(f"column {column.name!r} has no value in the {len(x)} rows to train on: drop it")
        return made.fit(x)

    def state_event(self, codec: Codec) -> tuple[int, ...]:
        """(features,)."""
        return codec.event if isinstance(codec, TableCodec) else self.event

    def to_user(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """A DataFrame of user samples (n, columns), with the label column if there are labels."""
        pandas = require("pandas", extra="data")
        values = x.detach().cpu().double().numpy()
        series = [(c.name, c.to_user(values[:, j])) for j, c in enumerate(self.columns)]
        if labels is not None and self.label is not None:
            series.insert(self.label_at, (self.label.name, self.label.to_user(labels.cpu().double().numpy())))
        return pandas.DataFrame(dict(series))

    def _write_csv(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        atomic_write(path, self.to_user(x, labels).to_csv(index=False).encode())

    def _write_parquet(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        require("pyarrow", extra="data")
        buffer = io.BytesIO()
        table = self.to_user(x, labels)
        table.columns = [str(name) for name in table.columns]  # Parquet has no other names
        table.to_parquet(buffer, engine="pyarrow", index=False)
        atomic_write(path, buffer.getvalue())

    def _write_npz(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        """x as numbers and codes, y, and the space, which says what they mean, as JSON."""
        arrays: dict[str, Any] = {"x": x.numpy(), "space": np.array(json.dumps(self.to_json()))}
        write_arrays(path, arrays | ({} if labels is None else {"y": labels.cpu().numpy()}))


def read_frame(path: Path) -> Any:
    """The DataFrame in a .csv, .tsv or .parquet file.

    A CSV is UTF-8, separated by commas, semicolons or tabs, with a first line of names; a column of which every value
    is an ISO 8601 date is one of dates. Numbers with a leading zero ("01234") stay strings, decimal commas count where
    commas do not separate, whole numbers with gaps stay whole, and "NA", "null" and the like are gaps among numbers and
    dates but words among words.
    """
    pandas = require("pandas", extra="data")
    if path.suffix.lower() == ".parquet":
        require("pyarrow", extra="data")
        try:
            return pandas.read_parquet(path, engine="pyarrow")
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # a damaged file meets any error of pyarrow or pandas
            raise ValueError(f"{path} is no Parquet file that can be read: {_line(error)}") from error
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            # the comma, if none is there
            separator = "\t" if path.suffix.lower() == ".tsv" else max("\t;,", key=first.count)
            names = next(csv.reader([first.rstrip("\r\n")], delimiter=separator), [])
            if not any(names):
                raise ValueError(f"{path} is empty: its first line holds the names of the columns")
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{path} has two columns of the name {twice!r}: give each its own")
            if "" in names[1:]:
                raise ValueError(f"{path}: column {names[1:].index('') + 1} (from 0) has no name: give each its own")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            how = {"sep": separator, "encoding": "utf-8-sig", "index_col": False, "low_memory": False}
            text = pandas.read_csv(path, dtype=str, keep_default_na=False, **how)
            gaps = {column: _gaps(text[column]) for column in text}
            words = {column: str for column in text if _zeros(text[column])}
            frame = pandas.read_csv(path, dtype=words, keep_default_na=False, na_values=gaps, **how)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (pandas.errors.ParserError, pandas.errors.ParserWarning, csv.Error) as error:
        raise ValueError(
            f"{path} is no table of {len(names)} columns ({', '.join(names[:5])}): {_line(error)}"
        ) from error
    if names[0] == "":
        frame = frame.iloc[:, 1:].copy()  # the row numbers that `DataFrame.to_csv` writes
    for name in frame.columns:
        held = frame[name].dropna()
        if len(held) < len(frame) and str(frame[name].dtype) == "float64":
            whole = text[name][held.index]
            if len(whole) and whole.str.fullmatch(r"[+-]?\d{1,19}").all():
                counts = pandas.to_numeric(whole)
                if counts.dtype == np.int64:  # some of 19 digits are beyond it
                    frame[name] = counts.astype("Int64").reindex(frame.index)
        if len(held) and pandas.api.types.is_string_dtype(held):
            if held.str.match(DATE).all():
                frame[name] = _dates(frame[name], pandas)
            elif held.str.fullmatch(DURATION).all():
                frame[name] = pandas.to_timedelta(frame[name])
            elif separator != "," and name not in words and held.str.fullmatch(COMMA).all():
                frame[name] = pandas.to_numeric(frame[name].str.replace(",", "."))
    return frame


def _gaps(text: Any) -> list[str]:
    """What stands for a missing value in a column of strings."""
    rest = text[~text.isin([*GAPS, *MARKS])]
    plain = rest.str.fullmatch(f"{NUMBER}|{COMMA}|{DURATION}|[+-]?inf") | rest.str.match(DATE)
    return [*GAPS, *(MARKS if len(rest) and plain.all() else ())]


def _zeros(text: Any) -> bool:
    """Whether a column of strings holds digits alone, some with a zero before them, as zip codes have."""
    return bool(text[~text.isin(GAPS)].str.fullmatch(r"\d+").all() and text.str.fullmatch(r"0\d+").any())


def _dates(text: Any, pandas: Any) -> Any:
    """ISO 8601 text as dates, in UTC where hours are those of several zones (or of one with summer time)."""
    try:
        parsed = pandas.to_datetime(text, format="ISO8601", errors="coerce")
    except ValueError:
        parsed = pandas.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    return parsed if parsed.isna().sum() == text.isna().sum() else text


def read_table(
    frame: Any, *, name: str, label: str | int | None = None, drop: Sequence[str | int] = (), lines: bool = False
) -> Data:
    """The rows of a DataFrame as data.

    Args:
        frame: numbers, booleans, strings, categories, dates and durations, any of them missing here and there.
        name: what the data are called in messages.
        label: the column whose values are the labels.
        drop: columns to leave out.
        lines: messages name lines of a CSV instead of rows.

    Errors: ValueError, naming column and row, for a table that is empty, names that occur twice, a column without
    values, of mixed types, with infinite numbers or with more than 100 categories, or a label that is missing.
    """
    names = list(frame.columns)
    if len(set(names)) < len(names):
        raise ValueError(f"{name} has two columns of the name {next(n for n in names if names.count(n) > 1)!r}")
    for asked in [*drop, *([] if label is None else [label])]:
        if asked not in names:
            raise ValueError(f"{name} has no column {asked!r}: choose from {', '.join(map(str, names))}")
    if label is not None and label in drop:
        raise ValueError(f"{name}: {label!r} cannot be the label and be dropped")
    frame = frame.drop(columns=list(drop)).reset_index(drop=True)
    kept = [n for n in frame.columns if n != label]
    if len(frame) < 2 or not kept:
        raise ValueError(f"{name} has {len(frame)} rows of {len(kept)} columns: there is nothing to learn from")
    made = [read_column(frame[n], n, name, lines) for n in kept]
    x = torch.tensor(np.stack([values for _, values, _ in made], 1), dtype=torch.float32)
    notes = tuple(note for *_, note in made if note)
    labels, labelled = None, None
    if label is not None:
        labelled, codes = read_label(frame[label], label, name, lines)
        labels = torch.tensor(codes)
    space = TableSpace(
        (len(kept),),
        tuple(str(level) for level in labelled.levels) if labelled else (),
        None,
        tuple(column for column, *_ in made),
        labelled,
        list(frame.columns).index(label) if labelled else 0,
    )
    return Data(x, labels, space, name, notes)


def read_label(series: Any, column: str | int, name: str, lines: bool) -> tuple[Column, Any]:
    """(column, its codes (n,)) of a column of labels: categories, whole numbers too, none missing."""
    pandas = require("pandas", extra="data")
    dtype = str(series.dtype)
    if pandas.api.types.is_numeric_dtype(series.dtype) and not pandas.api.types.is_bool_dtype(series.dtype):
        series = series.astype("category")
    made, codes, _ = read_column(series, column, name, lines)
    if made.kind != "category":
        raise ValueError(f"{name}: the label {column!r} holds dates: give a column of classes")
    if made.missing:
        at = place_of(int(np.isnan(codes).argmax()), lines)
        raise ValueError(f"{name}: the label {column!r} is missing in {at}: remove such rows, or fill it")
    if dtype != "category":
        made = replace(made, dtype=dtype, ordered=None)
    return made, codes.astype(np.int64)


def read_column(series: Any, column: str | int, name: str, lines: bool) -> tuple[Column, Any, str]:
    """(column, its numbers (n,) in float64 with NaN, what there is to say of it)."""
    pandas = require("pandas", extra="data")
    where = f"{name}: column {column!r}"
    missing = np.asarray(series.isna())
    if missing.all():
        raise ValueError(f"{where} has no value in any row: drop it")
    some, types = bool(missing.any()), set()
    if series.dtype == object:
        types = {bool if isinstance(v, np.bool_) else type(v) for v in series[~missing]}
    if types and types <= {int, float, np.int64, np.float64, Decimal}:
        series, types = series.astype(np.float64), set()
    elif types and types <= {date, datetime, pandas.Timestamp}:  # Parquet has dates without a time
        series, types = pandas.to_datetime(series), set()
    held = series[~missing]
    dtype = str(series.dtype)
    if not DTYPE.fullmatch(dtype) or (types and types not in ({str}, {bool})):
        found = ", ".join(sorted(t.__name__ for t in types)) or dtype
        odd = next((i for i, v in enumerate(series) if not missing[i] and type(v) is not type(held.iloc[0])), 0)
        hint = f", first in {place_of(odd, lines)}" if len(types) > 1 else ""
        raise ValueError(
            f"{where} has values of type {found}{hint}: make them numbers, strings, booleans or dates, or drop it"
        )
    numbers = np.full(len(series), np.nan)
    if dtype == "category" or types or dtype in ("bool", "boolean", "str", "string"):
        levels = [_plain(v) for v in (series.cat.categories if dtype == "category" else sorted(held.unique()))]
        if dtype == "category":
            held = held.cat.remove_unused_categories()
            present = set(held.cat.categories)
            levels = [v for v in levels if v in present] if len(levels) > CATEGORIES else levels
            if not all(isinstance(v, Level) for v in levels):
                raise ValueError(f"{where} has categories that are neither strings nor numbers: make them strings")
        _few(held, len(set(levels)), where, lines)
        place = {v: i for i, v in enumerate(levels)}
        numbers[~missing] = [place[_plain(v)] for v in held]
        ordered = bool(series.cat.ordered) if dtype == "category" else None
        return Column(column, "category", dtype, some, levels=tuple(levels), ordered=ordered), numbers, ""
    if dtype[0] in "dt":
        plain = held.dt.tz_convert("UTC").dt.tz_localize(None) if "," in dtype else held
        return _counted(plain.astype(np.int64).to_numpy(), numbers, missing, column, "time", dtype)
    if pandas.api.types.is_integer_dtype(series.dtype):
        counts = held.to_numpy(dtype=object if dtype.lower() == "uint64" else np.int64)
        if max(abs(int(counts.max())), abs(int(counts.min()))) >= 1 << 63:
            raise ValueError(f"{where} has integers beyond 2^63: drop it, or make it strings")
        return _counted(counts.astype(np.int64), numbers, missing, column, "number", dtype)
    numbers[~missing] = held.to_numpy(dtype=np.float64)
    if (infinite := np.isinf(numbers)).any():
        raise ValueError(
            f"{where} is infinite in {place_of(int(infinite.argmax()), lines)}: remove such rows, or drop it"
        )
    if np.abs(numbers[~missing]).max() > 3e38:
        raise ValueError(f"{where} has numbers beyond the range of float32 (3e38): give it other units, or drop it")
    decimals = _decimals(numbers[~missing])
    if decimals == 0 and np.abs(numbers[~missing]).max() >= EXACT:
        if np.abs(numbers[~missing]).max() < 1 << 53:
            return _counted(numbers[~missing].astype(np.int64), numbers, missing, column, "number", dtype)
        decimals = None
    return Column(column, "number", dtype, some, decimals), numbers, ""


def _counted(
    counts: Any, numbers: Any, missing: Any, column: str | int, kind: Literal["number", "time"], dtype: str
) -> tuple[Column, Any, str]:
    """A column of integers, counted from an offset in a unit where float32 could not tell them apart."""
    low, high = int(counts.min()), int(counts.max())
    offset, unit = 0, 1
    if kind == "time" or max(abs(low), abs(high)) >= EXACT:
        steps = np.unique(np.diff(np.unique(counts)))
        offset, unit = low, gcd(*(int(step) for step in steps)) or 1
    numbers[~missing] = ((counts - offset) // unit).astype(np.float64)
    note = ""
    if (high - low) // unit >= EXACT:
        note = f"column {column!r} has values further apart than float32 resolves: they are kept to 1 in 16,777,216"
    made = Column(column, kind, dtype, bool(missing.any()), 0, offset, unit)
    return made, numbers, note


def _few(held: Any, levels: int, where: str, lines: bool) -> None:
    """ValueError for a column of too many categories, with the reason that is likeliest."""
    if levels <= CATEGORIES and not (levels == len(held) and levels > 20):
        return
    pandas = require("pandas", extra="data")
    parsed = pandas.to_numeric(held.astype(str), errors="coerce")
    odd = parsed.isna()
    if odd.any() and 2 * int(odd.sum()) < len(held):
        at = place_of(int(odd.idxmax()), lines)
        raise ValueError(
            f"{where} mixes numbers and text: {held[odd].iloc[0]!r} in {at}; make it a number, or leave it empty"
        )
    like = f"{held.iloc[0]!r:.40}, {held.iloc[1]!r:.40}"
    raise ValueError(
        f"{where} has {levels} categories in {len(held)} rows ({like}, ...), as names or identities have: drop it "
        f"({CATEGORIES} categories at most)"
    )


def _decimals(values: Any) -> int | None:
    """The fewest decimals, up to 6, that hold all the values as float32 can tell them; None if there are more."""
    for decimals in range(7):
        if np.abs(values).max() * 10**decimals >= EXACT and decimals:
            return None
        if (np.abs(np.round(values, decimals) - values) <= 1e-14 * np.abs(values)).all():  # some parsers err by a bit
            return decimals
    return None


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def place_of(row: int, lines: bool) -> str:
    """What row `row` is called in messages: its number, or that of its line in a CSV."""
    return f"line {row + 2}" if lines else f"row {row}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
