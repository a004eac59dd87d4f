"""Judging samples: every figure beside what real data score, and a table's beside a Gaussian copula's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ornstein.data import Data, Split, TableSpace
from ornstein.data.copula import GaussianCopula
from ornstein.metrics import (
    C2ST,
    Kind,
    LabelClassifier,
    Statistics,
    association_distance,
    c2st_series,
    c2st_table,
    column_distances,
    correlation_distance,
    fit_classifier,
    frechet_distance,
    label_accuracy,
    marginal_distances,
    nearest_neighbour,
    table_features,
)
from ornstein.random import derive, generator

MOST = 2000
"""Most samples that are judged by figures whose cost grows faster than their number."""
FITTED = 10_000
"""Most training samples that a classifier is fitted to."""
COMPARED = 50_000
"""Most training samples among which a sample's nearest is sought."""
FEATURES = 1024
"""Most numbers of an image of which moments are taken: larger ones are averaged over squares first."""
FEWEST = 25
"""Fewest samples for a two-sample test of five folds."""
SPLITS = 19
"""Random splits of real data into two sets: the worst of them is passed by one set of real data in twenty."""
WINDOW = 32
"""Longest piece of a series that a classifier sees."""
PIECE = 8192
"""Training samples among which a nearest is sought at once."""
LAGS = 32
"""Most lags of a correlation."""

TITLES = {
    "label_accuracy": "label accuracy",
    "frechet": "Fréchet distance",
    "frechet_ratio": "Fréchet ratio",
    "frechet_all": "Fréchet distance, all samples",
    "c2st_accuracy": "two-sample accuracy",
    "c2st_auc": "two-sample AUC",
    "association_distance": "association distance",
    "column_distance": "column distance",
    "marginal_distance": "marginal distance",
    "autocorrelation_distance": "autocorrelation distance",
    "cross_correlation_distance": "cross-correlation distance",
    "nearest_ratio": "nearest ratio",
}
"""Every figure and what it is called, in the order in which they are shown."""

Batch: TypeAlias = Tensor | tuple[Tensor, Tensor | None]


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
            return f"at most {self.high:.4g}"
        return f"at least {self.low:.4g}" if self.high is None else f"{self.low:.4g} to {self.high:.4g}"


