"""Measurement noise: its density is one, its samples follow it, its errors are clear."""

from __future__ import annotations

import math

import pytest
import torch
from operators import F64, close, draw
from scipy import stats
from torch import Tensor

from ornstein.linops import GaussianNoise, NoiseModel, PoissonNoise, QuantisationNoise
from ornstein.numerics.poisson import poisson_quantile

EPS = torch.finfo(F64).eps


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# -- densities


def test_gaussian_density() -> None:
    y, clean, std = draw(3, 2, 4), draw(3, 2, 4, seed=1), torch.tensor([0.5, 1.0, 2.0])
    law = torch.distributions.Normal(clean, std.double()[:, None, None])
    close(GaussianNoise(std).log_prob(y, clean), law.log_prob(y).sum((1, 2)), 100 * EPS)
    close(GaussianNoise(0.3).log_prob(y, clean), torch.distributions.Normal(clean, 0.3).log_prob(y).sum((1, 2)), 1e-13)
    other = torch.tensor([2, 0])
    close(GaussianNoise(std).rows(other).log_prob(y[other], clean[other]), law.log_prob(y).sum((1, 2))[other], 1e-13)
    assert torch.autograd.gradcheck(lambda c: GaussianNoise(std).log_prob(y, c), clean.requires_grad_())
    grid = torch.linspace(-12, 12, 2401, dtype=F64)[:, None]
    density = GaussianNoise(0.7).log_prob(grid, torch.zeros_like(grid)).exp()
    assert float(density.sum() * 0.01) == pytest.approx(1, rel=1e-12)  # the trapezoid rule is exact for a bell


