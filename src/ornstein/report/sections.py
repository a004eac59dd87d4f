"""Figures with their goals and references: what the pages of quickstart and of any run say alike."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ornstein.report import html
from ornstein.report.judge import TITLES, goals


def quality(metrics: Mapping[str, Any], sampler: str, says: str) -> str:
    """The goals, and every figure beside what real data score, and the baseline where there is one."""
    figures, references = metrics["figures"], metrics["references"]
    names = [name for name in TITLES if name in figures]
    baseline = references.get("baseline")
    accuracy = (
        f" The classifier of label accuracy was fitted to training data and is right on "
        f"{references['label_accuracy']:.1%} of held-out data."
        if "label_accuracy" in references
        else ""
    )
    return html.section(
        "Are the samples good?",
        html.goal_cards(goals(figures, references)),
        html.table(
            ["", *(TITLES[name] for name in names)],
            [_row(who, found, names) for who, found in (("samples", figures), _named(baseline)) if found],
            _row("real data", references, names),
        ),
        f"One set of {references['samples']:,} samples ({escape(sampler)}). {says}{accuracy}",
    )


def _named(baseline: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any] | None]:
    return (baseline["name"], baseline) if baseline else ("", None)


def _row(who: str, found: Mapping[str, Any], names: list[str]) -> list[str]:
    return [who, *(f"{found[name]:.3f}" if name in found else "" for name in names)]
