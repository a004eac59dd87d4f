"""The picture of docs/training.md: held-out data beside samples of the three runs that the page makes.

    python scripts/three_kinds.py runs docs/three-kinds.png

reads RUNS/digits, RUNS/measures and RUNS/scanlines, trained by the page's commands.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn import functional

from ornstein.random import derive
from ornstein.report.judge import TableJudge, judge_of
from ornstein.report.run import Run


def both(run: Run) -> tuple[Any, Tensor]:
    """The judge of a run, with the held-out data, and as many samples."""
    judge = judge_of(run.split)
    x = run.sample(judge.n, labels=judge.labels, steps=20, progress=False).x
    assert isinstance(x, Tensor)
    return judge, x


def digits(axes: Any, run: Run) -> None:
    judge, x = both(run)
    chosen = torch.cat([(judge.labels == k).nonzero()[:4, 0] for k in range(10)])
    for axis, images, title in zip(axes, (judge.real, x), ("held-out images", "samples"), strict=False):
        framed = functional.pad(images[chosen], (1, 1, 1, 1)).reshape(10, 4, 10, 10)
        sheet = framed.permute(1, 2, 0, 3).reshape(40, 100)
        axis.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
        axis.set_title(title)
        axis.axis("off")
    axes[2].axis("off")


def table(axes: Any, run: Run) -> None:
    judge, x = both(run)
    assert isinstance(judge, TableJudge)
    a, b = judge.names.index("centre_down"), judge.names.index("top_left")
    copula = judge.copula.sample(judge.n, derive(0, "copula"))
    titles = ("held-out rows", "samples", "Gaussian copula")
    for axis, rows, title in zip(axes, (judge.real, x, copula), titles, strict=True):
        axis.scatter(rows[:, a], rows[:, b], s=5, c=judge.labels if rows is not copula else copula[:, -1], cmap="tab10")
        axis.set(title=title, xlabel="centre_down", xlim=(2.2, 4.8), ylim=(0, 10))
    axes[0].set_ylabel("top_left")


def series(axes: Any, run: Run) -> None:
    judge, x = both(run)
    for axis, lines, title in zip(axes, (judge.real, x), ("held-out series, with gaps", "samples"), strict=False):
        axis.plot(lines[:12, 0].T, linewidth=1)
        axis.set(title=title, xlabel="time", ylim=(-0.1, 1.1))
    axes[0].set_ylabel("x0")
    axes[2].axis("off")


def main(runs: Path, out: Path) -> None:
    figure, axes = plt.subplots(3, 3, figsize=(9, 7.5), height_ratios=(0.8, 1.2, 1.2))
    for row, (name, draw) in zip(axes, {"digits": digits, "measures": table, "scanlines": series}.items(), strict=True):
        draw(row, Run.open(runs / name))
    figure.tight_layout()
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
