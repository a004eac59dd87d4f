"""Arrays: tensors, .npy and .npz files of plain numbers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Codec, Scaling
from ..io import atomic_write
from .space import Space

NAMES = (("x", "y"), ("train_images", "train_labels"), ("x_train", "y_train"))
"""What samples and labels are called in an .npz; the first pair that is there counts."""


@dataclass(frozen=True)
class ArraySpace(Space):
    """Numbers (n, *event); they leave in the dtype they came in, integers rounded.

    The codec is `Scaling.of` the training samples: one mean and one standard deviation for all entries.
    """

    kind = "array"
    formats: ClassVar[tuple[str, ...]] = (".npz", ".npy")

    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"the dtype of an array is one of {', '.join(DTYPES)}: got {self.dtype!r}")

    def codec(self, x: Tensor | None = None) -> Codec:
        """One mean and standard deviation for all entries (of constant data the deviation counts as 1)."""
        if x is None:
            return Scaling()
        return Scaling(x.mean(), 1.0) if float(x.std()) == 0 else Scaling.of(x)

    def to_user(self, x: Tensor, labels: Tensor | None = None) -> Any:
        """An array (n, *event) in the dtype of the data, within their bounds."""
        if self.bounds is not None:
            x = x.clamp(*self.bounds)
        value = x.detach().cpu().double().numpy()
        kind = np.dtype(self.dtype)
        if kind.kind == "b":
            return value > 0.5
        if kind.kind in "iu":
            info = np.iinfo(kind)
            # float64 cannot hold the largest int64: the next number below it can
            high = min(float(info.max), np.nextafter(float(info.max) + 1, 0))
            return np.clip(np.rint(value), float(info.min), high).astype(kind)
        return value.astype(kind)

    def _write_npy(self, path: Path, x: Tensor, labels: Tensor | None) -> None:
        buffer = io.BytesIO()
        np.save(buffer, self.to_user(x), allow_pickle=False)
        atomic_write(path, buffer.getvalue())


LARGEST = 1e37
"""Values beyond leave float32 no room for their differences, and for samples beyond the data's own."""
COARSEST = 1e-3
"""Of the standard deviation: what float32 may err by in the differences of values."""

DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "bool")  # fmt: skip


def read_arrays(path: Path) -> tuple[Any, Any, tuple[str, ...]]:
    """(x, y or None, notes) of an .npz or .npy; nothing is unpickled.

    Errors: ValueError for a file that is torn, holds Python objects or has no array x.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None, ()
        with loaded:
            held = list(loaded.files)
            for x, y in NAMES:
                if x in held:
                    notes = () if x == "x" else (f"of {', '.join(held)}, {x} was read",)
                    return loaded[x], loaded[y] if y in held else None, notes
    except PermissionError:
        raise
    except Exception as error:  # a damaged file meets any error of zipfile, zlib, tokenize or numpy
        reason = "it holds Python objects, or is no such file" if "pickle" in str(error) else error
        raise ValueError(f"{path} is no {path.suffix} file of plain arrays: {reason}") from error
    raise ValueError(f"{path} has no array 'x' (n, ...), but {', '.join(held) or 'nothing'}")


def check_numbers(name: str, x: Any, *, missing: bool = False) -> Tensor:
    """An array or tensor of real numbers (n, ...) as a float32 tensor; NaN is allowed where values may be missing."""
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        x = x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()
    if x.ndim < 2 or x.dtype.kind not in "fiub":
        hint = "; numbers without features are x[:, None]" if x.ndim == 1 else ""
        raise ValueError(
            f"{name}: x must be numbers (n, ...), real, in two or more axes: got {x.dtype} {x.shape}{hint}"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"{name}: a sample of shape {x.shape[1:]} holds no number")
    made = torch.tensor(x, dtype=torch.float32)
    bad = made.isinf() if missing else ~made.isfinite()
    if bool(bad.any()):
        first = int(bad.flatten(1).any(1).nonzero()[0])
        way = "remove such samples"
        if not missing and x.ndim == 3 and not bool(made.isinf().any()):
            way += ", or give kind='series' if they are time series with gaps"
        raise ValueError(f"{name} has values that are not finite, first in sample {first}: {way}")
    if bool((made.abs() > LARGEST).any()):
        raise ValueError(f"{name} has values beyond {LARGEST:g}, near the end of float32: give it other units")
    if missing and x.ndim == 3:  # series, of which every channel has its own scale
        for c in range(x.shape[1]):
            _check_variation(f"{name}: channel {c}", x[:, c], made[:, c].numpy())
    else:
        _check_variation(name, x, made.numpy())
    return made


def _check_variation(name: str, x: Any, made: Any) -> None:
    """ValueError where max |(x - min x) - (f - min f)| > 1e-3 std(x), f = float32(x): an offset drowned x."""
    if x.dtype.itemsize < 4 or x.dtype == np.float32 or np.isnan(made).all():
        return
    low = np.nanmin(x)
    if x.dtype.kind == "f":
        spread = x - low
        if np.nanmax(spread) <= 4 * np.finfo(x.dtype).eps * abs(low):  # constant, to rounding
            return
    else:  # differences of integers are exact modulo 2^64, whatever their type
        spread = (x.astype(np.uint64) - np.asarray(low).astype(np.uint64)).astype(np.float64)
    error = np.nanmax(np.abs(spread - (made.astype(np.float64) - np.nanmin(made))))
    if error > COARSEST * np.nanstd(spread):
        raise ValueError(
            f"{name} varies by {np.nanstd(spread):.3g} about values as large as {abs(float(low)):.6g}, which float32 "
            "cannot tell apart: subtract an offset (its mean, say) first, and add it to the samples"
        )


def check_labels(name: str, y: Any, n: int) -> Tensor | None:
    """Labels as (n,) int64, integers from 0."""
    if y is None:
        return None
    y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise ValueError(f"{name}: y must be {n} integers from 0, got {y.dtype} of shape {y.shape}")
    if n and y.min() < 0:
        raise ValueError(f"{name}: y must be {n} integers from 0, got {y.min()} in sample {int(y.argmin())}")
    if n and int(y.max()) >= n:
        raise ValueError(
            f"{name}: y must be {n} integers from 0, one a class, got {y.max()} in sample {int(y.argmax())}: "
            "number the classes from 0, as by np.unique(y, return_inverse=True)[1]"
        )
    if gaps := np.flatnonzero(np.bincount(y) == 0).tolist() if n else []:
        which = ", ".join(map(str, gaps[:5])) + (", ..." if len(gaps) > 5 else "")
        raise ValueError(
            f"{name}: y has no sample of class {which}: number the classes that there are from 0, as by "
            "np.unique(y, return_inverse=True)[1]"
        )
    return torch.tensor(y, dtype=torch.int64)
