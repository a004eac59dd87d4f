"""A training killed at any moment resumes to the same weights, bit for bit; what is no checkpoint of it is refused."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import ornstein as orn
from ornstein.errors import CheckpointError, NonFiniteError
from ornstein.io import atomic, load_tensors, save_tensors
from ornstein.training import EMA, Fit, MinSNR, Objective, fit

STEPS, EVERY = 8, 3
X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
Y = {"label": torch.arange(40) % 3}


class Net(nn.Module):
    """With dropout, and a buffer that counts, so that they too must be resumed."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(7, width), nn.Linear(width, 2)
        self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(0.2)

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        label = nn.functional.one_hot(cond["label"] + 1, 4).to(x)
        h = self.norm(self.first(torch.cat([x, t[:, None], label], 1)))
        answer: Tensor = self.last(self.dropout(h.tanh()))
        return answer


class Augmented(Dataset[Any]):
    """Items with random flips, from torch's global generator."""

    def __init__(self, n: int = 40) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return X[index] * (1 - 2 * torch.randint(2, ())), {"label": Y["label"][index]}


def build(process: Any = None, width: int = 8) -> orn.Denoiser:
    torch.manual_seed(7)
    return orn.Denoiser(Net(width), process or orn.Flow(), null={"label": -1})


DATA: dict[str, Callable[[], dict[str, Any]]] = {
    "tensor": lambda: {"data": X, "cond": Y},
    "dataset": lambda: {"data": Augmented()},
    "loader": lambda: {"data": DataLoader(Augmented(), batch_size=16, shuffle=True)},
    "loader with generator": lambda: {
        "data": DataLoader(Augmented(), batch_size=9, shuffle=True, generator=torch.Generator(), drop_last=True)
    },
}


def train(path: Path | None, kind: str = "tensor", model: orn.Denoiser | None = None, **change: Any) -> Any:
    """(result, model) of the one run that this file is about."""
    model = model or build()
    options: dict[str, Any] = {"steps": STEPS, "batch_size": 16, "drop": {"label": 0.2}, "every": EVERY, "ema": 0.9}
    return fit(model, **{**DATA[kind](), **options, "checkpoint": path, **change}), model


def identical(a: tuple[Fit, nn.Module], b: tuple[Fit, nn.Module]) -> bool:
    pairs = ((a[0].raw, b[0].raw), (a[1].state_dict(), b[1].state_dict()), (a[0].history, b[0].history))
    return all(one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one) for one, two in pairs)


def dies(work: Callable[[], object]) -> bool:
    """Run `work` in a forked process; whether a signal killed it."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole() -> Any:
    """The run that nobody killed, without a checkpoint."""
    return train(None)


def test_killed_at_every_failpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any) -> None:
    points: list[str] = []
    monkeypatch.setattr(atomic, "failpoint", points.append)
    assert identical(train(tmp_path / "all"), whole)  # and writing checkpoints changes nothing
    assert {"write", "flush", "fsync", "rename", "fsync_dir"} == set(points)
    assert len(points) >= 3 * 5  # after steps 3, 6, 8
    for k in range(len(points)):
        path, seen = tmp_path / f"{k}", [0]

        def kill(name: str, k: int = k, seen: list[int] = seen) -> None:
            if seen[0] == k:
                die()
            seen[0] += 1

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "failpoint", kill)
            assert dies(lambda path=path: train(path))
        monkeypatch.setattr(atomic, "failpoint", lambda name: None)
        assert identical(train(path), whole), f"killed at failpoint {k}, {points[k]}"


@pytest.mark.parametrize("kind", DATA)
def test_killed_at_random_moments(tmp_path: Path, kind: str, whole: Any) -> None:
    reference = whole if kind == "tensor" else train(None, kind)
    calls = [0]

    def count(frame: Any, event: str, arg: Any) -> None:
        calls[0] += 1

    def traced(work: Callable[[], object], hook: Any) -> None:
        sys.setprofile(hook)
        try:
            work()
        finally:
            sys.setprofile(None)

    traced(lambda: train(tmp_path / "counted", kind), count)
    total, rng = calls[0], random.Random(kind)
    # a moment is one of the some hundred thousand calls, in Python or out of it, that the run makes
    for trial in range(8 if kind == "tensor" else 4):  # 20 in all
        path, moment = tmp_path / f"{trial}", rng.randrange(total)

        def killer(frame: Any, event: str, arg: Any, moment: int = moment) -> None:
            calls[0] += 1
            if calls[0] == moment:
                die()

        calls[0] = 0
        dies(lambda path=path, killer=killer: traced(lambda: train(path, kind), killer))
        assert identical(train(path, kind), reference), f"killed at call {moment} of {total}"


def test_stopped_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any) -> None:
    """Errors inside the process, at the steps' various stages; each try goes on where the last one came to."""
    stages: list[tuple[Any, str]] = [
        (torch.optim.AdamW, "step"),
        (EMA, "update"),
        (Net, "forward"),
        (Tensor, "backward"),
    ]
    path, rng = tmp_path / "run", random.Random(1)
    for trial in range(8):
        owner, method = stages[trial % 4]
        original, left = getattr(owner, method), [rng.randrange(1, 6)]

        def failing(*args: Any, original: Any = original, left: list[int] = left, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, method, failing)
            try:
                train(path)
            except KeyboardInterrupt:
                continue
    assert identical(train(path), whole)

    def callback(step: int, training: Any) -> None:
        raise RuntimeError("a callback's own trouble")

    second = tmp_path / "callback"
    with pytest.raises(RuntimeError, match="own trouble"):
        train(second, callbacks=[callback])
    assert load_tensors(second, kind="checkpoint")[1]["step"] == EVERY  # the checkpoint came first
    assert identical(train(second), whole)


