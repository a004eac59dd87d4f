"""The first diffusion model: binomial and Gaussian chains, their bound, entropies, rates, and products with r(x)."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.density import binomial_bound, reverse_entropy, variational_bound
from ornstein.density.binomial_bound import binomial_term
from ornstein.exact import Enumerable
from ornstein.processes import Binomial, LearnedRates
from ornstein.processes.binomial import reverse
from ornstein.solvers import BinomialAncestral, PerturbedDDPM
from ornstein.solvers.binomial import step_probability
from ornstein.training import VLB
from worlds import F64, normal, ring

PROCESS = Binomial()
CUBE = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)), dtype=F64)
SMALL = Enumerable(CUBE[[0, 3, 5]], torch.tensor([1.0, 2, 3], dtype=F64))  # 000, 011, 101: the last is the xor


def law_of_samples(model, steps, perturbation=None):
    """The exact law of the chain's samples on the cube: the product of its eight-by-eight steps, from fair coins."""
    levels, law = orn.Uniform()(PROCESS, steps), torch.full((8,), 1 / 8, dtype=F64)
    for t, s in itertools.pairwise(levels):
        p = step_probability(CUBE, model(CUBE, t).x0, t, s, perturbation)
        law = law @ (p[:, None] * CUBE + (1 - p[:, None]) * (1 - CUBE)).prod(-1)
    return law


def exact_bound(model, world, steps):
    """The mean of the bound over data and noise, by summing over all data and all states of the cube."""
    levels, total = orn.Uniform()(PROCESS, steps), torch.zeros((), dtype=F64)
    data = world.states.repeat_interleave(8, 0)
    x = CUBE.repeat(len(world.states), 1)
    for t, s in itertools.pairwise(levels):
        q = ((1 + t.alpha * (2 * x - 1) * (2 * data - 1)) / 2).prod(1) * world.weights.repeat_interleave(8)
        total += q @ binomial_term(x, model(x, t).x0, data, t, s).sum(1)
    return float(total)


def slope(errors):
    return math.log2(errors[-2] / errors[-1])


def law_on_the_cube(world):
    return world.log_prob(CUBE).exp()


@pytest.mark.system("nonequilibrium", rival="one reverse step, which draws the entries each on its own; fixed rates")
def test_nonequilibrium():
    """Binary heartbeats, as published: 20 bins with a one in every fifth, entropy log2(5) = 2.322 bits."""
    world = Enumerable.heartbeat()
    model, x = world.denoiser(PROCESS), world.sample(2000, seed=1, dtype=F64)
    gaps, errors = {}, {}
    for steps in (1, 5, 40):
        bits = binomial_bound(model, x, steps=steps, seed=2).total / math.log(2)
        gaps[steps], errors[steps] = float(bits.mean()) - math.log2(5), float(bits.std()) / math.sqrt(len(x))
    # the bound closes as log(steps)/steps (below, exactly): from 5 to 40 steps to an eighth, times a logarithm
    assert 0 < gaps[40] < gaps[5] / 4
    # the rival has the entropy of 20 independent bins of probability 1/5
    independent = 20 * (math.log2(5) / 5 + 4 / 5 * math.log2(5 / 4))
    assert gaps[1] == pytest.approx(independent - math.log2(5), rel=1e-9)

    # samples: the five phases alike, by chi-square with 4 degrees (13.3: one in a hundred), and nothing else at order 1
    def sampled(steps, n=3000):
        out = orn.sample(model, (n, 20), solver=BinomialAncestral(), grid=orn.Uniform(), steps=steps, seed=3, dtype=F64)
        counts = (out.x[:, None] == world.states).all(2).sum(0).double()
        return counts, 1 - float(counts.sum()) / n

    counts, strays = sampled(40)
    expected = counts.sum() / 5
    assert float(((counts - expected) ** 2 / expected).sum()) < 13.3
    assert strays < 0.01
    assert sampled(1)[1] > 0.9

    # a wrong model: the bound stays above the entropy, by what it is wrong, whatever the steps
    wrong = Enumerable(world.states, torch.tensor([4.0, 1, 1, 1, 1], dtype=F64)).denoiser(PROCESS)
    divergence = math.log2(8 / 5) - math.log2(4) / 5  # of the true phases from (4, 1, 1, 1, 1)/8
    bits = binomial_bound(wrong, x, steps=40, seed=2).total / math.log(2)
    assert float(bits.mean()) - math.log2(5) - gaps[40] == pytest.approx(divergence, abs=0.05)

    # the rates of a Gaussian chain, learned through the bound of fixed noise: a quarter of the gap goes at least
    start = -torch.expm1(2 * orn.VP(0.1, 8.0).log_alpha(torch.linspace(0, 1, 7, dtype=F64)).diff())
    process, data, held = LearnedRates(start), ring(0.3).sample(2000, seed=1).to(F64), ring(0.3).sample(2000, seed=5)
    model = ring(0.3).denoiser(process)

    def gap():
        bound = variational_bound(model, held.to(F64), grid=orn.Uniform(), steps=6, variance="posterior", seed=6)
        return bound.total + ring(0.3).log_prob(held.to(F64))

    before = gap()
    orn.fit(
        model, data, steps=25, batch_size=256, lr=0.3, objective=VLB(steps=6, variance="posterior"), ema=None, seed=0,
        progress=False,
    )  # fmt: skip
    gain = before - gap()
    assert float(gain.mean()) > 0.25 * float(before.mean()) + 3 * float(gain.std()) / math.sqrt(len(gain))
    assert float(process.rates[0].detach()) == pytest.approx(float(start[0]), rel=1e-12)


