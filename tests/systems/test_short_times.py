"""Short diffusion times: the two gaps of the bound, and a fitted end law in place of the rest of the path."""

import functools
import math

import pytest
import torch

import ornstein as orn
from ornstein.density import diffusion_times, end_law, log_likelihood
from ornstein.guidance import Shorter, Wrapped
from ornstein.guidance.wrapped import calls_in
from ornstein.numerics.quadrature import gauss_legendre
from ornstein.processes import MeanReverting, Shortened
from worlds import F64, normal, ring

MEANS, STDS, WEIGHTS = (torch.tensor(v, dtype=F64) for v in ([-2.0, 0.3, 1.6], [0.2, 0.3, 0.25], [0.3, 0.5, 0.2]))
WORLD, BASE = orn.exact.GaussianMixture(MEANS[:, None], STDS, WEIGHTS), orn.VP()


class Off(Wrapped):
    """A model whose noise is wrong by a constant, everywhere: its score gap is size^2/2 times the fall of log-SNR."""

    def __init__(self, model, size):
        super().__init__(model)
        self.size, self.predicts = size, "noise"

    def bind(self, levels, x, cond):
        calls = calls_in("noise", self.model, levels, x, cond)
        return [functools.partial(lambda call, x: call(x) + self.size, call) for call in calls]


def line(reach=12.0, count=400):
    points, weights = gauss_legendre(count)
    return (reach * points)[:, None], reach * weights


def kl(log_p, log_q):
    x, w = line()
    p = log_p(x)
    return float((w * p.exp() * (p - log_q(x))).sum())


def quantiles(mixture, alpha, sigma, u):
    """Those of alpha x0 + sigma z, by bisection."""
    spread = torch.sqrt(alpha**2 * mixture.covariance.dense()[:, 0, 0] + sigma**2)
    low, high = torch.full_like(u, -30.0), torch.full_like(u, 30.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.ndtr((middle[:, None] - alpha * mixture.means[:, 0]) / spread) @ mixture.weights
        low, high = torch.where(below < u, middle, low), torch.where(below < u, high, middle)
    return middle


@pytest.mark.system("short-times", rival="stopping as early, from N(0, I)")
def test_short_times():
    data, held_out = WORLD.sample(4_000, seed=0), WORLD.sample(1_000, seed=1)
    times, size = torch.tensor([0.1, 0.25, 0.4, 0.6, 1.0], dtype=F64), 0.1
    fitted = functools.partial(end_law, BASE, data, components=3)
    model, x = Off(WORLD.denoiser(BASE), size), line()[0]
    plain = diffusion_times(model, held_out, times, truth=WORLD, nodes=8, seed=2)
    better = diffusion_times(model, held_out, times, laws=fitted, truth=WORLD, nodes=8, seed=2)

    # both gaps are what their definitions say: the prior's by a quadrature, within the error of 1,000 log ratios,
    # the score's in closed form; and the bound is the entropy and both, with the error of its own mean
    ends = BASE.level(torch.cat([torch.tensor([1e-3], dtype=F64), times]))
    score_gap = size**2 * (ends.log_snr[0] - ends.log_snr[1:]) / 2
    entropy = -float(WORLD.log_prob(held_out).mean())
    for found, laws in ((plain, [None] * 5), (better, better.laws)):
        torch.testing.assert_close(found.score_gap, score_gap, rtol=1e-9, atol=0)
        for i, (t, law) in enumerate(zip(times.tolist(), laws, strict=True)):
            log_p = functools.partial(WORLD.log_prob, process=BASE, t=t)
            ratio = log_p(state := at(t, held_out)) - Shortened(BASE, t, law).log_prior(state)
            exact = kl(log_p, Shortened(BASE, t, law).log_prior)
            assert float(found.prior_gap[i]) == pytest.approx(exact, abs=5 * float(ratio.std()) / math.sqrt(1_000))
        total = entropy + found.prior_gap + found.score_gap
        assert bool(((found.bound - total).abs() < 4 * found.spread / math.sqrt(1_000)).all())

    # one falls and the other rises, so the best T lies between; with a law it is earlier, and better
    assert bool((plain.prior_gap.diff() < 0).all())
    assert bool((plain.score_gap.diff() > 0).all())
    assert 0 < plain.best < len(times) - 1
    assert better.best < plain.best
    total = [float((found.prior_gap + found.score_gap)[found.best]) for found in (better, plain)]
    assert total[0] < 0.7 * total[1]

    # the likelihood of the flow: by the exact model KL(p_data || model) = KL(p_T || law), a normal law's 20 times it
    x, w = line(4.0, 120)
    density = w * WORLD.log_prob(x).exp()
    x, density = x[density > 1e-7], density[density > 1e-7]
    gaps = {}
    for name, law in {"fitted": better.laws[1], "normal": None}.items():
        short = Shorter(WORLD.denoiser(BASE), 0.25, law)
        found = log_likelihood(short, x, start=1e-5, rtol=1e-4, atol=1e-5).log_prob
        gaps[name] = float((density * (WORLD.log_prob(x) - found)).sum())
        log_p = functools.partial(WORLD.log_prob, process=BASE, t=0.25)
        assert gaps[name] == pytest.approx(kl(log_p, Shortened(BASE, 0.25, law).log_prior), rel=1e-2, abs=1e-4)
    assert gaps["normal"] > 20 * gaps["fitted"]


def at(t, x0):
    """The states that `diffusion_times` would noise, with noise of its own."""
    return BASE.corrupt(x0, t, noise=normal(*x0.shape, seed=9)).x


def test_evaluations():
    """In one dimension the flow is monotone, so W1 between the world's quantiles and what a deterministic sampler makes
    of those of the end law has no chance in it. For an error of a twentieth of the data's size a quarter of the
    path from a fitted law takes 4 evaluations of DDIM, the whole path more than 16, and 3 of UniPC against more than 5.
    N(0, I) at the same T is above a third however many. The fit of 20,000 samples costs 1.5 %: below it, no law helps.
    """
    u = (torch.arange(100, dtype=F64) + 0.5) / 100
    zero, one, until = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64), 0.25
    goal = quantiles(WORLD, one, zero, u)
    law, oracle = end_law(BASE, WORLD.sample(20_000, seed=0), until, components=3), WORLD.denoiser(BASE)
    whole, early = torch.special.ndtri(u), quantiles(law, one, zero, u)

    def error(model, start, solver, steps):
        out = orn.sample(model, x_init=start[:, None], grid=orn.LogSNR(), solver=solver, steps=steps)
        assert out.nfe == steps
        return float((out.x[:, 0] - goal).abs().mean() / goal.std())

    for solver, few, many in ((orn.DDIM(), 4, 16), (orn.UniPC(), 3, 5)):
        assert error(Shorter(oracle, until, law), early, solver, few) < 0.05
        assert error(oracle, whole, solver, many) > 0.05
        assert error(Shorter(oracle, until), BASE.level(until).sigma * whole, solver, 30) > 0.3


