"""Association of mixed columns, distances of columns, and correlation by lag, against closed forms and their rivals."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from ornstein.metrics import (
    association,
    association_distance,
    autocorrelation,
    c2st,
    c2st_series,
    c2st_table,
    column_distances,
    correlation_distance,
    cross_correlation,
    marginal_distances,
    table_features,
    wasserstein1,
)

F64 = torch.float64
NUMBERS = ("number", "number")


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=F64)


def codes(n: int, levels: int, seed: int) -> Tensor:
    return torch.randint(levels, (n,), generator=rng(seed)).double()


def pair(n: int, rho: float, seed: int) -> Tensor:
    z = normal(n, 2, seed=seed)
    return torch.stack((z[:, 0], rho * z[:, 0] + math.sqrt(1 - rho**2) * z[:, 1]), 1)


# ---------------------------------------------------------------- association


@pytest.mark.parametrize("rho", [-0.6, 0.3, 0.9])
def test_numbers_of_a_normal_law_have_its_correlation_and_spearman_its_arcsine(rho: float) -> None:
    # standard error (1 - rho^2)/sqrt n of Pearson's r, at most 1.1/sqrt n of Spearman's: 4 of each
    n = 20_000
    x = pair(n, rho, seed=0)
    pearson, spearman = (float(association(x, NUMBERS, kind)[0, 1]) for kind in ("pearson", "spearman"))
    rank = 6 / math.pi * math.asin(rho / 2)
    assert pearson == pytest.approx(rho, abs=4 * (1 - rho**2) / math.sqrt(n))
    assert spearman == pytest.approx(rank, abs=4.4 * (1 - rho**2) / math.sqrt(n))
    # ranks do not see a monotone change of units, products do
    bent = torch.stack((x[:, 0].exp(), x[:, 1] ** 3), 1)
    assert float(association(bent, NUMBERS)[0, 1]) == pytest.approx(spearman, abs=1e-12)
    assert abs(float(association(bent, NUMBERS, "pearson")[0, 1]) - rho) > 0.05


def test_the_matrix_agrees_with_textbook_definitions_pair_by_pair() -> None:
    stats = pytest.importorskip("scipy.stats")
    n = 60
    x = torch.cat((normal(n, 3, seed=0).round(decimals=1), codes(n, 3, 1)[:, None], codes(n, 2, 2)[:, None]), 1)
    x[:, 1] += x[:, 0] + x[:, 3]
    x[:, 4] = torch.where(x[:, 3] == 1, 0.0, x[:, 4])
    holes = torch.rand(n, 5, generator=rng(3)) < 0.15
    x[holes] = torch.nan
    kinds = ("number", "number", "number", "category", "category")
    found = association(x, kinds, "pearson")
    assert found.shape == (10, 10)
    assert torch.equal(found, found.T)
    both = ~x[:, 0].isnan() & ~x[:, 1].isnan()
    assert float(found[0, 1]) == pytest.approx(stats.pearsonr(x[both, 0], x[both, 1])[0], rel=1e-10)
    seen = ~x[:, 1].isnan() & ~x[:, 3].isnan()  # one-way analysis of variance: 1 - eps^2 = MS_within / MS_total
    groups = [x[seen & (x[:, 3] == k), 1] for k in range(3)]
    within = sum(float(((g - g.mean()) ** 2).sum()) for g in groups) / (int(seen.sum()) - 3)
    assert float(found[1, 3]) == pytest.approx(math.sqrt(1 - within / float(x[seen, 1].var())), rel=1e-10)
    there = ~x[:, 3].isnan() & ~x[:, 4].isnan()
    table = [[int(((x[:, 3] == a) & (x[:, 4] == b) & there).sum()) for b in range(2)] for a in range(3)]
    m = int(there.sum())
    phi2 = stats.contingency.chi2_contingency(table, correction=False)[0] / m - 2 / (m - 1)
    assert float(found[3, 4]) == pytest.approx(
        math.sqrt(phi2 / (1 - 1 / (m - 1))), rel=1e-10
    )  # the smaller is 2 levels
    # missingness is a column: with its own column there is no pair, with another it is a category of two
    assert float(found[3, 8]) == 0.0
    assert float(found[0, 5]) == 0.0
    there = ~x[:, 1].isnan()
    point = stats.pearsonr(x[there, 3].isnan().double(), x[there, 1])[0] ** 2
    m = int(there.sum())
    assert float(found[1, 8]) == pytest.approx(math.sqrt(max(0.0, 1 - (1 - point) * (m - 1) / (m - 2))), abs=1e-10)


def test_ties_share_their_rank() -> None:
    stats = pytest.importorskip("scipy.stats")
    x = pair(200, 0.7, seed=0)
    x[:, 0] = x[:, 0].clamp(min=0).round()  # half of it an atom, the rest whole numbers
    assert float(association(x, NUMBERS)[0, 1]) == pytest.approx(stats.spearmanr(x[:, 0], x[:, 1])[0], rel=1e-10)


def test_a_known_contingency_table() -> None:
    # 2 x 2 of [[30, 10], [10, 30]]: chi^2 = 20, phi^2 = 1/4; corrected (1/4 - 1/79)/(1 - 1/79) = (79/4 - 1)/78
    x = torch.tensor([[0, 0]] * 30 + [[0, 1]] * 10 + [[1, 0]] * 10 + [[1, 1]] * 30).double()
    assert float(association(x, ("category", "category"))[0, 1]) == pytest.approx(
        math.sqrt((79 / 4 - 1) / 78), rel=1e-12
    )


def test_independent_columns_score_nothing_however_many_levels_they_have() -> None:
    # Of squares: with k levels eta^2 has mean (k - 1)/(n - 1) by chance, V^2 the same; corrected they are 0 on average,
    # before the cut at 0, with standard deviation sqrt(2 (k - 1))/n: 4 of them. Uncorrected ones exceed that by far.
    n, k = 500, 60
    x = torch.stack((normal(n, seed=0), normal(n, seed=1), codes(n, k, 2), codes(n, k, 3)), 1)
    found = association(x, ("number", "number", "category", "category"))
    assert abs(float(found[0, 1])) < 4 / math.sqrt(n)
    limit = 4 * math.sqrt(2 * (k - 1)) / n
    assert float(found[0, 2]) ** 2 < limit
    assert float(found[2, 3]) ** 2 * (k - 1) < 4 * math.sqrt(2 * (k - 1) ** 2) / n  # chi^2 of (k - 1)^2
    assert (k - 1) / (n - 1) > limit  # the rivals: eta^2 as it is, and chi^2/n
    assert (k - 1) ** 2 / (n - 1) > 4 * math.sqrt(2 * (k - 1) ** 2) / n


def test_what_follows_from_another_column_scores_one() -> None:
    n = 200
    c, v = codes(n, 4, 0), normal(n, seed=1)
    x = torch.stack((c, (3 - c) * 10, v, -v.exp(), c * 2.5 - 1), 1)
    found = association(x, ("category", "category", "number", "number", "number"))
    assert float(found[0, 1]) == pytest.approx(1.0, abs=1e-12)  # a relabelling
    assert float(found[0, 4]) == pytest.approx(1.0, abs=1e-12)  # a number that the category fixes
    assert float(found[2, 3]) == pytest.approx(-1.0, abs=1e-12)  # falling: the sign is kept
    # a constant column, and one that is never there, have nothing to say; nothing is NaN
    x[:, 1], x[:, 3] = 7.0, torch.nan
    found = association(x, ("category", "category", "number", "number", "number"))
    assert bool(found.isfinite().all())
    assert float(found[1].abs().sum()) == 1.0
    assert float(found[3].abs().sum()) == 1.0


def test_the_figures_do_not_depend_on_units_or_offsets() -> None:
    x = torch.cat((pair(300, 0.5, seed=0), codes(300, 3, 1)[:, None]), 1)
    x[:, 0] += x[:, 2]
    kinds = ("number", "number", "category")
    moved = x * torch.tensor([1e6, 1e-6, 1.0], dtype=F64) + torch.tensor([1e9, 5.0, 3.0], dtype=F64)
    for numbers in ("pearson", "spearman"):
        assert torch.allclose(association(moved, kinds, numbers), association(x, kinds, numbers), atol=1e-6)


def test_association_distance_of_known_laws() -> None:
    # correlations 0.8 and -0.2 and an independent third column: (|0.8 + 0.2| + 0 + 0)/3, 4 standard errors
    n = 20_000
    x = torch.cat((pair(n, 0.8, seed=0), normal(n, 1, seed=1)), 1)
    y = torch.cat((pair(n, -0.2, seed=2), normal(n, 1, seed=3)), 1)
    kinds = ("number",) * 3
    assert association_distance(x, y, kinds, "pearson") == pytest.approx(1 / 3, abs=4 * math.sqrt(2 / n))
    assert association_distance(x, x, kinds) == 0.0
    # one law: about 0.8 sqrt(1/n + 1/m), as documented; over 3 pairs its relative spread is about 0.75/sqrt 3
    same = torch.cat((normal(400, 12, seed=4), normal(800, 12, seed=5))).split([400, 800])
    expected = 0.8 * math.sqrt(1 / 400 + 1 / 800)
    assert association_distance(*same, ("number",) * 12) == pytest.approx(expected, rel=4 * 0.75 / math.sqrt(66))
    # who is missing is part of it: gaps that follow the other column, against gaps by chance at the same rate
    z = pair(n, 0.5, seed=6)
    by_value, by_chance = z.clone(), z.clone()
    by_value[z[:, 1] > 0.5, 0] = torch.nan
    by_chance[torch.rand(n, generator=rng(7)) < 0.3085, 0] = torch.nan
    assert association_distance(by_value, by_chance, NUMBERS) > 0.25


def test_bad_tables_are_one_clear_error() -> None:
    x = normal(20, 2, seed=0)
    with pytest.raises(ValueError, match=r"x must be a table \(n, 3\).*got \(20, 2\)"):
        association(x, ("number",) * 3)
    # the hook of the tests checks the types of options before the library does
    with pytest.raises((ValueError, TypeError), match="'text'"):
        association(x, ("number", "text"))
    with pytest.raises((ValueError, TypeError), match="kendall"):
        association(x, NUMBERS, "kendall")
    x[4, 1] = math.inf
    with pytest.raises(ValueError, match="infinite values, the first in row 4, column 1"):
        column_distances(normal(9, 2, seed=1), x, NUMBERS)
    with pytest.raises(ValueError, match="one column has no pairs"):
        association_distance(x[:, :1], x[:, :1], ("number",))
    with pytest.raises(ValueError, match="1 rows, at least 2"):
        association(x[:1], NUMBERS)


# ---------------------------------------------------------------- columns


def test_wasserstein1_is_the_area_between_the_quantile_functions() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = normal(31, seed=0), 2 * normal(47, seed=1) + 1
    assert wasserstein1(x, y) == pytest.approx(stats.wasserstein_distance(x.numpy(), y.numpy()), rel=1e-12)
    assert wasserstein1(x, x + 3) == pytest.approx(3.0, rel=1e-12)
    with pytest.raises(ValueError, match=r"numbers \(n,\)"):
        wasserstein1(x[:, None], y)


def test_column_distances_are_shifts_in_standard_deviations_and_differences_of_shares() -> None:
    y = torch.stack((5 * normal(400, seed=0) + 7, codes(400, 2, 1)), 1)
    y[:, 1] = (torch.arange(400) < 100).double()  # a quarter
    x = y.clone()
    x[:, 0] += 0.5 * y[:, 0].std(correction=0)
    x[:, 1] = torch.where(torch.arange(400) < 300, 0.0, 2.0)  # a quarter of a level that y has not
    assert column_distances(x, y, ("number", "category")).tolist() == pytest.approx([0.5, 0.25], rel=1e-12)
    x[:100, 0] = torch.nan  # a share of 1/4 against 1/10 missing; the values that are there keep their own figure
    y[:40, 0] = torch.nan
    found = column_distances(x, y, ("number", "category"))
    assert found.shape == (3,)
    assert float(found[2]) == pytest.approx(0.15, rel=1e-12)
    alone = column_distances(x[100:, :1], y[40:, :1], ("number",))
    assert float(found[0]) == pytest.approx(float(alone[0]), rel=1e-12)
    x[:, 0] = torch.nan
    assert float(column_distances(x, y, ("number", "category"))[0]) == 1.0


def test_table_features_put_equal_distances_between_equal_differences() -> None:
    train = torch.tensor([[0.0, 0], [2, 1], [4, 2], [6, 0]])
    rows = torch.tensor([[0.0, 1], [0, 2], [math.nan, 1]])
    a, b = table_features(("number", "category"), train, rows, scale=0)
    assert a.shape == (4, 5)
    std = math.sqrt(5)  # of train alone: 0, 2, 4, 6
    assert float((b[0] - b[1]).norm()) == pytest.approx(1.0, rel=1e-12)
    assert float((a[1] - a[2])[0]) == pytest.approx(-2 / std, rel=1e-12)
    assert b[2].tolist()[0] == 0.0  # the mean stands where nothing is, and the last feature says so
    assert b[:, -1].tolist() == [0, 0, 1]


def test_boosting_sees_an_atom_that_a_smooth_classifier_does_not() -> None:
    # 40 % of the rows are exactly 0 in x and within 0.01 of it in y. A threshold either side of 0 tells these: accuracy
    # up to 0.7; a machine whose kernel is about a standard deviation wide stays at chance.
    x, y, z = (normal(500, 2, seed=s) for s in (0, 1, 2))
    for table, spread in ((x, 0.0), (y, 0.01), (z, 0.0)):
        table[:200, 0] *= spread
    trees, machine = (c2st_table(x, y, NUMBERS, 0, kind, level=1e-3) for kind in ("boosting", "svm"))
    assert trees.detected
    assert not machine.detected
    assert trees.auc is not None
    assert trees.auc > 0.55
    null = c2st_table(x, z, NUMBERS, 0, level=1e-3)
    assert not null.detected
    # AUC of two samples of one law: mean 1/2, variance (n + m + 1)/(12 n m) a fold, four folds of 100 and 100
    assert null.auc == pytest.approx(0.5, abs=4 * math.sqrt(201 / 12 / 100**2 / 4))
    with pytest.raises(ValueError, match="classifier is one of svm, boosting"):
        c2st_table(x, y, NUMBERS, 0, "forest")


def test_auc_is_that_of_the_scores_not_of_the_labels() -> None:
    # N(0, 1), N(1, 1): P[score(y) > score(x)] = Phi(1/sqrt 2) = 0.760 and the best accuracy is Phi(1/2) = 0.691
    discriminant = pytest.importorskip("sklearn.discriminant_analysis").LinearDiscriminantAnalysis()
    x, y = normal(1000, 1, seed=0), normal(1000, 1, seed=1) + 1
    found = c2st(x, y, 0, discriminant)
    law = NormalDist()
    assert found.auc == pytest.approx(law.cdf(1 / math.sqrt(2)), abs=4 * math.sqrt(1 / 12 / 800 * 2))
    assert found.accuracy == pytest.approx(law.cdf(0.5), abs=4 * found.null_std)
    assert c2st(x, x + 100, 0, discriminant).auc == 1.0
    assert c2st(torch.zeros(50, 1), torch.zeros(50, 1), 0).auc == 0.5  # equal scores count half


def test_c2st_sees_categories_and_gaps() -> None:
    x = torch.stack((normal(400, seed=0), codes(400, 3, 1)), 1)
    y = torch.stack((normal(400, seed=2), (codes(400, 3, 3) == 0).double()), 1)  # other shares of the levels
    kinds = ("number", "category")
    assert c2st_table(x, y, kinds, 0).detected
    gaps = torch.stack((normal(400, seed=4), codes(400, 3, 5)), 1)
    assert not c2st_table(x, gaps, kinds, 0, level=1e-3).detected
    gaps[::3, 0] = torch.nan
    assert c2st_table(x, gaps, kinds, 0, level=1e-3).detected


# ---------------------------------------------------------------- series


def autoregression(n: int, length: int, a: float, seed: int) -> Tensor:
    z = normal(n, length, seed=seed)
    x = [z[:, 0]]
    for t in range(1, length):
        x.append(a * x[-1] + math.sqrt(1 - a * a) * z[:, t])
    return torch.stack(x, -1)[:, None]


def with_gaps(x: Tensor, share: float, seed: int) -> Tensor:
    return torch.where(torch.rand(x.shape, generator=rng(seed)) < share, torch.nan, x)


@pytest.mark.parametrize("a", [0.8, -0.6])
def test_autocorrelation_with_gaps_is_that_of_the_law(a: float) -> None:
    # a(l) = a^l. Of n independent series of length L the estimate has variance of about (1 + a^2)/(1 - a^2)/(n pairs),
    # the pairs that are left being (1 - gaps)^2 of L - l. Gaps filled by the mean (0) would give a^l (1 - gaps).
    n, length, lags, gaps = 400, 60, 5, 0.4
    x = with_gaps(3 * autoregression(n, length, a, seed=0) + 10, gaps, seed=1)
    found = autocorrelation(x, lags)
    truth = torch.tensor([a**lag for lag in range(lags + 1)], dtype=F64)
    error = 4 * math.sqrt((1 + a * a) / (1 - a * a) / (n * (length - lags) * (1 - gaps) ** 2))
    assert found.shape == (1, lags + 1)
    assert float(found[0, 0]) == pytest.approx(1.0, abs=1e-12)
    assert float((found[0] - truth).abs().max()) < error
    assert abs(a * (1 - gaps) - a) > 3 * error  # the rival


def test_cross_correlation_says_who_follows_and_by_how_much() -> None:
    # d(t + 2) = 0.6 c(t) + noise, c white: C[c, d, 2] = 0.6 and all else 0 within 4/sqrt(pairs)
    n, length = 300, 40
    c, noise = normal(n, length + 2, seed=0), normal(n, length, seed=1)
    x = with_gaps(torch.stack((c[:, 2:], 0.6 * c[:, :-2] + 0.8 * noise), 1), 0.2, seed=2)
    found = cross_correlation(x, 4)
    truth = torch.zeros(2, 2, 5, dtype=F64)
    truth[0, 0, 0] = truth[1, 1, 0] = 1.0
    truth[0, 1, 2] = 0.6
    assert float((found - truth).abs().max()) < 4 / math.sqrt(n * (length - 4) * 0.64)


def test_distances_of_series_are_those_of_their_laws() -> None:
    x, y = (autoregression(600, 50, a, seed=s) for a, s in ((0.9, 0), (0.5, 1)))
    truth = sum(abs(0.9**lag - 0.5**lag) for lag in range(1, 6)) / 5
    error = 4 * math.sqrt((1 + 0.81) / (1 - 0.81) / (600 * 45))
    assert correlation_distance(x, with_gaps(y, 0.3, seed=2), 5) == pytest.approx(truth, abs=error)
    two = torch.cat((x, -x), 1)
    assert correlation_distance(two, torch.cat((x, x), 1), 0, cross=True) == pytest.approx(2.0, abs=1e-12)
    assert marginal_distances(y + 0.5 * y.std(correction=0), y).tolist() == pytest.approx([0.5], rel=1e-12)
    flat = torch.cat((torch.zeros(5, 1, 50), torch.ones(5, 1, 50)))[:5]
    assert correlation_distance(flat, y, 3) == 1.0  # a model that gives constants is not at distance 0
    for call, message in (
        (lambda: autocorrelation(x, 50), "lags must be between 0 and 49"),
        (lambda: autocorrelation(x[0], 2), r"series \(n, channels, length\)"),
        (lambda: correlation_distance(x, two, 2), "1 channels and y has 2"),
        (lambda: correlation_distance(x, y, 0), "no correlation to compare"),
        (lambda: marginal_distances(x, y * torch.nan), "reference has no value in channel 0"),
        (lambda: c2st_series(x, y, 51, 0), "window must be between 2 and 50"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_windows_tell_series_of_other_memory_and_equal_ones_stay_at_chance() -> None:
    x, y, z = (autoregression(200, 24, a, seed=s) for a, s in ((0.9, 0), (0.9, 1), (0.0, 2)))
    gapped = [with_gaps(s, 0.3, seed=10 + i) for i, s in enumerate((x, y, z))]
    other = c2st_series(gapped[0], gapped[2], 8, 0, level=1e-3)
    assert other.detected
    same = c2st_series(gapped[0], gapped[1], 8, 0, level=1e-3)
    # 4 null deviations either side: gaps shared pair by pair would pull the accuracy below 1/2
    assert abs(same.accuracy - 0.5) < 4 * same.null_std
    assert c2st_series(x, gapped[1], 8, 0).detected  # gaps are told from none, as documented