def test_the_bound_and_the_law_have_order_one():
    """Exactly, without sampling: the mean bound falls to the entropy as log(steps)/steps (its gap times the steps grows
    by the same amount at each doubling), the law of the samples to the data's as 1/steps. The bound is one of that law:
    it is never below its cross entropy."""
    model = SMALL.denoiser(PROCESS)
    truth = law_on_the_cube(SMALL)
    gaps, distances = [], []
    for steps in (20, 40, 80, 160):
        law = law_of_samples(model, steps)
        gaps.append(exact_bound(model, SMALL, steps) - SMALL.entropy)
        distances.append(float((law - truth).abs().sum()) / 2)
        cross = -float((truth * law.log())[truth > 0].sum())
        assert SMALL.entropy + gaps[-1] >= cross > SMALL.entropy
    scaled = [gap * steps for gap, steps in zip(gaps, (20, 40, 80, 160), strict=True)]
    assert scaled[3] - scaled[2] == pytest.approx(scaled[2] - scaled[1], rel=0.03)
    assert slope(distances) == pytest.approx(1, abs=0.05)
    # a single bit has nothing to miss: exact in one step
    coin = Enumerable(torch.tensor([[0.0], [1.0]], dtype=F64), torch.tensor([1.0, 3.0], dtype=F64))
    bit = binomial_bound(coin.denoiser(PROCESS), coin.states, steps=1, seed=0).total
    torch.testing.assert_close(bit, -coin.log_weights, rtol=1e-12, atol=1e-12)
    # the estimate is that mean
    x = SMALL.sample(20_000, seed=0, dtype=F64)
    found = binomial_bound(model, x, steps=20, seed=1).total
    error = float(found.std()) / math.sqrt(len(found))
    assert float(found.mean()) == pytest.approx(gaps[0] + SMALL.entropy, abs=4 * error)


def test_samples_follow_the_law_of_the_chain():
    """10 steps: chi-square of 20,000 samples with 7 degrees (18.5: one in a hundred) against the chain's own law, which
    they meet, and the data's, which they do not at so few steps."""
    model, n = SMALL.denoiser(PROCESS), 20_000
    out = orn.sample(model, (n, 3), solver=BinomialAncestral(), grid=orn.Uniform(), steps=10, seed=0)
    assert out.nfe == 10
    assert out.x.dtype == torch.float32
    counts = (out.x.double()[:, None] == CUBE).all(2).sum(0)
    assert int(counts.sum()) == n
    law = law_of_samples(model, 10)
    assert float(((counts - n * law) ** 2 / (n * law)).sum()) < 18.5
    assert float(((counts - n * law_on_the_cube(SMALL)) ** 2 / (n * law)).sum()) > 100


