"""Hugging Face data sets: a folder of `save_to_disk`, or a name on the hub."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .._extras import require
from .data import Data
from .images import MEMORY, Source, read_images
from .table import read_table

MARKS = ("state.json", "dataset_dict.json", "dataset_info.json")
"""Files of which a folder written by `save_to_disk` has one."""


class Rows(Source):
    """The images in a column of a data set, as the bytes that are stored in it; a path in it is not followed."""

    def __init__(self, rows: Any, column: str, called: str) -> None:
        images: Any = require("datasets", extra="datasets").Image
        self.rows = rows.select_columns([column]).cast_column(column, images(decode=False))
        self.column, self.called = column, called

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, i: int) -> str:
        return f"{self.called}: the image in row {i}"

    def open(self, i: int) -> Any:
        held = self.rows[i][self.column]
        if held is None or held.get("bytes") is None:
            raise ValueError("the data set holds a path in its place, which is not followed; `save_to_disk` stores it")
        return io.BytesIO(held["bytes"])

    def mark(self, i: int) -> str:
        held = self.rows[i][self.column] or {}
        return f"{i} {len(held.get('bytes') or b'')}"


def read_dataset(
    source: str | Path,
    *,
    split: str | None = None,
    label: str | None = None,
    drop: Sequence[str] = (),
    memory: int = MEMORY,
    **options: Any,
) -> Data:
    """A data set from a folder of `save_to_disk`, or by its name on the hub; nothing of it is run.

    Args:
        source: a folder, or a name such as "ylecun/mnist".
        split: which of its splits; by default "train", or the only one.
        label: the column that is the labels; by default of images the only one of classes.
        drop: columns to leave out.
        memory, options: of images, see `read_images`.
    """
    library = require("datasets", extra="datasets")
    if isinstance(source, Path):
        try:
            found = library.load_from_disk(str(source))
        except Exception as error:  # a damaged folder meets any error of datasets or pyarrow
            raise ValueError(f"{source} is no data set that `save_to_disk` wrote: {_line(error)}") from error
    else:
        try:
            if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
                raise ValueError("a name on the hub is NAME or OWNER/NAME")
            found = library.load_dataset(source)
        except Exception as error:  # of the network, the hub or the data set, each with a type of its own
            raise ValueError(
                f"the data set {source!r} cannot be loaded: {type(error).__name__}: {_line(error)}; "
                "a folder written by its `save_to_disk` needs no network"
            ) from error
    return from_dataset(found, name=str(source), split=split, label=label, drop=drop, memory=memory, **options)


def from_dataset(
    found: Any,
    *,
    name: str,
    split: str | None = None,
    label: str | None = None,
    drop: Sequence[str] = (),
    memory: int = MEMORY,
    **options: Any,
) -> Data:
    """A `datasets.Dataset` or `DatasetDict` as data: images if it has a column of them, else a table."""
    library = require("datasets", extra="datasets")
    if isinstance(found, dict):
        chosen = split or ("train" if "train" in found or len(found) != 1 else next(iter(found)))
        if chosen not in found:
            raise ValueError(f"{name} has no split {chosen!r}: choose split= from {', '.join(found)}")
        found = found[chosen]
    elif split is not None:
        raise ValueError(f"{name} has no splits: leave split={split!r} out")
    features = found.features
    if unknown := [column for column in (*drop, *([label] if label else [])) if column not in features]:
        raise ValueError(f"{name} has no column {unknown[0]!r}: choose from {', '.join(features)}")
    if len(found) == 0:
        raise ValueError(f"{name} is empty")
    kept = [column for column in features if column not in drop]
    images = [column for column in kept if isinstance(features[column], library.Image)]
    classes = [column for column in kept if isinstance(features[column], library.ClassLabel)]
    if images:
        if len(images) > 1:
            raise ValueError(f"{name} has images in {', '.join(images)}: leave all but one out with drop=")
        chosen = label or (classes[0] if len(classes) == 1 else None)
        labels, names = (None, ()) if chosen is None else _classes(found, chosen, name)
        return read_images(Rows(found, images[0], name), labels, names, name=name, memory=memory, **options)
    for column in kept:
        if not isinstance(features[column], library.Value | library.ClassLabel):
            raise ValueError(
                f"{name}: column {column!r} is {type(features[column]).__name__}, no single value: leave it out with "
                "drop=, or give an array"
            )
    given = {key: value for key, value in options.items() if value is not None}
    if given:
        raise ValueError(f"{name} is a table: {', '.join(given)} is of images")
    frame = found.select_columns(kept).to_pandas()
    for column in (c for c in classes if c in kept):
        held, known = frame[column], features[column].names
        codes = held.where(held >= 0).fillna(-1).astype(int)
        frame[column] = require("pandas", extra="data").Categorical.from_codes(codes, known)
    return read_table(frame, name=name, label=label)


def _classes(found: Any, column: str, name: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Labels (n,) and their names, of a column of classes or of any values."""
    values = found[column][:]
    if any(value is None or value == -1 for value in values):
        at = next(i for i, value in enumerate(values) if value is None or value == -1)
        raise ValueError(f"{name}: the label {column!r} is missing in row {at}: remove such rows")
    feature = found.features[column]
    if hasattr(feature, "names"):
        return torch.tensor(values), tuple(feature.names)
    known = sorted(set(values))
    if not isinstance(known[0], int | str | bool) or len(known) > max(100, len(values) // 4):
        raise ValueError(f"{name}: {column!r} has {len(known)} values, which are no classes: give another label=")
    return torch.tensor([known.index(value) for value in values]), tuple(str(value) for value in known)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
