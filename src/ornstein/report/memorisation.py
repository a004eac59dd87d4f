"""Whether the model repeats its training data: nearest neighbours, to look at and as a law of distances."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.data import Split, TableSpace
from ornstein.report import html
from ornstein.report.figures import chart
from ornstein.report.judge import Judge
from ornstein.report.show import Show, frame

MOST = 500
"""Most samples whose nearest are sought."""
PAIRS = 8
RARE = 0.01
"""Share of held-out data that lies nearer to training data than the bound by which samples are counted."""
UNITS = {
    "table": "distance to the nearest training row, columns to scale",
    "series": "root mean square distance to the nearest training series, in standard deviations",
}


def memorisation(judge: Judge, x: Tensor, split: Split, show: Show) -> str:
    """The section of memorisation: the law of distances to the nearest training sample, and the nearest pairs."""
    distances, places = judge.nearest(x[:MOST])
    bound = float(judge.near.quantile(RARE))
    share = copied(distances, judge.near)
    order = distances.argsort()[: min(PAIRS, show.many)]
    unit = UNITS.get(split.space.kind, "distance to the nearest training sample, in the data's units")
    svg = chart(
        {"samples": law(distances), "held-out data": law(judge.near)},
        name="memorisation", x=unit, y="share that is nearer", marks=False, height=3.0,
    )  # fmt: skip
    same = int((distances == 0).sum())
    copies = f" {same:,} of them repeat a training sample exactly." if same else ""
    pairs = "" if show.flat else _pairs(x[order], judge, order, *split.train.rows(places[order]), show)
    said = "The samples that are nearest to training data, each with the training sample it is near to."
    return html.section(
        "Memorisation",
        f"{share:.1%} of {len(distances):,} samples are nearer to their nearest training sample than {bound:.4g}, as "
        f"{RARE:.0%} of held-out data are. A model that copies has far more of them, and its curve lies left of that "
        f"of held-out data.{copies}",
        html.figure(svg, "Distance to the nearest training sample, over samples and over held-out data."),
        html.figure(pairs, said) if pairs else "",
    )


def copied(distances: Tensor, near: Tensor) -> float:
    """The share of distances below the 1 % quantile of those of held-out data."""
    return float((distances < near.quantile(RARE)).double().mean())


def law(distances: Tensor, points: int = 101) -> tuple[list[float], list[float]]:
    """(values, shares below them), the empirical law at evenly spread shares."""
    shares = torch.linspace(0, 1, points, dtype=torch.float64)
    return distances.double().quantile(shares).tolist(), shares.tolist()


def _pairs(x: Tensor, judge: Judge, order: Tensor, near: Tensor, labels: Tensor | None, show: Show) -> str:
    if isinstance(show.space, TableSpace):
        own = None if judge.labels is None else judge.labels[order]
        rows = [show.space.to_user(part, y) for part, y in ((x, own), (near, labels))]
        in_turn = [i + k * len(x) for i in range(len(x)) for k in (0, 1)]
        both = require("pandas", extra="data").concat(rows).iloc[in_turn]
        names = tuple(f"{what} {i + 1}" for i in range(len(x)) for what in ("sample", "training row"))
        return frame(both, "", names, group=2)
    few = [("samples", x), ("training data", near)]
    return html.plates([[name, html.Markup(show(part, name))] for name, part in few], ["", "nearest first"])