def test_entropies_of_the_reverse_steps_lie_between_the_bounds():
    """H(x_s | x_t) of the small world by summing over pairs of states, against both bounds; and of a Gaussian, where it
    is known and the lower bound is attained by a point."""
    levels = orn.Uniform()(PROCESS, 6)
    lower, upper = (3 * bound for bound in reverse_entropy(PROCESS, levels))
    for i, (t, s) in enumerate(itertools.pairwise(levels)):
        early = SMALL.log_prob(CUBE, PROCESS, s).exp()
        kept = t.alpha / s.alpha
        forward = ((1 + kept * (2 * CUBE[:, None] - 1) * (2 * CUBE - 1)) / 2).prod(-1)
        joint = early[:, None] * forward
        late = joint.sum(0)
        entropy = float(torch.special.entr(joint).sum() - torch.special.entr(late).sum())
        assert float(lower[i]) < entropy < float(upper[i]) + 1e-12, i
    process = orn.VP()
    levels = orn.Uniform(end=0.1)(process, 6)
    lower, upper = reverse_entropy(process, levels)
    for std in (1e-9, 0.5, 0.999):
        t, s = levels[:-1], levels[1:]
        variance = (levels.alpha * std) ** 2 + levels.sigma**2
        forward = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
        exact = torch.log(2 * math.pi * math.e * forward * variance[1:] / variance[:-1]) / 2
        assert bool((exact >= lower - 1e-12).all() and (exact <= upper + 1e-12).all())
        if std < 1e-3:
            torch.testing.assert_close(exact, lower, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="not known"):
        reverse_entropy(orn.processes.PSLD(), orn.processes.PSLD().level([1.0, 0.5]))


def flips(log_r):
    """log r(x with x_i = 1) - log r(x with x_i = 0) of every entry, from log r(x, level)."""

    def odds(x, level):
        found = []
        for i in range(x.shape[1]):
            one, zero = x.clone(), x.clone()
            one[:, i], zero[:, i] = 1, 0
            found.append(log_r(one, level) - log_r(zero, level))
        return torch.stack(found, 1)

    return odds


def test_the_product_with_a_perturbation_is_the_posterior():
    """The first bit is seen through a channel that errs once in ten. With r_t(x) = E[r(x0) | x_t = x] the law of the
    samples tends to the posterior at order 1; with the same r at all levels, as published, it tends elsewhere."""
    model = SMALL.denoiser(PROCESS)

    def log_r(x):
        return torch.where(x[:, 0] == 1, math.log(0.9), math.log(0.1)).to(F64)

    seen = SMALL.posterior(log_r)
    truth = law_on_the_cube(seen)

    def expected(x, level):  # p(seen | x_t): the ratio of the two laws of x_t
        return seen.log_prob(x, PROCESS, level) - SMALL.log_prob(x, PROCESS, level)

    def distance(perturbation, steps):
        return float((law_of_samples(model, steps, perturbation) - truth).abs().sum()) / 2

    near = [distance(_above_data(flips(expected)), steps) for steps in (40, 80, 160)]
    assert slope(near) == pytest.approx(1, abs=0.1)
    assert near[-1] < 0.02
    far = [distance(flips(lambda x, level: log_r(x)), steps) for steps in (80, 160)]
    assert min(far) > 0.05
    assert far[0] / far[1] < 1.2
    assert distance(None, 160) > 0.2
    # r is asked at the level that the step goes to
    asked = []
    step_probability(CUBE, CUBE, PROCESS.level(0.5), PROCESS.level(0.25), lambda x, s: asked.append(float(s.t)) or x)
    assert asked == [0.25]


def _above_data(odds):
    """At data, where some states are impossible, the ratio of impossible laws is nothing: the model alone decides."""
    return lambda x, level: odds(x, level) if float(level.alpha) < 1 else torch.zeros_like(x)


