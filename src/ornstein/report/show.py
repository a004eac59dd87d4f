"""Samples of any kind of data as a page shows them: pictures, rows of a table, curves with their gaps, points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ornstein._extras import require
from ornstein.data import SeriesSpace, Space, Split, TableSpace
from ornstein.report import html
from ornstein.report.drawing import curves, dots
from ornstein.report.figures import picture

SIDE = 48
"""Largest side of a picture in a page: larger images are averaged over squares."""
NUMBERS = 12
"""Most numbers of an array that are shown as such; longer ones are curves."""
COLUMNS = 12
"""Most columns of a table that are shown."""
POINTS = 300
"""Most points of a plane that are drawn."""


@dataclass(frozen=True)
class Show:
    """How samples of one space are shown, all of a page to one scale: that of the training data. Made by `show_of`."""

    space: Space
    low: Tensor
    high: Tensor
    ink: bool = False
    """Whether pictures of one channel are drawn as ink on paper, the least value white."""

    @property
    def many(self) -> int:
        """How many samples a row of the page has room for."""
        if self.flat:
            return POINTS
        return {"images": 8, "table": 3}.get(self.space.kind, 5)

    @property
    def flat(self) -> bool:
        """Whether samples are points of a plane."""
        return self.space.kind == "array" and self.space.event == (2,)

    @property
    def images(self) -> bool:
        """Whether samples are pictures."""
        return len(self.space.event) == 3 and self.space.event[0] in (1, 3)

    def __call__(self, x: Tensor, alt: str, labels: Tensor | None = None, *, columns: int | None = None) -> str:
        """Samples x (n, *event), of which as many as there is room for are taken by who calls."""
        x = x.detach().cpu()
        if len(x) == 0:
            return ""
        if self.images:
            return self._pictures(x, alt, columns)
        if isinstance(self.space, TableSpace):
            return frame(self.space.to_user(x, labels))
        if self.flat:
            return f'<div class="strip">{dots(x, self.low, self.high, f"{alt}: {len(x)} points")}</div>'
        if isinstance(self.space, SeriesSpace):
            return self._curves(x, alt)
        flat = x.flatten(1)
        if flat.shape[1] <= NUMBERS:
            head = [str(i) for i in range(flat.shape[1])]
            return html.table(["", *head], [["", *(f"{v:.4g}" for v in row)] for row in flat.tolist()])
        return self._curves(flat[:, None], alt)

    def over(self, sets: Mapping[str, Tensor], what: str) -> str:
        """The same samples in several states, by name: a row for each, and of a table a row for each row of each."""
        if self.flat:
            drawn = [(name, dots(x, self.low, self.high, f"samples, {what} {name}")) for name, x in sets.items()]
            below = "".join(f'<div>{svg}<div class="soft">{what} {name}</div></div>' for name, svg in drawn)
            return f'<div class="strip">{below}</div>'
        if not isinstance(self.space, TableSpace):
            return html.plates(
                [[name, html.Markup(self(x, f"samples, {what} {name}"))] for name, x in sets.items()], [what, ""]
            )
        frames = [self.space.to_user(x) for x in sets.values()]
        in_turn = [i + k * len(frames[0]) for i in range(len(frames[0])) for k in range(len(frames))]
        both = require("pandas", extra="data").concat(frames).iloc[in_turn]
        return frame(both, what, tuple(sets) * len(frames[0]), group=len(frames))

    def _pictures(self, x: Tensor, alt: str, columns: int | None) -> str:
        side = max(x.shape[2:])
        if side > SIDE:
            height, width = (max(1, round(s * SIDE / side)) for s in x.shape[2:])
            x = adaptive_avg_pool2d(x.float(), (height, width))
        zoom = max(1, 40 // max(x.shape[2:]))
        bounds = self.space.bounds or (float(self.low), float(self.high))
        return picture(x, alt, columns=columns, bounds=bounds, zoom=zoom, ink=self.ink)

    def _curves(self, x: Tensor, alt: str) -> str:
        drawn = "".join(curves(row, self.low, self.high, f"{alt} {i + 1}") for i, row in enumerate(x))
        return f'<div class="strip">{drawn}</div>'


def show_of(split: Split) -> Show:
    """How samples of a split's kind of data are shown: to the scale of 1000 training samples, a little wider."""
    x = split.train.rows(slice(1000))[0]
    space = split.space
    if space.kind == "series":
        values = x.transpose(0, 1).flatten(1)
    elif space.kind == "array" and space.event == (2,):
        values = x.T
    else:
        values = x.flatten()[None]
    values = values.double()
    low = torch.stack([row[~row.isnan()].min() for row in values])
    high = torch.stack([row[~row.isnan()].max() for row in values])
    room = 0.0 if len(space.event) == 3 else 0.05 * (high - low)
    return Show(space, low - room, high + room)


def frame(rows: Any, first: str = "", names: tuple[str, ...] = (), *, group: int = 0) -> str:
    """A DataFrame as a table of the page, missing values as a dash; `names` of its rows come first. `group` of them
    belong together."""
    kept = rows.iloc[:, :COLUMNS]
    left = rows.shape[1] - kept.shape[1]
    head = [*([first] if names else []), *(str(name) for name in kept.columns)]
    head += [f"and {left} more"] if left else []
    columns: list[Sequence[str]] = [
        *([names] if names else []),
        *(cells(list(kept.iloc[:, j])) for j in range(kept.shape[1])),
    ]
    columns += [[""] * len(rows)] if left else []
    return html.rows(head, list(zip(*columns, strict=True)), group)


def cells(values: Sequence[Any]) -> list[html.Markup]:
    """One column of a table as markup, its numbers with as many decimals as the longest of them."""
    plain = [cell(value) for value in values]
    known = [isinstance(value, float) and math.isfinite(value) for value in values]
    texts = [text for text, number in zip(plain, known, strict=True) if number]
    if any("e" in text for text in texts):
        return plain
    places = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [
        html.Markup(f"{value:.{places}f}") if number else text
        for value, text, number in zip(values, plain, known, strict=True)
    ]


def cell(value: Any) -> html.Markup:
    """One value of a table as markup; a dash where it is missing."""
    if not isinstance(value, str) and str(value) in ("None", "NaT", "<NA>", "nan"):
        return html.Markup('<span class="soft">–</span>')
    if isinstance(value, float):
        return html.Markup(f"{value:.6g}")
    return html.Markup(escape(str(value).removesuffix(" 00:00:00")))


def class_name(space: Space, label: int) -> str:
    """What a class is called."""
    return space.labels[label] if label < len(space.labels) else str(label)
