"""What the data decide of a run: the network of its kind, and fields that are found and need not be given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from ornstein.cli.app import run as cli
from ornstein.nets import MLP, UNet
from ornstein.report.config import make_config
from ornstein.report.model import build_net, kind_of
from ornstein.report.run import Run


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 series (2, 12), with gaps."""
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(40, 2, 12)), 2)
    x[rng.random(x.shape) < 0.1] = np.nan
    path = tmp_path_factory.mktemp("waves") / "waves.npz"
    np.savez(path, x=x)
    return path


def test_series_get_a_network_along_time(waves: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {"data": str(waves), "net": {"width": 8}, "steps": 2, "batch_size": 8})
    assert run.config.read.kind == "series"
    net = build_net(run.config, run.split.space.conditions)
    assert isinstance(net, UNet)
    assert net.axes == 1
    # of a shape alone nobody knows that it is a series, and short ones have nothing to halve
    plain = run.config.model_copy(update={"read": run.config.read.model_copy(update={"kind": None})})
    assert kind_of(plain) == "mlp"
    assert isinstance(build_net(plain, run.split.space.conditions), MLP)
    assert kind_of(run.config.model_copy(update={"event": (2, 7)})) == "mlp"
    with pytest.raises(ValueError, match="dit needs images"):
        build_net(run.config.model_copy(update={"net": run.config.net.model_copy(update={"kind": "dit"})}))


def test_the_config_that_show_prints_begins_a_run_and_resumes_it(
    waves: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = ["--data", str(waves), "--width", "8", "--steps", "2", "--batch-size", "8", "--set", "watch=0"]
    assert cli(["train", *fields, "--show"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(printed)
    assert yaml.safe_load(printed)["event"] is None
    again = ["train", "--config", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")]
    for _ in range(2):
        assert cli(again) == 0, capsys.readouterr().err
    # the rival: what the data said is no wish of the config's; a clip that is switched off is one
    kept = Run.open(tmp_path / "run").config.model_dump(mode="json")
    assert make_config(kept, "kept").read.kind == "series"
    assert cli([*again, "--set", "clip=null"]) == 2
    assert "clip" in capsys.readouterr().err
