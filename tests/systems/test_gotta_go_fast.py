"""Gotta Go Fast: steps of a reverse SDE chosen by error, with the noise of rejected steps kept."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.metrics import mmd
from ornstein.solvers import EulerMaruyama, GottaGoFast, adaptive, sample_adaptive
from worlds import F64, normal, ring


class Shared(orn.Noise):
    """Call k of a run of N equal steps gives the increment over step k of one path of 256 pieces; later calls 0."""

    def __init__(self, steps, batch):
        super().__init__(0, batch=batch, dtype=F64)
        pieces = normal(256, batch, 1, seed=8)
        self.sums = list(pieces.reshape(steps, -1, batch, 1).sum(1) / math.sqrt(256 / steps))

    def rewind(self):
        super().rewind()

    def normal(self, shape):
        return self.sums.pop(0) if self.sums else torch.zeros(shape, dtype=F64)


def strong_errors():
    """Ornstein-Uhlenbeck: VP with constant beta on Gaussian data, with steps of fixed length."""
    process = orn.VP(beta_min=2.0, beta_max=2.0)
    world = orn.exact.Gaussian(torch.zeros(1, dtype=F64), cov=torch.full((1, 1), 0.4, dtype=F64))
    x = normal(64, 1, seed=2)

    def run(steps):
        fixed = GottaGoFast(theta=1.0, r=1e-12, atol=1e9, h=0.8 / steps)
        options = {"x_init": x, "start": 0.9, "end": 0.1, "solver": fixed, "max_nfe": 10_000}
        return sample_adaptive(world.denoiser(process), seed=Shared(steps, 64), **options).x

    limit = run(256)
    return [float((run(n) - limit).square().mean().sqrt()) for n in (8, 16, 32)]


def spread_of_the_noise(monkeypatch, thrown):
    """The variance of all noise that a sample's accepted steps used, over its length, and the share of rejections.
    theta = 2 asks for steps that are often refused."""
    total = torch.zeros(3000, 1, dtype=F64)

    class Watched(adaptive.Increments):
        def take(self, rows, h, z):
            h, dw = super().take(rows, h, z)
            total[rows] += dw
            return h, dw

        def give_back(self, rows, h, dw):
            total[rows] -= dw
            if not thrown:
                super().give_back(rows, h, dw)

    monkeypatch.setattr(adaptive, "Increments", Watched)
    world = orn.exact.Gaussian(torch.zeros(1, dtype=F64), cov=torch.full((1, 1), 0.4, dtype=F64))
    solver = GottaGoFast(theta=2.0, rtol=0.3, atol=0.05)
    options = {"x_init": normal(3000, 1), "start": 0.9, "end": 0.3, "solver": solver, "seed": 1}
    out = sample_adaptive(world.denoiser(orn.VP()), **options)
    assert out.reason is None
    rate = float(out.rejected.sum() / (out.rejected.sum() + out.steps.sum()))
    return float(total.square().mean() / 0.6), rate


@pytest.mark.system("gotta-go-fast", rival="Euler-Maruyama with equal steps; fresh noise after a rejection")
def test_gotta_go_fast(monkeypatch):
    # the step is of strong order 1 where the noise does not depend on x: two halvings together, the limit of 256 steps
    # being right to an eighth of the finest error
    coarse, _, fine = strong_errors()
    assert math.log2(coarse / fine) / 2 == pytest.approx(1, abs=0.2)

    # kept noise has the variance of its length, within 5 standard errors of 3,000 samples; thrown noise has three
    # times as much (the relative tolerance accepts what drives |x| up)
    with monkeypatch.context() as patch:
        kept, rate = spread_of_the_noise(patch, thrown=False)
    with monkeypatch.context() as patch:
        thrown, _ = spread_of_the_noise(patch, thrown=True)
    bound = 5 * math.sqrt(2 / 3000)
    assert rate > 0.2
    assert kept == pytest.approx(1, abs=bound)
    assert abs(thrown - 1) > 5 * bound

    # narrow modes: better than Euler-Maruyama (equal steps of t, the same last jump) at as many evaluations on
    # average, yet not at as many as its slowest sample takes; and a third of the steps is rejected: the claims of a
    # speed at least doubled and of rare rejections do not hold on these worlds.
    world, process, n = ring(0.03), orn.VP(), 700
    data, oracle = world.sample(n, seed=3).to(F64), world.denoiser(process)
    out = sample_adaptive(oracle, (n, 2), solver=GottaGoFast(rtol=0.2), seed=0, dtype=F64)
    last = float(process.time(torch.tensor(9.0, dtype=F64)))

    def euler(steps):
        grid = torch.cat([torch.linspace(1, last, steps, dtype=F64), torch.zeros(1, dtype=F64)])
        return mmd(orn.sample(oracle, (n, 2), solver=EulerMaruyama(), grid=grid, seed=0, dtype=F64).x, data, (0.1,))

    own, mean = mmd(out.x, data, (0.1,)), float(out.evaluations.double().mean())
    assert own < euler(round(mean)) / 1.5
    assert euler(round(2 * mean)) < own
    rejected = float(out.rejected.sum() / (out.rejected.sum() + out.steps.sum()))
    assert 0.2 < rejected < 0.4
