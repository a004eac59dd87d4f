"""Samples as files of other programs, written from shards one after another, so that memory does not grow with n."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ornstein._extras import require
from ornstein.data import SeriesSpace, Space
from ornstein.data.images import class_folders, folder_of
from ornstein.errors import CheckpointError
from ornstein.io import atomic_write, inside, read_json, write_json
from ornstein.io.atomic import Sink
from ornstein.report.names import FORMATS, nearest
from ornstein.report.shards import MANIFEST, Request, Rows, Shards, one_line, read_manifest, refuse_another

MOST_IN_PICTURE = 10_000
"""Most samples that one picture shows."""


def form_of(out: Path, form: str | None) -> str:
    """What to write: "shards", or what the ending of `out` or the asked format says.

    Errors: ValueError for a format that does not exist, or one that contradicts the ending.
    """
    if out.name in ("", ".."):
        raise ValueError(f"--out {str(out)!r} names no file or folder of its own: give a new name")
    suffix = out.suffix.lower().removeprefix(".")
    if suffix and suffix not in FORMATS:
        raise ValueError(f"--out {out}: samples are written as {_known()}, or to a folder without an ending")
    if form is not None and form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; {nearest(form, FORMATS)}")
    if suffix and form not in (None, suffix):
        raise ValueError(f"--out {out} ends in .{suffix}, and --format is {form}: give one of them")
    if not suffix and form in ("csv", "parquet"):
        raise ValueError(f"--format {form} is one file: give --out {out}.{form}")
    if suffix:
        return f".{suffix}"
    return "folder" if form == "png" else "shards"


def check_form(form: str, space: Space, n: int) -> None:
    """ValueError or ImportError, before the work, if samples of this space cannot be written so."""
    if form in (".png", "folder"):
        require(*(("matplotlib",) if form == ".png" else ("PIL",)), extra="report" if form == ".png" else "data")
        if len(space.event) != 3 or space.event[0] not in (1, 3):
            raise ValueError(
                f"a picture needs images (1 or 3, height, width), and a sample is {space.event}: write .npz instead"
            )
        if form == ".png" and n > MOST_IN_PICTURE:
            raise ValueError(f"one picture shows {MOST_IN_PICTURE} samples at most: give a folder and --format png")
    if form in (".csv", ".parquet"):
        require("pandas" if form == ".csv" else "pyarrow", extra="data")
        if len(space.event) != 1 and form not in space.formats:
            raise ValueError(f"{form} needs a table or series, and a sample is {space.event}: write .npz instead")


def parts_of(target: Path) -> Path:
    """The folder beside `target` in which its shards lie until it is written."""
    return target.with_name(f"{target.name}.parts")


def finished(target: Path, form: str, request: Request) -> bool:
    """Whether `target` is there, whole, and holds what was asked; what holds something else is refused.

    Errors: CheckpointError for the samples of another request; ValueError for what no command of ours has written.
    """
    note, mine = note_of(target, form), False
    if note.exists() and note.parent.is_dir():
        kept = read_json(note)
        mine = isinstance(kept, dict) and isinstance(kept.get("request"), dict) and "sha256" in kept
        if not mine:
            raise CheckpointError(
                f"{note} is damaged or not of this command: choose another --out, or remove it, with {target}"
            )
    if not target.exists() or (form == "folder" and target.is_dir() and not any(target.iterdir())):
        return False
    if target.is_dir() is not (form == "folder"):
        raise ValueError(f"{target} is a {'folder' if target.is_dir() else 'file'}: choose another --out")
    if not note.exists():
        if not (parts_of(target) / MANIFEST).exists():
            raise ValueError(f"{target} is there already, and was not written by this command: choose another --out")
        refuse_another(request, read_manifest(parts_of(target))["request"], str(parts_of(target)))
        return False
    refuse_another(request, kept["request"], str(target))
    return bool(kept.get("sha256") == _checksum(target, form))


def export(shards: Shards, target: Path, form: str, space: Space, bounds: tuple[float, float] | None) -> None:
    """Write complete shards as one file or as a folder of pictures, each file whole or not at all, with a note beside
    it (in the folder: within) of what was asked and a checksum."""
    with one_line(lambda: f"all samples are in {shards.folder} and stay"):
        if form == ".npz":
            atomic_write(target, lambda sink: _npz(sink, shards, space))
        elif form in (".csv", ".parquet"):
            write = _csv if form == ".csv" else _parquet
            atomic_write(target, lambda sink: write(sink, _frames(shards, space)))
        elif form == ".png":
            from ornstein.report.figures import image

            x = torch.cat([x for x, _ in shards.read()])
            atomic_write(target, image(x, columns=max(1, round(shards.n**0.5)), bounds=bounds))
        else:
            _pictures(shards, target, space, bounds or _range(shards))
        write_json(note_of(target, form), {"request": shards.request, "sha256": _checksum(target, form)})


def _npz(sink: Sink, shards: Shards, space: Space) -> None:
    """x (n, *event), and y (n,) where there are labels, as numpy reads them; of a table or series the space too, which
    says what its numbers mean, as JSON."""

    def values(rows: Rows) -> Any:
        return space.to_user(rows[0]) if space.kind in ("array", "images") else rows[0].numpy()

    def write(archive: zipfile.ZipFile, name: str, pick: Callable[[Rows], Any]) -> None:
        first = pick(next(shards.read(1)))
        header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
        with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, {**header, "shape": (shards.n, *first.shape[1:])})
            for rows in shards.read():
                member.write(np.ascontiguousarray(pick(rows)).data)

    with io.BufferedWriter(_Stream(sink), 1 << 20) as file, zipfile.ZipFile(file, "w") as archive:
        write(archive, "x", values)
        if next(shards.read(1))[1] is not None:
            write(archive, "y", lambda rows: rows[1].numpy() if rows[1] is not None else None)
        if space.kind in ("table", "series"):
            with archive.open(zipfile.ZipInfo("space.npy"), "w") as member:
                np.lib.format.write_array(member, np.array(json.dumps(space.to_json())), allow_pickle=False)


def _frames(shards: Shards, space: Space) -> Iterator[Any]:
    """A DataFrame for each shard; the series of a later one are numbered on."""
    pandas, start = require("pandas", extra="data"), 0
    for x, labels in shards.read():
        frame = space.to_user(x, labels)
        if isinstance(frame, np.ndarray):
            frame = pandas.DataFrame({f"x{i}": frame[:, i] for i in range(frame.shape[1])})
            if labels is not None:
                frame["y"] = labels.numpy()
        frame = frame.rename(columns=str)
        if isinstance(space, SeriesSpace):
            frame[str(space.id)] += start
        start += len(x)
        yield frame


def _csv(sink: Sink, frames: Iterable[Any]) -> None:
    for i, frame in enumerate(frames):
        sink.write(frame.to_csv(index=False, header=i == 0, lineterminator="\n").encode())


def _parquet(sink: Sink, frames: Iterable[Any]) -> None:
    arrow, parquet = require("pyarrow", extra="data"), require("pyarrow.parquet", extra="data")
    writer = None
    for frame in frames:
        table = arrow.Table.from_pandas(frame, None if writer is None else writer.schema, preserve_index=False)
        if writer is None:
            writer = parquet.ParquetWriter(arrow.PythonFile(_Stream(sink), mode="w"), table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _pictures(shards: Shards, target: Path, space: Space, bounds: tuple[float, float]) -> None:
    """000000.png, ...: uint8, bounds[0] black and bounds[1] white; in a folder for each class where there are any."""
    images, (low, high) = require("PIL.Image", extra="data"), bounds
    digits, i, folders = len(str(max(shards.n - 1, 1))), 0, class_folders(space.labels)
    for x, labels in shards.read():
        scaled = (x.double() - low) / (high - low or 1.0)
        pixels = (scaled.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).squeeze(-1).numpy()
        for k, picture in enumerate(pixels):
            buffer = io.BytesIO()
            images.fromarray(picture).save(buffer, format="png")
            label = [] if labels is None else [folder_of(folders, int(labels[k]))]
            target.mkdir(parents=True, exist_ok=True)
            atomic_write(inside(target, *label, f"{i:0{digits}d}.png"), buffer.getvalue())
            i += 1


def _range(shards: Shards) -> tuple[float, float]:
    ends = [(float(x.min()), float(x.max())) for x, _ in shards.read()]
    return min(low for low, _ in ends), max(high for _, high in ends)


def note_of(target: Path, form: str) -> Path:
    """Where it is noted what `target` was asked to hold."""
    return target / "samples.json" if form == "folder" else target.with_name(f"{target.name}.json")


def _checksum(target: Path, form: str) -> str:
    content = hashlib.sha256()
    for path in sorted(target.rglob("*.png")) if form == "folder" else [target]:
        content.update(path.relative_to(target).as_posix().encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    return content.hexdigest()


def _known() -> str:
    return f"{', '.join(f'.{name}' for name in FORMATS[:-1])} or .{FORMATS[-1]}"


class _Stream(io.RawIOBase):
    """A sink as the file that other writers ask for: it can be written and told, not rewound."""

    def __init__(self, sink: Sink) -> None:
        self.sink, self.at = sink, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.sink.write(memoryview(data).cast("B"))
        self.at += size
        return size
