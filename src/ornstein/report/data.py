"""Data by name or by file, with a split that a seed fixes."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.random import derive, generator
from ornstein.report.names import nearest

NAMED = ("digits",)


@dataclass(frozen=True)
class Split:
    """Training and held-out samples (n, *event), with labels (n,) or None."""

    train: Tensor
    held_out: Tensor
    train_labels: Tensor | None
    held_out_labels: Tensor | None

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.train.shape[1:])

    @property
    def labels(self) -> int:
        """The number of classes, 0 without labels."""
        return 0 if self.train_labels is None else 1 + int(self.train_labels.max())


def load_split(name: str, held_out: float) -> Split:
    """Samples and labels of `digits`, an .npz (arrays x and, if there are labels, y) or an .npy, split class by class.

    The split is random, and the same every time.

    Errors: ValueError for an unknown name, a file that holds no samples, values that are not finite, or labels that do
    not fit; FileNotFoundError for a file that does not exist.
    """
    x, y = _digits() if name == "digits" else _file(name)
    n = len(x)
    if n < 10:
        raise ValueError(f"{name} holds {n} samples: at least 10 are needed to train and to judge")
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite()).reshape(n, -1).any(1).nonzero()[0])
        raise ValueError(f"{name} has values that are not finite, first in sample {bad}: remove such samples")
    order = torch.randperm(n, generator=generator(derive(0, "split")))
    groups = [order] if y is None else [order[y[order] == label] for label in sorted(set(y.tolist()))]
    shares = [round(held_out * len(group)) for group in groups]
    test = torch.cat([group[:share] for group, share in zip(groups, shares, strict=True)])
    fit = torch.cat([group[share:] for group, share in zip(groups, shares, strict=True)])
    if min(len(test), len(fit)) < 2:
        raise ValueError(f"held_out={held_out} of {n} samples leaves {len(fit)} to train and {len(test)} to judge")
    test, fit = (part[torch.randperm(len(part), generator=generator(derive(0, "mix")))] for part in (test, fit))
    return Split(x[fit], x[test], None if y is None else y[fit], None if y is None else y[test])


def bounds_of(name: str) -> tuple[float, float] | None:
    """The least and greatest value that samples of named data may have; None for a file."""
    return (0.0, 1.0) if name == "digits" else None


def _digits() -> tuple[Tensor, Tensor]:
    digits = require("sklearn.datasets", extra="metrics").load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return x, torch.tensor(digits.target, dtype=torch.int64)


def _file(name: str) -> tuple[Tensor, Tensor | None]:
    path = Path(name)
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(
            f"unknown data {name!r}: {nearest(name, NAMED)}, or give an .npz (x, and y for labels) or .npy file"
        )
    if not path.exists():
        raise FileNotFoundError(f"data {name!r}: there is no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = "it holds Python objects, or is no such file" if "pickle" in str(error) else error
        raise ValueError(f"{name} is no {path.suffix} file of plain arrays: {reason}") from error
    if "x" not in arrays:
        raise ValueError(f"{name} has no array 'x' (n, ...), but {', '.join(arrays) or 'nothing'}")
    array = arrays["x"]
    if array.ndim < 2 or array.dtype.kind not in "fiub":
        hint = "; numbers without features are x[:, None]" if array.ndim == 1 else ""
        raise ValueError(
            f"{name}: x must be numbers (n, ...), real, in two or more axes: got {array.dtype} {array.shape}{hint}"
        )
    return torch.tensor(array, dtype=torch.float32), _labels(name, arrays.get("y"), len(array))


def _labels(name: str, y: Any, n: int) -> Tensor | None:
    if y is None:
        return None
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise ValueError(f"{name}: y must be {n} integers from 0, got {y.dtype} of shape {y.shape}")
    if n and y.min() < 0:
        raise ValueError(f"{name}: y must be {n} integers from 0, got {y.min()} in sample {int(y.argmin())}")
    return torch.tensor(y, dtype=torch.int64)
