"""What the model was trained on: what was read, how much of it, its classes and columns, and some of it to see."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import torch
from torch import Tensor

from ornstein.data import SeriesSpace, Split, TableSpace
from ornstein.report import html
from ornstein.report.drawing import bars
from ornstein.report.figures import COLOURS
from ornstein.report.show import Show, cell, class_name, show_of

CLASSES = 20
"""Most classes that are listed."""
ROWS = 5
"""Rows of a table that are shown."""
BINS = 16
LOOKED_AT = 10_000
"""Most samples of which ranges and shares are taken."""
NAMES = {"array": "arrays", "images": "images", "table": "rows of a table", "series": "series"}


def the_data(source: str, split: Split, show: Show | None = None) -> str:
    """The section of the data: what they are, numbers, classes, columns, and a few."""
    train, held_out, space = split.train, split.held_out, split.space
    show = show or show_of(split)
    n = len(train) + len(held_out)
    shape = "" if space.kind == "table" else f", each {shape_of(split)}"
    said = (
        f"<p><code>{escape(source)}</code>: {n:,} {NAMES[space.kind]}{shape}. {len(train):,} to train on, "
        f"{len(held_out):,} held out to judge by.</p>"
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in train.notes)
    x, labels = train.rows(slice(min(LOOKED_AT, len(train))))
    few = ROWS if space.kind == "table" else 2 * show.many if show.images else show.many
    shown = show(x[:few], "training data", None if labels is None else labels[:few])
    caption = f"The first {min(few, len(x))} of the training data" + (
        "; gaps are left open." if isinstance(space, SeriesSpace) else "."
    )
    return html.section(
        "The data",
        said,
        f"<ul>{notes}</ul>" if notes else "",
        html.figure(shown, caption),
        _classes(split),
        *_columns(split, x),
        *_channels(split, x),
    )


def shape_of(split: Split) -> str:
    """The shape of a sample in words."""
    event, space = split.event, split.space
    if isinstance(space, SeriesSpace):
        return f"{event[0]} {'channel' if event[0] == 1 else 'channels'} at {event[1]} times"
    if space.kind == "images":
        return f"{event[1]} x {event[2]} pixels, {'colour' if event[0] == 3 else 'grey'}"
    return " x ".join(map(str, event)) + (" columns" if space.kind == "table" else " numbers")


def _classes(split: Split) -> str:
    if split.train.labels is None or split.held_out.labels is None:
        return ""
    parts = [labels.bincount(minlength=split.labels) for labels in (split.train.labels, split.held_out.labels)]
    rows = [
        [class_name(split.space, k), f"{int(parts[0][k]):,}", f"{int(parts[1][k]):,}"]
        for k in range(min(split.labels, CLASSES))
    ]
    if split.labels > CLASSES:
        rest = [f"{int(part[CLASSES:].sum()):,}" for part in parts]
        rows.append([f"{split.labels - CLASSES} more classes", *rest])
    label = getattr(split.space, "label", None)
    name = "class" if label is None else str(label.name)
    return html.table(
        [name, "training", "held out"], rows, ["all", f"{len(split.train):,}", f"{len(split.held_out):,}"]
    )


def _columns(split: Split, x: Tensor) -> Iterator[str]:
    """Of a table: a line a column, with its law."""
    space = split.space
    if not isinstance(space, TableSpace):
        return
    rows = []
    # the ends of every column in the user's units, by way of rows that hold them
    held = [column[~column.isnan()] for column in x.T]
    ends = space.to_user(torch.stack([torch.stack([c.min(), c.median(), c.max()]) for c in held], 1))
    for j, column in enumerate(space.columns):
        missing = f"{float(x[:, j].isnan().double().mean()):.1%}" if column.missing else ""
        if column.kind == "category":
            counts = held[j].long().bincount(minlength=len(column.levels)).tolist()
            order = sorted(range(len(counts)), key=lambda k: -counts[k])[:3]
            shares = ", ".join(f"{column.levels[k]} {counts[k] / max(sum(counts), 1):.0%}" for k in order)
            law = f"{len(column.levels)} values: {shares}" + (", ..." if len(counts) > 3 else "")
        else:
            low, middle, high = (cell(value) for value in ends.iloc[:, j])
            law = f"{low} to {high}, median {middle}"
        kind = {"number": "number", "category": "category", "time": "time"}[column.kind]
        drawn = html.Markup(
            bars(histogram(x[:, j], column.kind == "category", *ends_of(x[:, j])), f"values of {column.name}")
        )
        said = law if column.kind == "category" else html.Markup(law)
        rows.append([str(column.name), kind, missing, said, drawn])
    yield html.words(["column", "kind", "missing", "values", ""], rows)


def _channels(split: Split, x: Tensor) -> Iterator[str]:
    """Of series: a line a channel."""
    space = split.space
    if not isinstance(space, SeriesSpace):
        return
    rows = []
    for c, name in enumerate(space.channels):
        held = x[:, c][~x[:, c].isnan()].double()
        gaps = float(x[:, c].isnan().double().mean())
        numbers = (held.min(), held.mean(), held.max(), held.std())
        swatch = f'<span style="color:{COLOURS[c % len(COLOURS)]}">&#9632;</span> '
        rows.append([html.Markup(swatch + escape(str(name))), f"{gaps:.1%}", *(f"{float(v):.4g}" for v in numbers)])
    yield html.table(["channel", "missing", "least", "mean", "greatest", "standard deviation"], rows)


def ends_of(column: Tensor) -> tuple[float, float]:
    """The least and greatest value of a column."""
    held = column[~column.isnan()]
    return (float(held.min()), float(held.max())) if len(held) else (0.0, 1.0)


def histogram(column: Tensor, category: bool, low: float, high: float) -> list[float]:
    """Shares of a column's values: of each category, or of equal parts of the range from low to high."""
    held = column[~column.isnan()].double()
    if category:
        counts = held.round().long().clamp(0, int(high)).bincount(minlength=int(high) + 1).double()
    else:
        counts = torch.histc(held.clamp(low, high), BINS, low, high if high > low else low + 1)
    return [float(c) for c in counts / max(len(held), 1)]
