"""Denoising MCMC: a chain over (x, noise level), and a few steps from each of its states to data."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import denoising_mcmc, langevin_gibbs
from worlds import F64, normal, ring

PROCESS, WORLD = orn.EDM(sigma_max=10.0), ring(0.3)
LEVELS = PROCESS.level(torch.exp(torch.linspace(math.log(0.1), math.log(1.2), 8, dtype=F64)) / 10)


def classifier(prior):
    """What an ideal classifier of noise levels answers: log p(level) + log p_level(x) up to a constant."""

    def logits(x):
        n = len(x)
        t = LEVELS.t.repeat_interleave(n)
        at_each = WORLD.log_prob(x.repeat(len(LEVELS), 1), PROCESS, t).reshape(len(LEVELS), n).T
        return prior.log() + at_each

    return logits


def squared_mmd(x, y):
    def kernel(a, b):
        return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * 0.5**2))

    n, m = len(x), len(y)
    within = (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


@pytest.mark.system("denoising-mcmc", rival="the same solvers from pure noise, at 10 evaluations")
def test_denoising_mcmc():
    oracle = WORLD.denoiser(PROCESS)

    # the chain's marginal over levels is the prior that the classifier was made with: 1200 chains, 4 standard errors
    # and the bias of Langevin steps of 0.1 sigma^2 (h/2v of the spread, at most 5 %, moves a neighbour's share by less)
    falling = torch.arange(8.0, 0.0, -1, dtype=F64) / 36
    share = {}
    for name, prior in (("flat", torch.full((8,), 1 / 8, dtype=F64)), ("falling", falling)):
        start = 2 * normal(1200, 2, seed=1)  # not of any level's law
        chain = langevin_gibbs(oracle, classifier(prior), LEVELS, start, keep=1, burn=60, step=0.1, seed=3)
        share[name] = torch.bincount(chain.index[0], minlength=8).to(F64) / 1200
        assert bool(((share[name] - prior).abs() < 4 * (prior / 1200).sqrt() + 0.05 * prior).all())
        assert chain.nfe == 61
    assert float((share["flat"] - share["falling"]).abs().max()) > 0.07

    # given the level, x has that level's law: the mean squared distance to the nearest mode, to 4 standard errors and
    # 5 % of the Langevin steps
    def apart(x):
        return torch.cdist(x, WORLD.means).amin(1).square()

    for k in (0, 4):
        found = apart(chain.x[0][chain.index[0] == k])
        x0 = WORLD.sample(20_000, seed=k).to(F64)
        truth = apart(x0 + LEVELS.sigma[k] * normal(20_000, 2, seed=k + 9)).mean()
        assert abs(float(found.mean() - truth)) < 4 * float(found.std()) / math.sqrt(len(found)) + 0.05 * float(truth)

    # 10 evaluations a sample: 7 of the chain's, 3 to data
    n, start = 2000, 2 * normal(100, 2, seed=3)
    data = WORLD.sample(n, seed=5).to(F64)
    flat = classifier(torch.full((8,), 1 / 8, dtype=F64))
    out = denoising_mcmc(
        oracle, flat, LEVELS, start, keep=20, every=6, burn=20, step=0.3, solver=orn.DPMSolverPP(), steps=3, seed=3
    )
    assert out.nfe == 10
    assert out.x.shape == (n, 2)
    own = squared_mmd(out.x, data)
    for solver, grid in (
        (orn.Heun(), orn.Karras()),
        (orn.Heun(), orn.LogSNR()),
        (orn.DDIM(), orn.LogSNR()),
        (orn.DDIM(eta=1.0), orn.LogSNR()),
        (orn.solvers.EulerMaruyama(), orn.LogSNR()),
    ):
        plain = orn.sample(oracle, (n, 2), solver=solver, grid=grid, nfe=10, seed=1, dtype=F64)
        assert 9 <= plain.nfe <= 10
        assert squared_mmd(plain.x, data) > 3 * own, (solver, grid)


def test_each_state_starts_from_its_own_level():
    """With a solver that is exact for a point mass every state arrives at the point, from its own level."""
    world = orn.exact.GaussianMixture(torch.tensor([[1.5, -0.5]], dtype=F64), 1e-9)

    def logits(x):
        n = len(x)
        t = LEVELS.t.repeat_interleave(n)
        return world.log_prob(x.repeat(8, 1), PROCESS, t).reshape(8, n).T

    start = 2 * normal(40, 2, seed=1)
    out = denoising_mcmc(
        world.denoiser(PROCESS), logits, LEVELS, start, keep=3, every=2, burn=80, solver=orn.DDIM(), steps=4, seed=0
    )
    torch.testing.assert_close(out.x, world.means.expand(120, 2), rtol=0, atol=1e-8)
    assert out.nfe == 29 + 4  # 86 steps of a chain for 3 samples, rounded up
    levels = out.table.start.sigma
    chain = langevin_gibbs(world.denoiser(PROCESS), logits, LEVELS, start, keep=3, every=2, burn=80, seed=0)
    torch.testing.assert_close(levels, LEVELS.sigma[chain.index.reshape(-1)])
    s = [row.level.sigma for row in out.table.rows]
    torch.testing.assert_close(s[1] / s[0], torch.full((120,), (3 / 4) ** 3, dtype=F64), rtol=1e-6, atol=0)
    # the states know their levels: |x - mean|^2 is sigma^2 times a chi-squared of 2
    spread = ((chain.x - world.means[0]).square().sum(-1) / LEVELS.sigma[chain.index] ** 2).mean()
    assert float(spread) == pytest.approx(2, abs=4 * 2 / math.sqrt(40))


def test_levels_are_drawn_from_the_classifier():
    """A chain that cannot move: the shares of 20000 draws, to 4.5 standard errors; a level of no weight never."""
    p = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05, 0.0, 0.0, 0.0], dtype=F64)
    x = torch.zeros(20_000, 1, dtype=F64)
    world = orn.exact.GaussianMixture(torch.zeros(1, 1, dtype=F64), 1.0)
    chain = langevin_gibbs(
        world.denoiser(PROCESS), lambda x: p.log().expand(len(x), 8), LEVELS, x, keep=1, step=1e-9, seed=0
    )
    share = torch.bincount(chain.index[0], minlength=8).to(F64) / 20_000
    assert bool(((share - p).abs() <= 4.5 * (p / 20_000).sqrt()).all())


def test_what_makes_no_sense_is_refused():
    oracle, flat, x = WORLD.denoiser(PROCESS), classifier(torch.full((8,), 1 / 8, dtype=F64)), normal(4, 2)
    with pytest.raises(ValueError, match="sigma > 0"):
        langevin_gibbs(oracle, flat, PROCESS.level([0.0, 0.1]), x, keep=1)
    with pytest.raises(ValueError, match="keep=0"):
        langevin_gibbs(oracle, flat, LEVELS, x, keep=0)
    with pytest.raises(ValueError, match="step=1"):
        langevin_gibbs(oracle, flat, LEVELS, x, keep=1, step=1.0)
    with pytest.raises(ValueError, match=r"returned \(4, 3\), expected \(4, 8\)"):
        langevin_gibbs(oracle, lambda x: x.new_zeros(4, 3), LEVELS, x, keep=1)
    with pytest.raises(ValueError, match="takes one seed"):
        denoising_mcmc(oracle, flat, LEVELS, x, keep=1, solver=orn.DDIM(), steps=2, seed=[1, 2, 3, 4])
