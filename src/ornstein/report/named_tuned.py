"""Named against tuned: what tuning brought at each budget."""

from __future__ import annotations

from html import escape
from pathlib import Path

import torch
from torch import Tensor

from ornstein.denoiser import Denoiser
from ornstein.random import generator
from ornstein.report import html
from ornstein.report.figures import chart
from ornstein.report.tables import every
from ornstein.report.tune import brief
from ornstein.tuning import TunedTable
from ornstein.tuning.fingerprint import fingerprint

DRAWS = 1_000
"""Resamplings of the starts behind an interval."""


def named_tuned(folder: Path, model: Denoiser) -> str:
    """The section of the tuned tables of a run; nothing where there are none. Of a damaged file a line says so."""
    tables, damaged = every(folder)
    left = "".join(f'<p class="missed">Left out: {escape(why):.300}</p>' for why in damaged)
    if not tables:
        return html.section("Named against tuned", left) if left else ""
    own, scales = fingerprint(model), list(dict.fromkeys(guidance for _, guidance, _ in tables))
    lines, rows, stale = dict[str, tuple[list[float], list[float]]](), list[list[str]](), 0
    for nfe, guidance, table in tables:
        other = table.tuned_on["fingerprint"] != own
        stale += other
        low, high = interval(table)
        on = table.tuned_on
        rows.append(
            [
                f"{nfe}{' (of other weights)' if other else ''}",
                *([f"{guidance:g}"] if scales != [1.0] else []),
                brief(str(on.get("named"))),
                f"{table.named_error:.4g}",
                f"{table.error:.4g}",
                f"{table.gain:.2f} ({low:.2f} to {high:.2f})",
                str(len(table.errors)),
            ]
        )
        for kind, error in (("named", table.named_error), ("tuned", table.error)):
            label = kind if scales == [1.0] else f"{kind}, guidance {guidance:g}"
            xs, ys = lines.setdefault(label, ([], []))
            if error > 0:
                xs.append(float(nfe))
                ys.append(error)
    names = ["evaluations", *(["guidance"] if scales != [1.0] else []), "named solver", "its error", "tuned", "gain"]
    caption = (
        "Root mean square distance of a sample to the model's own flow from the same start, in model units, on starts "
        "that had no say in the tables. Named: the best of six solvers on nine grids, chosen on the tuning starts. "
        "Gain: the tuned error over the named one, with 95 % of 1,000 resamplings of the starts."
    )
    if stale:
        caption += " Tables of other weights than the run has now are not sampled with: tune them again."
    budgets = sorted({float(nfe) for nfe, _, _ in tables})
    return html.section(
        "Named against tuned",
        html.figure(
            chart(lines, name="tuned", x="evaluations of the model", y="endpoint error", log="xy", ticks=budgets),
            escape(caption),
        ),
        html.table([*names, "starts"], rows),
        left,
    )


def interval(table: TunedTable) -> tuple[float, float]:
    """95 % of the gain under resampling of the starts, the same for both tables (a percentile bootstrap)."""
    pairs = torch.stack([table.errors, table.named_errors], 1).double().square()
    rows = torch.randint(len(pairs), (DRAWS, len(pairs)), generator=generator(0))
    tuned, before = pairs[rows].mean(1).unbind(1)
    gain: Tensor = (tuned / before.clamp(min=1e-300)).sqrt()
    low, high = gain.quantile(torch.tensor([0.025, 0.975], dtype=gain.dtype)).tolist()
    return low, high
