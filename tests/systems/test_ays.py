"""Align Your Steps: the bound, its optimum, and what it does for ancestral sampling."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers.ays import AYS, klub
from worlds import F64

PROCESS = orn.VP()


def bimodal():
    means = torch.tensor([[-1.0], [1.0]], dtype=F64)
    return orn.exact.GaussianMixture(means, torch.tensor([0.1, 0.1], dtype=F64), torch.tensor([0.3, 0.7], dtype=F64))


def divergence(world, grid, points=801, width=4.0):
    """KL(the data at the last level || DDIM with eta = 1 there), its density carried by quadrature in one dimension."""
    x = torch.linspace(-width, width, points, dtype=F64)
    dx = float(x[1] - x[0])
    density = world.log_prob(x[:, None], PROCESS, grid[0]).exp()
    for t, s in itertools.pairwise(grid):
        x0 = world.denoiser(PROCESS)(x[:, None], t).x0[:, 0]
        std = s.sigma * torch.sqrt(-torch.expm1(t.log_snr - s.log_snr))
        left = torch.sqrt(s.sigma**2 - std**2) / t.sigma
        mean = left * x + (s.alpha - left * t.alpha) * x0
        kernel = torch.exp(-((x[:, None] - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
        density = (kernel * density).sum(1) * dx
    assert float(density.sum()) * dx == pytest.approx(1, abs=1e-3)
    log_true = world.log_prob(x[:, None], PROCESS, grid[-1])
    return float((log_true.exp() * (log_true - density.clamp(min=1e-300).log())).sum()) * dx


def gaussian_bound(level, variance):
    """1/2 sum of mmse(u_i) (u_(i+1) - u_i) - int mmse du, for independent directions of these variances."""
    u = level.log_snr.exp()[:, None]
    mmse = variance / (1 + variance * u)
    return (
        float((mmse[:-1] * u.diff(dim=0)).sum() - torch.log((1 + variance * u[-1]) / (1 + variance * u[0])).sum()) / 2
    )


@pytest.mark.parametrize("process", [orn.VP(), orn.Flow(), orn.EDM()], ids=repr)
def test_the_bound_on_a_gaussian(process):
    """By martingales the bound is a Riemann sum of the mmse less its integral. 4096 paths: each |x0|^2 term has a
    relative deviation of sqrt(2/8)/64 = 0.8 %; 4 of them."""
    variance = torch.full((8,), 0.36, dtype=F64)
    world = orn.exact.Gaussian(torch.zeros(8, dtype=F64), std=0.6)
    level = orn.LogSNR(end=5.0)(process, 7)[:-1]
    got = klub(world.denoiser(process), world.sample(4096, seed=1), level, seed=2)
    assert got == pytest.approx(gaussian_bound(level, variance), rel=0.032)


@pytest.mark.parametrize("process", [orn.VP(), orn.Flow()], ids=repr)
def test_the_optimum_on_a_gaussian(process):
    """1 + c^2 SNR is geometric. The bound is flat there: what is found comes within 1 % of the least bound, the log-SNR
    grid is at twice it. Nodes lie an eighth of a step apart in the first search, so points are within 0.15 of one."""
    c2, n = 0.36, 8
    world = orn.exact.Gaussian(torch.zeros(8, dtype=F64), std=0.6)
    found = AYS(steps=(n,), end=7.0).calibrate(world.denoiser(process), world.sample(1024, seed=1), seed=0)(process, n)
    assert (float(found.t[0]), float(found.t[-1])) == (1.0, 0.0)
    level = found[:-1]
    assert float(level.log_snr[-1]) == pytest.approx(7.0)
    depth = torch.log1p(c2 * level.log_snr.exp())
    even = torch.linspace(float(depth[0]), float(depth[-1]), n, dtype=F64)
    assert float((depth - even).abs().max()) < 0.15 * float(even[1] - even[0])
    times = process.time(torch.log(torch.expm1(even) / c2))
    times[0] = 1.0
    variance = torch.full((8,), c2, dtype=F64)
    least = gaussian_bound(process.level(times), variance)
    assert gaussian_bound(level, variance) < 1.01 * least
    assert gaussian_bound(orn.LogSNR(end=7.0)(process, n)[:-1], variance) > 1.8 * least


def test_the_optimum_of_several_scales_beats_every_neighbour():
    """Variances from 4 to 1e-4: no closed form; moving any point of the schedule by a tenth of the way to a neighbour
    must not gain more than 1 % of the exact bound."""
    std = torch.tensor([2.0, 1.0, 0.3, 0.1, 0.03, 0.01], dtype=F64)
    world = orn.exact.Gaussian(torch.zeros(6, dtype=F64), std=std)
    found = AYS(steps=(10,), end=8.0).calibrate(world.denoiser(PROCESS), world.sample(2048, seed=1), seed=0)(
        PROCESS, 10
    )
    snr = found[:-1].log_snr
    least = gaussian_bound(found[:-1], std**2)
    for i in range(1, len(snr) - 1):
        for j in (i - 1, i + 1):
            moved = snr.clone()
            moved[i] += 0.1 * (snr[j] - snr[i])
            assert gaussian_bound(PROCESS.level(PROCESS.time(moved)), std**2) > 0.99 * least


def test_ays():
    """Two modes in one dimension: the divergence of DDIM with eta = 1, exact by quadrature, is below the bound and
    lower than on the rival's grid. On Gaussians the bound halves too, but the divergence at the end rises: the bound
    is on whole paths, and so counts what later steps forget."""
    world, data = bimodal(), bimodal().sample(2048, seed=1)
    model = world.denoiser(PROCESS)
    for n in (5, 8):
        own = AYS(steps=(n,), end=4.0).calibrate(model, data, seed=0)(PROCESS, n)[:-1]
        rival = orn.LogSNR(end=4.0)(PROCESS, n)[:-1]
        bounds = [klub(model, data, grid, seed=5) for grid in (own, rival)]
        exact = [divergence(world, grid) for grid in (own, rival)]
        assert bounds[0] < 0.7 * bounds[1]
        assert exact[0] < 0.8 * exact[1]
        assert exact[0] < bounds[0]
        assert exact[1] < bounds[1]

    c2, gaussian = 0.36, orn.exact.Gaussian(torch.zeros(1, dtype=F64), std=0.6)
    own = AYS(steps=(6,), end=7.0).calibrate(gaussian.denoiser(PROCESS), gaussian.sample(2048, seed=1), seed=0)

    def end(grid):
        table = orn.DDIM(eta=1.0).compile(PROCESS, grid)
        first, last = grid[0], grid[-1]
        variance = orn.response(table, 0.0, c2).variance(first.alpha**2 * c2 + first.sigma**2)
        q = float((last.alpha**2 * c2 + last.sigma**2) / variance)
        return (q - 1 - math.log(q)) / 2

    assert end(own(PROCESS, 6)[:-1]) > end(orn.LogSNR(end=7.0)(PROCESS, 6)[:-1])


def test_refusals():
    world = bimodal()
    with pytest.raises(ValueError, match=r"steps=\(1,\)"):
        AYS(steps=(1,))
    with pytest.raises(ValueError, match="nodes=4"):
        AYS(steps=(6,), nodes=4)
    with pytest.raises(ValueError, match="infinite for a grid that reaches sigma = 0"):
        klub(world.denoiser(PROCESS), world.sample(16), orn.LogSNR()(PROCESS, 4))
    with pytest.raises(ValueError, match="end=-20"):
        AYS(end=-20.0).calibrate(world.denoiser(PROCESS), world.sample(16))
