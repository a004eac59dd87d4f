"""Classifier two-sample test: whether a classifier can tell two sample sets apart, and what it could have told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.metrics._samples import flatten, generator


@dataclass(frozen=True)
class C2ST:
    """Accuracy of a classifier that tells x from y, beside what chance gives.

    `accuracy`: balanced, on samples not yet seen. `null_mean`, `null_std`: its law if x and y share one.
    `threshold`: exceeded with probability `level` if they do. `p_value`: one-sided. `detected`: accuracy > threshold.
    """

    accuracy: float
    null_mean: float
    null_std: float
    threshold: float
    level: float
    p_value: float

    @property
    def detected(self) -> bool:
        return self.accuracy > self.threshold


def c2st(
    x: Tensor,
    y: Tensor,
    seed: int | torch.Generator,
    classifier: Any = None,
    folds: int = 5,
    level: float = 0.05,
) -> C2ST:
    """accuracy = mean_j (P_j[x called x] + P_j[y called y]) / 2,  p = Phi(-(accuracy - 1/2) / null_std).

    The samples are shuffled and cut into `folds` folds; fold j is called by a classifier fitted to folds 0 .. j-1 only
    (the first fold is never called). If x and y share a law, then given its past each fold's accuracy has mean 1/2 and
    variance at most (1/n_j + 1/m_j) / 16, whatever the classifier: the accuracy is a mean of J = folds - 1 martingale
    differences and null_std^2 = sum_j (1/n_j + 1/m_j) / (16 J^2), the binomial variance of the called samples.
    (Ordinary cross-validation has no such null: folds take turns to train each other, its standard deviation is 1.2
    to 1.35 times the binomial one, and its test at 5 % rejects about 12 % of equal laws.)

    Shapes: x (n, *event), y (m, *event), n, m >= 5 folds, not necessarily equal. `classifier`: any scikit-learn
    classifier, cloned for each fold, its open `random_state` set from `seed`; by default a class-balanced RBF support
    vector machine on standardised features (cost between quadratic and cubic in n). An accuracy near 1/2 says nothing
    unless `c2st_power` shows that the classifier would have seen a difference worth seeing.

    Errors: ValueError on different event shapes, too few samples, non-finite values, folds < 2, level outside (0, 1);
    ImportError without scikit-learn (the extra `metrics`).

    Source: Lopez-Paz and Oquab 2017, arXiv:1610.06545; predicting each fold from those before it, Lhéritier and Cazals
    2018, Podkopaev and Ramdas 2023, arXiv:2305.00143.
    """
    if folds < 2:
        raise ValueError(f"folds must be at least 2, one to fit and one to call; got {folds}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    x, y = flatten(5 * folds, x=x, y=y)
    source = generator(seed)
    parts_x, parts_y = (z[torch.randperm(len(z), generator=source)].tensor_split(folds) for z in (x, y))
    model = _seeded(_default() if classifier is None else classifier, source)
    clone = require("sklearn.base", extra="metrics").clone
    accuracy, variance = 0.0, 0.0
    for j in range(1, folds):
        known_x, known_y = torch.cat(parts_x[:j]), torch.cat(parts_y[:j])
        labels = torch.cat((torch.zeros(len(known_x)), torch.ones(len(known_y)))).long()
        fitted = clone(model).fit(torch.cat((known_x, known_y)).numpy(), labels.numpy())
        correct_x = float((fitted.predict(parts_x[j].numpy()) == 0).mean())
        correct_y = float((fitted.predict(parts_y[j].numpy()) == 1).mean())
        accuracy += (correct_x + correct_y) / 2 / (folds - 1)
        variance += (1 / len(parts_x[j]) + 1 / len(parts_y[j])) / 16 / (folds - 1) ** 2
    null = NormalDist(0.5, variance**0.5)
    p_value = math.erfc((accuracy - null.mean) / (null.stdev * math.sqrt(2))) / 2  # keeps its digits far out
    return C2ST(accuracy, null.mean, null.stdev, null.inv_cdf(1 - level), level, p_value)


def c2st_power(
    x: Tensor,
    perturb: Callable[[Tensor], Tensor],
    seed: int | torch.Generator,
    classifier: Any = None,
    folds: int = 5,
    level: float = 0.05,
) -> C2ST:
    """c2st(x_1, perturb(x_2)), x_1 and x_2 random halves of x: what the test says of a difference that is there.

    If it does not detect the perturbation, the same test's silence between two sets of half of x's size says nothing
    about differences of that kind: it has no power. `perturb` maps (n / 2, *event) to the same event shape.

    Shapes, units, errors and source as in `c2st`, with at least 10 folds samples.
    """
    flatten(10 * folds, x=x)
    source = generator(seed)
    first, second = x[torch.randperm(len(x), generator=source).to(x.device)].tensor_split(2)
    return c2st(first, perturb(second), source, classifier, folds, level)


def _default() -> Any:
    scale = require("sklearn.preprocessing", extra="metrics").StandardScaler()
    machine = require("sklearn.svm", extra="metrics").SVC(class_weight="balanced")
    return require("sklearn.pipeline", extra="metrics").make_pipeline(scale, machine)


def _seeded(classifier: Any, source: torch.Generator) -> Any:
    """A copy of the classifier whose unset random states come from the caller's seed."""
    model = require("sklearn.base", extra="metrics").clone(classifier)
    unset = [name for name, value in model.get_params().items() if name.endswith("random_state") and value is None]
    return model.set_params(**{name: int(torch.randint(2**31, (), generator=source)) for name in sorted(unset)})
