"""What guidance does: a model trained with wrong labels, and how far guidance puts it right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ornstein.random import derive, generator
from ornstein.report.judge import Judge, diversity
from ornstein.report.model import build
from ornstein.report.run import NAMED, Run

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def wrong(labels: Tensor, share: float, seed: int) -> Tensor:
    """`labels` (n,), of which a share is replaced by another class at random."""
    rng = generator(seed)
    classes = 1 + int(labels.max())
    other = (labels + torch.randint(1, classes, labels.shape, generator=rng)) % classes
    return torch.where(torch.rand(labels.shape, generator=rng) < share, other, labels)


def guide(
    run: Run, judge: Judge, *, share: float = 0.3, steps: int = 20, progress: bool | None = None
) -> list[dict[str, Any]]:
    """Train as the run does but on labels of which `share` are wrong; a row of figures for each scale.

    diversity is the mean distance of two samples of one class, over that of held-out data.
    """
    split, labels = run.split, judge.labels
    train, train_labels = split.train.rows()
    assert train_labels is not None
    assert labels is not None
    model = build(run.config, split.train.codec())
    spoilt = wrong(train_labels, share, derive(run.config.seed, "wrong labels"))
    run.fit(model, train, {"label": spoilt}, run.place("wrong-labels.safetensors"), progress)
    real = diversity(judge.real, labels)
    rows = []
    for scale in SCALES:
        options: dict[str, Any] = {"steps": steps, "guidance": scale, "model": model, "solver": NAMED}
        x = run.sample(judge.n, labels=labels, progress=False, **options).x
        rows.append({"scale": scale, **judge(x), "diversity": diversity(x, labels) / real, "x": x})
    return rows
