"""The command line: it answers at once, names the nearest real thing, refuses in one line, and makes whole runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein.cli.app import run
from ornstein.data import load_data
from ornstein.io import load_tensors
from ornstein.report.judge import Goal, goals
from ornstein.report.names import SOLVERS, nearest
from ornstein.report.restoration import damage, psnr
from ornstein.report.run import SOLVERS as MADE
from ornstein.report.run import Run
from ornstein.report.wrong_labels import wrong

COMMANDS = ("quickstart", "train", "tune", "sample", "restore", "evaluate", "report", "runs", "papers", "certify")
TINY = ["--steps", "4", "--batch-size", "8"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Forty labelled points in the plane, two classes far apart."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    np.savez(tmp_path / "small.npz", x=rng.normal(size=(40, 2)) + 6 * y[:, None], y=y)
    return tmp_path / "small.npz"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command line refuses these arguments."""
    capsys.readouterr()
    assert run(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def self_contained(page: str) -> bool:
    """Whether everything that the page refers to lies in it: data in its pictures, ids in its drawings."""
    links = re.findall(r"""(?:src|href|action|data)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(([^)]*)", page)
    return "http" not in page and "@import" not in page and all(link.startswith(("data:image/", "#")) for link in links)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["quickstart", "--help"], ["sample", "--help"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom ornstein.cli import main\n"
        f"sys.argv = ['ornstein', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy}' if heavy or code not in (0, 2) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: ornstein" in done.stdout + done.stderr


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert run([command, "--help"]) == 0
        assert f"  ornstein {command} " in capsys.readouterr().out


def test_a_missing_typer_is_named() -> None:
    code = "import sys\nsys.modules['typer'] = None\nfrom ornstein.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "pip install 'ornstein[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["unknown command 'trian'", "'train'"]),
        (["zzz"], ["unknown command 'zzz'", "choose from quickstart, train"]),
        (["train", "--stesp", "3"], ["--stesp", "'--steps'"]),
        (["train", "--steps", "many"], ["--steps", "integer"]),
        (["train", "--steps", "0"], ["steps", "0"]),
        (["train", "--data", "digit"], ["unknown data 'digit'", "'digits'"]),
        (["train", "--data", "absent.npz"], ["absent.npz"]),
        (["train", "--process", "flwo"], ["process 'flwo'", "'flow'"]),
        (["train", "--net", "unte"], ["net.kind 'unte'", "'unet'"]),
        (["sample", "absent"], ["absent is no run"]),
        (["sample", "absent", "--solver", "dpmp"], ["unknown solver 'dpmp'", "'dpmpp'"]),
        (["sample", "absent", "--out", "x.jpg"], ["x.jpg", ".npz, .png"]),
        (["evaluate", "absent"], ["absent is no run"]),
        (["evaluate", "absent", "--solver", "hen"], ["unknown solver 'hen'", "'heun'"]),
        (["evaluate"], ["run"]),
        (["papers", "dpm-solver-p"], ["dpm-solver-p", "dpm-solver-pp"]),
        (["papers", "--status", "prooven"], ["prooven", "proven"]),
        (["papers", "ddim", "--status", "proven"], ["not both"]),
    ],
)
def test_what_makes_no_sense_is_one_line(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *arguments)
    for word in words:
        assert word.lower() in line.lower()
    assert list(tmp_path.iterdir()) == []  # refused before anything was written


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stesp: 3", ["unknown field 'stesp'", "'steps'"]),
        ("net: {widht: 8}", ["unknown field 'net.widht'", "'width'"]),
        ("predicts: nose", ["predicts 'nose'", "'noise'"]),
        ("lr: -1", ["lr", "greater than 0", "-1"]),
        ("steps: [", ["not a YAML file"]),
        ("- steps", ["must hold fields"]),
        ("1: 2", ["the name of a field is a word, not 1"]),
        ("read: {1: 2}", ["the name of a field is a word, not 1"]),
        ("lengths: [{null: 2}]", ["the name of a field is a word, not None"]),
        ("net: &a {kind: mlp, depth: *a}", ["depth"]),
    ],
)
def test_a_bad_config_names_the_field(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    line = refused(capsys, "train", "--config", str(config), "--out", str(tmp_path / "run"))
    for word in ["config.yaml", *words]:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_debug_shows_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no run"):
        run(["--debug", "sample", str(tmp_path / "absent")])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros((20, 2))}, "no array 'x'"),
        ({"x": np.zeros(20)}, r"x must be numbers \(n, ...\)"),
        ({"x": np.zeros((3, 2))}, "3 samples"),
        ({"x": np.where(np.arange(40).reshape(20, 2) == 14, np.nan, 0.0)}, "not finite, first in sample 7"),
        ({"x": np.zeros((20, 2)), "y": np.zeros(19, int)}, "y must be 20 integers"),
        ({"x": np.zeros((20, 2)), "y": np.full(20, -1)}, "y must be 20 integers"),
    ],
)
def test_bad_data_are_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_data(str(tmp_path / "bad.npz")).split(0.2)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "bad.npz").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"no \.npz file"):
        load_data(str(tmp_path / "torn.npz"))


def test_train_sample_evaluate(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "one"
    assert run(["train", "--data", str(small), "--out", str(folder), *TINY]) == 0
    names = {"config.yaml", "data.json", "space.json", "checkpoint.safetensors", "timing.json", "watch"}
    assert {path.name for path in folder.iterdir()} == names

    # resume is the default, and a complete run stays as it is; another run does not slip in under its name
    before = (folder / "checkpoint.safetensors").read_bytes()
    assert run(["train", "--out", str(folder), "--data", str(small)]) == 0
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert "steps = 4" in refused(capsys, "train", "--out", str(folder), "--steps", "5")
    assert "'net'" not in refused(capsys, "train", "--out", str(folder), "--net", "unet")

    out = tmp_path / "ones.npz"
    asked = ["sample", str(folder), "-n", "6", "--steps", "3", "--label", "1", "--guidance", "2", "--seed", "5"]
    assert run([*asked, "--out", str(out)]) == 0
    assert "6 samples, 6 network evaluations each" in capsys.readouterr().out  # two branches a step
    arrays = np.load(out)
    assert arrays["x"].shape == (6, 2)
    assert arrays["y"].tolist() == [1] * 6
    assert run([*asked, "--out", str(tmp_path / "again.npz")]) == 0
    assert (np.load(tmp_path / "again.npz")["x"] == arrays["x"]).all()
    for word, arguments in (
        ("unknown label '2'; choose from 0, 1, held-out", ["--label", "2"]),
        ("a picture needs images", ["--out", str(tmp_path / "no.png")]),
        ("at least 1", ["-n", "0"]),
        ("steps=0", ["--steps", "0"]),
    ):
        assert word in refused(capsys, "sample", str(folder), *arguments)
    assert "did you mean 'one'" in refused(capsys, "sample", str(folder.parent / "oen"))

    assert run(["evaluate", str(folder), "--steps", "3"]) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["figures"]) <= set(metrics["references"])
    assert metrics["references"]["label_accuracy"] == 1.0  # the classes are six deviations apart
    (shard,) = folder.glob("samples/*/shard-00000.npz")
    assert np.load(shard)["x"].shape == (8, 2)
    assert self_contained((folder / "report.html").read_text())


def test_the_saved_model_is_the_averaged_one(small: Path, tmp_path: Path) -> None:
    made = Run.create(tmp_path / "run", {"data": str(small), "steps": 5, "batch_size": 8})
    model, _ = made.train(progress=False)
    opened = Run.open(tmp_path / "run").model()
    raw, _ = load_tensors(made.checkpoint, kind="checkpoint")
    for name, tensor in opened.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert any(not torch.equal(tensor, raw[f"model/{name}"]) for name, tensor in opened.state_dict().items())
    # and it knows the data's units: 6 y + noise has mean 3 and standard deviation sqrt(10)
    assert model.scaling is not None
    assert opened.scaling is not None
    assert float(opened.scaling.mean) == float(made.split.train.rows()[0].mean())


@pytest.mark.parametrize("net", ["unet", "dit"])
@pytest.mark.parametrize("process", ["flow", "ve"])
def test_every_net_trains_and_draws(net: str, process: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((12, 1, 4, 4), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    config = tmp_path / "small.yaml"
    config.write_text("net: {width: 8, depth: 1}\npredicts: x0\n")
    arguments = ["--data", str(tmp_path / "x.npy"), "--net", net, "--process", process, "--config", str(config)]
    assert run(["train", "--out", str(tmp_path / "run"), *arguments, *TINY]) == 0
    assert run(["sample", str(tmp_path / "run"), "-n", "4", "--steps", "2", "--out", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="without labels"):
        Run.open(tmp_path / "run").sample(2, labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="guidance needs"):
        Run.open(tmp_path / "run").sample(2, guidance=2.0)


def test_an_image_net_refuses_points(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "train", "--data", str(small), "--net", "dit", "--out", str(tmp_path / "run"))
    assert "needs images" in line
    assert not (tmp_path / "run").exists()


def test_quickstart_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "first"
    assert run(["quickstart", "--fast", "--out", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.count("FAIL") == 3  # a dozen steps learn nothing, and the goals say so
    assert str(folder / "report.html") in said
    names = {"config.yaml", "checkpoint.safetensors", "metrics.json", "samples", "report.html"}
    assert names <= {path.name for path in folder.iterdir()}
    page = (folder / "report.html").read_text()
    assert self_contained(page)
    for word in ("Samples by class", "Training loss", "Quality against evaluations", "What guidance does", "Restoring"):
        assert word in page
    assert page.count("<svg") == 4
    ids = re.findall(r'<clipPath id="([^"]*)"', page)
    assert len(ids) == len(set(ids))  # drawings of one page do not take each other's parts


@pytest.mark.parametrize(
    ("page", "whole"),
    [
        ('<img src="data:image/png;base64,AA"><use href="#m1"/>', True),
        ('<img src="https://a.org/x.png">', False),
        ('<script src="plot.js"></script>', False),
        ('<link rel="stylesheet" href="style.css">', False),
        ("<style>@import 'a.css'</style>", False),
        ("<style>body { background: url(a.png) }</style>", False),
    ],
)
def test_the_check_of_pages_itself(page: str, whole: bool) -> None:
    assert self_contained(page) is whole


def test_goals_are_those_promised() -> None:
    good = {"label_accuracy": 0.98, "frechet_ratio": 1.5, "nearest_ratio": 1.15}
    real = {"label_accuracy": 0.99}
    assert all(goal.met for goal in goals(good, real))
    for name, value in (
        ("label_accuracy", 0.979),
        ("frechet_ratio", 1.51),
        ("nearest_ratio", 0.949),
        ("nearest_ratio", 1.151),
        ("frechet_ratio", float("nan")),
    ):
        assert sum(not goal.met for goal in goals(good | {name: value}, real)) == 1
    # labels that a classifier of real data knows no better are not asked of samples
    assert all(goal.met for goal in goals(good | {"label_accuracy": 0.36}, {"label_accuracy": 0.35}))
    assert not all(goal.met for goal in goals(good | {"label_accuracy": 0.34}, {"label_accuracy": 0.35}))
    assert Goal("x", 1.0, low=0.5).bound == "at least 0.5"


def test_names() -> None:
    assert set(SOLVERS) == set(MADE)
    assert nearest("hein", SOLVERS) == "did you mean 'heun'?"
    assert "choose from" in nearest("q", SOLVERS)


def test_wrong_labels_are_wrong_in_their_share() -> None:
    labels = torch.arange(10).repeat(2000)
    spoilt = wrong(labels, 0.3, seed=0)
    # of 20,000 labels a share of 0.3 has standard deviation sqrt(.3 .7 / 20000) = 0.0032: five of them
    assert abs(float((spoilt != labels).double().mean()) - 0.3) < 0.0162
    assert spoilt.min() >= 0
    assert spoilt.max() <= 9


def test_damage_erases_one_square() -> None:
    x = torch.full((50, 1, 8, 8), 0.5)
    assert ((damage(x, seed=1, noise=0.0) == 0).sum((1, 2, 3)) == 9).all()
    assert psnr(x, x + 0.1) == pytest.approx(20.0, abs=1e-3)  # 10 log10(1/0.01)
