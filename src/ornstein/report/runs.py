"""The runs in a folder, one a line: what each is, how far it has come, and what is wrong with those that are broken."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ornstein._extras import require
from ornstein.io import read_json
from ornstein.report.columns import columns
from ornstein.report.judge import TITLES
from ornstein.report.model import kind_of
from ornstein.report.run import Run

FIGURES = ("frechet_ratio", "label_accuracy", "c2st_accuracy", "nearest_ratio")
"""Figures that are shown, where a run has them; else its first three."""


@dataclass(frozen=True)
class Line:
    """What is said of one run."""

    name: str
    data: str = ""
    net: str = ""
    process: str = ""
    steps: str = ""
    loss: str = ""
    figures: str = ""
    size: str = ""
    changed: str = ""


def lines(folder: str | Path) -> list[Line]:
    """A line for each run in `folder`, or for `folder` itself if it is one; a broken run says why it is.

    Errors: FileNotFoundError if the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give the one that holds your runs")
    found = [folder] if (folder / "config.yaml").exists() else sorted(p.parent for p in folder.glob("*/config.yaml"))
    return [_line(run) for run in found]


def show(folder: str | Path) -> str:
    """The table of `lines`, by rich on a terminal if it is installed, else as plain text."""
    rows = lines(folder)
    if not rows:
        return f"no runs in {folder}: make one with `ornstein train --out {Path(folder) / 'NAME'}`"
    return columns([field.name for field in fields(Line)], [[str(cell) for cell in astuple(row)] for row in rows])


def _line(folder: Path) -> Line:
    size, changed = _extent(folder)
    try:
        run = Run.open(folder)
        config = run.config
        done, loss = _progress(run)
        figures = _figures(folder / "metrics.json")
    except Exception as error:  # whatever is in the folder, the other runs are shown
        why = " ".join(str(error).split()) or type(error).__name__
        return Line(folder.resolve().name, figures=f"broken: {why:.200}", size=size, changed=changed)
    data = Path(config.data).name or config.data
    return Line(
        folder.resolve().name,
        data,
        kind_of(config),
        config.process,
        f"{done}/{config.steps}",
        loss,
        figures,
        size,
        changed,
    )


def _progress(run: Run) -> tuple[int, str]:
    """(steps done, mean loss of the last twentieth of them), read without the weights."""
    if not run.checkpoint.exists():
        return 0, ""
    with require("safetensors", extra="train").safe_open(run.checkpoint, framework="pt") as file:
        history = file.get_tensor("history")[:, 0]
    return len(history), f"{float(history[-max(1, len(history) // 20) :].mean()):.4g}" if len(history) else ""


def _figures(path: Path) -> str:
    if not path.exists():
        return ""
    figures = read_json(path)["figures"]
    names = [name for name in FIGURES if name in figures] or [name for name in TITLES if name in figures][:3]
    return ", ".join(f"{TITLES[name]} {float(figures[name]):.3g}" for name in names)


def _extent(folder: Path) -> tuple[str, str]:
    """(size of all files, when the last was changed); files that go away meanwhile do not count."""
    size, last = 0, 0.0
    for path in folder.rglob("*"):
        try:
            found = path.lstat()
        except OSError:
            continue
        if not path.is_dir():
            size, last = size + found.st_size, max(last, found.st_mtime)
    power = min((len(str(size)) - 1) // 3, 4)
    unit = ("B", "kB", "MB", "GB", "TB")[power]
    stamp = time.strftime("%Y-%m-%d %H:%M", time.localtime(last)) if last else ""
    return f"{size / 1000**power:.3g} {unit}", stamp
