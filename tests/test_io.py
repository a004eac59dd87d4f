"""Files are old or new, never in between; a damaged one is never read."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ornstein.errors import CheckpointError
from ornstein.io import atomic, atomic_write, load_tensors, read_json, save_tensors, write_json

STEPS = ["write", "write", "write", "flush", "fsync", "rename", "fsync_dir"]  # of a file written in three pieces


def pieces(sink: atomic.Sink) -> None:
    for piece in (b"new", memoryview(b" whole"), b" content"):
        sink.write(piece)


NEW = b"new whole content"


def dies(work: Callable[[], None]) -> int:
    """Run `work` in a forked process and return its exit status: it leaves what a killed process leaves."""
    if (child := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(step: int) -> Callable[[str], None]:
    seen: list[str] = []

    def failpoint(name: str) -> None:
        seen.append(name)
        if len(seen) == step + 1:
            assert seen == STEPS[: step + 1]
            os._exit(9)

    return failpoint


@pytest.mark.parametrize("before", [b"old", None])
@pytest.mark.parametrize("step", range(len(STEPS)))
def test_kill_at_every_step_leaves_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, before: bytes | None
) -> None:
    path = tmp_path / "file"
    if before is not None:
        path.write_bytes(before)
    with monkeypatch.context() as patch:
        patch.setattr(atomic, "failpoint", kill_at(step))
        assert dies(lambda: atomic_write(path, pieces)) == 9
    # the new content appears with the rename, not earlier (a direct write shows at "write") and not later
    assert (path.read_bytes() if path.exists() else None) == (NEW if STEPS[step] == "fsync_dir" else before)
    assert len(list(tmp_path.glob(".file.*.tmp"))) == (STEPS[step] != "fsync_dir")  # a killed writer cannot clean up
    atomic_write(path, pieces)
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]  # the next one did


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_an_exception_at_every_step_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    path, left = tmp_path / "file", [step]

    def failpoint(name: str) -> None:
        if left[0] == 0:
            raise OSError(f"no space left at {name}")
        left[0] -= 1

    path.write_bytes(b"old")
    monkeypatch.setattr(atomic, "failpoint", failpoint)
    with pytest.raises(OSError, match=f"no space left at {STEPS[step]}"):
        atomic_write(path, pieces)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == (NEW if STEPS[step] == "fsync_dir" else b"old")


def test_the_disk_has_the_bytes_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order of durability: without the first fsync a crash may leave a renamed empty file, without the second none."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(handle: int) -> None:
        status = os.fstat(handle)
        done.append("folder" if stat.S_ISDIR(status.st_mode) else f"file of {status.st_size}")
        fsync(handle)

    def spy_replace(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    atomic_write(tmp_path / "file", pieces)
    assert done == [f"file of {len(NEW)}", "rename", "folder"]


def test_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / ".file.backup.tmp"
    other.write_bytes(b"the user's own")

    def writer(sink: atomic.Sink) -> None:
        sink.write(b"outer")
        atomic_write(path, b"inner")  # sweeps while the outer writer lives
        assert path.read_bytes() == b"inner"

    atomic_write(path, writer)
    assert path.read_bytes() == b"outer"
    assert sorted(os.listdir(tmp_path)) == [".file.backup.tmp", "file"]


def test_folders_links_modes_and_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "a" / "b" / "file", tmp_path / "link"
    atomic_write(path, b"")
    assert path.read_bytes() == b""
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode  # the umask's, not a private file's 0600
    link.symlink_to(path)
    monkeypatch.setattr(atomic, "CHUNK", 7)
    atomic_write(link, bytes(range(256)))
    assert link.is_symlink()
    assert path.read_bytes() == bytes(range(256))


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    value = {"a": [1, 0.1, None, True], "ü": "x"}
    write_json(path, value)
    assert read_json(path) == value
    with pytest.raises(TypeError, match="complex"):
        write_json(path, 1j)
    assert read_json(path) == value
    path.write_text('{"a": 1,\n "b" 2}')
    with pytest.raises(ValueError, match=r"value\.json is not a JSON file.*line 2"):
        read_json(path)


METADATA = {
    "step": 3,
    "name": "ü\n",
    "nest": {"grid": [0.1, 1e-300], "none": None},
    "trap": '"sha256":"' + "0" * 64 + '"',
}


def tensors() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (6, 4), generator=g).to(torch.int32)  # any pattern: NaNs, infinities, -0
    base = torch.randn(4, 6, generator=g, dtype=torch.float64)
    return {
        "f32": bits.view(torch.float32),
        "bf16": bits.view(torch.bfloat16),
        "f16": bits.view(torch.float16),
        "f64": base,
        "shared": base,  # the same memory
        "view": base[1:3],
        "transposed": base.T,
        "strided": base[:, ::2],
        "expanded": base[:1].expand(3, 6),
        "parameter": torch.nn.Parameter(base[0]),
        "i64": torch.tensor([2**62 + 1, -1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(0.1),
        "empty": torch.zeros(0, 3),
        "complex": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "sha256": torch.zeros(1),
        "a\x1fb": torch.ones(1),  # its header name is \u001f: the hexadecimal digits' case could flip unseen
    }


def bits_of(tensor: Tensor) -> bytes:
    return tensor.detach().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    path, given = tmp_path / "run.safetensors", tensors()
    save_tensors(path, given, METADATA, kind="checkpoint")
    read, metadata = load_tensors(path, kind="checkpoint")
    assert metadata == METADATA
    assert read.keys() == given.keys()
    for name, tensor in given.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits_of(read[name]) == bits_of(tensor), name
        assert not read[name].requires_grad
    read["f64"].zero_()  # the result is the caller's own: writable, and no longer shared
    assert bits_of(read["shared"]) == bits_of(given["f64"])
    save_tensors(path, {}, kind="nothing")
    assert load_tensors(path, kind="nothing") == ({}, {})


def small(path: Path) -> bytes:
    save_tensors(
        path,
        {"a\x1fb": torch.arange(3.0), "i": torch.tensor([7], dtype=torch.int16), "c": torch.zeros(())},
        {"k": 1},
        kind="checkpoint",
    )
    return path.read_bytes()


def test_every_single_bit_flip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole = small(path)
    reasons: set[str] = set()
    for place in range(8 * len(whole)):
        bad = bytearray(whole)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError) as caught:
            load_tensors(path, kind="checkpoint")
        assert str(path) in str(caught.value)
        reasons.add(str(caught.value))
    assert any("checksum does not match" in reason for reason in reasons)
    path.write_bytes(whole)
    load_tensors(path, kind="checkpoint")


def test_every_truncation_and_any_appendix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole = small(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            load_tensors(path, kind="checkpoint")
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="checksum"):
        load_tensors(path, kind="checkpoint")


def test_swapped_blocks_of_a_large_file_are_refused(tmp_path: Path) -> None:
    """Equal sums, equal length: what a checksum that adds bytes up would let pass."""
    path = tmp_path / "run.safetensors"
    save_tensors(path, {"w": torch.arange(4096.0)}, kind="checkpoint")
    whole = path.read_bytes()
    path.write_bytes(whole[:-8192] + whole[-4096:] + whole[-8192:-4096])
    with pytest.raises(CheckpointError, match="checksum"):
        load_tensors(path, kind="checkpoint")


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "run.safetensors"

    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            load_tensors(path, kind="checkpoint")

    save_tensors(path, {"a": torch.ones(2)}, kind="table")
    refused("holds a 'table', not a 'checkpoint'")
    save_file({"a": torch.ones(2)}, path)
    refused("another program")
    save_file({"a": torch.ones(2)}, path, metadata={"format": "pt"})
    refused("another program")
    save_file(
        {"a": torch.ones(2)},
        path,
        metadata={"format": "ornstein", "version": "2", "kind": "checkpoint"} | {"bytes": "8"},
    )
    refused("format version 2, and this ornstein reads up to 1: upgrade")
    save_file({"a": torch.ones(2)}, path, metadata={"format": "ornstein", "kind": "checkpoint"})
    refused("gives no 'version'")
    torch.save({"a": torch.ones(2)}, path)  # a pickle in a zip
    refused("not a safetensors file")
    for foreign in (b"%PDF-1.7 and so on", b"\0" * 64, b"#!/bin/sh\n", bytes(range(256))):
        path.write_bytes(foreign)
        refused("not a safetensors file")
    path.write_bytes((20).to_bytes(8, "little") + b"{this is not JSON at all}")
    refused("not JSON")
    path.write_bytes(b"")
    refused("truncated")
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "absent", kind="checkpoint")


def test_a_checkpoint_killed_at_every_step_is_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.safetensors"
    names = ["write", "write", "flush", "fsync", "rename", "fsync_dir"]
    for step, name in enumerate(names):
        save_tensors(path, {"w": torch.zeros(100)}, {"step": 1}, kind="checkpoint")
        seen: list[str] = []

        def failpoint(at: str, step: int = step, seen: list[str] = seen) -> None:
            seen.append(at)
            if len(seen) == step + 1:
                os._exit(9)

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "failpoint", failpoint)
            assert dies(lambda: save_tensors(path, {"w": torch.ones(100)}, {"step": 2}, kind="checkpoint")) == 9
        read, metadata = load_tensors(path, kind="checkpoint")
        new = name == "fsync_dir"
        assert metadata == {"step": 1 + new}
        assert torch.equal(read["w"], torch.full((100,), float(new)))


def test_metadata_without_json_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Tensor"):
        save_tensors(tmp_path / "run", {}, {"lr": torch.ones(1)}, kind="checkpoint")
    assert os.listdir(tmp_path) == []


def test_without_safetensors_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install 'ornstein\[train\]'"):
        save_tensors(tmp_path / "run", {}, kind="checkpoint")


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    """Any other reader opens it, and finds the metadata as text."""
    from safetensors import safe_open

    path = tmp_path / "run.safetensors"
    save_tensors(path, {"w": torch.arange(3)}, {"step": 1}, kind="checkpoint")
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("w"), torch.arange(3))
        header = file.metadata()
    assert (header["format"], header["version"], header["kind"]) == ("ornstein", "1", "checkpoint")
    assert json.loads(header["metadata"]) == {"step": 1}
