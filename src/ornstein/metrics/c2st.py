"""Classifier two-sample test: whether a classifier can tell two sample sets apart, and what it could have told."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.metrics._samples import flatten, generator
from ornstein.metrics.association import mid_ranks
from ornstein.metrics.mixed import Kind, table_features
from ornstein.metrics.series import check_series

Classifier: TypeAlias = Literal["svm", "boosting"]
"""A class-balanced RBF support vector machine on standardised features; class-balanced boosting of trees."""


@dataclass(frozen=True)
class C2ST:
    """Accuracy of a classifier that tells x from y, beside what chance gives.

    `accuracy`: balanced, on samples not yet seen. `null_mean`, `null_std`: its law if x and y share one.
    `threshold`: exceeded with probability `level` if they do. `p_value`: one-sided. `detected`: accuracy > threshold.
    `auc`: P[score(y) > score(x)] + P[equal]/2 of the classifier's scores, None where it has none.
    """

    accuracy: float
    null_mean: float
    null_std: float
    threshold: float
    level: float
    p_value: float
    auc: float | None = None

    @property
    def detected(self) -> bool:
        return self.accuracy > self.threshold


def c2st(
    x: Tensor,
    y: Tensor,
    seed: int | torch.Generator,
    classifier: Classifier | Any = "svm",
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

    Shapes: x (n, *event), y (m, *event), n, m >= 5 folds, not necessarily equal. `classifier`: "svm", a
    class-balanced RBF support vector machine on standardised features (cost between quadratic and cubic in n);
    "boosting", class-balanced boosting of trees by histograms (linear in n), which sees steps, atoms and interactions
    of columns on any scale, where the machine sees smooth differences of direction; or any scikit-learn classifier,
    cloned for each fold, its open `random_state` set from `seed`. An accuracy near 1/2 says nothing
    unless `c2st_power` shows that the classifier would have seen a difference worth seeing.

    Errors: ValueError on different event shapes, too few samples, non-finite values, folds < 2, level outside (0, 1),
    an unknown classifier; ImportError without scikit-learn (the extra `metrics`).

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
    model = _seeded(_named(classifier) if isinstance(classifier, str) else classifier, source)
    clone = require("sklearn.base", extra="metrics").clone
    accuracy, variance, auc = 0.0, 0.0, []
    for j in range(1, folds):
        known_x, known_y = torch.cat(parts_x[:j]), torch.cat(parts_y[:j])
        labels = torch.cat((torch.zeros(len(known_x)), torch.ones(len(known_y)))).long()
        fitted = clone(model).fit(torch.cat((known_x, known_y)).numpy(), labels.numpy())
        correct_x = float((fitted.predict(parts_x[j].numpy()) == 0).mean())
        correct_y = float((fitted.predict(parts_y[j].numpy()) == 1).mean())
        accuracy += (correct_x + correct_y) / 2 / (folds - 1)
        if hasattr(fitted, "decision_function"):
            auc.append(_auc(*(torch.as_tensor(fitted.decision_function(z[j].numpy())) for z in (parts_x, parts_y))))
        variance += (1 / len(parts_x[j]) + 1 / len(parts_y[j])) / 16 / (folds - 1) ** 2
    null = NormalDist(0.5, variance**0.5)
    p_value = math.erfc((accuracy - null.mean) / (null.stdev * math.sqrt(2))) / 2  # keeps its digits far out
    area = sum(auc) / len(auc) if auc else None
    return C2ST(accuracy, null.mean, null.stdev, null.inv_cdf(1 - level), level, p_value, area)


def c2st_power(
    x: Tensor,
    perturb: Callable[[Tensor], Tensor],
    seed: int | torch.Generator,
    classifier: Classifier | Any = "svm",
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


def c2st_table(
    x: Tensor,
    y: Tensor,
    kinds: Sequence[Kind],
    seed: int | torch.Generator,
    classifier: Classifier | Any = "boosting",
    folds: int = 5,
    level: float = 0.05,
) -> C2ST:
    """c2st(f(x), f(y)), f = [(x_j - m_j)/s_j, 1[x_j = level]/sqrt 2, 1[x_j missing]] of tables with gaps.

    m, s and the levels are those of both tables together, so the null of `c2st` stands: exchanging rows of x and y
    changes no feature. Shapes: x (n, columns), y (m, columns), NaN where missing, a kind for each column.

    Errors and source: as in `c2st`, and ValueError as in `table_features`.
    """
    x, y = table_features(kinds, x, y)
    return c2st(x, y, seed, classifier, folds, level)


def c2st_series(
    x: Tensor,
    y: Tensor,
    window: int,
    seed: int | torch.Generator,
    classifier: Classifier | Any = "svm",
    folds: int = 5,
    level: float = 0.05,
) -> C2ST:
    """c2st(f(x'), f(y')), x' and y' a random window of each series, f = [v(t), v(t+1) - v(t), 1[v(t) there]].

    What sets series apart is smooth and spread over many values, so the machine is the default: it tells series of
    memory 0.9 and 0.6 apart at 0.86 where boosting has 0.60 (150 of either, windows of 16, a fifth missing).

    One window a series keeps the samples independent, as the null of `c2st` asks. Values are in units of the channel's
    standard deviation about its mean, both sets together; what is missing is 0, and so are differences with it. Gaps
    tell as much as values do: give complete samples the gaps of real series that are in neither set (those of y itself,
    pair by pair, would be learned with one label and met again with the other, and put the accuracy below 1/2).

    Shapes: x (n, channels, length), y (m, channels, the same), NaN in gaps. Errors and source: as in `c2st`, and
    ValueError for a window that is longer than the series or shorter than 2.
    """
    x, y = check_series(x, "x"), check_series(y, "y")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x has series of shape {tuple(x.shape[1:])} and y of {tuple(y.shape[1:])}")
    if not 2 <= window <= x.shape[2]:
        raise ValueError(f"window must be between 2 and {x.shape[2]}, the length of the series: got {window}")
    source = generator(seed)
    both = torch.cat((x, y))
    start = torch.randint(x.shape[2] - window + 1, (len(both), 1, 1), generator=source)
    both = both.gather(2, (start + torch.arange(window)).expand(-1, x.shape[1], -1))
    mean = both.nanmean((0, 2)).nan_to_num()[:, None]
    std = ((both - mean) ** 2).nanmean((0, 2)).nan_to_num().sqrt()[:, None]
    z = (both - mean) / torch.where(std > 0, std, 1.0)
    features = torch.cat([part.flatten(1) for part in (z, z.diff(dim=2), (~z.isnan()).double())], 1).nan_to_num()
    return c2st(features[: len(x)], features[len(x) :], source, classifier, folds, level)


def _auc(x: Tensor, y: Tensor) -> float:
    """P[y > x] + P[y = x]/2 of scores (n,) and (m,): the rank sum of y, less its least, over n m."""
    ranks = mid_ranks(torch.cat((x, y)))[len(x) :]
    return float((ranks.sum() - len(y) * (len(y) + 1) / 2) / (len(x) * len(y)))


def _named(classifier: str) -> Any:
    if classifier not in get_args(Classifier):
        known = ", ".join(get_args(Classifier))
        raise ValueError(f"classifier is one of {known}, or a scikit-learn classifier: got {classifier!r}")
    if classifier == "boosting":
        return require("sklearn.ensemble", extra="metrics").HistGradientBoostingClassifier(
            max_iter=60, max_bins=64, max_leaf_nodes=16, class_weight="balanced", early_stopping=False
        )
    scale = require("sklearn.preprocessing", extra="metrics").StandardScaler()
    machine = require("sklearn.svm", extra="metrics").SVC(class_weight="balanced")
    return require("sklearn.pipeline", extra="metrics").make_pipeline(scale, machine)


def _seeded(classifier: Any, source: torch.Generator) -> Any:
    """A copy of the classifier whose unset random states come from the caller's seed."""
    model = require("sklearn.base", extra="metrics").clone(classifier)
    unset = [name for name, value in model.get_params().items() if name.endswith("random_state") and value is None]
    return model.set_params(**{name: int(torch.randint(2**31, (), generator=source)) for name in sorted(unset)})
