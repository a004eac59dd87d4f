"""Samples at scale: the same whatever the batch, the processes or the kills; nothing lost, nothing outside touched."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.cli.app import run as cli
from ornstein.data import ArraySpace, Column, ImageSpace, SeriesSpace, Space, TableSpace
from ornstein.data.images import class_folders
from ornstein.errors import CheckpointError
from ornstein.io import atomic, write_json
from ornstein.random import derive
from ornstein.report.formats import export, form_of
from ornstein.report.judge import judge_of
from ornstein.report.page import run_page
from ornstein.report.run import Run
from ornstein.report.shards import Rows, Shards
from ornstein.solvers.loop import Loop
from ornstein.training.workers import Workers

ALONE = Workers()
N = ["-n", "10", "--batch", "4", "--steps", "3"]  # three shards: 4, 4 and 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps on forty labelled points in the plane."""
    folder = tmp_path_factory.mktemp("trained")
    rng, y = np.random.default_rng(0), np.arange(40) % 2
    np.savez(folder / "small.npz", x=rng.normal(size=(40, 2)) + 6 * y[:, None], y=y)
    net = {"kind": "mlp", "width": 16, "depth": 1}
    Run.create(folder / "run", {"data": str(folder / "small.npz"), "steps": 4, "batch_size": 8, "net": net}).train()
    return folder / "run"


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def dies(work: Callable[[], object]) -> bool:
    """Run `work` in a forked process; whether a signal killed it."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command line refuses these arguments."""
    capsys.readouterr()
    assert cli(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    return err


def made(start: int, stop: int) -> Rows:
    """Samples that say which they are: x_i = (i, -i), labels i mod 3."""
    i = torch.arange(start, stop)
    return torch.stack([i, -i], 1).float(), i % 3


def three(folder: Path, n: int = 10, size: int = 4) -> Shards:
    """Complete shards of those samples."""
    shards = Shards.open(folder, {"seed": 0, "n": n}, size)
    shards.fill(made, batch=size, workers=ALONE)
    return shards


# what a sample is


def test_a_sample_has_a_seed_of_its_own(folder: Path) -> None:
    """Sample i is that of the seed derive(seed, i) and the label i mod 2, by itself; the rival, one stream for the
    batch, gives others as soon as the cut is another."""
    run = Run.open(folder)
    sampler = run.sampler(steps=3, seed=5)
    whole = sampler(0, 10).x
    for i in (0, 3, 9):
        table = {"solver": orn.DPMSolverPP(order=2), "steps": 3, "cond": {"label": torch.tensor([i % 2])}}
        alone = orn.sample(run.model(), (1, 2), seed=[derive(5, i)], **table).x
        # float32 sums of 16 terms in another order, over 3 steps of a contracting flow
        assert torch.allclose(alone[0], whole[i], rtol=0, atol=1e-5)
    pieces = torch.cat([sampler(0, 3).x, sampler(3, 4).x, sampler(4, 10).x])
    assert torch.allclose(pieces, whole, rtol=0, atol=1e-5)
    assert torch.equal(run.sample(10, steps=3, seed=5).x, whole)
    rival = [orn.sample(run.model(), (k, 2), seed=5, steps=3, cond={"label": torch.zeros(k).long()}).x for k in (10, 6)]
    assert not torch.allclose(rival[0][4:], rival[1], atol=1e-2)


def test_noise_is_the_same_bit_for_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[Tensor] = []
    original = Loop.__init__

    def spy(self: Any, denoiser: Any, table: Any, start: Tensor, *args: Any, **kwargs: Any) -> None:
        starts.append(start.clone())
        original(self, denoiser, table, start, *args, **kwargs)

    monkeypatch.setattr(Loop, "__init__", spy)
    sampler = Run.open(folder).sampler(steps=2)
    sampler(0, 10)
    for a, b in ((0, 3), (3, 10)):
        sampler(a, b)
    assert torch.equal(starts[0], torch.cat(starts[1:]))


def test_two_processes_give_the_samples_of_one(folder: Path, tmp_path: Path) -> None:
    assert cli(["sample", str(folder), *N, "--out", str(tmp_path / "one")]) == 0
    assert cli(["sample", str(folder), *N, "--out", str(tmp_path / "one.npz")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "ornstein"]
    options = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    asked = ["sample", str(folder), *N, "--out", str(tmp_path / "two.npz")]
    done = subprocess.run([*command, *asked], env=options, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 samples, 3 network evaluations each") == 1  # said once
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert np.array_equal(one["y"], two["y"])
    assert np.allclose(one["x"], two["x"], rtol=0, atol=1e-5)
    assert not (tmp_path / "two.npz.parts").exists()


def test_the_processes_share_the_shards(tmp_path: Path) -> None:
    """Each makes every second shard, and the first finds what the second has made."""
    did: list[tuple[int, int]] = []

    def spy(start: int, stop: int) -> Rows:
        did.append((start, stop))
        return made(start, stop)

    class Waiting(Workers):
        def wait(self) -> None:
            """In place of the other process, which comes later here."""
            if self.rank == 0 and len(did) == 2:
                shards.fill(spy, batch=4, workers=Waiting(2, 1))

    shards = Shards.open(tmp_path / "x", {"n": 10}, 4)
    shards.fill(spy, batch=4, workers=Waiting(2, 0))
    assert did == [(0, 4), (8, 10), (4, 8)]
    assert torch.cat([x for x, _ in shards.read()])[:, 0].tolist() == list(range(10))


# shards


def test_shards_hold_what_was_made(tmp_path: Path) -> None:
    shards = three(tmp_path / "x")
    assert [(len(x), y.tolist()) for x, y in shards.read() if y is not None] == [
        (4, [0, 1, 2, 0]), (4, [1, 2, 0, 1]), (2, [2, 0]),
    ]  # fmt: skip
    assert torch.cat([x for x, _ in shards.read(5)])[:, 0].tolist() == [0, 1, 2, 3, 4]
    with np.load(tmp_path / "x" / "shard-00001.npz", allow_pickle=False) as plain:  # as anyone reads them
        assert plain["x"][:, 1].tolist() == [-4, -5, -6, -7]
        assert plain["y"].tolist() == [1, 2, 0, 1]


def test_every_flipped_bit_is_found_and_made_again(tmp_path: Path) -> None:
    shards, rng = three(tmp_path / "x"), random.Random(0)
    good = tree(tmp_path / "x")
    path = tmp_path / "x" / "shard-00001.npz"
    blob = good[path.name]
    places = [0, len(blob) - 1, *rng.sample(range(len(blob)), 60)]
    damaged = [blob[:i] + bytes([blob[i] ^ 1 << rng.randrange(8)]) + blob[i + 1 :] for i in places]
    damaged += [b"", blob[:-1], blob[: len(blob) // 2], blob + b"\0", good["shard-00000.npz"]]
    three(tmp_path / "other", n=11)
    damaged.append((tmp_path / "other" / path.name).read_bytes())  # of another request
    calls: list[tuple[int, int]] = []

    def spy(start: int, stop: int) -> Rows:
        calls.append((start, stop))
        return made(start, stop)

    for bad in damaged:
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"shard-00001.npz is damaged"):
            list(shards.read())
        Shards.open(tmp_path / "x", {"seed": 0, "n": 10}, 4).fill(spy, batch=4, workers=ALONE)
        assert tree(tmp_path / "x") == good
    assert calls == [(4, 8)] * len(damaged)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        list(shards.read())


def test_another_request_is_refused_with_what_differs(tmp_path: Path) -> None:
    three(tmp_path / "x")
    before = tree(tmp_path / "x")
    for asked, words in (
        ({"seed": 1, "n": 10}, "seed was 0, is 1. Choose"),
        ({"seed": 0, "n": 11}, "n was 10, is 11"),
        ({"seed": 1, "n": 9}, "seed was 0, is 1; n was 10, is 9"),
        ({"seed": 0, "n": 10, "solver": "heun"}, "solver was None, is heun"),
    ):
        with pytest.raises(CheckpointError, match=words):
            Shards.open(tmp_path / "x", asked, 4)
    assert Shards.open(tmp_path / "x", {"n": 10, "seed": 0}, 3).size == 4  # the shards keep their size
    assert tree(tmp_path / "x") == before


def test_a_smaller_batch_goes_on(tmp_path: Path) -> None:
    whole = three(tmp_path / "whole")
    shards, sizes = three(tmp_path / "x"), list[int]()
    for k in (0, 2):
        shards.path(k).unlink()

    def spy(start: int, stop: int) -> Rows:
        sizes.append(stop - start)
        return made(start, stop)

    Shards.open(tmp_path / "x", shards.request, 3).fill(spy, batch=3, workers=ALONE)
    assert sizes == [3, 1, 2]
    assert tree(shards.folder) == tree(whole.folder)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "..\\x", "C:x", "sub/shard-00000.npz", "./shard-00000.npz", "shard-00001.npz",
             "", None, 3, ["shard-00000.npz"]],
)  # fmt: skip
def test_a_manifest_cannot_leave_its_folder(tmp_path: Path, name: Any) -> None:
    shards = three(tmp_path / "deep" / "er" / "x")
    (tmp_path / "deep" / "x").write_bytes(shards.path(0).read_bytes())
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    manifest["shards"][0]["file"] = name
    write_json(shards.folder / "manifest.json", manifest)
    before = tree(tmp_path)
    for work in (lambda: list(shards.read()), lambda: three(shards.folder), lambda: Shards.read_only(shards.folder)):
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            work()
    assert tree(tmp_path) == before


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A folder from a stranger may link a shard, or the manifest, to a file of yours."""
    mine = tmp_path / "mine"
    for name in ("shard-00001.npz", "manifest.json"):
        folder = tmp_path / f"x {name}"
        shards = three(folder)
        mine.write_bytes((folder / name).read_bytes())
        (folder / name).unlink()
        (folder / name).symlink_to(mine)
        for work in (lambda s=shards: list(s.read()), lambda f=folder: three(f)):
            with pytest.raises(CheckpointError, match="symbolic link"):
                work()
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "not there")
        with pytest.raises(CheckpointError, match="symbolic link"):
            three(folder)
        assert not (tmp_path / "not there").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"}, {"version": 2}, {"version": "1"}, {"request": None}, {"request": {"n": "10"}}, {"size": 0},
        {"size": True}, {"size": 5.0}, {"request": {"n": -1}}, {"shards": {}}, {"shards": []}, {"shards": [1, 2, 3]},
        {"shards": [{"file": f"shard-0000{i}.npz", "sha256": "0" * 63} for i in range(3)]},
        {"size": 10**9}, {"request": {"n": 10**12}},
    ],
)  # fmt: skip
def test_a_crafted_manifest_is_one_error(tmp_path: Path, change: dict[str, Any]) -> None:
    shards = three(tmp_path / "x")
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    write_json(shards.folder / "manifest.json", manifest | change)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        Shards.read_only(shards.folder)
    for text in ("", "[1]", "null", "{", '"x"'):
        (shards.folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json"):
            Shards.read_only(shards.folder)


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    """A shard of Python objects, with a right checksum in the manifest, is not opened."""
    import hashlib

    shards = three(tmp_path / "x")
    np.savez(shards.path(0), x=np.array([print, None], dtype=object))
    manifest = json.loads((shards.folder / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(shards.path(0).read_bytes()).hexdigest()
    write_json(shards.folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        list(shards.read())


# formats


def written(tmp_path: Path, name: str, space: Space, make: Any, n: int = 10) -> Path:
    """The file or folder that 10 samples in shards of 4 become."""
    shards, target = Shards.open(tmp_path / f"{name}.parts", {"n": n}, 4), tmp_path / name
    shards.fill(make, batch=4, workers=ALONE)
    form = form_of(target, None if target.suffix else "png")
    export(shards, target, form, space, space.bounds)
    shards.remove()
    assert not shards.folder.exists()
    return target


def test_one_file_of_arrays(tmp_path: Path) -> None:
    arrays = np.load(written(tmp_path, "x.npz", ArraySpace((2,), ("a", "b", "c"), dtype="int16"), made))
    assert arrays["x"].dtype == np.int16
    assert arrays["x"].tolist() == [[i, -i] for i in range(10)]
    assert arrays["y"].tolist() == [i % 3 for i in range(10)]
    bare = np.load(written(tmp_path, "bare.npz", ArraySpace((2,)), lambda a, b: (made(a, b)[0], None)))
    assert bare.files == ["x"]
    assert bare["x"].dtype == np.float32


def test_tables(tmp_path: Path) -> None:
    """Names, types, categories and what is missing, also where only a later shard misses it."""
    import pandas as pd

    columns = (Column("age", "number", "Int64", True, 0), Column("town", "category", "str", levels=("Oslo", "Bonn")))
    label = Column("kind", "category", "str", levels=("u", "v", "w"))
    space = TableSpace((2,), ("u", "v", "w"), None, columns, label, 2)

    def make(start: int, stop: int) -> Rows:
        i = torch.arange(start, stop)
        age = torch.where(i == 5, torch.nan, i.float())
        return torch.stack([age, (i % 2).float()], 1), i % 3

    truth = space.to_user(*make(0, 10))
    comma = written(tmp_path, "x.csv", space, make)
    assert comma.read_text() == truth.to_csv(index=False, lineterminator="\n")
    assert comma.read_text().splitlines()[6] == ",Bonn,w"
    frame = pd.read_parquet(written(tmp_path, "x.parquet", space, make))
    assert frame["age"].isna().tolist() == [i == 5 for i in range(10)]
    pd.testing.assert_frame_equal(frame, truth, check_dtype=False)
    # numbers without names
    numbers = pd.read_csv(written(tmp_path, "y.csv", ArraySpace((2,), ("a", "b", "c")), made))
    assert list(numbers.columns) == ["x0", "x1", "y"]
    assert numbers["x1"].tolist() == [-i for i in range(10)]


def test_series_are_numbered_on(tmp_path: Path) -> None:
    import pandas as pd

    space = SeriesSpace((1, 3), times=(0.0, 1.0, 2.0), channels=("v",))
    path = written(
        tmp_path, "x.csv", space, lambda a, b: (torch.arange(a, b).float()[:, None, None].expand(-1, 1, 3), None)
    )
    frame = pd.read_csv(path)
    assert frame["series"].tolist() == [i for i in range(10) for _ in range(3)]
    assert (frame["v"] == frame["series"]).all()


def test_pictures(tmp_path: Path) -> None:
    """0 is black and 1 is white, in eight bits; each class in a folder that its name cannot lead out of."""
    from PIL import Image

    def make(start: int, stop: int) -> Rows:
        i = torch.arange(start, stop)
        return (i / 8).reshape(-1, 1, 1, 1).expand(-1, 3, 2, 2), i % 2

    folder = written(tmp_path, "pictures", ImageSpace((3, 2, 2), ("../up", ".."), (0.0, 1.0)), make)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    assert names == [f".._up/{i}.png" for i in range(0, 10, 2)] + [f"class 1/{i}.png" for i in range(1, 10, 2)]
    for i in range(10):
        pixels = np.array(Image.open(next(folder.rglob(f"{i}.png"))))
        assert (pixels.dtype, pixels.shape) == (np.uint8, (2, 2, 3))
        assert (pixels == min(round(255 * i / 8), 255)).all()
    grey = written(tmp_path, "grey", ImageSpace((1, 2, 2)), lambda a, b: (make(a, b)[0][:, :1] - 0.5, None))
    assert [int(np.array(Image.open(grey / f"{i}.png"))[0, 0]) for i in (0, 9)] == [0, 255]  # least and greatest


@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.parquet"])
def test_memory_does_not_grow_with_n(tmp_path: Path, name: str) -> None:
    """The peak for 24 shards is that for 4, less than half as much again; whatever grew with n would be 6 times it."""
    rows = 16_384 if name == "x.npz" else 256  # its buffers of 1 MB are then full in both

    def make(start: int, stop: int) -> Rows:
        return torch.full((stop - start, 16), 1.5), None

    def peak(count: int) -> int:
        shards = Shards.open(tmp_path / f"parts {count}", {"n": count * rows}, rows)
        tracemalloc.start()
        try:
            shards.fill(make, batch=rows, workers=ALONE)
            export(shards, tmp_path / name, Path(name).suffix, ArraySpace((16,)), None)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is imported and compiled once
    few, many = peak(4), peak(24)
    assert many < 1.5 * few, (few, many)


# kills, full disks


Prepare = Callable[..., Callable[[], object]]


@pytest.fixture(params=["shards", "file", "evaluate"])
def command(request: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Makes tmp_path/run the run anew, and returns the work of a command on it (the report without its drawing)."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    run = Run.open(folder)
    out = {"shards": None, "file": folder / "many.npz", "evaluate": None}[request.param]
    job = run.job(10, batch=4, steps=3, out=out)
    judge = judge_of(run.split)
    monkeypatch.setattr("ornstein.report.run.judge_of", lambda split: judge)
    monkeypatch.setattr("ornstein.report.page.PARTS", {})

    def prepare(anew: bool = True) -> Callable[[], object]:
        if anew:
            shutil.rmtree(folder)
            shutil.copytree(trained, folder)
        if request.param != "evaluate":
            return job.run
        return lambda: run_page(run, run.evaluate(steps=3, batch=4))

    return prepare


def test_killed_at_every_failpoint(command: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[str] = []
    folder, evaluations, original = tmp_path / "run", [0], Loop.run
    monkeypatch.setattr(atomic, "failpoint", points.append)
    command()()
    assert {"write", "flush", "fsync", "rename", "fsync_dir"} == set(points)
    result = tree(folder)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        evaluations[0] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "run", counted)
    monkeypatch.setattr(atomic, "failpoint", lambda name: None)
    command()()
    shards = evaluations[0]
    assert shards in (2, 3)
    for k in range(len(points)):
        seen = [0]

        def kill(name: str, k: int = k, seen: list[int] = seen) -> None:
            if seen[0] == k:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1

        monkeypatch.setattr(atomic, "failpoint", kill)
        assert dies(command())
        there = len(list(folder.rglob("shard-*.npz")))
        finished = (folder / "many.npz").exists()
        monkeypatch.setattr(atomic, "failpoint", lambda name: None)
        evaluations[0] = 0
        command(False)()
        assert tree(folder) == result, f"killed at failpoint {k}, {points[k]}"
        assert finished or evaluations[0] == shards - there  # what was there was not made again


def test_a_full_disk_is_one_error_and_nothing_is_lost(
    command: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points: list[str] = []
    folder = tmp_path / "run"
    monkeypatch.setattr(atomic, "failpoint", points.append)
    command()()
    result = tree(folder)
    codes = [(k, errno.ENOSPC) for k in range(len(points))] + [(0, errno.EROFS), (7, errno.EACCES)]
    for k, code in codes:
        seen = [0]

        def full(name: str, k: int = k, code: int = code, seen: list[int] = seen) -> None:
            seen[0] += 1
            if seen[0] > k:
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(atomic, "failpoint", full)
        with pytest.raises(OSError, match=os.strerror(code)) as error:
            command()()
        assert "\n" not in str(error.value)
        monkeypatch.setattr(atomic, "failpoint", lambda name: None)
        left = tree(folder)
        assert not [name for name in left if name.endswith(".tmp")]
        assert all(result.get(name, content) == content for name, content in left.items() if "manifest" not in name)
        command(False)()
        assert tree(folder) == result, f"full at failpoint {k}, {points[k]}"


def test_a_folder_that_may_not_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Nothing is evaluated if not even the manifest can be written."""

    def no(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Loop, "run", lambda *args, **kwargs: pytest.fail("evaluated"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", no)
        assert "Permission denied" in refused(capsys, "sample", str(folder), *N)


# the commands


def test_a_complete_request_is_left_as_it_is(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    asked = ["sample", str(folder), *N]
    for out in ([], ["--out", str(tmp_path / "x.npz")], ["--out", str(tmp_path / "y"), "--format", "npz"]):
        assert cli([*asked, *out]) == 0
        before = tree(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Loop, "run", lambda *args, **kwargs: pytest.fail("evaluated"))
            assert cli([*asked, *out]) == 0
        assert tree(tmp_path) == before
    assert "seed was 0, is 1" in refused(capsys, *asked, "--seed", "1", "--out", str(tmp_path / "x.npz"))
    assert "n was 10, is 7" in refused(capsys, *asked, "-n", "7", "--out", str(tmp_path / "y"))
    (tmp_path / "x.npz").write_bytes(b"damaged")
    assert cli([*asked, "--out", str(tmp_path / "x.npz")]) == 0
    assert tree(tmp_path) == before
    assert cli([*asked, "--seed", "1"]) == 0  # without --out, each request has a place of its own
    (tmp_path / "mine.npz").write_bytes(b"mine")
    assert "not written by this command" in refused(capsys, *asked, "--out", str(tmp_path / "mine.npz"))
    assert (tmp_path / "mine.npz").read_bytes() == b"mine"


def test_a_model_that_was_trained_on_makes_other_samples(folder: Path, tmp_path: Path, capsys: Any) -> None:
    asked = ["sample", str(folder), *N, "--out", str(tmp_path / "x.npz")]
    assert cli(asked) == 0
    run = Run.open(folder)
    run.checkpoint.unlink()
    Run(folder, run.config.model_copy(update={"seed": 9})).train()
    assert "checkpoint was" in refused(capsys, *asked)


def test_evaluate_takes_the_samples_of_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if there are more of them, and where one is damaged, that one is made again."""
    assert cli(["sample", str(folder), *N, "--label", "held-out"]) == 0
    made_before = tree(folder / "samples")
    calls, original = [0], Loop.run

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "run", counted)
    found = Run.open(folder).evaluate(steps=3)
    assert calls == [0]
    assert tree(folder / "samples") == made_before
    alone = Run.open(folder).sampler(labels=Run.open(folder).labels_named("held-out"), steps=3)(0, 8)
    assert torch.allclose(found.x, alone.x, rtol=0, atol=1e-5)
    damaged = next(folder.rglob("shard-00001.npz"))
    damaged.write_bytes(b"")
    calls[0] = 0
    assert torch.equal(Run.open(folder).evaluate(steps=3).x, found.x)
    assert calls == [1]
    assert tree(folder / "samples") == made_before
    Run.open(folder).evaluate(steps=4)  # other settings, other samples
    assert len(list((folder / "samples").iterdir())) == 2


@pytest.mark.parametrize("command", [["sample", *N], ["evaluate", "--steps", "3"]])
def test_check_evaluates_and_writes_nothing(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = tree(folder.parent)
    monkeypatch.setattr(Loop, "run", lambda *args, **kwargs: pytest.fail("evaluated"))
    monkeypatch.setattr(atomic, "failpoint", lambda name: pytest.fail("written"))
    capsys.readouterr()
    arguments = [command[0], str(folder), *command[1:], "--check"]
    assert cli(arguments) == 0
    assert capsys.readouterr().out == "ok\n"
    for wrong in (["--steps", "0"], ["--guidance", "nan"], ["--batch", "0"], ["--solver", "hein"]):
        refused(capsys, *arguments, *wrong)
    if command[0] == "sample":
        for wrong in (["--label", "7"], ["--label", "cat"], ["--out", "x.jpg"], ["--out", "x.png"], ["-n", "0"],
                      ["--format", "jpg"], ["--format", "csv", "--out", "x.npz"], ["--format", "csv", "--out", "x"],
                      ["--out", str(folder / "config.yaml")], ["--out", str(folder), "--format", "png"]):  # fmt: skip
            refused(capsys, *arguments, *wrong)
    assert tree(folder.parent) == before


def test_classes_by_name_or_number(folder: Path) -> None:
    run = Run.open(folder)
    assert run.labels_named(None) is None
    assert run.labels_named("1") is not None
    labels = run.labels_named("held-out")
    assert labels is not None
    assert torch.equal(labels, run.split.held_out.rows()[1])
    round_and_round = run.sampler(labels=torch.tensor([1, 0, 1])).labels_of(2, 7)
    assert round_and_round is not None
    assert round_and_round.tolist() == [1, 1, 0, 1, 1]


def test_places_are_no_names_where_names_are_numbers(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of classes "3", "7" and "held-out": 7 is the class so named, and 0 is nothing, not the first class."""
    run = Run.open(trained)
    monkeypatch.setattr(Run, "space", ArraySpace((2,), ("3", "7", "held-out")))
    for name, place in (("7", 1), ("held-out", 2)):
        found = run.labels_named(name)
        assert found is not None
        assert found.tolist() == [place]
    with pytest.raises(ValueError, match="unknown label '0'"):
        run.labels_named("0")
    monkeypatch.setattr(Run, "space", ArraySpace((2,), ("a", "b")))
    found = run.labels_named("1")
    assert found is not None
    assert found.tolist() == [1]


def test_no_file_of_the_user_is_written_over(folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """A folder with other files, parts and notes of another's making, and names that are no names of their own."""
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.chdir(mine)
    (mine / "shard-00000.npz").write_bytes(b"mine")
    (tmp_path / "x.npz.json").write_text('{"mine": 1}')
    (tmp_path / "y.npz").write_bytes(b"mine")
    (tmp_path / "y.npz.parts").mkdir()
    (tmp_path / "z.npz.parts").mkdir()
    (tmp_path / "z.npz.parts" / "shard-00000.npz").write_bytes(b"mine")
    before = tree(tmp_path)
    for out in (str(mine), ".", "..", "", "../mine/..", *(str(tmp_path / f"{name}.npz") for name in "xyz")):
        refused(capsys, "sample", str(folder), *N, "--out", out)
        assert tree(tmp_path) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / f".manifest.json.{'0' * 16}.tmp").write_bytes(b"")  # what a killed writer of ours leaves
    assert cli(["sample", str(folder), *N, "--out", str(empty)]) == 0


@pytest.mark.parametrize("kind", ["table", "series"])
def test_tables_come_back_in_their_own_terms(kind: str, tmp_path: Path) -> None:
    """Without --out one .csv; in an .npz the space says what the numbers mean."""
    import pandas as pd

    rng = np.random.default_rng(0)
    source = tmp_path / ("t.csv" if kind == "table" else "t.npz")
    if kind == "table":
        lines = [f"{rng.normal():.3f},{('red', 'green')[i % 2]}" for i in range(40)]
        source.write_text("\n".join(["size,colour", *lines]))
    else:
        np.savez(source, x=np.cumsum(rng.normal(size=(40, 2, 9)), 2))
    net = {"kind": "mlp", "width": 8, "depth": 1}
    values = {"data": str(source), "steps": 2, "batch_size": 8, "net": net}
    if kind == "series":
        values["read"] = {"kind": "series"}
    run = Run.create(tmp_path / "run", values)
    run.train()
    assert cli(["sample", str(run.folder), *N]) == 0
    (path,) = (run.folder / "samples").glob("*.csv")
    frame = pd.read_csv(path)
    assert len(frame) == (10 if kind == "table" else 90)
    if kind == "table":
        assert set(frame["colour"]) <= {"red", "green"}
    assert cli(["sample", str(run.folder), *N, "--out", str(tmp_path / "x.npz")]) == 0
    arrays = np.load(tmp_path / "x.npz", allow_pickle=False)
    space = Space.from_json(json.loads(str(arrays["space"])))
    again = space.to_user(torch.from_numpy(arrays["x"]))
    again.columns = [str(name) for name in again.columns]
    pd.testing.assert_frame_equal(again, frame, check_dtype=False, check_column_type=False, rtol=1e-5)


def test_each_class_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Also on a disk that is blind to case, or of Windows; a name that is good stays as it is."""
    names = ("a/b", "a:b", "Cat", "cat", "con", "LPT1.txt", "end.", "end", "dog", "samples.json", "",
             "\u00e9", "e\u0301", "Cat class 2", "x" * 300, "x" * 299)  # fmt: skip
    folders = class_folders(names)
    assert len({name.casefold() for name in folders}) == len(names)
    assert (folders[8], folders[13]) == ("dog", "Cat class 2")
    assert folders[2] == "Cat class 2_"
    for name in folders:
        assert name == name.rstrip(" .")
        assert name.partition(".")[0].lower() not in ("con", "lpt1", "", "samples")
        assert len(name.encode()) < 250

    def make(start: int, stop: int) -> Rows:
        i = torch.arange(start, stop)
        return torch.zeros(len(i), 1, 2, 2), i % 2

    space = ImageSpace((1, 2, 2), ("a/b", "a:b"), (0.0, 1.0))
    folder = written(tmp_path, "pictures", space, make)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["a_b class 0", "a_b class 1"]
    space.save(tmp_path / "saved", *make(0, 4))
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["a_b class 0", "a_b class 1"]


def test_a_huge_batch_is_one_error(folder: Path, capsys: Any) -> None:
    huge = str(10**12)
    assert "batch is at most 1000000" in refused(capsys, "sample", str(folder), "-n", huge, "--batch", huge, "--check")
    with pytest.raises(ValueError, match="at most 1000000 samples are made at once"):
        Run.open(folder).sample(10**12, steps=2)
