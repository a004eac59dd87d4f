"""Mean and covariance of features: streamed over batches, and kept in the `.npz` files that FID programs exchange."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import CheckpointError
from ornstein.io import atomic_write
from ornstein.metrics._samples import flatten

_TOLERANCE = 1e-6  # of the covariance's Frobenius norm: single precision and its rounding are welcome


@dataclass(frozen=True, eq=False)
class Statistics:
    """mean = (1/n) sum_i f_i,  cov = (1/(n - 1)) sum_i (f_i - mean)(f_i - mean)^T  of n feature vectors f_i.

    Shapes: mean (d,), cov (d, d), brought to float64 on the host; `count` is n, None where a file does not tell.
    Errors: ValueError on shapes that do not match, non-finite values, a covariance that is not symmetric and positive
    semi-definite (singular ones are welcome), count < 2.

    Source: the moments of Heusel et al. 2017 (arXiv:1706.08500), sec. 2, with the n - 1 of pytorch-fid, EDM and ADM.
    """

    mean: Tensor = field(repr=False)
    cov: Tensor = field(repr=False)
    count: int | None = None

    def __post_init__(self) -> None:
        d = self.mean.numel()
        for name, value, shape in (("mean", self.mean, (d,)), ("cov", self.cov, (d, d))):
            if tuple(value.shape) != shape or d == 0:
                raise ValueError(f"{name} must have shape {shape} for {d} features, got {tuple(value.shape)}")
            if value.is_complex() or not value.isfinite().all():
                raise ValueError(f"{name} has complex or non-finite values")
            object.__setattr__(self, name, value.detach().cpu().double())
        if self.count is not None and self.count < 2:
            raise ValueError(f"count is {self.count}: a covariance needs at least 2 samples")
        slack = _TOLERANCE * float(self.cov.norm())
        gap = float((self.cov - self.cov.T).abs().max())
        if gap > slack:
            raise ValueError(f"cov must be symmetric; entries and their mirror images differ by up to {gap:.3g}")
        # C + s I has a Cholesky factor just when no eigenvalue of C is below -s; s = 0 in the zero matrix only
        if slack > 0 and torch.linalg.cholesky_ex(self.cov + slack * torch.eye(d, dtype=torch.float64)).info:
            raise ValueError(f"cov must be positive semi-definite; it has an eigenvalue below {-slack:.3g}")

    @property
    def features(self) -> int:
        """d, the number of features."""
        return len(self.mean)

    @classmethod
    def of(cls, batches: Tensor | Iterable[Tensor]) -> Statistics:
        """n = n1 + n2,  mean = mean1 + delta n2/n,  S = S1 + S2 + delta delta^T n1 n2/n,  cov = S/(n - 1).

        delta = mean2 - mean1 and S the sum of centred outer products: batch after batch, no sample is kept, and the
        order and the sizes of the batches matter to rounding only. (The sums of f and of f f^T, the simpler stream,
        lose the digits of (mean / standard deviation)^2.)

        `batches`: (n, *event) tensors, flattened, of any sizes and of one event shape; or one such tensor.
        Errors: ValueError on other event shapes, non-finite values, fewer than two samples in all.

        Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1.
        """
        n, mean, scatter = 0, torch.zeros(0), torch.zeros(0)
        for i, batch in enumerate([batches] if isinstance(batches, Tensor) else batches):
            if len(batch) == 0:
                continue
            (points,) = flatten(1, **{f"batch {i}": batch})
            if n and points.shape[1] != len(mean):
                raise ValueError(f"batch {i} has {points.shape[1]} features a sample, those before it {len(mean)}")
            centre = points.mean(0)
            points = points - centre
            new = (len(points), centre, points.T @ points)
            n, mean, scatter = _joined((n, mean, scatter), new) if n else new
        if n < 2:
            raise ValueError(f"got {n} samples in all: a covariance needs at least 2")
        return cls(mean, (scatter + scatter.T) / (2 * (n - 1)), n)

    def merge(self, other: Statistics) -> Statistics:
        """Statistics of both sample sets together, as `of` would give them. ValueError if a count is unknown."""
        if self.count is None or other.count is None:
            raise ValueError(f"counts are {self.count} and {other.count}: both must be known to weigh the two sets")
        if self.features != other.features:
            raise ValueError(f"the sets have {self.features} and {other.features} features")
        first = (self.count, self.mean, self.cov * (self.count - 1))
        second = (other.count, other.mean, other.cov * (other.count - 1))
        n, mean, scatter = _joined(first, second)
        return Statistics(mean, scatter / (n - 1), n)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `mu`, `sigma` (and `count` if known) as `.npz`, whole or not at all: pytorch-fid and EDM read it.

        ValueError unless the name ends in .npz, by which those programs tell statistics from folders of images.
        """
        if not os.fspath(path).endswith(".npz"):
            raise ValueError(f"{os.fspath(path)}: statistics are written as .npz; end the name so")
        arrays = {"mu": self.mean.numpy(), "sigma": self.cov.numpy()}
        if self.count is not None:
            arrays["count"] = np.array(self.count)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str], spatial: bool = False) -> Statistics:
        """Read `.npz` statistics: `mu`, `sigma` of pytorch-fid, EDM and ADM, or ADM's `mu_s`, `sigma_s` if `spatial`.

        `count` is None unless the file has it (this library's have). Nothing is unpickled. Statistics compare only with
        those of the same network, which no file names.

        Errors: FileNotFoundError; CheckpointError on a pickle, a damaged file, missing keys, or moments that are none.
        """
        mu, sigma = ("mu_s", "sigma_s") if spatial else ("mu", "sigma")
        found = arrays_of(path, (mu, sigma), optional=("count",))
        count = found.get("count")
        try:
            if count is not None and (count.shape != () or count.dtype.kind not in "iu"):
                raise ValueError(f"count must be one whole number, got {count.dtype} of shape {count.shape}")
            mean, cov = (torch.from_numpy(found[key].astype(np.float64)) for key in (mu, sigma))
            return cls(mean, cov, None if count is None else int(count))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{os.fspath(path)} ({mu} is the mean, {sigma} the covariance): {error}") from error


def arrays_of(
    path: str | os.PathLike[str], keys: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The named arrays of an `.npz` file, and those of `optional` that it has; no pickle is ever opened.

    Errors: FileNotFoundError; CheckpointError, with the way out, on a file of another kind, damage, missing keys.
    """
    name = os.fspath(path)
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            pickled = file.read(2)[:1] == b"\x80"
        what = "a pickle, which can run code when opened" if pickled else "no .npz file, or a truncated one"
        raise CheckpointError(
            f"{name} is {what}; where you trust its author, open it yourself and keep its arrays by "
            "numpy.savez('statistics.npz', mu=..., sigma=...)"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file.files]
            if missing:
                has = ", ".join(file.files) or "nothing"
                images = "; arr_0 are images: read them by ornstein.interop.inception.adm_images" * ("arr_0" in file)
                raise CheckpointError(f"{name} lacks {', '.join(missing)}; it has {has}{images}")
            return {key: file[key] for key in (*keys, *optional) if key in file.files}
    except CheckpointError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{name} cannot be read: {error}") from error


_Sums: TypeAlias = tuple[int, Tensor, Tensor]  # number, mean, scatter


def _joined(first: _Sums, second: _Sums) -> _Sums:
    (n1, mean1, scatter1), (n2, mean2, scatter2) = first, second
    n, delta = n1 + n2, mean2 - mean1
    return n, mean1 + delta * (n2 / n), scatter1 + scatter2 + torch.outer(delta, delta) * (n1 * n2 / n)
