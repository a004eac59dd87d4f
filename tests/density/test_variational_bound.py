"""The bound of the discrete chain, the law of its last step on quantised data, and the law of t that remembers."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.density import Quantised, variational_bound
from ornstein.training import VLB, HybridLoss, LossSecondMoment, SharedTimestep
from worlds import F64, normal, ring


def test_one_step_from_nothing():
    """alpha = 0 and a mean of 0: the bound of one step is -log N(x; 0, 1), in the user's units."""
    world = orn.exact.GaussianMixture(torch.zeros(1, 3, dtype=F64), torch.ones(1, dtype=F64))
    model = world.denoiser(orn.Cosine())
    model.scaling = orn.Scaling(mean=2.0, std=4.0)
    x = 2 + 4 * normal(5, 3)
    bound = variational_bound(model, x, steps=1, seed=0)
    truth = (((x - 2) / 4) ** 2 / 2 + math.log(4) + math.log(2 * math.pi) / 2).sum(1)
    torch.testing.assert_close(bound.total, truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bound.bits_per_dim, truth / (3 * math.log(2)), rtol=1e-10, atol=1e-10)
    assert float(bound.prior.abs().max()) == 0


def test_more_steps_close_the_bound():
    """On a mixture the bound with the forward variance falls to the entropy, which it never crosses. With the
    posterior's it does not: near data the step from k to k - 1 of N costs log((k - 1)/k) + ((k/(k - 1))^2 - 1)/2 a
    dimension, whatever N. The prior's KL is that of a chain that begins at alpha > 0."""
    world = ring(0.3)
    x = world.sample(4000, seed=0).to(F64)
    gaps, errors = {}, {}
    for variance, steps in (("forward", 5), ("forward", 20), ("forward", 160), ("posterior", 160)):
        bound = variational_bound(world.denoiser(orn.Cosine()), x, steps=steps, variance=variance, seed=1)
        gap = bound.total + world.log_prob(x)
        gaps[variance, steps], errors[variance, steps] = float(gap.mean()), float(gap.std()) / math.sqrt(len(x))
    first, second, last = (gaps["forward", n] for n in (5, 20, 160))
    assert first > 2 * second > 8 * errors["forward", 20]
    assert abs(last) < 4 * errors["forward", 160]
    # the last of the sum is the step at whose noise, k/N (pi/2), the data's own spread of 0.3 begins to show
    near = sum(math.log((k - 1) / k) + ((k / (k - 1)) ** 2 - 1) / 2 for k in range(2, 31))
    assert gaps["posterior", 160] == pytest.approx(2 * near, abs=4 * errors["posterior", 160])

    process = orn.VP(beta_max=4.0)
    end = process.level(1.0)
    prior = variational_bound(world.denoiser(process), x, steps=2, seed=1).prior
    q = torch.distributions.Normal(end.alpha * x, end.sigma)
    torch.testing.assert_close(
        prior, torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, end.sigma)).sum(1)
    )
    start = process.level(0.5)
    q = torch.distributions.Normal(start.alpha * x, start.sigma)
    grid = orn.Uniform(start=0.5)
    torch.testing.assert_close(
        variational_bound(world.denoiser(process), x, grid=grid, steps=2, seed=1).prior,
        torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, end.sigma)).sum(1),
    )


