"""Small drawings that stand in a page by themselves: bars, curves and dots as inline SVG of a few hundred bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from torch import Tensor

from ornstein.report.figures import COLOURS

LONGEST = 160
"""Most points of a curve: of longer ones every second, third, ... is drawn."""
MARGIN = 2.0


def bars(counts: Sequence[float], alt: str, *, top: float | None = None, width: int = 120, height: int = 32) -> str:
    """Counts as bars side by side; `top` is the count that is as high as the drawing, by default the greatest."""
    top = top or max([*counts, 1e-12])
    wide = width / max(len(counts), 1)
    drawn = "".join(
        f'<rect x="{_n(i * wide)}" y="{_n(height * (1 - min(c / top, 1.0)))}" '
        f'width="{_n(max(wide - 1, 0.8))}" height="{_n(height * min(c / top, 1.0))}"/>'
        for i, c in enumerate(counts)
        if c > 0
    )
    return _svg(f'<g fill="{COLOURS[0]}">{drawn}</g>', alt, width, height)


def curves(x: Tensor, low: Tensor, high: Tensor, alt: str, *, width: int = 120, height: int = 48) -> str:
    """Channels (channels, length) as lines, each scaled from its `low` to its `high` (channels,); NaN is left open.

    A value between two gaps, which no line reaches, is a dot.
    """
    x = x[:, :: -(-x.shape[1] // LONGEST)]
    step = (width - 2 * MARGIN) / max(x.shape[1] - 1, 1)
    parts = []
    for c, (values, bottom, top) in enumerate(zip(x.tolist(), low.tolist(), high.tolist(), strict=True)):
        at = [
            (MARGIN + i * step, MARGIN + (height - 2 * MARGIN) * (1 - (v - bottom) / ((top - bottom) or 1.0)))
            for i, v in enumerate(values)
        ]
        colour = COLOURS[c % len(COLOURS)]
        for run in _runs(at):
            if len(run) == 1:
                parts.append(f'<circle cx="{_n(run[0][0])}" cy="{_n(run[0][1])}" r="1.2" fill="{colour}"/>')
            else:
                points = " ".join(f"{_n(a)},{_n(b)}" for a, b in run)
                parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
    return _svg("".join(parts), alt, width, height)


def dots(x: Tensor, low: Tensor, high: Tensor, alt: str, *, size: int = 120) -> str:
    """Points (n, 2) in the rectangle from `low` to `high`, (2,) each; those outside it are left out."""
    scaled = (x.double() - low) / (high - low).clamp(min=1e-12)
    inside = scaled[((scaled >= 0) & (scaled <= 1)).all(1)].tolist()
    room = size - 2 * MARGIN
    drawn = "".join(
        f'<circle cx="{_n(MARGIN + room * a)}" cy="{_n(MARGIN + room * (1 - b))}" r="1.3"/>' for a, b in inside
    )
    return _svg(f'<g fill="{COLOURS[0]}" fill-opacity=".7">{drawn}</g>', alt, size, size)


def _runs(at: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The stretches of points without NaN."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in at:
        if math.isnan(point[1]):
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(content: str, alt: str, width: int, height: int) -> str:
    return (
        f'<svg class="small" role="img" aria-label="{escape(alt)}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{content}</svg>'
    )
