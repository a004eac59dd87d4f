"""How the training went: loss, gradient norm and learning rate over its steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ornstein.report import html
from ornstein.report.figures import chart

WINDOWS = 60


def training_curves(history: Mapping[str, Tensor], asked: int, clip: float | None) -> str:
    """The section of the curves: history as `Run.history` has it, the steps asked for, and the bound of the norm."""
    done = len(history["loss"])
    if done == 0:
        return html.section("Training", "No step was done yet.")
    norm, rate = windowed(history["grad_norm"]), windowed(history["lr"])
    last = float(history["loss"][-max(1, done // 20) :].mean())
    bound = (clip, f"clipped at {clip:g}") if clip is not None else None
    far = "" if done == asked else f" The training stopped at {done:,} of {asked:,} steps."
    return html.section(
        "Training",
        loss(history["loss"]),
        f"Mean loss of the last twentieth of {done:,} steps: {last:.4g}.{far}",
        html.side_by_side(
            html.figure(
                chart(
                    {"gradient norm": norm}, name="norm", x="training step", y="gradient norm", log="y", marks=False,
                    reference=bound, width=4.4, height=2.5,
                ),
                "Norm of the gradient before it is clipped.",
            ),
            html.figure(
                chart(
                    {"learning rate": rate}, name="rate", x="training step", y="learning rate", marks=False, width=4.4,
                    height=2.5,
                ),
                f"Learning rate, {float(history['lr'].max()):.3g} at its highest.",
            ),
        ),
    )  # fmt: skip


def loss(values: Tensor) -> str:
    """The figure of the training loss (steps,), averaged over windows."""
    window = max(1, len(values) // WINDOWS)
    svg = chart(
        {"loss": windowed(values)},
        name="loss", x="training step", y="weighted squared error", marks=False, height=2.8,
    )  # fmt: skip
    return html.figure(
        svg,
        f"Means over {window} {'step' if window == 1 else 'steps'} of the loss in units of the network's own target (1 "
        "is what a network that knows nothing scores). It does not fall to zero: what the noise has hidden cannot be "
        "known.",
    )


def windowed(values: Tensor) -> tuple[list[float], list[float]]:
    """(steps, means) of values (steps,) over at most 2 WINDOWS windows of equal length."""
    window = max(1, len(values) // WINDOWS)
    smooth = values[: len(values) // window * window].double().reshape(-1, window).mean(1)
    at = (torch.arange(len(smooth)) + 0.5) * window + 0.5
    return at.tolist(), smooth.tolist()
