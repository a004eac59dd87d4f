"""Label accuracy: whether conditional samples are what was asked for, by a classifier trained on real data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.metrics._samples import check_labels, flatten, generator


@dataclass(frozen=True)
class LabelClassifier:
    """A fitted classifier: x -> label, with the accuracy it reached on `held_out` samples it was not fitted to.

    `classes`: the labels it knows, ascending. `event`: the event shape it takes.
    """

    accuracy: float
    held_out: int
    classes: tuple[int, ...]
    event: tuple[int, ...]
    estimator: Any = field(repr=False)

    def predict(self, x: Tensor) -> Tensor:
        """The label of each sample: (n, *event) -> (n,) int64 on x's device. ValueError on another event shape."""
        if tuple(x.shape[1:]) != self.event:
            raise ValueError(f"x must have the classifier's event shape {self.event}, got {tuple(x.shape[1:])}")
        (points,) = flatten(1, x=x)
        return torch.as_tensor(self.estimator.predict(points.numpy()), dtype=torch.int64).to(x.device)


def fit_classifier(
    x: Tensor,
    labels: Tensor,
    seed: int | torch.Generator,
    held_out: float | tuple[Tensor, Tensor] = 0.2,
    classifier: Any = None,
) -> LabelClassifier:
    """accuracy = P[predict(x) = label] over held-out data, of a classifier fitted to the rest.

    Shapes: x (n, *event), labels (n,) integers of at least two classes. `held_out`: the fraction of each class to set
    aside, drawn from `seed` (at least one sample a class stays on either side), or a pair (x, labels) of other data.
    `classifier`: any scikit-learn classifier; by default an RBF support vector machine, C = 10, of bandwidth scaled to
    the variance of x.

    Errors: ValueError on shapes or event shapes that do not match, non-finite values, one class only, a class of one
    sample to be split, a held-out label never fitted, a fraction outside (0, 1); ImportError without scikit-learn (the
    extra `metrics`).

    Source: as a score of conditional models, Ravuri and Vinyals 2019, arXiv:1905.10887 (there the other way round).
    """
    (points,) = flatten(x=x)
    known = check_labels(labels, len(x))
    classes = tuple(sorted(set(known.tolist())))
    if len(classes) < 2:
        raise ValueError(f"labels must have at least two classes, got only {classes}")
    if isinstance(held_out, tuple):
        fit_points, fit_labels = points, known
        test_x, test_labels = held_out
    else:
        test = _stratified(known, held_out, generator(seed))
        fit_points, fit_labels = points[~test], known[~test]
        test_x, test_labels = x.cpu()[test], known[test]
    machine = require("sklearn.svm", extra="metrics").SVC(C=10.0) if classifier is None else classifier
    estimator = require("sklearn.base", extra="metrics").clone(machine).fit(fit_points.numpy(), fit_labels.numpy())
    event = tuple(x.shape[1:])
    fitted = LabelClassifier(float("nan"), len(test_x), classes, event, estimator)
    return LabelClassifier(label_accuracy(fitted, test_x, test_labels), len(test_x), classes, event, estimator)


def label_accuracy(classifier: LabelClassifier, x: Tensor, labels: Tensor) -> float:
    """accuracy = P[classifier.predict(x) = label]: the share of samples that the classifier takes for what was asked.

    Shapes: x (n, *event), labels (n,) integers. Read it beside `classifier.accuracy`, what real data would score.
    Errors: ValueError on shapes that do not match, no samples, non-finite values, a label the classifier never saw.
    """
    flatten(1, x=x)
    asked = check_labels(labels, len(x))
    unknown = sorted(set(asked.tolist()) - set(classifier.classes))
    if unknown:
        raise ValueError(f"labels {unknown} are unknown to the classifier, which was fitted to {classifier.classes}")
    return float((classifier.predict(x).cpu() == asked).double().mean())


def _stratified(labels: Tensor, fraction: float, source: torch.Generator) -> Tensor:
    """A mask of held-out samples: the fraction of every class, at least one and not all of it."""
    if not 0 < fraction < 1:
        raise ValueError(f"held_out must be a fraction between 0 and 1, or a pair (x, labels); got {fraction}")
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        (members,) = (labels == label).nonzero(as_tuple=True)
        if len(members) < 2:
            raise ValueError(f"label {label} has one sample; two are needed to hold one out")
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        mask[members[torch.randperm(len(members), generator=source)[:count]]] = True
    return mask
