"""Samples beside held-out data: pictures by class, rows and laws of columns, curves, points."""

from __future__ import annotations

from html import escape

import torch
from torch import Tensor

from ornstein.data import Split, TableSpace
from ornstein.report import html
from ornstein.report.drawing import bars
from ornstein.report.html import Markup
from ornstein.report.judge import Judge, TableJudge
from ornstein.report.show import Show, class_name
from ornstein.report.the_data import ROWS, ends_of, histogram

CLASSES = 20
"""Most classes that are shown, and half as many of large images."""
LARGE = 32
"""Side above which an image is large: fewer of them stand in a row."""


def beside(split: Split, x: Tensor, judge: Judge, show: Show) -> str:
    """The section of samples x (n, *event) beside the held-out data of the same labels."""
    if isinstance(split.space, TableSpace) and isinstance(judge, TableJudge):
        return _table(x, judge, show)
    real, labels = judge.real, judge.labels
    if labels is not None and show.images:
        return _classes(real, x, labels, show)
    sets = {"held-out data": real[: show.many], "samples": x[: show.many]}
    return html.section("Samples beside data", show.over(sets, ""))


def _classes(real: Tensor, x: Tensor, labels: Tensor, show: Show) -> str:
    large = max(x.shape[2:]) > LARGE
    columns, most = (4, CLASSES // 2) if large else (8, CLASSES)
    present = sorted(set(labels.tolist()))
    rows = []
    for k in present[:most]:
        name = class_name(show.space, k)
        parts = (("held-out data", real), ("samples", x))
        rows.append(
            [
                Markup(f"<b>{escape(name)}</b>"),
                *(
                    Markup(show(part[labels == k][:columns], f"{what}, class {name}", columns=columns))
                    for what, part in parts
                ),
            ]
        )
    more = f"The first {most} of {len(present)} classes." if len(present) > most else ""
    return html.section("Samples by class", html.plates(rows, ["", "held-out data", "samples"]), more)


def _table(x: Tensor, judge: TableJudge, show: Show) -> str:
    space = show.space
    assert isinstance(space, TableSpace)
    distances = judge.by_column(x)
    rows = []
    for j, column in enumerate(space.columns):
        category = column.kind == "category"
        low, high = (0.0, len(column.levels) - 1.0) if category else ends_of(judge.real[:, j])
        pair = [histogram(part[:, j], category, low, high) for part in (judge.real, x)]
        top = max(max(shares) for shares in pair)
        names = ("held-out data", "samples")
        drawn = [Markup(bars(s, f"{column.name}, {who}", top=top)) for s, who in zip(pair, names, strict=True)]
        gaps = f"{column.name} is missing"
        shares = [f"{float(part[:, j].isnan().double().mean()):.1%}" for part in (judge.real, x)]
        rows.append(
            [
                str(column.name),
                *drawn,
                f"{distances[str(column.name)]:.3f}",
                *(shares if gaps in distances else ("", "")),
            ]
        )
    if judge.labels is not None and space.label is not None:
        rows.append([str(space.label.name), "", "", f"{distances[str(space.label.name)]:.3f}", "", ""])
    labels = None if judge.labels is None else judge.labels[:ROWS]
    return html.section(
        "Samples beside data",
        html.figure(show(x[:ROWS], "samples", labels), f"The first {ROWS} samples, in the table's own terms."),
        html.table(["column", "held-out data", "samples", "distance", "missing, held out", "missing, samples"], rows),
        "The distance of a column is Wasserstein's in standard deviations, or half the sum of the differences of "
        "shares. What lies beyond the range of held-out data is counted at its ends. Labels are given to the model, "
        "so their shares are those of held-out data.",
    )


def deviation_of(split: Split) -> float:
    """The standard deviation of the observed values of 1000 training samples."""
    x = split.train.rows(slice(1000))[0]
    return float(x[~x.isnan()].double().std().clamp(min=torch.finfo(torch.float32).tiny))
