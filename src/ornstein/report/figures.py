"""Figures as text that stands in a page by itself: inline SVG that takes the page's colours, PNG as data."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from ornstein._extras import require

INK = "#010203"
"""Stands for the page's own text colour while matplotlib draws; the SVG says `currentColor` in its place."""

COLOURS = ("#3b82d0", "#e0762b", "#2fa37c", "#c4527e", "#9a7bd6", "#a08a2c")
MARKS = ("o", "s", "^", "D", "v", "P")


def chart(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    name: str,
    x: str,
    y: str,
    log: str = "",
    ticks: Sequence[float] = (),
    reference: tuple[float, str] | None = None,
    band: tuple[float, float] | None = None,
    marks: bool = True,
    width: float = 6.4,
    height: float = 3.4,
) -> str:
    """Lines with axes, labels and a dashed reference, as inline SVG.

    lines: label -> (x values, y values). `log` names the logarithmic axes ("x", "y", "xy"); `ticks` are the x values
    marked; `reference` is a y value and what it is; `band` is a range of y that is shaded; `name` makes the ids unique.
    """
    matplotlib = require("matplotlib", extra="report")
    figures, tickers = require("matplotlib.figure", extra="report"), require("matplotlib.ticker", extra="report")
    style: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        for i, (label, (xs, ys)) in enumerate(lines.items()):
            mark = MARKS[i % len(MARKS)] if marks else None
            axes.plot(xs, ys, color=COLOURS[i % len(COLOURS)], marker=mark, markersize=5, lw=1.8, label=label)
        if band is not None:
            axes.axhspan(*band, color=COLOURS[2], alpha=0.12, lw=0)
        if reference is not None:
            axes.axhline(reference[0], color=INK, ls=(0, (5, 4)), lw=1, label=reference[1])
        for axis in log:
            getattr(axes, f"set_{axis}scale")("log")
            scale = getattr(axes, f"{axis}axis")
            low, high = getattr(axes, f"get_{axis}lim")()
            scale.set_major_locator(tickers.LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 4, 5, 7)))
            scale.set_major_formatter(tickers.FuncFormatter(lambda value, _: f"{value:g}"))
            scale.set_minor_locator(tickers.NullLocator())
        if ticks:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=INK, alpha=0.12, lw=0.6)
        if len(lines) > 1 or reference is not None:
            axes.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), f"{y} against {x}")


def image(
    x: Tensor, columns: int | None = None, bounds: tuple[float, float] | None = None, *, ink: bool = True
) -> bytes:
    """Images (n, 1 or 3, height, width) side by side, `columns` a row, a white pixel between them: the bytes of a PNG.

    With `ink` one channel is drawn as ink on paper: the least value white. Without, what is between the images is
    clear. `bounds` are the least and the greatest value; by default those that there are.
    """
    require("matplotlib", extra="report")
    images = require("matplotlib.image", extra="report")
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"a picture needs images (n, 1 or 3, height, width): got {tuple(x.shape)}; write .npz instead")
    n, channels, height, width = x.shape
    columns = min(columns or n, n)
    low, high = bounds or (float(x.min()), float(x.max()))
    value = ((x.float().cpu() - low) / max(high - low, 1e-12)).clamp(0, 1)
    value = 1 - value if channels == 1 and ink else value
    rows = -(-n // columns)
    page = value.new_ones(channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    seen = torch.full_like(page[:1], float(ink))
    for i, picture in enumerate(value):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        page[:, top : top + height, left : left + width] = picture
        seen[:, top : top + height, left : left + width] = 1
    buffer = io.BytesIO()
    colours = page.expand(3, -1, -1)
    images.imsave(buffer, (colours if ink else torch.cat([colours, seen])).permute(1, 2, 0).numpy(), format="png")
    return buffer.getvalue()


def picture(
    x: Tensor,
    alt: str,
    *,
    columns: int | None = None,
    bounds: tuple[float, float] | None = None,
    zoom: int = 4,
    ink: bool = True,
) -> str:
    """The images of `image` as an <img> that holds its own data, each pixel `zoom` wide."""
    wide = min(columns or len(x), len(x)) * (x.shape[3] + 1) - 1
    data = base64.b64encode(image(x, columns, bounds, ink=ink)).decode()
    drawn = "pixels ink" if ink and x.shape[1] == 1 else "pixels"
    return f'<img class="{drawn}" alt="{escape(alt)}" width="{wide * zoom}" src="data:image/png;base64,{data}">'


def _inline(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1).strip()