def test_process():
    """A stopped process is its base with another clock, and no more; its end law is the law given."""
    base, until = BASE, 0.3
    short, t = Shortened(base, until), torch.linspace(0.05, 1.0, 7, dtype=F64)
    level, own = short.level(t), base.level(until * t)
    for name in ("alpha", "sigma", "log_snr"):
        torch.testing.assert_close(getattr(level, name), getattr(own, name))
    for f, slope in ((short.alpha, level.d_alpha), (short.sigma, level.d_sigma)):
        torch.testing.assert_close(slope, torch.func.jvp(f, (t,), (torch.ones_like(t),))[1])
    torch.testing.assert_close(short.wronskian(t), level.alpha * level.d_sigma - level.sigma * level.d_alpha)
    torch.testing.assert_close(short.drift(t), level.d_alpha / level.alpha)
    torch.testing.assert_close(short.diffusion2(t), level.diffusion2)
    torch.testing.assert_close(short.time(level.log_snr), t)

    # every view of a model of the base is that of an exact model of the stopped process
    world, x = ring(), normal(7, 2)
    exact = world.denoiser(short)(x, level)
    for predicts in ("x0", "noise", "score", "velocity", "v"):
        shorter = Shorter(world.denoiser(base, predicts), until)(x, level)
        for view in ("x0", "velocity", "noise"):
            torch.testing.assert_close(shorter.view(view), exact.view(view), rtol=1e-8, atol=1e-8)

    # a network is asked at the base's time, of which it reads more than the noise
    network = orn.Denoiser(lambda x, t: x * (1 + t[:, None]), base, "v")
    torch.testing.assert_close(Shorter(network, until)(x, level).v, network(x, until * t).v)

    # a mean that does not come from x0 moves with the clock too, and the law is of the rest
    cond = {"mean": normal(500, 2)}
    early = Shortened(MeanReverting(), 0.4, orn.exact.Gaussian(torch.zeros(2, dtype=F64), std=0.1))
    now = torch.tensor(0.5, dtype=F64)
    shift, slope = early.shift(now, cond), early.d_shift(now, cond)
    torch.testing.assert_close(shift, MeanReverting().shift(0.4 * now, cond))
    torch.testing.assert_close(
        slope, torch.func.jvp(lambda s: early.shift(s, cond), (now,), (torch.ones_like(now),))[1]
    )
    last = early.shift(torch.tensor(1.0, dtype=F64), cond)
    centred = early.prior((500, 2), seed=0, cond=cond, dtype=F64) - last
    assert float(centred.mean().abs()) < 4 * 0.1 / math.sqrt(1_000)
    assert float(centred.std()) == pytest.approx(0.1, rel=4 / math.sqrt(2_000))
    torch.testing.assert_close(early.log_prior(last, cond), early.law.log_prob(torch.zeros(500, 2, dtype=F64)))


