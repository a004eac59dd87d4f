"""The folder of a run under `ornstein train`: a full disk, a folder that may not be written, a flipped bit."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fuzzing import answer, one_line
from ornstein.io import atomic, load_tensors


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Four steps on forty points, with a checkpoint and a look at the samples after the second and the fourth."""
    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(40, 2)))
    net = ["--net", "mlp", "--width", "4", "--depth", "1", "--batch-size", "2", "--process", "flow"]
    more = ["--steps", "4", "--set", "every=2", "--set", "watch=1"]
    return ["train", "--data", str(tmp_path / "points.npy"), "--out", str(tmp_path / "run"), *net, *more]


def weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What a checkpoint holds, its checksum compared."""
    return load_tensors(path, kind="checkpoint")


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints hold the same bits."""
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(x, b[0][name]) for name, x in a[0].items())


def test_a_full_disk(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full from one primitive step of a write on, for every such step of a training: one line, no file
    that is torn or left over, the checkpoint that of the second step, or the fourth, or none yet, as in a training that
    nothing stopped; and the same command ends with the same bits."""
    checkpoint, points, kept = tmp_path / "run" / "checkpoint.safetensors", list[str](), list[Any]()

    def watch(name: str) -> None:
        points.append(name)
        if name == "fsync_dir" and checkpoint.exists():
            kept.append(weights(checkpoint))

    monkeypatch.setattr(atomic, "failpoint", watch)
    assert answer(command)[0] == 0
    whole = weights(checkpoint)
    steps = {found[1]["step"]: found for found in kept}
    assert set(steps) == {2, 4}
    assert len(points) >= 25  # five steps of each of config, space, two checkpoints and two files of samples
    stood = set()
    for k, point in enumerate(points):
        shutil.rmtree(tmp_path / "run")
        seen = [0]

        def full(name: str, k: int = k, seen: list[int] = seen) -> None:
            seen[0] += 1
            if seen[0] > k:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(atomic, "failpoint", full)
        code, _, err = answer(command)
        assert code == 2, (k, point)
        one_line(err)
        assert "No space left" in err
        assert not list((tmp_path / "run").rglob("*.tmp"))
        if checkpoint.exists():
            found = weights(checkpoint)
            stood.add(found[1]["step"])
            assert same(found, steps[found[1]["step"]]), (k, point)
        monkeypatch.setattr(atomic, "failpoint", lambda name: None)
        code, _, err = answer(command)
        assert code == 0, (k, point, err)
        assert same(weights(checkpoint), whole), (k, point)
    assert stood == {2, 4}


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_that_may_not_be_written(
    begun: bool, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, for root may write everywhere: opening a new file fails, in a new run and in the middle of one."""
    checkpoint, before = tmp_path / "run" / "checkpoint.safetensors", None
    opened = [0]

    def no(path: Any, mode: str = "r", *rest: Any) -> Any:
        if "x" in mode:
            opened[0] += 1
            if not begun or (checkpoint.exists() and opened[0] > 4):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return open(path, mode, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "open", no, raising=False)
        code, _, err = answer(command)
        assert code == 2
        one_line(err)
        assert "Read-only file system" in err
        if begun:
            before = weights(checkpoint)
            assert before[1]["step"] == 2
        assert answer(command)[0] == 2  # again, and again nothing is lost
        assert checkpoint.exists() is begun
    assert before is None or same(weights(checkpoint), before)
    assert answer(command)[0] == 0
    assert weights(checkpoint)[1]["step"] == 4


def test_a_flipped_bit(command: list[str], tmp_path: Path) -> None:
    """Anywhere in the checkpoint: training, sampling and exporting refuse it in one line, and leave it as it is."""
    run = tmp_path / "run"
    assert answer(command)[0] == 0
    path = run / "checkpoint.safetensors"
    good = path.read_bytes()
    commands = [command, ["sample", str(run), "-n", "2"], ["evaluate", str(run), "--check"], ["export", str(run)]]
    for k, at in enumerate(range(0, len(good), len(good) // 12)):
        bad = bytearray(good)
        bad[at] ^= 1 << (k % 8)
        path.write_bytes(bad)
        code, _, err = answer(commands[k % len(commands)])
        assert code == 2, at
        one_line(err)
        assert "checkpoint.safetensors" in err
        assert path.read_bytes() == bad
    path.write_bytes(good)
    assert all(answer(arguments)[0] == 0 for arguments in commands)


@pytest.mark.parametrize("name", ["config.yaml", "space.json", "checkpoint.safetensors", "watch", "samples"])
def test_a_thing_of_the_wrong_kind(name: str, command: list[str], tmp_path: Path) -> None:
    """A folder where a file should be, or a file where a folder should be, is one line, and stays."""
    run = tmp_path / "run"
    if name in ("watch", "samples"):
        run.mkdir()
        (run / name).write_text("mine")
    else:
        (run / name).mkdir(parents=True)
    code, _, err = answer(command)
    if code == 0:
        code, _, err = answer(["sample", str(run), "-n", "2", "--steps", "2"])
    assert code == 2
    one_line(err)
    assert (run / name).exists()
