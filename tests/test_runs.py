"""`ornstein runs`: a line for every run, also for those that are broken."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ornstein.cli.app import run as cli
from ornstein.report.run import Run
from ornstein.report.runs import Line, lines, show


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of five steps."""
    folder = tmp_path_factory.mktemp("many")
    np.save(folder / "points.npy", np.random.default_rng(0).normal(size=(40, 2)))
    values = {"data": str(folder / "points.npy"), "steps": 5, "batch_size": 8, "process": "flow"}
    run = Run.create(folder / "runs" / "good", values | {"net": {"kind": "mlp", "width": 8, "depth": 1}})
    run.train()
    return folder / "runs"


@pytest.fixture
def many(trained: Path, tmp_path: Path) -> Path:
    """That folder, with runs that are not begun, judged, and broken in every way."""
    folder = tmp_path / "runs"
    shutil.copytree(trained, folder)
    for name in ("begun", "judged", "torn", "foreign", "config", "metrics", "empty"):
        shutil.copytree(trained / "good", folder / name)
    (folder / "begun" / "checkpoint.safetensors").unlink()
    figures = {"frechet_ratio": 1.234, "c2st_accuracy": 0.5, "nearest_ratio": 1.0, "other": 5.0}
    (folder / "judged" / "metrics.json").write_text(json.dumps({"figures": figures}))
    checkpoint = folder / "torn" / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    (folder / "foreign" / "checkpoint.safetensors").write_bytes(b"\x80\x04 no tensors at all")
    (folder / "config" / "config.yaml").write_text("net: [")
    (folder / "metrics" / "metrics.json").write_text("[1]")
    (folder / "empty" / "config.yaml").write_bytes(b"\xff\xfe")
    (folder / "no run").mkdir()
    return folder


def test_every_run_has_a_line(many: Path) -> None:
    found = {line.name: line for line in lines(many)}
    assert set(found) == {"good", "begun", "judged", "torn", "foreign", "config", "metrics", "empty"}
    good = found["good"]
    history = Run.open(many / "good").history()
    assert good == Line(
        "good", "points.npy", "mlp", "flow", "5/5", f"{float(history['loss'][-1]):.4g}", "", good.size, good.changed
    )
    assert found["begun"].steps == "0/5"
    assert found["judged"].figures == "Fréchet ratio 1.23, two-sample accuracy 0.5, nearest ratio 1"
    for name in ("torn", "foreign", "config", "metrics", "empty"):
        assert found[name].figures.startswith("broken: ")
        assert "\n" not in found[name].figures
    assert "config.yaml is not a YAML file" in found["config"].figures
    total = sum(path.stat().st_size for path in (many / "good").rglob("*") if path.is_file())
    power = (len(str(total)) - 1) // 3
    assert good.size == f"{total / 1000**power:.3g} {('B', 'kB', 'MB')[power]}"


def test_one_run_by_itself(many: Path) -> None:
    assert lines(many / "good") == [line for line in lines(many) if line.name == "good"]


def test_the_command(many: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    assert cli(["runs", str(many)]) == 0
    plain = capsys.readouterr().out
    assert [row.split()[0] for row in plain.splitlines()] == ["name", *sorted(line.name for line in lines(many))]
    with monkeypatch.context() as patch:  # a terminal
        patch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        patch.setenv("COLUMNS", "200")
        pretty = show(many)
        assert "good" in pretty
        assert "5/5" in pretty
        assert "broken: " in pretty
        assert pretty != plain.rstrip("\n")
        patch.setitem(sys.modules, "rich.table", None)  # without rich
        assert show(many) == plain.rstrip("\n")
    (tmp_path / "none").mkdir()
    assert cli(["runs", str(tmp_path / "none")]) == 0
    assert "ornstein train --out" in capsys.readouterr().out
    assert cli(["runs", str(tmp_path / "absent")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["more", "other", "labels"])
def test_data_that_changed_are_refused(tmp_path: Path, change: str) -> None:
    """What was trained on would be judged by: the split hangs on the rows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 2)), np.arange(40) % 2
    np.savez(tmp_path / "points.npz", x=x, y=y)
    values = {"data": str(tmp_path / "points.npz"), "steps": 1, "batch_size": 8}
    folder = tmp_path / "run"
    made = Run.create(folder, values | {"net": {"kind": "mlp", "width": 8, "depth": 1}})
    assert len(Run.open(folder).split.train) == len(made.split.train)
    if change == "more":
        x, y = np.concatenate((x, x[:2] + 1)), np.concatenate((y, y[:2]))
    elif change == "other":
        x[5, 1] += 1e-3
    else:
        y[5], y[6] = y[6], y[5]
    np.savez(tmp_path / "points.npz", x=x, y=y)
    with pytest.raises(ValueError, match=r"data of the run .* have changed .*remove .*data\.json"):
        _ = Run.open(folder).split
    (folder / "data.json").unlink()
    assert Run.open(folder).split.labels == 2
    np.savez(tmp_path / "points.npz", x=x[:, :1], y=y)  # another space is refused also without a fingerprint
    with pytest.raises(ValueError, match="have changed since it was made"):
        _ = Run.open(folder).split