class Judge(ABC):
    """What samples of a run are measured against: held-out data of the same number. Made by `judge_of`.

    `n`: how many samples are judged. `real`: as many held-out ones, (n, *event). `labels`: theirs, or None; samples
    that are judged carry the same.
    """

    says: str
    """What the figures are, in words."""
    near: Tensor
    """Distance of each held-out sample to its nearest training sample, in the units of `nearest`."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.n = min(len(split.train), len(split.held_out), MOST)
        self.real, self.labels = split.held_out.rows(slice(self.n))

    @abstractmethod
    def __call__(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """The figures of n samples x (n, *event) of `labels`, by default those of the held-out data."""

    @abstractmethod
    def brief(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """The figures that take no time, of m <= n samples against the first m held-out ones."""

    @abstractmethod
    def nearest(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(distance, place among the training samples) of the nearest training sample of each of m <= n samples."""

    @abstractmethod
    def references(self) -> dict[str, Any]:
        """What real data score: training against held-out data.

        `limits`, where there are any, are name -> [least, most] that real data keep; `baseline` are the figures of the
        simple model that the samples stand beside, with its `name`.
        """

    def stream(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The figures of samples that come in batches x or (x, labels) and are never all in memory.

        The first n are judged as by calling; what can be told of all in one pass is told of all (`of_all`). Errors:
        ValueError for fewer than n samples in all.
        """
        kept: list[tuple[Tensor, Tensor | None]] = []

        def passing() -> Iterator[Tensor]:
            room = self.n
            for batch in batches:
                x, labels = (batch, None) if isinstance(batch, Tensor) else batch
                if room > 0:
                    kept.append((x[:room].cpu(), None if labels is None else labels[:room].cpu()))
                    room -= len(kept[-1][0])
                yield x

        figures = self.of_all(passing())
        held = sum(len(x) for x, _ in kept)
        if held < self.n:
            raise ValueError(f"{held} samples are too few to judge: this run's held-out data ask for {self.n}")
        known = [labels for _, labels in kept if labels is not None]
        return self(torch.cat([x for x, _ in kept]), torch.cat(known) if len(known) == len(kept) else None) | figures

    def of_all(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """Figures of one pass over all samples; here none, and the pass ends when n samples were seen."""
        seen = 0
        for x in batches:
            seen += len(x)
            if seen >= self.n:
                break
        return {}


def judge_of(split: Split) -> Judge:
    """The judge of a split's kind of data: `TableJudge`, `SeriesJudge`, and `ArrayJudge` for arrays and images."""
    judges: dict[str, Callable[[Split], Judge]] = {"table": TableJudge, "series": SeriesJudge}
    return judges.get(split.space.kind, ArrayJudge)(split)


class ArrayJudge(Judge):
    """Fréchet distance on pixels, distance to training data, and labels as a classifier of real data reads them.

    Images of more than 1024 numbers are averaged over squares to fewer, for all three.
    """

    says = (
        "The Fréchet distance, on the numbers as they are (of images their pixels), is to as many held-out samples; "
        "its reference is the distance of as many training samples to the same, averaged over disjoint sets. The "
        "nearest ratio is the median distance of a sample to its nearest training sample, over that of held-out data: "
        "below 0.95 a model copies, above 1.15 it is noisy."
    )

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self._real = _features(self.real)
        # an epoch's worth of parts at most; one alone is what two sets of n real samples score
        parts = range(0, len(split.train) - self.n + 1, self.n)[:4]
        apart = [frechet_distance(_features(split.train.rows(slice(i, i + self.n))[0]), self._real) for i in parts]
        self.reference = sum(apart) / len(apart)
        self._train = _compared(split.train)
        self.near = self.nearest(split.held_out.rows(slice(MOST))[0])[0]
        self._usual = self.near.quantile(0.5)
        self.classifier = self._fitted()

    def _fitted(self) -> LabelClassifier | None:
        train, held_out = (data.rows(slice(FITTED)) for data in (self.split.train, self.split.held_out))
        if train[1] is None or held_out[1] is None or len(set(train[1].tolist())) < 2:
            return None
        known = torch.isin(held_out[1], train[1])
        pair = _features(held_out[0][known]), held_out[1][known]
        return fit_classifier(_features(train[0]), train[1], 0, held_out=pair)

    def __call__(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        points = _features(x)
        frechet = frechet_distance(points, self._real)
        figures = {"frechet": frechet}
        if self.reference > 0:
            figures["frechet_ratio"] = frechet / self.reference
        if self._usual > 0:
            figures["nearest_ratio"] = float(_nearest(points, self._train)[0].quantile(0.5) / self._usual)
        labels = self.labels if labels is None else labels
        if self.classifier is not None and labels is not None:
            known = torch.isin(labels, torch.tensor(self.classifier.classes))
            figures["label_accuracy"] = label_accuracy(self.classifier, points[known], labels[known])
        return figures

    def brief(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        return {"frechet": frechet_distance(_features(x), self._real[: len(x)])}

    def nearest(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return _nearest(_features(x), self._train)

    def references(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "samples": self.n,
            "frechet": self.reference,
            "nearest_ratio": 1.0,
        }
        if self.reference > 0:
            found["frechet_ratio"] = 1.0
        if self.classifier is not None:
            found["label_accuracy"] = self.classifier.accuracy
        return found

    def of_all(self, batches: Iterable[Tensor]) -> dict[str, float]:
        """`frechet_all`: of the running moments of all samples to those of all held-out data.

        Its bias is that of the two numbers of samples: it compares with nothing but itself at the same numbers.
        """
        held_out = (_features(x) for x in _chunks(self.split.held_out))
        return {"frechet_all": frechet_distance(Statistics.of(map(_features, batches)), Statistics.of(held_out))}


class TableJudge(Judge):
    """A classifier that tells samples from held-out rows, pairwise association, columns, distance to training rows.

    Labels are one more category. The baseline is a `GaussianCopula` of the training rows.
    """

    says = (
        "Two-sample accuracy and AUC are those of boosted trees that tell samples from as many held-out rows, unseen "
        "ones: 0.5 if they cannot. The association distance is the mean difference, over pairs of columns, of rank "
        "correlation, correlation ratio or Cramér's V; the column distance is the mean over columns of Wasserstein's "
        "distance in standard deviations, or of the difference of shares; both count what is missing as a column. Real "
        "data are training against held-out rows. The nearest ratio is the median distance of a sample to its nearest "
        "training row, over that of held-out rows. The Gaussian copula has every column right and only normal "
        "dependence between them. Goals: no worse than the copula, or than real data by chance once in twenty."
    )

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        space = split.space
        if not isinstance(space, TableSpace):
            raise ValueError(f"a table's judge needs a table, got data of kind {space.kind!r}")
        kinds: list[Kind] = ["category" if column.kind == "category" else "number" for column in space.columns]
        self.names = [str(column.name) for column in space.columns]
        self._labelled = split.train.labels is not None
        if self._labelled:
            kinds.append("category")
            self.names.append("label" if space.label is None else str(space.label.name))
        self.kinds = tuple(kinds)
        self._train, self._real = self._rows(split.train), self._joined(self.real, self.labels)
        self._held_out = self._rows(split.held_out)[:MOST]
        self.near = self._distances(self._held_out)[0]
        self._usual, self._band = self.near.quantile(0.5), _band(self.near, self.n)
        self.copula = GaussianCopula.fit(self._train, self.kinds)

    def _rows(self, data: Data) -> Tensor:
        return self._joined(*data.rows(slice(COMPARED)))

    def _joined(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return torch.cat((x.cpu(), labels.cpu()[:, None].to(x)), 1) if self._labelled and labels is not None else x

    def _distances(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        train, points = table_features(self.kinds, self._train, rows, scale=0)
        return _nearest(points, train)

    def __call__(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        return self._figures(self._joined(x, self.labels if labels is None else labels))

    def brief(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        labels = self.labels[: len(x)] if labels is None and self.labels is not None else labels
        return self._distance(self._joined(x, labels), self._real[: len(x)])

    def nearest(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        labels = self.labels[: len(x)] if labels is None and self.labels is not None else labels
        return self._distances(self._joined(x, labels))

    def by_column(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """The distance of each column by its name, and of the missingness of those that have gaps."""
        rows = self._joined(x, self.labels if labels is None else labels)
        found = column_distances(rows, self._real, self.kinds).tolist()
        gaps = (rows.isnan().any(0) | self._real.isnan().any(0)).tolist()
        names = [*self.names, *(f"{name} is missing" for name, gap in zip(self.names, gaps, strict=True) if gap)]
        return dict(zip(names, found, strict=True))

    def _figures(self, rows: Tensor) -> dict[str, float]:
        figures = self._distance(rows, self._real) | _two_sample(self._test(rows))
        if self._usual > 0:
            figures["nearest_ratio"] = float(self._distances(rows)[0].quantile(0.5) / self._usual)
        return figures

    def _test(self, rows: Tensor) -> C2ST | None:
        if min(len(rows), len(self._real)) < FEWEST:
            return None
        return c2st_table(rows, self._real, self.kinds, derive(0, "two samples"))

    def _distance(self, rows: Tensor, real: Tensor) -> dict[str, float]:
        found = {"column_distance": float(column_distances(rows, real, self.kinds).mean())}
        if len(self.kinds) > 1:
            found["association_distance"] = association_distance(rows, real, self.kinds)
        return found

    def references(self) -> dict[str, Any]:
        chance = _by_chance(self._distance, self._train, self._held_out, self.n)
        found: dict[str, Any] = {"samples": self.n} | {name: mean for name, (mean, _) in chance.items()}
        real = self._test(self._train[: self.n])
        found |= _two_sample(real)
        copula = self._figures(self.copula.sample(self.n, derive(0, "copula")))
        limits = {name: [None, max(worst, copula[name])] for name, (_, worst) in chance.items()}
        if real is not None:
            limits["c2st_accuracy"] = [None, max(real.threshold, copula["c2st_accuracy"])]
        if self._usual > 0:
            found["nearest_ratio"] = 1.0
            limits["nearest_ratio"] = list(self._band)
        return found | {"limits": limits, "baseline": {"name": "Gaussian copula"} | copula}


class SeriesJudge(Judge):
    """A classifier that tells windows of samples from held-out ones, correlation by lag, marginals, training distance.

    Samples are complete: a classifier sees them with the gaps of training series, a distance with held-out ones'.
    """

    says = (
        "Two-sample accuracy and AUC are those of a support vector machine that tells a window of each sample from one "
        "of each held-out series, with real gaps in both: 0.5 if it cannot. The autocorrelation distance is the mean "
        "difference over lags and channels, the cross-correlation distance over pairs of channels, the marginal "
        "distance Wasserstein's in standard deviations, all over observed values. Real data are training against "
        "held-out series. The nearest ratio is the median distance of a sample to its nearest training series, over "
        "that of held-out series. Goals: no worse than real data by chance once in twenty."
    )

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self.window = min(self.real.shape[2], WINDOW)
        self.lags = min(self.real.shape[2] - 1, LAGS)
        self._train = split.train.rows(slice(COMPARED))[0]
        self.near = self.nearest(self.real)[0]
        self._usual, self._band = self.near.quantile(0.5), _band(self.near, self.n)

    def nearest(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Root mean square difference from the nearest training series, over what both have, channels to scale."""
        train = self._train.double()
        mean = train.nanmean((0, 2))[:, None]
        std = (train - mean).square().nanmean((0, 2)).sqrt()[:, None]
        std = torch.where(std > 0, std, 1.0)
        x = torch.where(self.real[: len(x)].isnan(), torch.nan, (x.double() - mean) / std).flatten(1)
        seen, x = (~x.isnan()).double(), x.nan_to_num(0.0)
        found = []
        for piece in torch.split(((train - mean) / std).flatten(1), PIECE):
            there, y = (~piece.isnan()).double(), piece.nan_to_num(0.0)
            both = seen @ there.T
            squared = x**2 @ there.T - 2 * x @ y.T + seen @ (y**2).T
            found.append(torch.where(both > 0, squared / both, torch.inf).clamp(min=0).sqrt().min(1))
        return _least([(least.values, least.indices) for least in found])

    def __call__(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        figures = self._distance(x, self.real) | _two_sample(self._test(x))
        if self._usual > 0:
            figures["nearest_ratio"] = float(self.nearest(x)[0].quantile(0.5) / self._usual)
        return figures

    def brief(self, x: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        return self._distance(x, self.real[: len(x)])

    def _test(self, x: Tensor) -> C2ST | None:
        if self.n < FEWEST or self.window < 2:
            return None
        gapped = torch.where(self._train[: self.n].isnan(), torch.nan, x)
        return c2st_series(gapped, self.real, self.window, derive(0, "two samples"))

    def _distance(self, x: Tensor, real: Tensor) -> dict[str, float]:
        found = {"marginal_distance": float(marginal_distances(x, real).mean())}
        if self.lags > 0:
            found["autocorrelation_distance"] = correlation_distance(x, real, self.lags)
        if x.shape[1] > 1:
            found["cross_correlation_distance"] = correlation_distance(x, real, self.lags, cross=True)
        return found

    def references(self) -> dict[str, Any]:
        chance = _by_chance(self._distance, self._train, self.real, self.n)
        found: dict[str, Any] = {"samples": self.n} | {name: mean for name, (mean, _) in chance.items()}
        limits: dict[str, list[float | None]] = {name: [None, worst] for name, (_, worst) in chance.items()}
        real = self._test(self._train[: self.n])
        found |= _two_sample(real)
        if real is not None:
            limits["c2st_accuracy"] = [None, real.threshold]
        if self._usual > 0:
            found["nearest_ratio"] = 1.0
            limits["nearest_ratio"] = list(self._band)
        return found | {"limits": limits}


def goals(figures: Mapping[str, float], references: Mapping[str, Any]) -> list[Goal]:
    """What a good set of samples keeps: no worse than real data by much, neither copied nor noisy.

    Tables and series: the `limits` of their references, no worse than real data by chance once in twenty, or than the
    baseline where that is worse. Arrays and images: a Fréchet distance 1.5 times that of training data; labels right on
    0.98, or as often as those of real data where the classifier knows them less often than that.
    """
    if "limits" in references:
        limits = references["limits"]
        order = [name for name in TITLES if name in limits and name in figures]
        return [Goal(TITLES[name], figures[name], *limits[name]) for name in order]
    made = []
    if "frechet_ratio" in figures:
        made.append(Goal("Fréchet distance / that of training data", figures["frechet_ratio"], high=1.5))
    if "nearest_ratio" in figures:
        near = "nearest-training distance / that of held-out data"
        made.append(Goal(near, figures["nearest_ratio"], low=0.95, high=1.15))
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


def _two_sample(found: C2ST | None) -> dict[str, float]:
    if found is None:
        return {}
    return {"c2st_accuracy": found.accuracy} | ({} if found.auc is None else {"c2st_auc": found.auc})


def _by_chance(
    distance: Callable[[Tensor, Tensor], dict[str, float]], train: Tensor, held_out: Tensor, n: int
) -> dict[str, tuple[float, float]]:
    """Mean and greatest of each distance between two sets of n real samples, over random splits of all of them."""
    rng, pool = generator(derive(0, "splits")), torch.cat((train, held_out))
    found = []
    for _ in range(SPLITS):
        chosen = torch.randperm(len(pool), generator=rng)[: 2 * n]
        found.append(distance(pool[chosen[:n]], pool[chosen[n:]]))
    return {name: (sum(f[name] for f in found) / SPLITS, max(f[name] for f in found)) for name in found[0]}


def _band(near: Tensor, n: int) -> tuple[float, float]:
    """0.95 to 1.15, wider where two medians of real data differ by more: by 1.96 standard deviations of their ranks."""
    middle = near.quantile(0.5)
    if middle == 0:
        return 0.95, 1.15
    reach = min(0.5, 0.98 * (1 / len(near) + 1 / n) ** 0.5)
    return min(0.95, float(near.quantile(0.5 - reach) / middle)), max(1.15, float(near.quantile(0.5 + reach) / middle))


def _features(x: Tensor) -> Tensor:
    """x (n, *event); images of more than FEATURES numbers averaged over squares, to FEATURES at most."""
    if x.dim() != 4 or x[0].numel() <= FEATURES:
        return x
    channels, height, width = x.shape[1:]
    side = max(1.0, (channels * height * width / FEATURES) ** 0.5)
    return adaptive_avg_pool2d(x.float(), (max(1, int(height / side)), max(1, int(width / side))))


def _chunks(data: Data, size: int = 4096) -> Iterator[Tensor]:
    for start in range(0, len(data), size):
        yield data.rows(slice(start, start + size))[0]


def _compared(data: Data) -> Tensor:
    return torch.cat([_features(x) for x in _chunks(data.take(torch.arange(min(len(data), COMPARED))))])


def _nearest(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """(distance, place) of each sample's nearest of the reference, piece by piece: float64 of one piece at a time."""
    return _least([nearest_neighbour(x, piece) for piece in torch.split(reference, PIECE)])


def _least(pieces: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(distance, place) of the least distance over pieces of PIECE places each."""
    distances, piece = torch.stack([distance for distance, _ in pieces]).min(0)
    places = torch.stack([place for _, place in pieces])
    return distances, piece * PIECE + places.gather(0, piece[None])[0]
