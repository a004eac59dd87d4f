"""Samples in shards: files of a few hundred that many processes fill, and that a later one can finish."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ornstein.errors import CheckpointError
from ornstein.io import atomic_write, read_json, write_json
from ornstein.progress import bar
from ornstein.training.workers import Workers

FORMAT = "ornstein samples"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_ZERO = "0" * 64
LEFTOVER = re.compile(r"\.manifest\.json\.[0-9a-f]{16}\.tmp")
"""What a write of the first manifest leaves that was killed."""

Request: TypeAlias = dict[str, Any]
"""All that samples depend on, with their number `n`: what two requests differ in is what makes other samples."""

Rows: TypeAlias = tuple[Tensor, Tensor | None]
"""Samples (n, *event) and their labels (n,), None without labels."""

Make: TypeAlias = Callable[[int, int], Rows]
"""Makes the samples start to stop."""


@dataclass
class Shards:
    """x[0:n] = shard 0, shard 1, ...: the samples of one request, `size` a shard, in files of one folder.

    `manifest.json` says what was asked, what the checkpoint was, and how the samples are cut; once all are there also
    the name and the checksum of every shard. A shard is an .npz file (x, and y where there are labels), written whole
    or not at all, that carries the request it belongs to, its own number and a checksum of all its bytes. So nothing
    but the folder is needed to go on: what is missing, damaged or of another request is made again.

    Errors: CheckpointError for a manifest of another request (with what differs), a newer format, or one that names
    anything but a plain shard of its own folder. OSError in one line when the disk is full or may not be written; what
    is written stays.
    """

    folder: Path
    request: Request
    size: int

    @classmethod
    def open(cls, folder: str | Path, request: Mapping[str, Any], size: int) -> Shards:
        """The shards of this request, new or as they stand (they then keep their size); nothing is written."""
        folder, asked = Path(folder), dict(request)
        if size < 1:
            raise ValueError(f"a shard holds at least 1 sample: got {size}")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file: samples in shards need a folder")
        there = os.listdir(folder) if folder.exists() else []  # before the manifest: other processes may be writing
        if not (folder / MANIFEST).exists() and not (folder / MANIFEST).is_symlink():
            if any(not LEFTOVER.fullmatch(name) for name in there):
                raise ValueError(f"{folder} holds other files: give a new or empty folder as --out")
            return cls(folder, asked, size)
        kept = read_manifest(folder)
        refuse_another(asked, kept["request"], str(folder))
        return cls(folder, asked, kept["size"])

    @classmethod
    def read_only(cls, folder: str | Path) -> Shards:
        """Shards as they stand, for whatever they were asked."""
        kept = read_manifest(Path(folder))
        return cls(Path(folder), kept["request"], kept["size"])

    @property
    def n(self) -> int:
        """How many samples there are to be."""
        return int(self.request["n"])

    @property
    def count(self) -> int:
        """How many shards there are to be."""
        return -(-self.n // self.size)

    @property
    def complete(self) -> bool:
        """Whether the manifest lists every shard; `read` still checks each."""
        return (self.folder / MANIFEST).exists() and "shards" in read_manifest(self.folder)

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:05d}.npz"

    def span(self, shard: int) -> tuple[int, int]:
        """The samples start to stop of a shard."""
        return shard * self.size, min((shard + 1) * self.size, self.n)

    def fill(self, make: Make, *, batch: int, workers: Workers, progress: bool | None = None) -> None:
        """Make what is missing: process r of k the shards r, r + k, ...; at the end every process finds all of them.

        `batch` samples are made at once. They do not depend on it, on k, or on where a former run stopped, beyond the
        rounding of a network evaluated on another number of rows; with the same batch and one process, not at all.
        """
        mine = range(workers.rank, self.count, workers.count)
        with one_line(lambda: f"{self._there()} of {self.count} shards are in {self.folder} and stay"):
            if not (self.folder / MANIFEST).exists():
                write_json(self.folder / MANIFEST, self._manifest())
            with bar(len(mine), "samples", False if workers.rank or len(mine) == 1 else progress) as tick:
                for shard in mine:
                    if self._digest(shard) is None:
                        start, stop = self.span(shard)
                        cuts = [*range(start, stop, batch), stop]
                        pieces = [make(a, b) for a, b in pairwise(cuts)]
                        self._write(shard, *_join(pieces))
                    tick()
            workers.wait()
            if workers.main:
                self._finish()
            workers.wait()

    def read(self, most: int | None = None) -> Iterator[Rows]:
        """One shard after another, up to the sample `most`, each checked against the manifest as it is read."""
        manifest = read_manifest(self.folder)
        if "shards" not in manifest:
            raise CheckpointError(f"{self.folder} is not complete: give the command that began it again")
        left = self.n if most is None else min(most, self.n)
        for shard, entry in enumerate(manifest["shards"]):
            if left <= 0:
                return
            blob = self._bytes(shard)
            if blob is None or hashlib.sha256(blob).hexdigest() != entry["sha256"]:
                raise CheckpointError(
                    f"{self.path(shard)} is {'missing' if blob is None else 'damaged'}: give the command that made "
                    "these samples again, and it is made anew"
                )
            arrays = np.load(io.BytesIO(blob), allow_pickle=False)
            x = torch.from_numpy(arrays["x"])[:left]
            yield x, torch.from_numpy(arrays["y"])[:left] if "y" in arrays else None
            left -= len(x)

    def remove(self) -> None:
        """Take away manifest and shards, and the folder if nothing else is in it."""
        for shard in range(self.count):
            self.path(shard).unlink(missing_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _manifest(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": FORMAT_VERSION, "request": self.request, "size": self.size}

    def _mark(self, shard: int, digest: str) -> bytes:
        """What a shard says of itself, at its very end."""
        own = {"format": FORMAT, "request": digest_of(self.request), "shard": shard, "sha256": digest}
        return json.dumps(own).encode()

    def _write(self, shard: int, x: Tensor, labels: Tensor | None) -> None:
        blank = self._mark(shard, _ZERO)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, tensor in (("x", x), ("y", labels)):
                if tensor is not None:
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, tensor.numpy(), allow_pickle=False)
            archive.comment = blank
        blob = buffer.getvalue()
        self._refuse_link(self.path(shard))
        atomic_write(self.path(shard), blob[: -len(blank)] + self._mark(shard, hashlib.sha256(blob).hexdigest()))

    def _digest(self, shard: int) -> str | None:
        """The checksum of a shard's file; None if it is missing, damaged, or no shard of this request."""
        blob = self._bytes(shard)
        if blob is None:
            return None
        blank = self._mark(shard, _ZERO)
        whole = hashlib.sha256(blob[: -len(blank)] + blank).hexdigest()
        return hashlib.sha256(blob).hexdigest() if blob.endswith(self._mark(shard, whole)) else None

    def _bytes(self, shard: int) -> bytes | None:
        self._refuse_link(self.path(shard))
        try:
            return self.path(shard).read_bytes()
        except FileNotFoundError:
            return None

    def _finish(self) -> None:
        shards = []
        for shard in range(self.count):
            digest = self._digest(shard)
            if digest is None:
                raise CheckpointError(f"{self.path(shard)} was lost while others were made: give the command again")
            start, stop = self.span(shard)
            shards.append({"file": self.path(shard).name, "rows": stop - start, "sha256": digest})
        whole = {**self._manifest(), "shards": shards}
        if read_manifest(self.folder) != whole:
            write_json(self.folder / MANIFEST, whole)

    def _there(self) -> int:
        return sum(self.path(shard).exists() for shard in range(self.count))

    @staticmethod
    def _refuse_link(path: Path) -> None:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a symbolic link, and samples are not read or written through links")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest in a folder: whoever wrote it, it names nothing outside the folder."""
    path = folder / MANIFEST
    Shards._refuse_link(path)
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no manifest of samples")
    if not isinstance(version := found.get("version"), int) or version > FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}, and this ornstein reads up to {FORMAT_VERSION}")
    request, size, shards = found.get("request"), found.get("size"), found.get("shards")
    n = request.get("n") if isinstance(request, dict) else None
    if not _positive(n) or not _positive(size):
        raise CheckpointError(f"{path} is damaged: it must say how many samples were asked, and how many a shard holds")
    if shards is not None:
        own = Shards(folder, found["request"], found["size"])
        if not isinstance(shards, list) or len(shards) != own.count:
            raise CheckpointError(f"{path} is damaged: {own.n} samples, {own.size} a shard, are {own.count} shards")
        for shard, entry in enumerate(shards):
            name = entry.get("file") if isinstance(entry, dict) else None
            if name != own.path(shard).name:
                raise CheckpointError(
                    f"{path} names {name!r} as shard {shard}, which is {own.path(shard).name} beside it"
                )
            if not re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256"))):
                raise CheckpointError(f"{path} is damaged: shard {shard} has no checksum")
    return found


