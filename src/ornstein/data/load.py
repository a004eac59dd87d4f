"""Anything that holds samples, by what it is: a tensor, an array, a DataFrame, a file, a folder or a name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._extras import require
from .array import DTYPES, ArraySpace, check_labels, check_numbers, read_arrays
from .data import Data
from .hugging_face import MARKS, from_dataset, read_dataset
from .images import MEMORY, ImageSpace, read_folder
from .series import read_long, read_series
from .table import read_frame, read_table

KINDS = ("array", "images", "table", "series")
SUFFIXES = (".npz", ".npy", ".csv", ".tsv", ".parquet")
HUB = "hf:"


def load_data(
    source: Any,
    *,
    kind: str | None = None,
    label: str | int | None = None,
    labels: Any = None,
    drop: Sequence[str | int] = (),
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    series: str | int | None = None,
    time: str | int | None = None,
    step: float | str | None = None,
    split: str | None = None,
    memory: int = MEMORY,
) -> Data:
    """Samples, labels and space of what holds them. Nothing in it is executed: no pickle, no script of a data set.

    Args:
        source: a tensor or array (n, ...); a DataFrame; a `datasets.Dataset`; a path of an .npz (x, and y for labels),
            .npy, .csv, .tsv or .parquet; a folder of images (folders within it are classes) or of `save_to_disk`;
            "digits" (scikit-learn's); or "hf:NAME", a data set on the Hugging Face hub.
        kind: what the samples are where that is in doubt: "images" for arrays (n, height, width), also with colours
            last; "series" for arrays (n, channels, length) and for long tables (series, time, values). By default an
            array of bytes is images if it has their shape, (n, 1 or 3, height, width) is images, (n, channels, length)
            with NaN is series, and a table with columns "series" and "time" is one of series.
        label: of a table, the column that is the labels.
        labels: of a tensor or array, (n,) integers from 0.
        drop: of a table, columns to leave out.
        size, channels, memory: of images, see `read_images`.
        series, time, step: of series in a table, see `read_long`.
        split: of a Hugging Face data set, which of its splits.

    Errors: ValueError naming what is wrong, where, and what to do; FileNotFoundError for a path that is not there.
    """
    given: dict[str, Any] = {
        "label": label,
        "drop": drop or None,
        "size": size,
        "channels": channels,
        "series": series,
        "time": time,
    }
    given |= {"step": step, "split": split, "labels": labels}
    asked = {key: value for key, value in given.items() if value is not None}

    def only(what: str, *known: str) -> dict[str, Any]:
        """The options asked for, which are to be among those that such data know."""
        if other := sorted(set(asked) - set(known)):
            raise ValueError(f"{what} has no option {other[0]}=: it has {', '.join(known) or 'none'}")
        return asked

    if kind not in (None, *KINDS):
        raise ValueError(f"kind {kind!r} is unknown: choose from {', '.join(KINDS)}")
    if isinstance(source, Tensor | np.ndarray):
        return _array(source, only("an array", "labels").get("labels"), "data", kind)
    if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
        return _frame(source, only, "the DataFrame", kind, False)
    if type(source).__module__.partition(".")[0] == "datasets" and hasattr(source, "map"):
        options = only(f"{source!s:.60}, a data set,", "split", "label", "drop", "size", "channels")
        return from_dataset(source, name="the data set", memory=memory, **options)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(
            f"data are a tensor, an array, a DataFrame, a data set, a path or a name: got {type(source).__name__}"
        )
    name = os.fspath(source)
    if name == "digits":
        only("'digits'")
        return _digits()
    if name.startswith(HUB):
        options = only(f"{source!s:.60}, a data set,", "split", "label", "drop", "size", "channels")
        return read_dataset(name.removeprefix(HUB), memory=memory, **options)
    path = Path(name).expanduser()
    if path.is_dir():
        if any((path / mark).is_file() for mark in MARKS):
            options = only(f"{source!s:.60}, a data set,", "split", "label", "drop", "size", "channels")
            return read_dataset(path, memory=memory, **options)
        if kind not in (None, "images"):
            raise ValueError(f"{path} is a folder, and so of images: leave kind={kind!r} out")
        return read_folder(path, memory=memory, **only(f"{name}, a folder of images,", "size", "channels"))
    if path.suffix.lower() not in SUFFIXES:
        there = (
            f"there is no folder or file {name!r}" if not path.exists() else f"{name} has an ending that is not read"
        )
        raise ValueError(
            f"unknown data {name!r}: {there}; give 'digits', a file ({', '.join(SUFFIXES)}: in .npz x, and y for "
            f"labels), a folder of images, or {HUB}NAME"
        )
    if not path.exists():
        raise FileNotFoundError(f"data {name!r}: there is no such file")
    if path.suffix.lower() in (".npz", ".npy"):
        only(f"{name}, an array,")
        x, y, notes = read_arrays(path)
        made = _array(x, y, name, kind)
        return replace(made, notes=(*notes, *made.notes))
    return _frame(read_frame(path), only, name, kind, path.suffix.lower() != ".parquet")


def _array(x: Any, y: Any, name: str, kind: str | None) -> Data:
    if kind == "table":
        raise ValueError(
            f"{name} is an array, whose columns have no names or types: give a DataFrame, .csv or .parquet"
        )
    dtype = str(x.dtype).removeprefix("torch.").replace("bfloat16", "float32")
    n, shape = len(x) if x.ndim else 0, tuple(x.shape[1:])
    if n < 2 and x.ndim:
        raise ValueError(f"{name} holds {n} samples: there is nothing to learn from")
    labels = check_labels(name, y, n)
    names = tuple(str(k) for k in range(1 + int(labels.max()))) if labels is not None else ()
    real = dtype in DTYPES and len(shape) in (2, 3) and 0 not in shape
    if kind == "series" or (kind is None and real and len(shape) == 2 and dtype[0] == "f" and _has_nan(x)):
        return read_series(name, x, labels, names)
    notes = []
    if real and kind is None:
        pictured = len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 1
        kind = "images" if pictured or (dtype == "uint8" and (len(shape) == 2 or shape[2] in (1, 3))) else "array"
    if kind == "images":
        if len(shape) == 2:
            x, shape = x[:, None], (1, *shape)
            notes.append(f"grey images of {shape[1]} x {shape[2]}: they leave as (n, 1, height, width)")
        elif len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3):
            x, shape = np.moveaxis(np.asarray(x), -1, 1), (shape[2], *shape[:2])
            notes.append("colours were last and are first now: they leave as (n, channels, height, width)")
    values = check_numbers(name, x)
    bounds = (0.0, 255.0) if kind == "images" and dtype == "uint8" else None
    space = (ImageSpace if kind == "images" else ArraySpace)(shape, names, bounds, dtype)
    return Data(values, labels, space, name, tuple(notes))


def _has_nan(x: Any) -> bool:
    return bool((x != x).any())


def _frame(frame: Any, only: Any, name: str, kind: str | None, lines: bool) -> Data:
    if kind not in (None, "table", "series"):
        raise ValueError(f"{name} is a table: kind is 'table' or 'series', not {kind!r}")
    if kind == "series" or (kind is None and {"series", "time"} <= set(frame.columns)):
        options = only(f"{name}, a table of series,", "series", "time", "step", "label", "drop")
        return read_long(frame, name=name, lines=lines, **options)
    return read_table(frame, name=name, lines=lines, **only(f"{name}, a table,", "label", "drop"))


def _digits() -> Data:
    digits = require("sklearn.datasets", extra="metrics").load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    space = ImageSpace((1, 8, 8), tuple("0123456789"), (0.0, 1.0))
    return Data(x, torch.tensor(digits.target, dtype=torch.int64), space, "digits")
