"""SGMSE+: an Ornstein-Uhlenbeck process from clean to damaged signal; the posterior in 30 steps; what its end costs."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.processes import SGMSE
from ornstein.solvers import SDEDPMSolverPP
from worlds import F64

PROCESS = SGMSE()
SIGMA = float(PROCESS.level(1.0).sigma)
RIVAL = orn.VE(sigma_min=0.01, sigma_max=math.hypot(SIGMA, 0.01))  # the same noise around the condition, no drift


def signals():
    """A law of 16 numbers, a smooth random wave (the speech), seen through a low-pass (the room) and noise."""
    k = torch.arange(16, dtype=F64)
    cov = 0.3**2 * torch.exp(-((k[:, None] - k) ** 2) / 8) + 0.06**2 * torch.eye(16, dtype=F64)
    room = torch.tril(torch.exp(-(k[:, None] - k) / 2))
    room = room / room.sum(1, keepdim=True)
    prior = orn.exact.Gaussian(torch.sin(k / 2) / 2, cov=cov)
    y = room @ prior.sample(1, seed=3)[0].to(F64) + 0.1 * torch.randn(
        16, generator=torch.Generator().manual_seed(1), dtype=F64
    )
    return prior.posterior(y, room, 0.1), y


@pytest.mark.system("sgmse", rival="VE of the same noise, started around the damaged signal without a drift to it")
def test_sgmse():
    """The kernel by simulation; the posterior of a Gaussian in 30 steps, exactly; the end's error, e^gamma smaller than
    the rival's."""
    # 20,000 paths in 300 steps of dx = gamma (y - x) dt + g dw: mean and variance within 5 standard errors and a bias
    # of 1 %; a sigma wrong by a tenth moves the variance by 21 %, the published paper's sigma^2 without its
    # e^(-2 gamma t) by 10 % at t = 0.4
    n, steps, t1, rng, y = 20_000, 300, 0.4, torch.Generator().manual_seed(0), -0.8
    x, h = torch.full((n, 1), 1.2, dtype=F64), t1 / steps
    for k in range(steps):
        g = 0.05 * 10 ** ((k + 0.5) * h) * math.sqrt(2 * math.log(10))
        x = x + h * 1.5 * (y - x) + g * math.sqrt(h) * torch.randn(n, 1, generator=rng, dtype=F64)
    level = PROCESS.level(t1)
    mean = float(level.alpha) * 1.2 + float(PROCESS.shift(level.t, {"mean": torch.full((1, 1), y, dtype=F64)}))
    assert abs(float(x.mean()) - mean) < 5 * float(level.sigma) / math.sqrt(n) + 0.01 * 2.0 * float(level.alpha)
    assert abs(float(x.var() / level.sigma**2) - 1) < 5 * math.sqrt(2 / n) + 0.01

    posterior, y = signals()
    where, spread = posterior.moments()
    c, basis = torch.linalg.eigh(spread)
    mean, end = basis.T @ where, basis.T @ y

    def law(process, solver, start):
        """Mean and variance of samples in each direction after 30 steps, from N(start, sigma(1)^2) or the exact law."""
        table = solver.compile(process, orn.LogSNR()(process, steps=30))
        out, first = orn.response(table, mean, c), table.start
        exact = first.alpha**2 * c + first.sigma**2
        return out.mean(first.alpha * mean if start is None else start), out.variance(
            exact if start is None else first.sigma**2
        )

    # from the law of x_1 itself 30 steps return the posterior: to 1 % of each standard deviation, variances to 3 %
    for solver in (orn.UniPC(), SDEDPMSolverPP(order=2)):
        found, variance = law(PROCESS, solver, None)
        assert float(((found - mean).abs() / c.sqrt()).max()) < 0.01
        assert float((variance / c - 1).abs().max()) < 0.03

    # the published start N(y, sigma(1)^2) is alpha(1) (y - E x0) away and the rival's y - E x0, e^gamma = 4.5 times as
    # far; the flow carries that on by sqrt(c/(alpha^2 c + sigma^2)), the reverse SDE by alpha c/(alpha^2 c + sigma^2)
    ends = {PROCESS: PROCESS.level(1.0), RIVAL: RIVAL.level(1.0)}
    starts = {PROCESS: ends[PROCESS].alpha * end, RIVAL: end}
    assert float(ends[PROCESS].alpha) == pytest.approx(math.exp(-1.5))
    rms = {}
    for process, solver in ((p, s) for p in ends for s in (orn.UniPC(), SDEDPMSolverPP(order=2))):
        level = ends[process]
        total = level.alpha**2 * c + level.sigma**2
        gain = (c / total).sqrt() if solver == orn.UniPC() else level.alpha * c / total
        off = law(process, solver, starts[process])[0] - mean
        expected = gain * (starts[process] - level.alpha * mean)
        assert float((off - expected).abs().max()) < 0.02 * float(expected.abs().max()), (process, solver)
        rms[process, solver] = float(off.square().mean().sqrt())
    width = float(c.mean().sqrt())
    for solver, most, least in ((orn.UniPC(), 0.2, 0.4), (SDEDPMSolverPP(order=2), 0.04, 0.15)):
        assert rms[PROCESS, solver] < most * width
        assert rms[RIVAL, solver] > least * width

    # more drift, a better start: at gamma = 5 it is e^-3.5 = 0.03 times as far away
    strong = SGMSE(gamma=5.0)
    found, _ = law(strong, orn.UniPC(), strong.level(1.0).alpha * end)
    assert float((found - mean).square().mean().sqrt()) < 0.06 * rms[PROCESS, orn.UniPC()]


def test_damaged_digits_are_restored():
    """Blurred digits with noise, ten Gaussians fitted to the classes of others: each sample from the posterior in 30
    steps is closer to the truth than what was given (PSNR above input), and the mean of 16 is within 1 dB of the exact
    posterior mean, of which their own spread (1/16 of a variance of at most twice the error) takes half. From the
    rival's start the mean of 16 is worse than with the drift, for each digit."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, label = torch.from_numpy(data.data).to(F64) / 16, torch.from_numpy(data.target)
    train, held = x[:1500], x[1500:1502]
    parts = [train[label[:1500] == k] for k in range(10)]
    world = orn.exact.GaussianMixture(
        torch.stack([part.mean(0) for part in parts]),
        covs=torch.stack([torch.cov(part.T) + 0.05**2 * torch.eye(64, dtype=F64) for part in parts]),
        weights=torch.tensor([float(len(part)) for part in parts]),
    )
    line = 0.5 * torch.eye(8, dtype=F64) + 0.25 * torch.diag(torch.ones(7, dtype=F64), 1)
    line = line + 0.25 * torch.diag(torch.ones(7, dtype=F64), -1)
    blur, noise = torch.kron(line, line), torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=F64)

    def psnr(a, b):
        return float(-10 * (a - b).square().mean().log10())

    for truth, z in zip(held, noise, strict=True):
        y = blur @ truth + 0.1 * z
        posterior, given = world.posterior(y, blur, 0.1), y.expand(16, 64)
        out = orn.sample(posterior.denoiser(PROCESS), (16, 64), cond={"mean": given}, steps=30, seed=0, dtype=F64).x
        start = given + RIVAL.prior((16, 64), seed=0, dtype=F64)
        rival = orn.sample(posterior.denoiser(RIVAL), x_init=start, steps=30, seed=0).x
        before, after = psnr(y, truth), psnr(out.mean(0), truth)
        assert psnr(out, truth.expand(16, 64)) > before
        assert after > max(before, psnr(posterior.moments()[0], truth) - 1)
        assert psnr(rival.mean(0), truth) < after
