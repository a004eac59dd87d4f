"""Tensors in a safetensors file that proves its own integrity."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.errors import CheckpointError
from ornstein.io.atomic import Sink, atomic_write

FORMAT = "ornstein"
FORMAT_VERSION = 1
_ZERO = "0" * 64
_HEADER_LIMIT = 100_000_000  # bytes; the safetensors format allows no longer header


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, *, kind: str
) -> None:
    """file = safetensors(tensors, header), with sha256(file with its own 64 checksum digits at zero) in the header.

    The checksum therefore covers every byte: names, dtypes, shapes, data, metadata and padding. Tensors of any shape,
    strides and device are written as they are, bit for bit; tensors that share memory are written once each.
    `metadata` is anything that JSON can hold (so tuples return as lists, and keys as strings); `kind` says what the
    file is for ("checkpoint", "table", ...), and `load_tensors` asks for it. The write is atomic.
    """
    safetensors = require("safetensors.torch", extra="train")
    own = {name: _plain(tensor) for name, tensor in tensors.items()}
    header = {
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "kind": kind,
        "bytes": str(sum(tensor.nbytes for tensor in own.values())),
        "metadata": json.dumps(dict(metadata or {})),
        "sha256": _ZERO,
    }
    blob = safetensors.save(own, metadata=header)
    data = 8 + int.from_bytes(blob[:8], "little")
    head = blob[:data].replace(_mark(_ZERO), _mark(hashlib.sha256(blob).hexdigest()))

    def write(sink: Sink) -> None:
        sink.write(head)
        sink.write(memoryview(blob)[data:])

    atomic_write(path, write)


def load_tensors(
    path: str | os.PathLike[str], *, kind: str, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) as given to `save_tensors`, or a `CheckpointError` that says why the file is refused.

    Refused: a truncated file, a file of another program or of another `kind`, a file with any bit changed, a file
    written by a newer version of the format, and one made to look right whose header is not. Nothing is executed, and
    no more memory is taken than a few times the size of the file. A file that does not exist is a FileNotFoundError.
    """
    safetensors = require("safetensors.torch", extra="train")
    name = os.fspath(path)
    blob = Path(path).read_bytes()
    data, header = _header(name, blob)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{name} was not written by ornstein: a safetensors file of another program")
    version, size, digest = _integer(name, header, "version"), _integer(name, header, "bytes"), header.get("sha256", "")
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{name} has format version {version}, and this ornstein reads up to {FORMAT_VERSION}: upgrade ornstein"
        )
    if len(blob) - data < size:
        raise CheckpointError(f"{name} is truncated: it holds {len(blob) - data} of its {size} bytes of tensors")
    digits = blob.find(_mark(digest), 0, data)
    sha = hashlib.sha256(blob[: max(digits, 0)])
    sha.update(_mark(_ZERO))
    sha.update(memoryview(blob)[digits + len(_mark(digest)) :])
    if digits < 0 or sha.hexdigest() != digest:
        raise CheckpointError(f"{name} is damaged: its checksum does not match its content")
    if header.get("kind") != kind:
        raise CheckpointError(f"{name} holds a {header.get('kind')!r}, not a {kind!r}")
    try:
        tensors, metadata = safetensors.load(blob), json.loads(header["metadata"])
    except Exception as error:  # whoever can compute a checksum can write any header, and safetensors meets any error
        raise CheckpointError(f"{name} is damaged: {type(error).__name__} in reading its tensors") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{name} is damaged: its metadata are no fields")
    return {key: tensor.to(device) for key, tensor in tensors.items()}, metadata


def _plain(tensor: Tensor) -> Tensor:
    """The tensor's values alone: no gradient, strides, lazy conjugation, device or memory shared with another."""
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _mark(digest: str) -> bytes:
    """The checksum as it stands in the header; a quote inside a JSON string is escaped, so nothing else reads so."""
    return f'"sha256":"{digest}"'.encode(errors="replace")


def _header(name: str, blob: bytes) -> tuple[int, dict[str, Any]]:
    """(where the tensors' bytes begin, the metadata, of whatever type a stranger gave them) of a safetensors file."""
    data = 8 + int.from_bytes(blob[:8], "little")
    if (data - 8 > _HEADER_LIMIT and len(blob) >= 8) or blob[8:9] not in (b"", b"{"):
        raise CheckpointError(f"{name} is not a safetensors file")
    if len(blob) < max(data, 9):
        raise CheckpointError(f"{name} is truncated: it ends after {len(blob)} bytes, inside its header")
    try:
        header = json.loads(blob[8:data]).get("__metadata__", {})
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is damaged, or not a safetensors file: its header is not JSON") from error
    return data, header if isinstance(header, dict) else {}


def _integer(name: str, header: Mapping[str, Any], key: str) -> int:
    try:
        return int(header[key])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{name} is damaged: its header gives no {key!r}") from error