def test_the_gaussian_product_is_the_posterior():
    """x0 ~ N(0, s^2), y = x0 + e: E[r(x0) | x_t] is exp of a quadratic, and with it the samples are N(m, v), the
    posterior, to 4 standard errors and a bias of 1/steps; r itself at all levels gives other moments."""
    process, std, spread, y, n, steps = orn.Cosine(), 0.8, 0.5, 1.2, 20_000, 200
    model = orn.exact.GaussianMixture(torch.zeros(1, 1, dtype=F64), torch.tensor([std], dtype=F64)).denoiser(process)

    def expected(level):
        total = level.alpha**2 * std**2 + level.sigma**2
        gain, left = level.alpha * std**2 / total, std**2 * level.sigma**2 / total  # E[x0 | x_t] = gain x_t, Var
        return y / gain.clamp_min(1e-12), gain**2 / (left + spread**2)

    def moments(perturbation):
        out = orn.sample(
            model, (n, 1), solver=PerturbedDDPM(perturbation), grid=orn.Uniform(), steps=steps, seed=0, dtype=F64
        ).x
        return float(out.mean()), float(out.var())

    variance = 1 / (1 / std**2 + 1 / spread**2)
    mean = variance * y / spread**2
    found = moments(expected)
    tolerance = 4 * math.sqrt(variance / n) + 2 / steps
    assert found == (pytest.approx(mean, abs=tolerance), pytest.approx(variance, abs=tolerance))
    constant = moments(lambda level: (y, spread**-2))
    assert abs(constant[0] - mean) > 3 * tolerance or abs(constant[1] - variance) > 3 * tolerance
    # precision 0 is DDPM: the same noise gives the same samples
    x = normal(5, 1)
    plain = orn.sample(model, x_init=x, solver=orn.DDPM(variance="forward"), grid=orn.Uniform(), steps=5, seed=1).x
    none = orn.sample(model, x_init=x, solver=PerturbedDDPM(lambda _: (0.0, 0.0)), grid=orn.Uniform(), steps=5, seed=1)
    torch.testing.assert_close(none.x, plain, rtol=1e-12, atol=1e-12)
    # one step is the product of two normal laws: precisions add, and means weighted by them; r is that of the new level
    levels, z = process.level([0.7, 0.4]), orn.Noise(1, batch=5, dtype=F64).normal((5, 1))
    step, own = orn.processes.ancestral(levels[0], levels[1]), (x, model(x, levels[0]).x0)
    before, precision = step.c_x * own[0] + step.c_x0 * own[1], step.forward**-2
    solver = PerturbedDDPM(lambda level: (y, 3 * (1 + level.t)))
    total = precision + 3 * 1.4
    truth = (precision * before + 3 * 1.4 * y) / total + z / total.sqrt()
    torch.testing.assert_close(orn.sample(model, x_init=x, solver=solver, grid=levels, seed=1).x, truth)
    with pytest.raises(ValueError, match="mean"):
        PerturbedDDPM(expected).compile(orn.MeanReverting(), orn.Uniform()(orn.MeanReverting(), 3))


def test_the_gradient_of_the_rates():
    """That of the bound under fixed noise, by central differences; and the chain is the one its rates say."""
    process = LearnedRates(torch.tensor([0.05, 0.2, 0.3, 0.5, 0.6], dtype=F64))
    torch.testing.assert_close(
        process.level(torch.arange(6, dtype=F64) / 5).alpha[1:] ** 2,
        (1 - torch.tensor([0.05, 0.2, 0.3, 0.5, 0.6], dtype=F64)).cumprod(0),
    )
    t = torch.tensor([0.03, 0.3, 0.77, 1.0], dtype=F64)
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-12, atol=1e-12)
    model, x, loss = (
        ring(0.3).denoiser(process),
        ring(0.3).sample(200, seed=0).to(F64),
        VLB(steps=5, variance="forward"),
    )
    loss(model, x, seed=1).backward()
    for i, gradient in enumerate(process.shares.grad.tolist()):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                process.shares[i] += sign * 1e-5
                ends.append(float(loss(model, x, seed=1)))
                process.shares[i] -= sign * 1e-5
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(gradient, rel=1e-5, abs=1e-7)


def test_reverse_is_bayes():
    """q(x_s | x_t, x0) against the ratio of the forward laws, at all pairs of states and levels, ends included."""
    for t, s in ((1.0, 0.6), (0.7, 0.2), (0.4, 0.0), (1.0, 0.0)):
        late, early = PROCESS.level(t), PROCESS.level(s)
        for x, x0 in itertools.product((0.0, 1.0), repeat=2):
            kept = late.alpha / early.alpha
            weights = [(1 + early.alpha * (2 * x0 - 1) * e) * (1 + kept * (2 * x - 1) * e) / 4 for e in (-1.0, 1.0)]
            found = reverse(torch.tensor([[x]], dtype=F64), torch.tensor([[x0]], dtype=F64), late, early)
            assert float(found) == pytest.approx(float(weights[1] / (weights[0] + weights[1])), abs=1e-14)