def stopped(path: Path, after: int = 7, **change: Any) -> None:
    """Leave the checkpoint of a run that stopped in step `after` + 1."""

    class Stop(Exception):
        pass

    model, calls = build(), [0]

    def hook(*_: Any) -> None:
        calls[0] += 1
        if calls[0] > after + 1:  # the first call is the look at the data
            raise Stop

    model.net.register_forward_hook(hook)
    with pytest.raises(Stop):
        train(path, model=model, **change)


def test_all_of_the_state_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any) -> None:
    """What a lesser checkpoint would leave out makes another run: the proof that the tests above can fail."""
    for owner, method in ((torch.optim.AdamW, "load_state_dict"), (EMA, "load_state_dict")):
        path = tmp_path / owner.__name__
        stopped(path)
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, lambda *_: None)
            assert not identical(train(path), whole)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.Adam(p, 0.01)])
def test_other_optimizers(tmp_path: Path, make: Any) -> None:
    options = {"optimizer": make, "schedule": "constant", "ema": None, "clip": None}
    stopped(tmp_path / "run", **options)
    assert identical(train(tmp_path / "run", **options), train(None, **options))


def test_a_finished_run_returns_at_once(tmp_path: Path, whole: Any) -> None:
    train(tmp_path / "run")
    model, calls = build(), [0]
    model.net.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    assert identical(train(tmp_path / "run", model=model), whole)
    assert calls[0] == 1  # the look at the data


def test_a_constant_schedule_can_be_prolonged(tmp_path: Path) -> None:
    train(tmp_path / "run", schedule="constant", warmup=2, steps=6)
    longer = train(tmp_path / "run", schedule="constant", warmup=2, steps=10)
    assert identical(longer, train(None, schedule="constant", warmup=2, steps=10))
    with pytest.raises(ValueError, match="holds 10 steps"):
        train(tmp_path / "run", schedule="constant", warmup=2, steps=5)


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "process": lambda: {"model": build(orn.VP())},
    "network": lambda: {"model": build(width=9)},
    "prediction": lambda: {"model": orn.Denoiser(Net(), orn.Flow(), "v", null={"label": -1})},
    "objective": lambda: {"objective": Objective(weighting=MinSNR())},
    "data": lambda: {"data": X[:39], "cond": {"label": Y["label"][:39]}},
    "batch_size": lambda: {"batch_size": 17},
    "seed": lambda: {"seed": 1},
    "optimizer": lambda: {"lr": 2e-3},
    "steps and schedule": lambda: {"steps": 12},
    "drop": lambda: {"drop": None},
    "ema": lambda: {"ema": 0.8},
    "clip": lambda: {"clip": 2.0},
    "precision": lambda: {"precision": "bf16"},
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_refused_by_name(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run"
    train(path, steps=2, every=1, warmup=1, schedule="cosine")
    bytes_before = path.read_bytes()
    change = {"steps": 2, "warmup": 1, **OTHERS[what]()}
    model = change.pop("model", None) or build()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(CheckpointError, match=rf"of another run: {what} was .*(same arguments)"):
        train(path, model=model, **change)
    assert all(map(torch.equal, before, model.parameters()))
    assert path.read_bytes() == bytes_before


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    stopped(path)
    good, rng = path.read_bytes(), random.Random(0)
    damaged = [good[: rng.randrange(len(good))] for _ in range(5)] + [b"", b"no checkpoint at all"]
    for _ in range(20):
        flipped = bytearray(good)
        flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    save_tensors(tmp_path / "model", {"a": X}, kind="model")
    damaged.append((tmp_path / "model").read_bytes())
    for blob in damaged:
        path.write_bytes(blob)
        model = build()
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(CheckpointError, match="run"):
            train(path, model=model)
        assert all(map(torch.equal, before, model.parameters()))
        assert path.read_bytes() == blob


def test_nan_leaves_the_last_checkpoint(tmp_path: Path, whole: Any) -> None:
    path, model, calls = tmp_path / "run", build(), [0]

    def poison(module: Any, args: Any, output: Tensor) -> Tensor:
        calls[0] += 1
        return output * (float("nan") if calls[0] == 6 else 1.0)  # in step 5: the first call is the look at the data

    model.net.register_forward_hook(poison)
    with pytest.raises(NonFiniteError, match="at step 5 of 8"):
        train(path, model=model)
    tensors, metadata = load_tensors(path, kind="checkpoint")
    assert metadata["step"] == EVERY
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert identical(train(path), whole)


def test_changed_data_of_the_same_shape_are_another_run(tmp_path: Path) -> None:
    """A checkpoint remembers what the data were, not their shape alone."""
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    def train(x: torch.Tensor) -> None:
        model = orn.Denoiser(orn.nets.MLP(2, width=16, depth=1), orn.Flow())
        orn.fit(model, x, steps=4, batch_size=16, seed=0, checkpoint=tmp_path / "c.safetensors", every=2)

    train(data)
    train(data.clone())
    changed = data.clone()
    changed[3, 1] += 1e-3
    with pytest.raises(ValueError, match="data"):
        train(changed)


def test_a_guided_model_is_not_trained() -> None:
    model = orn.Denoiser(orn.nets.MLP(2, labels=2, width=16, depth=1), orn.Flow(), null={"label": orn.nets.NULL})
    with pytest.raises(ValueError, match="train the Denoiser inside CFG"):
        orn.fit(orn.CFG(model, 2.0), torch.randn(8, 2), steps=1)