@pytest.mark.parametrize("peak", [0.5, 4.0, 300.0])
def test_poisson_probabilities(peak: float) -> None:
    """They sum to one over all counts, agree with scipy's, and have the gradient peak (k/rate - 1)."""
    noise, clean = PoissonNoise(peak, offset=1.0), 2 * uniform(1) - 1
    rate = float(peak * (clean + 1))
    k = torch.arange(0, int(rate + 20 * math.sqrt(rate) + 40), dtype=F64)
    y = (k / peak - 1)[:, None]
    log_prob = noise.log_prob(y, clean.expand(len(k), 1))
    assert float(log_prob.exp().sum()) == pytest.approx(1, rel=1e-12)
    near = (k - rate).abs() < 6 * math.sqrt(rate)
    close(log_prob[near], torch.from_numpy(stats.poisson.logpmf(k.numpy(), rate))[near], 1e-12)
    c = clean.expand(len(k), 1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(noise.log_prob(y, c).sum(), c)
    close(gradient[:, 0], peak * (k / rate - 1), 1e-12)


def test_poisson_probabilities_in_float32_do_not_cancel() -> None:
    """At 10,000 counts k log rate alone has rounding errors of 0.005; the terms left are of the size of the answer."""
    noise = PoissonNoise(1.0)
    k = torch.arange(9_700.0, 10_300.0, 7.0)[:, None]
    rate = torch.full_like(k, 10_000.5)
    wanted = torch.from_numpy(stats.poisson.logpmf(k.double().numpy(), 10_000.5))[:, 0]
    assert float((noise.log_prob(k, rate).double() - wanted).abs().max()) < 2e-5


def test_poisson_at_the_edge_of_what_is_possible() -> None:
    noise = PoissonNoise(2.0)
    y = torch.tensor([[0.0], [0.0], [0.5], [0.5]], dtype=F64)
    clean = torch.tensor([[0.0], [-1.0], [0.0], [-1.0]], dtype=F64, requires_grad=True)
    log_prob = noise.log_prob(y, clean)
    assert log_prob.tolist() == [0.0, -math.inf, -math.inf, -math.inf]
    (gradient,) = torch.autograd.grad(log_prob[0], clean)
    assert float(gradient[0]) == -2.0
    assert not bool(gradient.isnan().any())


@pytest.mark.parametrize("step", [0.1, 1.0, 5.0])
def test_quantised_probabilities(step: float) -> None:
    noise, clean = QuantisationNoise(step, std=0.8), torch.tensor([[0.37]], dtype=F64)
    k = torch.arange(-200, 201, dtype=F64)[:, None]
    log_prob = noise.log_prob(step * k, clean.expand(401, 1))
    assert float(log_prob.exp().sum()) == pytest.approx(1, rel=1e-12)
    low, high = ((step * (k + end) - 0.37) / 0.8 for end in (-0.5, 0.5))
    plain = torch.special.ndtr(high) - torch.special.ndtr(low)
    near = (log_prob > -20).flatten()
    close(log_prob[near].exp(), plain.flatten()[near], 1e-12)
    assert bool(log_prob.isfinite().all())  # 500 standard deviations away too
    c = (0.37 + 0.9 * draw(5, 1)).requires_grad_()
    y = step * torch.tensor([[0.0], [1.0], [-1.0], [0.0], [2.0]], dtype=F64)
    assert torch.autograd.gradcheck(lambda c: noise.log_prob(y, c), c)


def test_rounding_without_noise_is_certain() -> None:
    noise, clean = QuantisationNoise(0.25), draw(4, 6)
    y = noise.sample(clean, 0)
    assert torch.equal(y, 0.25 * (clean / 0.25).round())
    assert noise.log_prob(y, clean).tolist() == [0.0] * 4
    assert noise.log_prob(y + 0.25, clean).tolist() == [-math.inf] * 4
    assert not noise.differentiable
    assert QuantisationNoise(0.25, 0.1).differentiable
    assert noise.sample(clean.float(), 0).dtype == torch.float32
    edge = torch.tensor([[0.125]])
    assert float(noise.log_prob(noise.sample(edge, 0), edge)) == 0.0
    thirds = torch.arange(1.0, 400.0)[:, None] / 6  # edges that rounding moves to either side
    assert bool((QuantisationNoise(1 / 3).log_prob(QuantisationNoise(1 / 3).sample(thirds, 0), thirds) == 0).all())


# -- samples: n = 20,000; a mean and a variance within 5 of their standard errors (p = 6e-7)

N = 20_000


def moments(noise: NoiseModel, clean: float, mean: float, variance: float, kurtosis: float) -> None:
    y = noise.sample(torch.full((N, 1), clean, dtype=F64), 7).flatten()
    assert abs(float(y.mean()) - mean) < 5 * math.sqrt(variance / N)
    assert abs(float(y.var()) - variance) < 5 * variance * math.sqrt((kurtosis - 1) / N)


def test_gaussian_samples() -> None:
    moments(GaussianNoise(0.3), 1.7, 1.7, 0.09, 3.0)


@pytest.mark.parametrize("rate", [0.2, 3.0, 500.0])
def test_poisson_samples(rate: float) -> None:
    """Mean clean, variance rate/peak^2, kurtosis 3 + 1/rate; and each count as often as its probability."""
    noise = PoissonNoise(10.0, offset=0.5)
    clean = rate / 10 - 0.5
    moments(noise, clean, clean, rate / 100, 3 + 1 / rate)
    y = noise.sample(torch.full((N, 1), clean, dtype=F64), 3)
    if rate < 10:
        k = torch.arange(0, 4)
        seen = ((y + 0.5) * 10).round().flatten()[:, None].eq(k).double().mean(0)
        p = noise.log_prob((k / 10 - 0.5).double()[:, None], torch.full((4, 1), clean, dtype=F64)).exp()
        assert bool(((seen - p).abs() < 5 * (p * (1 - p) / N).sqrt()).all())


def test_quantised_samples() -> None:
    """Each cell as often as its probability."""
    noise, clean = QuantisationNoise(1.0, std=0.6), torch.full((N, 1), 0.3, dtype=F64)
    y, k = noise.sample(clean, 5), torch.arange(-1.0, 3.0, dtype=F64)
    p = noise.log_prob(k[:, None], clean[:4]).exp()
    seen = y.eq(k).double().mean(0)
    assert bool(((seen - p).abs() < 5 * (p * (1 - p) / N).sqrt()).all())


def test_poisson_quantiles_are_scipys() -> None:
    rate = torch.logspace(-3, 5, 60, dtype=F64).repeat_interleave(40)
    z = torch.linspace(-6, 6, 40, dtype=F64).repeat(60)
    got = poisson_quantile(rate, z)
    low = stats.poisson.ppf(stats.norm.cdf(z), rate)
    high = stats.poisson.isf(stats.norm.sf(z), rate)
    wanted = torch.from_numpy(low).where(z <= 0, torch.from_numpy(high))
    assert torch.equal(got, wanted)
    assert poisson_quantile(torch.zeros(3, dtype=F64), torch.tensor([-5.0, 0.0, 5.0], dtype=F64)).tolist() == [0] * 3


@pytest.mark.parametrize(
    "noise", [GaussianNoise(0.3), PoissonNoise(20.0), QuantisationNoise(0.1, 0.2)], ids=lambda n: type(n).__name__
)
def test_per_sample_seeds_fix_each_sample(noise: NoiseModel) -> None:
    clean = uniform(4, 2, 3)
    together = noise.sample(clean, [3, 1, 4, 1])
    assert torch.equal(together[2:3], noise.sample(clean[2:3], [4]))
    assert torch.equal(noise.sample(clean, 9), noise.sample(clean, torch.Generator().manual_seed(9)))
    assert not torch.equal(noise.sample(clean, 9), noise.sample(clean, 10))
    twin = noise.sample(clean.float(), 9)
    assert twin.dtype == torch.float32
    assert float((twin - noise.sample(clean, 9)).abs().max()) < 1e-5
    assert "=" in repr(noise)


def test_the_nearest_that_a_noise_makes() -> None:
    """It is one of the noise's own, and no other is nearer."""
    y, low = draw(50, 1), -0.3  # where counts begin
    for noise, unit, within in (
        (PoissonNoise(4.0, offset=-low), 0.25, y.clamp_min(low)),
        (QuantisationNoise(0.4, 0.1), 0.4, y),
    ):
        found = noise.nearest(y)
        assert noise.check_measurement(found) is found
        assert float((found - within).abs().max()) <= unit / 2 + 1e-12
    assert GaussianNoise(0.1).nearest(y) is y


# -- refusals


def test_noise_that_cannot_be() -> None:
    y = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="std = 0 has no density"):
        GaussianNoise(0.0).log_prob(y, y)
    with pytest.raises(ValueError, match="std = 0 has no density"):
        GaussianNoise(torch.tensor([1.0, 0.0])).log_prob(y, y)
    assert torch.equal(GaussianNoise(0.0).sample(y + 1, 0), y + 1)
    for std in (-1.0, math.nan, math.inf, torch.tensor([1.0, -1.0])):
        with pytest.raises(ValueError, match="std is finite and not negative"):
            GaussianNoise(std)
    with pytest.raises(ValueError, match=r"one a sample, \(2,\): got shape \(3,\)"):
        GaussianNoise(torch.ones(3)).sample(y, 0)
    for peak in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="peak is finite and positive"):
            PoissonNoise(peak)
    with pytest.raises(ValueError, match="step is finite and positive"):
        QuantisationNoise(0.0)
    for noise in (GaussianNoise(1.0), PoissonNoise(1.0), QuantisationNoise(1.0)):
        with pytest.raises(ValueError, match=r"one shape, .* got \(2, 3\), \(2, 2\)"):
            noise.log_prob(y, y[:, :2])
        with pytest.raises(ValueError, match="1 of 6 entries are NaN or infinite"):
            noise.check_measurement(torch.tensor([[0.0, 1.0, math.nan], [0.0, 1.0, 2.0]]))