def test_quantised_values():
    """The masses of all values sum to one, are the cells', and stay finite and right far out in the tails."""
    values = Quantised(0.0, 1.0, 17)
    x = torch.linspace(0, 1, 17, dtype=F64)
    for mean, std in ((0.3, 0.1), (0.5, 3.0), (-2.0, 0.05), (1.4, 0.02)):
        found = values.log_prob(x, torch.full_like(x, mean), torch.full_like(x, std))
        assert float(found.exp().sum()) == pytest.approx(1, abs=1e-12)
        assert bool(found.isfinite().all())
    cell = torch.distributions.Normal(0.3, 0.1)
    found = values.log_prob(x, torch.full_like(x, 0.3), torch.full_like(x, 0.1))
    truth = (cell.cdf(x[5] + 1 / 32) - cell.cdf(x[5] - 1 / 32)).log()
    assert float(found[5]) == pytest.approx(float(truth), abs=1e-6)  # torch's own cdf is of float32 parameters
    # 40 standard deviations out: log of the tail, -z^2/2 - log(z sqrt(2 pi)) to 1/z^2
    z = (1 - 1 / 32 - 0.1) / 0.02
    far = values.log_prob(x[-1:], torch.tensor([0.1], dtype=F64), torch.tensor([0.02], dtype=F64))
    assert float(far) == pytest.approx(-(z**2) / 2 - math.log(z * math.sqrt(2 * math.pi)), abs=2 / z**2)
    mean = torch.tensor([0.3, -5.0, 9.0], dtype=F64, requires_grad=True)
    values.log_prob(x[[5, 16, 0]], mean, torch.full((3,), 1e-2, dtype=F64)).sum().backward()
    assert bool(mean.grad.isfinite().all())
    single = values.log_prob(x.float(), torch.full((17,), 0.3), torch.full((17,), 0.1))
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=1e-3)


def test_refusals():
    world = ring()
    x = world.sample(4, seed=0).to(F64)
    with pytest.raises(ValueError, match="not at data"):
        variational_bound(world.denoiser(orn.VP()), x, grid=orn.Uniform(end=0.1), steps=3)
    with pytest.raises(ValueError, match="posterior, forward, learned"):
        variational_bound(world.denoiser(orn.VP()), x, steps=3, variance="fixed")
    with pytest.raises(ValueError, match="outputs="):
        variational_bound(world.denoiser(orn.VP()), x, steps=3, variance="learned")
    for data in (x, torch.full_like(x, 0.03), torch.full_like(x, 17 / 16)):
        with pytest.raises(ValueError, match="none of the values"):
            variational_bound(world.denoiser(orn.VP()), data, steps=3, values=Quantised(0, 1, 17))
    model = orn.Denoiser(orn.nets.MLP(2, outputs=("main", "variance"), width=8, depth=1), orn.VP(), predicts="noise")
    law = LossSecondMoment(bins=10)
    share = orn.random.Share(0, 2, 4)
    with pytest.raises(ValueError, match="whole batches"):
        HybridLoss(time=law, steps=10)(model, x[:2].float(), seed=0, share=share)
    with pytest.raises(ValueError, match="none of the values"):
        orn.fit(model, x.float(), steps=1, objective=HybridLoss(steps=10, values=Quantised(0, 1, 17)))
    with pytest.raises(ValueError, match="weights of its own"):
        VLB(weighting=orn.training.UnitTarget(), steps=10)(model, x.float(), seed=0)
    with pytest.raises(ValueError, match="tell another number"):
        SharedTimestep(of=lambda level: level.log_snr, process=orn.VP())


def test_the_law_remembers():
    law = LossSecondMoment(bins=4, memory=2)
    assert law.masses.tolist() == [0.25] * 4
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)
    law.observe(t, torch.tensor([9.0, 9, 9, 9]))
    assert law.masses.tolist() == [0.25] * 4  # not yet two of each
    law.observe(t, torch.tensor([1.0, 1, 1, 1]))
    law.observe(t, torch.tensor([1.0, 2, 3, 4]))  # 9 is forgotten
    roots = torch.tensor([1.0, 4 + 1, 9 + 1, 16 + 1], dtype=F64)
    roots[0] = 2
    size = (roots / 2).sqrt()
    torch.testing.assert_close(law.masses, 0.999 * size / size.sum() + 0.001 / 4)
    # the quantile inverts the law: as many times in a bin as its mass says
    u = (torch.arange(10_000, dtype=F64) + 0.5) / 10_000
    drawn = law.quantile(u, orn.VP())
    shares = torch.histc(drawn, 4, 0, 1) / 10_000
    torch.testing.assert_close(shares, law.masses, rtol=0, atol=2e-4)
    torch.testing.assert_close(law.density(orn.VP().level(t)), law.masses * 4)
    other = LossSecondMoment(bins=4, memory=2)
    other.load_state_dict(law.state_dict())
    torch.testing.assert_close(other.masses, law.masses)
    assert repr(other) == repr(law)  # a run goes by it
