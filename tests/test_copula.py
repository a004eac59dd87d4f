"""The Gaussian copula: right where dependence is normal, with its correlations; told apart where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ornstein.data.copula import GaussianCopula
from ornstein.metrics import association, association_distance, c2st_table, column_distances

F64 = torch.float64
R = torch.tensor(
    [[1.0, 0.7, -0.5, 0.3], [0.7, 1.0, -0.4, 0.6], [-0.5, -0.4, 1.0, 0.2], [0.3, 0.6, 0.2, 1.0]], dtype=F64
)
KINDS = ("number", "category", "category", "number")


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world(n: int, seed: int) -> Tensor:
    """A Gaussian copula with a skewed number, three levels, two levels, whole numbers, and gaps by chance."""
    z = torch.randn(n, 4, generator=rng(seed), dtype=F64) @ torch.linalg.cholesky(R).T
    levels = (z[:, 1] > 0.5).double() + (z[:, 1] > -1), (z[:, 2] > 0.3).double()
    x = torch.stack((z[:, 0].exp(), *levels, z[:, 3].round()), 1)
    x[torch.rand(n, generator=rng(seed + 1)) < 0.2, 0] = torch.nan
    return x


def ring(n: int, seed: int) -> Tensor:
    angle = 2 * math.pi * torch.rand(n, generator=rng(seed), dtype=F64)
    points = torch.stack((angle.cos(), angle.sin()), 1)
    return points + 0.1 * torch.randn(n, 2, generator=rng(seed + 1), dtype=F64)


def test_fit_recovers_the_correlation_behind_numbers_levels_and_gaps() -> None:
    # the standard error of a correlation of two halves (tetrachoric) is at most (pi/2)/sqrt n, that of anything finer
    # is smaller; 4 of them. The rival takes the correlation of scores as it is: levels put it too near 0.
    n = 20_000
    x = world(n, 0)
    fitted = GaussianCopula.fit(x, KINDS)
    assert fitted.missing == (0,)
    error = 4 * math.pi / 2 / math.sqrt(n * 0.8)
    assert float((fitted.correlation[:4, :4] - R).abs().max()) < error
    assert float(fitted.correlation[4, 1:4].abs().max()) < error  # gaps by chance
    scores = association(x, KINDS[:1] + ("number",) * 3, "spearman")
    assert abs(float(scores[1, 2]) - float(R[1, 2])) > 2 * error


def test_two_halves_have_the_arcsine_law_inverted() -> None:
    # cov(sign z_1, sign z_2) = (2/pi) asin r: r = sin(pi cov/2), here of the covariance that the table has exactly
    x = torch.tensor([[0, 0]] * 40 + [[0, 1]] * 10 + [[1, 0]] * 10 + [[1, 1]] * 40).double()
    r = float(GaussianCopula.fit(x, ("category", "category")).correlation[0, 1])
    assert r == pytest.approx(
        math.sin(math.pi / 2 * 0.6), abs=2e-3
    )  # 24 Hermite orders of a series that ends at infinity
    assert r - 0.6 > 0.2  # the correlation of the levels themselves


def test_samples_are_of_the_law_they_were_fitted_to() -> None:
    # Shares of 4000 and 4000: within 4 sqrt(2 p q/n) < 0.045. W_1: 0.8 sqrt(2/n) int sqrt(F (1 - F)) dx / std is 0.03
    # for a normal law; three times that. Associations: 0.8 sqrt(1/4000 + 1/4000 + 1/2000) = 0.025, as fit, samples and
    # fresh data each have their own error; twice that.
    x, fresh = world(4000, 0), world(2000, 10)
    fitted = GaussianCopula.fit(x, KINDS)
    made = fitted.sample(4000, seed=1)
    assert made.dtype == torch.float32
    found = column_distances(made, x, KINDS)
    assert found.shape == (5,)
    assert float(found[[1, 2, 4]].max()) < 0.045
    assert float(found[[0, 3]].max()) < 0.09
    assert not c2st_table(made[:2000], fresh, KINDS, 0, level=1e-3).detected
    assert association_distance(made, fresh, KINDS) < 0.05
    # every value is one that the column had: whole numbers stay whole, atoms keep their place
    assert set(made[:, 3].tolist()) <= set(x[:, 3].tolist())
    assert torch.equal(made.nan_to_num(-1), fitted.sample(4000, seed=1).nan_to_num(-1))
    assert not torch.equal(made.nan_to_num(-1), fitted.sample(4000, seed=2).nan_to_num(-1))


def test_gaps_follow_what_they_followed_in_the_data() -> None:
    # column 0 is missing where column 1 is high: among samples with a gap column 1 is higher by far
    x = torch.randn(3000, 2, generator=rng(0), dtype=F64)
    x[x[:, 1] + 0.3 * torch.randn(3000, generator=rng(1), dtype=F64) > 0.6, 0] = torch.nan
    made = GaussianCopula.fit(x, ("number", "number")).sample(3000, seed=0).double()
    gap, real = made[:, 0].isnan(), x[:, 0].isnan()
    share = float(real.double().mean())
    assert float(gap.double().mean()) == pytest.approx(share, abs=4 * math.sqrt(2 * share * (1 - share) / 3000))
    apart, truth = (float(t[m, 1].mean() - t[~m, 1].mean()) for t, m in ((made, gap), (x, real)))
    # whether there is a gap is a threshold of a normal that correlates with column 1: a Gaussian copula, up to the
    # error of two means of 0.28 n and 0.72 n standard normals, twice over (fit and samples): 4 sqrt(2 (1/840 + 1/2160))
    assert apart == pytest.approx(truth, abs=4 * math.sqrt(2 * (1 / 840 + 1 / 2160)))
    assert truth > 1.0


def test_dependence_that_is_not_normal_is_told_from_its_copula() -> None:
    # on a ring the coordinates are uncorrelated: columns and associations agree (0.05 by chance; twice that),
    # and yet the copula fills the hole, where a classifier can be right on most. Fresh points of the ring pass.
    kinds = ("number", "number")
    train, held_out, fresh = ring(1000, 0), ring(600, 10), ring(600, 20)
    made = GaussianCopula.fit(train, kinds).sample(600, seed=0)
    limit = 2 * 0.8 * math.sqrt(1 / 1000 + 2 / 600)
    assert float(column_distances(made, held_out, kinds).max()) < limit
    assert association_distance(made, held_out, kinds) < limit
    found = c2st_table(made, held_out, kinds, 0, level=1e-6)
    assert found.detected
    assert found.accuracy > 0.6
    assert not c2st_table(fresh, held_out, kinds, 0, level=1e-3).detected


def test_what_is_degenerate_stays_finite() -> None:
    z = torch.randn(50, 1, generator=rng(0), dtype=F64)
    x = torch.cat((z, z, -z, torch.ones(50, 1, dtype=F64)), 1)  # equal, opposite and constant columns: R is singular
    fitted = GaussianCopula.fit(x, ("number", "number", "number", "category"))
    made = fitted.sample(200, seed=0)
    assert bool(fitted.correlation.isfinite().all())
    assert bool((made[:, 3] == 1).all())
    assert float(association(made, ("number",) * 3 + ("category",))[0, 2]) < -0.99
    with pytest.raises(ValueError, match="column 1 has no value"):
        GaussianCopula.fit(torch.stack((z[:, 0], torch.full((50,), torch.nan)), 1), ("number", "number"))
    with pytest.raises(ValueError, match="n must be at least 1: got 0"):
        fitted.sample(0, seed=0)
    with pytest.raises(ValueError, match=r"must be a table \(n, 1\)"):
        GaussianCopula.fit(x, ("number",))