def test_data_out_of_range() -> None:
    y = torch.tensor([[0.5, -0.5, 1.0]])
    with pytest.raises(ValueError, match=r"1 entries are not, the first is -0.5, -1 counts"):
        PoissonNoise(2.0).log_prob(y, y.abs())
    with pytest.raises(ValueError, match=r"2 entries are not, the first is 0.5, 1.5 counts"):
        PoissonNoise(3.0, offset=0.0).check_measurement(y.abs())
    with pytest.raises(ValueError, match=r"not negative: got -0.5; .* offset=1"):
        PoissonNoise(2.0).sample(y, 0)
    with pytest.raises(ValueError, match="must be finite"):
        PoissonNoise(2.0).sample(y / 0, 0)
    with pytest.raises(ValueError, match=r"a multiple of 0.4: 3 entries are not, the first is 0.5"):
        QuantisationNoise(0.4).log_prob(y, y)
    for off, accepted in ((0.0005, True), (0.01, False)):  # of a step
        rounded = 0.4 * torch.tensor([[3 + off, -2.0]], dtype=F64)
        if accepted:
            assert QuantisationNoise(0.4).check_measurement(rounded) is rounded
        else:
            with pytest.raises(ValueError, match=r"1 entries are not, the first is 1\.204"):
                QuantisationNoise(0.4).check_measurement(rounded)
    big = torch.tensor([[1e5 / 7]])  # a count that float32 holds to 1e-3 counts only
    assert PoissonNoise(7.0).check_measurement(big) is big