def test_prior():
    """Draws are of the law, named by the seed, or each by its own; the noise that follows is independent of them."""
    law = orn.exact.GaussianMixture(torch.tensor([[-1.0], [3.0]], dtype=F64), 0.1)
    short = Shortened(BASE, 0.3, law)
    x = short.prior((20_000, 1), seed=0, dtype=F64)
    assert float((x > 1).double().mean()) == pytest.approx(0.5, abs=4 / math.sqrt(4 * 20_000))
    assert float(x[x > 1].std()) == pytest.approx(0.1, rel=4 / math.sqrt(20_000))
    torch.testing.assert_close(short.prior((20_000, 1), seed=0, dtype=F64), x)
    assert bool((short.prior((20_000, 1), seed=1, dtype=F64) != x).all())
    each = short.prior((5, 1), seed=[1, 2, 3, 4, 5], dtype=F64)
    torch.testing.assert_close(short.prior((2, 1), seed=[4, 2], dtype=F64), each[[3, 1]])
    assert len(set(each.flatten().tolist())) == 5
    assert short.prior((0, 1), seed=0).shape == (0, 1)
    low = short.prior((5, 1), seed=7)
    torch.testing.assert_close(low, short.prior((5, 1), seed=7, dtype=F64).float())
    stream = orn.Noise(0, batch=20_000, dtype=F64)
    x = short.prior((20_000, 1), seed=stream, dtype=F64)
    z = stream.normal((20_000, 1))
    assert abs(float(torch.corrcoef(torch.cat([x, z], 1).T)[0, 1])) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("shape", ["full", "diagonal", "isotropic"])
def test_fit(shape):
    """The mixture of greatest likelihood: at the data no worse than the truth, and near it on fresh data."""
    stds = {"full": None, "diagonal": torch.tensor([[0.2, 0.5], [0.4, 0.1]]), "isotropic": torch.tensor([0.2, 0.4])}
    covs = torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.1, -0.05], [-0.05, 0.2]]]) if shape == "full" else None
    truth = orn.exact.GaussianMixture(
        torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), stds[shape], torch.tensor([1.0, 2.0]), covs=covs
    )
    data, fresh = truth.sample(2_000, seed=0), truth.sample(2_000, seed=1)
    found = orn.exact.GaussianMixture.fit(data, 2, shape=shape, seed=0)
    assert found.sample(3).dtype == data.dtype
    # twice the log ratio is a chi-square of as many degrees as parameters, 11 at most: below 40 but once in 10^5
    assert 0 <= 2 * float((found.log_prob(data) - truth.log_prob(data)).double().sum()) < 40
    assert abs(2 * float((found.log_prob(fresh) - truth.log_prob(fresh)).double().sum())) < 40


def test_refusals():
    with pytest.raises(ValueError, match=r"until=0.0"):
        Shortened(BASE, 0.0)
    with pytest.raises(ValueError, match="normal noise"):
        Shortened(orn.processes.TwoSided(), 0.5)
    with pytest.raises((ValueError, TypeError)):  # the second where types are checked before anything runs
        Shortened(BASE, 0.5, torch.zeros(3))
    with pytest.raises(ValueError, match="events"):
        Shortened(BASE, 0.5, WORLD).prior((4, 3))
    with pytest.raises(ValueError, match="rising list"):
        diffusion_times(WORLD.denoiser(BASE), WORLD.sample(4), torch.tensor([0.5, 0.2]))
    with pytest.raises(ValueError, match="infinite"):
        diffusion_times(WORLD.denoiser(orn.Flow()), WORLD.sample(4), torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="shape='round'"):
        orn.exact.GaussianMixture.fit(normal(4, 2), 2, shape="round")
    with pytest.raises(ValueError, match="components=5"):
        orn.exact.GaussianMixture.fit(normal(4, 2), 5)
    with pytest.raises(ValueError, match=r"until=1\.5"):
        end_law(BASE, normal(4, 2), 1.5)
