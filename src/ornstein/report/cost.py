"""What quality costs: the same seeds under few and many network evaluations, by several solvers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.errors import CheckpointError
from ornstein.io import load_tensors, save_tensors
from ornstein.progress import bar
from ornstein.report.judge import Judge
from ornstein.report.names import TUNED
from ornstein.report.run import Run
from ornstein.report.shards import digest_of
from ornstein.report.show import POINTS
from ornstein.report.tables import every

BUDGETS = (4, 8, 16, 32)
"""Network evaluations a sample."""
SOLVERS = ("dpmpp", "heun", "ddim")
"""Those compared, beside the one that the evaluation took; the first draws the samples that are shown."""
FINE = 128
"""Evaluations of the fine solution."""
MOST = 256
"""Most samples that are judged a point."""
SHOWN = 16
PARTS = 4
"""Most sets of training data that are judged for reference."""


@dataclass(frozen=True)
class Cost:
    """What was measured.

    Args:
        rows: of each solver and budget {"solver", "nfe", and the judge's brief figures}.
        real: the same figures of training data.
        shown: samples (k, *event) of the same seeds by network evaluations.
        fine: the same by a solution of FINE evaluations.
        n: samples of each row.
    """

    rows: list[dict[str, Any]]
    real: dict[str, float]
    shown: dict[int, Tensor]
    fine: Tensor
    n: int


def measure(run: Run, judge: Judge, sampler: Mapping[str, Any], progress: bool | None = None) -> Cost:
    """Measure, or read what was measured of the same model: cost.safetensors in the run's folder.

    `sampler` has the solver, guidance and seed of the evaluation. As many samples are taken as are held out, at most
    256, which is less work than an evaluation of 2000.
    """
    request = _request(run, judge, sampler)
    if (kept := read(run, judge, sampler)) is not None:
        return kept
    n, model = request["n"], run.model(sampler.get("average"))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    labels = None if judge.labels is None else judge.labels[:n]
    asked: dict[str, Any] = {"guidance": sampler["guidance"], "seed": sampler["seed"], "model": model}
    count = min(n, POINTS if judge.split.event == (2,) else SHOWN)
    rows, shown = list[dict[str, Any]](), dict[int, Tensor]()
    with bar(len(request["solvers"]) * len(BUDGETS) + 1, "quality against cost", progress) as tick:
        for solver in request["solvers"]:
            for budget in BUDGETS:
                try:
                    made = run.sampler(labels=labels, solver=solver, nfe=budget, **asked)
                except ValueError:  # no step of this solver within so few evaluations
                    tick()
                    continue
                x = made(0, n, False).x.cpu()
                rows.append({"solver": solver, "nfe": made.nfe, **judge.brief(x, labels)})
                if solver == SOLVERS[0]:
                    shown[made.nfe] = x[:count].clone()
                tick()
        few = None if labels is None else labels[:count]
        fine = run.sampler(labels=few, solver=SOLVERS[0], nfe=FINE, **asked)(0, count, False).x.cpu()
        tick()
    found = Cost(rows, _real(judge, n), shown, fine, n)
    tensors = {"fine": fine, **{f"nfe {nfe}": x for nfe, x in shown.items()}}
    save_tensors(_path(run), tensors, {"request": request, "rows": rows, "real": found.real}, kind="cost")
    return found


def read(run: Run, judge: Judge, sampler: Mapping[str, Any]) -> Cost | None:
    """What was measured of this model with this guidance and seed, or None."""
    if not _path(run).exists():
        return None
    try:
        tensors, found = load_tensors(_path(run), kind="cost")
    except CheckpointError:
        return None
    if found.get("request") != _request(run, judge, sampler):
        return None
    shown = {int(name.removeprefix("nfe ")): x for name, x in tensors.items() if name != "fine"}
    return Cost(found["rows"], found["real"], dict(sorted(shown.items())), tensors["fine"], found["request"]["n"])


def _request(run: Run, judge: Judge, sampler: Mapping[str, Any]) -> dict[str, Any]:
    n = min(judge.n, MOST)
    labels = None if judge.labels is None else judge.labels[:n]
    asked: dict[str, Any] = {key: sampler.get(key) for key in ("guidance", "seed", "average")}
    made = run.sampler(labels=labels, solver=SOLVERS[0], steps=1, **asked).request
    solvers = list(dict.fromkeys([*SOLVERS, sampler["solver"]]))
    if TUNED in solvers:
        whole = [(nfe, table) for nfe, g, table in every(run.folder)[0] if g == asked["guidance"]]
        made["tables"] = {str(nfe): digest_of(table.table.to_json()) for nfe, table in whole}
    return {**made, "solver": None, "steps": None, "n": n, "solvers": solvers, "budgets": list(BUDGETS)}


def _real(judge: Judge, n: int) -> dict[str, float]:
    """The brief figures of sets of n training samples, averaged."""
    train = judge.split.train
    found = [judge.brief(*train.rows(slice(i, i + n))) for i in range(0, len(train) - n + 1, n)[:PARTS]]
    return {name: sum(f[name] for f in found) / len(found) for name in found[0]}


def _path(run: Run) -> Path:
    return run.place("cost.safetensors")
