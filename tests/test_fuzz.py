"""Two hundred commands, valid and absurd, with --check: each is accepted or refused in one line, and writes nothing."""

from __future__ import annotations

import resource
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings

from fuzzing import Case, answer, cases, holds, make_data, nested, one_line, room, valid_fields
from ornstein.report.config import make_config
from ornstein.report.model import _weigh, build_net
from ornstein.report.run import Run
from ornstein.training.forecast import _Counted

QUICK: dict[str, Any] = {"suppress_health_check": list(HealthCheck), "phases": [Phase.generate], "deadline": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and runs."""
    made = tmp_path_factory.mktemp("fuzz")
    make_data(made)
    return made


def test_each_is_accepted_or_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 40 % are accepted: half are valid by construction, and the rest would have to be refused."""
    monkeypatch.chdir(folder)
    count: Counter[bool] = Counter()

    @settings(max_examples=200, **QUICK)
    @given(case=cases(folder))
    def check(case: Case) -> None:
        count[holds(case, folder)] += 1

    with room(monkeypatch):
        check()
    assert count.total() >= 200
    assert count[True] >= 0.4 * count.total()


def test_thirty_run(folder: Path, tmp_path: Path) -> None:
    """What --check would accept is trained for two steps, and sampled."""
    count = [0]

    @settings(max_examples=30, **QUICK)
    @given(fields=valid_fields(folder))
    def work(fields: dict[str, object]) -> None:
        run = tmp_path / str(count[0])
        count[0] += 1
        asked = nested({**fields, "steps": 2, "every": None, "lr": 1e-3})
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(asked), encoding="utf-8")
        code, _, err = answer(["train", "--config", str(file), "--out", str(run)])
        assert code == 0, err
        code, _, err = answer(["sample", str(run), "-n", "2", "--steps", "2"])
        assert code == 0, err
        assert len(Run.open(run).history()["loss"]) == 2

    work()
    assert count[0] >= 30


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (["net.kind=mlp", "net.width=16384", "net.depth=1024"], "net.width"),
        (["batch_size=10000000"], "batch_size"),
        (["net.kind=dit", "net.width=16384", "net.depth=1000"], "net.width"),
    ],
)
def test_what_no_memory_holds_is_refused_before_it_is_made(
    fields: list[str], word: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 1 GB free: 16 PB of weights, and the states of ten million images in every layer, are never allocated."""
    with room(monkeypatch, 10**9):
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        given = [word for field in fields for word in ("--set", field)]
        code, _, err = answer(["train", "--check", "--data", str(folder / "images.npy"), "--out", "new", *given])
    assert code == 2
    one_line(err)
    assert "are free" in err
    assert word in err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun < 400_000  # kB


def test_weights_are_weighed_to_the_byte() -> None:
    """The forecast without memory is what the network has, and what its pass keeps, for every kind and depth."""
    for fields in (
        {"net": {"kind": "mlp", "width": 12, "depth": 4}, "labels": 3},
        {"net": {"kind": "unet", "width": 16, "depth": 3}},
        {"net": {"kind": "dit", "width": 16, "depth": 3}, "loss": {"kind": "hybrid"}, "predicts": "v", "process": "vp"},
    ):
        config = make_config({"event": [1, 8, 8], "batch_size": 6, "accumulate": 2, **fields}, "test")
        net = build_net(config)
        kept = _Counted(list(net.parameters()))
        with kept:
            net(torch.zeros(3, 1, 8, 8), torch.zeros(3), {"label": torch.zeros(3).long()} if config.labels else None)
        assert _weigh(config) == (sum(p.nbytes for p in net.parameters()), kept.bytes)