def refuse_another(asked: Mapping[str, Any], kept: Mapping[str, Any], name: str) -> None:
    """Refuse to go on with the samples of another request, and say in what it differs."""
    differ = [f"{key} was {kept.get(key)}, is {asked.get(key)}" for key in dict.fromkeys([*asked, *kept])
              if asked.get(key) != kept.get(key)]  # fmt: skip
    if differ:
        raise CheckpointError(f"{name} holds other samples: {'; '.join(differ)}. Choose another --out, or remove it")


def digest_of(request: Mapping[str, Any]) -> str:
    """A checksum of what was asked."""
    return hashlib.sha256(json.dumps(dict(request), sort_keys=True).encode()).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor], *more: object) -> str:
    """sha256(names, types, shapes and bytes of the tensors; whatever else says what model they are)."""
    content = hashlib.sha256(repr(more).encode())
    for name, tensor in sorted(tensors.items()):
        content.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        raw: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        content.update(raw)
    return content.hexdigest()


@contextmanager
def one_line(what_stays: Callable[[], str]) -> Iterator[None]:
    """A disk that is full or may not be written, in one line that says what stays and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise OSError(f"{error.strerror}{where}: {what_stays()}; mend that and give the same command again") from error


def _join(pieces: list[Rows]) -> Rows:
    labels = [y for _, y in pieces if y is not None]
    return torch.cat([x for x, _ in pieces]), torch.cat(labels) if labels else None


def _positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
