"""The parts that the report of any run has: its figures, its samples by class, its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ornstein.io import atomic_write
from ornstein.report import html
from ornstein.report.data import Split, bounds_of
from ornstein.report.figures import chart, picture
from ornstein.report.judge import goals
from ornstein.report.run import Evaluation, Run

FIGURES = {
    "label_accuracy": "label accuracy",
    "frechet": "Fréchet distance",
    "frechet_ratio": "Fréchet ratio",
    "nearest_ratio": "nearest ratio",
}


def run_page(run: Run, found: Evaluation) -> None:
    """Write the report of a run that was evaluated: report.html in its folder."""
    sampler = ", ".join(f"{key} {value}" for key, value in found.metrics["sampler"].items())
    parts = [
        quality(found.metrics, sampler),
        by_class(run.split, found.x, found.judge.labels, run.config.data),
        loss(run.history()),
    ]
    config = run.config
    steps = f"{config.steps} steps of {config.batch_size} samples"
    lead = f"{config.data}: {config.net.kind}, process {config.process}, {steps}."
    atomic_write(run.folder / "report.html", html.page(f"Run {run.folder.name}", lead, parts).encode())


def quality(metrics: Mapping[str, Any], sampler: str) -> str:
    """The goals, and every figure beside what real data score."""
    figures, references = metrics["figures"], metrics["references"]
    names = [name for name in FIGURES if name in figures]
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
            ["", *(FIGURES[name] for name in names)],
            [["samples", *(f"{figures[name]:.3f}" for name in names)]],
            ["real data", *(f"{references[name]:.3f}" for name in names)],
        ),
        f"One set of {references['samples']} samples ({sampler}). The Fréchet distance, on pixels, is to as many "
        "held-out samples; its reference is the distance of as many training samples to the same, averaged over "
        "disjoint sets. The nearest ratio is the median distance of a sample to its nearest training sample, over that "
        f"of held-out data: below 0.95 a model copies, above 1.15 it is noisy.{accuracy}",
    )


def by_class(split: Split, x: Tensor, labels: Tensor | None, name: str, columns: int = 8) -> str:
    """Held-out data and samples side by side, a row for each class; nothing for data that are no images."""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return ""
    bounds = bounds_of(name)
    real_labels = split.held_out_labels
    if labels is None or real_labels is None:
        rows = [["", *_pair(split.held_out[:columns], x[:columns], "data", bounds)]]
    else:
        both = sorted(set(labels.tolist()) & set(real_labels.tolist()))[:20]
        rows = [
            [
                f"<b>{k}</b>",
                *_pair(split.held_out[real_labels == k][:columns], x[labels == k][:columns], f"class {k}", bounds),
            ]
            for k in both
        ]
    return html.section("Samples by class", html.plates(rows, ["", "held-out data", "samples"]))


def loss(values: Tensor) -> str:
    """The training loss (steps,), averaged over windows."""
    window = max(1, len(values) // 60)
    smooth = values[: len(values) // window * window].double().reshape(-1, window).mean(1)
    at = (torch.arange(len(smooth)) + 0.5) * window
    svg = chart(
        {"loss": (at.tolist(), smooth.tolist())},
        name="loss", x="training step", y="weighted squared error", marks=False, height=2.8,
    )  # fmt: skip
    return html.section(
        "Training loss",
        html.figure(
            svg,
            f"Means over {window} steps of the loss in units of the network's own target (1 is what a network that "
            "knows nothing scores). It does not fall to zero: what the noise has hidden cannot be known.",
        ),
    )


def _pair(real: Tensor, made: Tensor, what: str, bounds: tuple[float, float] | None) -> list[str]:
    return [
        picture(part, f"{kind}, {what}", bounds=bounds, zoom=max(1, 32 // part.shape[-1])) if len(part) else ""
        for part, kind in ((real, "held-out data"), (made, "samples"))
    ]
