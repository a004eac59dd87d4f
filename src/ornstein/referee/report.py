"""What the referee found, as a table, a JSON file and a page that stands by itself."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ..io import atomic_write, write_json

Verdict: TypeAlias = Literal["pass", "fail", "not applicable"]


@dataclass(frozen=True)
class Finding:
    """One check: its verdict, the figure and the bound it was held to, and one line of what they mean.

    series: curves worth a picture, label -> (x values, y values), both on logarithmic axes.
    """

    check: str
    verdict: Verdict
    figure: str = ""
    bound: str = ""
    why: str = ""
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All findings on one sampler.

    passed: whether no check failed. failures: the findings that did. `table()` is for a terminal, `save(folder)` writes
    report.json and report.html.
    """

    name: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "fail")

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"no check is called {check!r}: there are {', '.join(f.check for f in self.findings)}")

    def table(self) -> str:
        """The findings as lines of text."""
        rows = [(f.verdict.upper() if f.verdict == "fail" else f.verdict, f) for f in self.findings]
        lines = [f"{self.name}: {self.summary()}", ""]
        for word, f in rows:
            bound = f"  ({f.bound})" if f.bound else ""
            lines.append(f"  {word:<15}{f.check:<11}{f.figure}{bound}")
            if f.verdict == "fail":
                lines.append(f"  {'':<15}{'':<11}{f.why}")
        return "\n".join(lines)

    def summary(self) -> str:
        """One line: how many checks passed, and which failed."""
        ran = [f for f in self.findings if f.verdict != "not applicable"]
        failed = ", ".join(f.check for f in self.failures)
        return f"{len(ran) - len(self.failures)} of {len(ran)} checks passed" + (
            f"; failed: {failed}" if failed else ""
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; numbers that are not finite become null."""

        def points(values: Sequence[float]) -> list[float | None]:
            return [float(v) if math.isfinite(v) else None for v in values]

        findings = [
            {**vars(f), "series": {name: [points(xs), points(ys)] for name, (xs, ys) in f.series.items()}}
            for f in self.findings
        ]
        return {"name": self.name, "passed": self.passed, "findings": findings}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.json and report.html into a folder, made if need be; the page's path."""
        page = Path(folder) / "report.html"
        write_json(Path(folder) / "report.json", self.to_json())
        atomic_write(page, self.html().encode())
        return page

    def html(self) -> str:
        """One page without script, font or picture from anywhere else."""
        state = "pass" if self.passed else "fail"
        drawn = [f for f in self.findings if f.series]
        if len(drawn) > 1 and drawn[-1].check == "rival":  # whose picture has the curve of "converges" too
            drawn = [f for f in drawn if f.check != "converges"]
        pictures = [
            f"<h2>{escape(TITLES.get(f.check, f.check))}</h2>\n<figure>{chart(f.series, AXES.get(f.check, 'steps'))}"
            f"<figcaption>{escape(f.why)}</figcaption></figure>\n"
            for f in drawn
        ]
        rows = "".join(
            f'<tr><td><span class="{f.verdict.split()[0]}">{f.verdict}</span></td><td><b>{escape(f.check)}</b><br>'
            f'<span class="soft">{escape(CHECKS.get(f.check, ""))}</span></td><td>{escape(f.figure)}</td>'
            f'<td class="soft">{escape(f.bound)}</td><td>{escape(f.why)}</td></tr>'
            for f in self.findings
        )
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.name)}: the referee's report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<p class="soft">The referee\'s report on</p><h1>{escape(self.name)}</h1>\n'
            f'<p class="verdict {state}">{escape(self.summary())}</p>\n'
            '<div class="wide"><table><tr><th>verdict</th><th>check</th><th>found</th><th>bound</th>'
            f"<th>what it means</th></tr>{rows}</table></div>\n{''.join(pictures)}\n"
            '<p class="soft">Every run asks an exact denoiser, and is compared with the exact flow or law between the '
            "first and last noise level that the sampler itself used.</p>\n</body>\n</html>\n"
        )


CHECKS = {
    "runs": "8 steps from noise end in finite numbers of the same shape",
    "order": "how fast the error falls as steps shrink, on a range with two finite ends",
    "constant": "a denoiser that always answers one point is followed to that point",
    "law": "mean, variance and distribution of many samples from a known law",
    "nfe": "evaluations counted at the denoiser against those announced",
    "batch": "a sample does not depend on the others in its batch",
    "shapes": "the same numbers as (n, d), images and videos give the same result",
    "seeds": "a seed repeats the run, another changes it, the global generator is left alone",
    "dtype": "a float32 run stays float32 and near the float64 one",
    "end": "nothing is lost in one jump from the last level to data",
    "options": "1, 2, 3, 10 and 20 steps with each option end in finite numbers, or are refused in words",
    "converges": "four times the evaluations on its own levels make a smaller error",
    "rival": "more accurate than plain Euler for the same evaluations",
}
"""The checks in their order, and what each asks."""

TITLES = {
    "order": "Error against steps, on the range with finite ends",
    "rival": "Error against network evaluations, on its own levels",
    "converges": "Error against network evaluations, on its own levels",
}

AXES = {"order": "steps", "rival": "network evaluations", "converges": "network evaluations"}

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #dfe3e9; --page: #fff; --pass: #1c7c54;
  --fail: #b3362b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa4b2; --line: #303845; --page: #14181f;
  --pass: #5cc795; --fail: #f08a7e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; } .verdict { font-size: 1.15rem; font-weight: 600; }
.pass { color: var(--pass); } .fail { color: var(--fail); font-weight: 700; } .not { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; padding: .4rem .8rem .4rem 0; border-bottom: 2px solid var(--line); }
td { padding: .5rem .8rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; min-width: 6rem; }
figure { margin: 0; } svg { display: block; width: 100%; max-width: 40rem; height: auto; }
svg text { fill: currentColor; font: 12px system-ui, sans-serif; }
"""

COLOURS = ("#3b82d0", "#e0762b", "#2fa37c", "#9a7bd6")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 350, 74, 50


def chart(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str = "") -> str:
    """Errors on two logarithmic axes as inline SVG; points that are not finite or not positive are left out."""
    curves = {
        name: [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y) and x > 0 and y > 0]
        for name, (xs, ys) in series.items()
    }
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return "<p>no finite figure to draw</p>"
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    low, high = math.floor(math.log10(y0)), math.ceil(math.log10(y1))
    high = max(high, low + 1)
    span = math.log(x1 / x0) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - 16) * math.log(x / x0) / span, 12 + (HEIGHT - BOTTOM - 12) * (
            high - math.log10(y)
        ) / (high - low)

    parts = []
    for power in range(low, high + 1):
        _, y = place(x0, 10.0**power)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - 16}" stroke="currentColor" opacity=".15"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:.0e}</text>')
    for x in sorted({x for x, _ in points}):
        parts.append(f'<text x="{place(x, y0)[0]:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - 16) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    up = (HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(12 {up:.0f}) rotate(-90)" text-anchor="middle">median error</text>')
    for i, (name, curve) in enumerate(curves.items()):
        colour, dash = COLOURS[i % len(COLOURS)], ' stroke-dasharray="5 4"' if name.startswith("slope") else ""
        line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if not dash:
            dots = [place(*point) for point in curve]
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in dots]
        key = 24 + 18 * i
        parts.append(f'<path d="M{WIDTH - 210} {key}h22" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{WIDTH - 182}" y="{key + 4}">{escape(name)}</text>')
    drawn = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(series))}">{drawn}</svg>'
