"""Images in folders, a table and series with gaps: two commands on each, and no options, end in good samples."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ornstein.cli.app import run as cli
from ornstein.metrics import association_distance, c2st_table
from ornstein.random import derive
from ornstein.report.judge import TableJudge, goals
from ornstein.report.run import Run

ROOT = Path(__file__).parents[2]
SEEDS = 4


def command(*arguments: str | Path) -> None:
    assert cli([str(argument) for argument in arguments]) == 0, arguments


def unmet(run: Path) -> int:
    """How many goals the evaluation of a run has missed; there is a report, whole in itself."""
    found = json.loads((run / "metrics.json").read_text())
    assert "</html>" in (run / "report.html").read_text()
    missed = [goal for goal in goals(found["figures"], found["references"]) if not goal.met]
    print(run.name, found["figures"], missed)
    return len(missed)


@pytest.mark.proof("three-kinds")
def test_three_kinds(tmp_path: Path, proof: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every goal of each kind is met by the defaults, and samples come back as what the user gave.

    The table's rival is a Gaussian copula, which has every margin right and normal dependence: both are judged by four
    sets of samples against the same held-out rows. The null standard deviation of one two-sample accuracy is s, of n
    called rows a side s^2 = 4 * 2 / (n/5) / 256. The means over sets share their held-out rows, so that four are
    counted as one: the copula is easier to tell by more than 1.645 sqrt(2) s. Of association, the samples are less than
    half as far beyond what two sets of real rows differ by as the copula is, and every set of them is nearer than every
    copula's. A share of missing values that is right differs by less than 4 standard deviations.
    """
    data, runs = tmp_path / "data", tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(data)])
    runpy.run_path(str(ROOT / "examples" / "make_data.py"), run_name="__main__")
    kinds = {"images": ("digits",), "table": ("measures.csv", "--label", "digit"), "series": ("scanlines.npz",)}
    for kind, (name, *options) in kinds.items():
        command("train", "--data", data / name, *options, "--out", runs / kind)
        command("evaluate", runs / kind)
    figures = {f"{kind}_goals_missed": float(unmet(runs / kind)) for kind in kinds}

    command("sample", runs / "images", "-n", "50", "--format", "png", "--out", tmp_path / "pictures")
    pictures = sorted((tmp_path / "pictures").rglob("*.png"))
    assert len(pictures) == 50
    for path in pictures:
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((8, 8), "L")

    command("sample", runs / "series", "-n", "40", "--out", tmp_path / "series.csv")
    long = pd.read_csv(tmp_path / "series.csv")
    assert list(long.columns) == ["series", "time", "x0", "x1"]
    assert not long.isna().any(axis=None)
    assert long["series"].tolist() == np.repeat(np.arange(40), 24).tolist()
    assert long["time"].tolist() == np.tile(np.arange(24), 40).tolist()

    command("sample", runs / "table", "-n", "1797", "--label", "held-out", "--out", tmp_path / "rows.csv")
    given, made = (pd.read_csv(path) for path in (data / "measures.csv", tmp_path / "rows.csv"))
    assert list(made.columns) == list(given.columns)
    worst = 0.0
    for column in given.columns:
        held, drawn = given[column].dropna(), made[column].dropna()
        assert made[column].dtype == given[column].dtype, column
        if pd.api.types.is_numeric_dtype(held):
            assert drawn.between(held.min(), held.max()).all(), column
        elif column != "scanned":
            assert set(drawn) <= set(held), column
        p, q = given[column].isna().mean(), made[column].isna().mean()
        worst = max(worst, abs(p - q) / max((2 * p * (1 - p) / len(given)) ** 0.5, 1e-9))
    assert pd.to_datetime(made["scanned"], format="%Y-%m-%d").between("1998-07-01", "1998-08-14").all()

    run = Run.open(runs / "table")
    judge = TableJudge(run.split)
    tested: dict[str, list[tuple[float, float]]] = {"samples": [], "copula": []}
    for seed in range(SEEDS):
        x = run.sample(judge.n, labels=judge.labels, seed=seed, steps=20, progress=False).x
        rows = {
            "samples": judge._joined(x, judge.labels),
            "copula": judge.copula.sample(judge.n, derive(seed, "rival")),
        }
        for who, table in rows.items():
            test = c2st_table(table, judge._real, judge.kinds, derive(seed, "test"))
            tested[who].append((test.accuracy, association_distance(table, judge._real, judge.kinds)))
    ours, rival = (np.array(tested[who]) for who in ("samples", "copula"))
    real = judge.references()["association_distance"]
    one = (4 * 2 / (judge.n / 5) / 256) ** 0.5
    figures |= {
        "accuracy": ours[:, 0].mean(),
        "copula_accuracy": rival[:, 0].mean(),
        "accuracy_gain": (rival - ours)[:, 0].mean(),
        "association": ours[:, 1].mean(),
        "copula_association": rival[:, 1].mean(),
        "real_association": real,
        "association_excess_ratio": (ours[:, 1].mean() - real) / (rival[:, 1].mean() - real),
        "association_gap": rival[:, 1].min() - ours[:, 1].max(),
        "missing_share_deviations": worst,
    }
    thresholds: dict[str, tuple[float | None, float | None]] = {f"{kind}_goals_missed": (None, 0) for kind in kinds}
    thresholds |= {
        "accuracy_gain": (1.645 * 2**0.5 * one, None),
        "association_excess_ratio": (None, 0.5),
        "association_gap": (0.0, None),
        "missing_share_deviations": (None, 4.0),
    }
    proof(figures=figures, thresholds=thresholds, seed=list(range(SEEDS)))
