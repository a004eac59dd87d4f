"""Several processes train as one does: the same losses and weights to the rounding of sums, whole or sharded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ornstein.io import load_tensors
from ornstein.random import Noise, Share
from ornstein.training.workers import Workers
from together import KINDS, train

ROUNDING = 1e-9  # float64 sums in another order, 1e-16 of gradients that Adam's g/|g| enlarges where they are small


def together(out: Path, *tasks: str) -> None:
    """Two processes run the tasks (of together.py) one after another."""
    script = Path(__file__).with_name("together.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", str(script), str(out), *tasks]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180 + 60 * len(tasks))
    assert done.returncode == 0, done.stderr[-3000:]


def ends(folder: Path) -> list[dict[str, Tensor]]:
    """What each of two processes ended with."""
    return [load_tensors(folder / f"rank{rank}.safetensors", kind="model")[0] for rank in range(2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind, and one of a sharded training stopped after step 4."""
    out = tmp_path_factory.mktemp("together")
    together(out, *(f"{kind}={kind}" for kind in KINDS), "stopped=shard:4")
    return out


def difference(a: dict[str, Tensor], kind: str) -> float:
    """The greatest difference to what one process, in one pass, ends with."""
    change = {name: value for name, value in KINDS[kind].items() if name == "ema"}
    result, model = train("loader" if kind == "loader" else "replicate", **change)
    whole = {f"raw/{k}": v for k, v in result.raw.items()} | {f"model/{k}": v for k, v in model.state_dict().items()}
    for key, average in result.averages.items():
        whole |= {f"{key}/{k}": v for k, v in average.items()}
    assert torch.allclose(a.pop("loss"), result.history["loss"], atol=1e-6)  # kept in float32
    assert a.keys() == whole.keys()
    return max(float((a[name] - whole[name]).abs().max()) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(trained: Path, kind: str) -> None:
    first, second = ends(trained / kind)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert difference(first, kind) < ROUNDING


def test_a_checkpoint_may_be_resumed_by_another_number_of_processes(trained: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copy(trained / "stopped" / "run.safetensors", tmp_path)
    result, model = train("replicate", Path(checkpoint))
    whole, alone = train("replicate")
    assert len(result.history["loss"]) == 6
    pairs = zip(model.state_dict().values(), alone.state_dict().values(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < ROUNDING
    assert torch.allclose(result.history["loss"], whole.history["loss"], atol=1e-6)


def test_a_sharded_run_is_resumed_sharded(trained: Path, tmp_path: Path) -> None:
    assert not (trained / "stopped" / "rank0.safetensors").exists()
    shutil.copytree(trained / "stopped", tmp_path / "resumed")
    together(tmp_path, "resumed=shard")
    first, _ = ends(tmp_path / "resumed")
    for rank in range(2):  # it begins where the other stopped, and makes no step again
        assert (tmp_path / "resumed" / f"steps{rank}").read_text().split() == ["2", "4", "4", "6"]
    assert difference(first, "shard") < ROUNDING


def test_accumulation_is_the_batch_in_passes() -> None:
    whole, model = train("replicate")
    parts, other = train("accumulate")
    assert torch.allclose(whole.history["loss"], parts.history["loss"], atol=1e-6)  # kept in float32
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) < ROUNDING
    with pytest.raises(ValueError, match="8 samples does not divide into 3 shares"):
        train("accumulate", accumulate=3)


def test_a_share_of_noise_is_that_of_the_whole_batch() -> None:
    whole = Noise(5, batch=12).normal((12, 3))
    shares = [Share(k, k + 4, 12) for k in (0, 4, 8)]
    assert torch.equal(torch.cat([Noise(5, batch=4, share=share).normal((4, 3)) for share in shares]), whole)
    for start, stop in ((5, 3), (5, 5), (8, 13), (-1, 4)):
        with pytest.raises(ValueError, match=f"got {start} to {stop}"):
            Share(start, stop, 12)
    with pytest.raises(ValueError, match="share of 4 rows for a batch of 5"):
        Noise(0, batch=5, share=shares[0])


def test_a_mean_over_processes_leaves_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other of two processes has three times our values: their mean is twice ours."""
    values = torch.tensor([1.0, -2.0])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda own: own.add_(3 * own))
    assert torch.equal(Workers(count=2).mean(values), torch.tensor([2.0, -4.0]))
    assert torch.equal(values, torch.tensor([1.0, -2.0]))


def test_processes_agree_on_the_firsts_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a seed that each has drawn for itself: this is the second, and the first has 7."""
    told = {0: 7}
    monkeypatch.setattr(torch.distributed, "broadcast", lambda own, source: own.fill_(told[source]))
    assert Workers(count=2, rank=1).agree(3) == 7
    assert Workers().agree(3) == 3


def test_sharding_by_an_unknown_name_is_refused() -> None:
    unknown: Any = "fsdp"
    with pytest.raises((ValueError, TypeError), match=r"'replicate'.*'shard'"):
        Workers.here(unknown)
