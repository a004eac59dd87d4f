"""Judging samples: every figure beside what real data score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein.metrics import LabelClassifier, fit_classifier, frechet_distance, label_accuracy, nearest_neighbour_ratio
from ornstein.report.data import Split

MOST = 2000
"""Most samples that are judged."""


@dataclass(frozen=True)
class Goal:
    """A bound on a figure, low <= value <= high."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value keeps the bound (NaN keeps none)."""
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    @property
    def bound(self) -> str:
        """The bound in words."""
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"


@dataclass
class Judge:
    """What samples of a run are measured against: held-out data of the same number, and a classifier of real data."""

    split: Split
    classifier: LabelClassifier | None = field(init=False)

    def __post_init__(self) -> None:
        train, held_out = self.split.train, self.split.held_out
        self.n = min(len(train), len(held_out), MOST)
        self.real, self.labels = held_out[: self.n], None
        apart = [train[i : i + self.n] for i in range(0, len(train) - self.n + 1, self.n)][:4]
        self.reference = sum(frechet_distance(part, self.real) for part in apart) / len(apart)
        self.classifier = None
        if self.split.train_labels is not None and self.split.held_out_labels is not None:
            self.labels = self.split.held_out_labels[: self.n]
            known = (held_out, self.split.held_out_labels)
            self.classifier = fit_classifier(train, self.split.train_labels, 0, held_out=known)

    def __call__(self, x: Tensor) -> dict[str, float]:
        """The figures of n samples x (n, *event), which carry the held-out labels where there are labels."""
        frechet = frechet_distance(x, self.real)
        figures = {
            "frechet": frechet,
            "frechet_ratio": frechet / self.reference,
            "nearest_ratio": nearest_neighbour_ratio(x, self.split.train, self.split.held_out),
        }
        if self.classifier is not None and self.labels is not None:
            figures["label_accuracy"] = label_accuracy(self.classifier, x, self.labels)
        return figures

    def references(self) -> dict[str, Any]:
        """What real data score: training against held-out data, and the classifier on held-out data."""
        found: dict[str, Any] = {
            "samples": self.n,
            "frechet": self.reference,
            "frechet_ratio": 1.0,
            "nearest_ratio": 1.0,
        }
        if self.classifier is not None:
            found["label_accuracy"] = self.classifier.accuracy
        return found


def goals(figures: Mapping[str, float], references: Mapping[str, float]) -> list[Goal]:
    """What a good set of samples keeps: no worse than real data by much, neither copied nor noisy.

    Labels: right on 0.98, or as often as those of real data where the classifier knows them less often than that.
    """
    made = [
        Goal("Fréchet distance / that of training data", figures["frechet_ratio"], high=1.5),
        Goal("nearest-training distance / that of held-out data", figures["nearest_ratio"], low=0.95, high=1.15),
    ]
    if "label_accuracy" in figures:
        made.insert(0, Goal("label accuracy", figures["label_accuracy"], low=min(0.98, references["label_accuracy"])))
    return made


def diversity(x: Tensor, labels: Tensor) -> float:
    """Mean distance of two samples of one class: x (n, *event), labels (n,) -> the mean over classes of two or more."""
    means = []
    for label in sorted(set(labels.tolist())):
        members = x[labels == label].flatten(1).double()
        if len(members) > 1:
            means.append(torch.nn.functional.pdist(members).mean())
    return float(torch.stack(means).mean())
