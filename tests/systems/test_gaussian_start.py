"""The analytic start: the flow of the data's mean and covariance in place of the first steps."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers.gaussian_start import GaussianStart
from worlds import F64, normal

PROCESSES = [orn.VP(), orn.SubVP(), orn.EDM(), orn.Flow(), orn.MeanReverting()]


def mixture():
    """Eight modes in 32 dimensions on axes of unequal length."""
    axes = torch.linspace(2.0, 0.05, 32, dtype=F64)
    return orn.exact.GaussianMixture(axes * normal(8, 32, seed=4), 0.2)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_exact_for_gaussian_data(process):
    """Between any two times, to the reference integrator's 1e-8; per-sample times and images too."""
    root = normal(6, 6, seed=1)
    cov, mean = root @ root.T / 6, normal(2, 3, seed=2)
    world, x = orn.exact.Gaussian(mean, cov), normal(4, 2, 3, seed=3)
    cond = {"mean": normal(4, 2, 3, seed=9)} if isinstance(process, orn.MeanReverting) else None
    start = GaussianStart(process, mean, cov)
    for t, s in ((1.0, 0.4), (0.7, 0.0), (0.2, 0.9), (torch.tensor([1.0, 0.6, 0.3, 0.1]), 0.05)):
        truth = world.flow(process, x, t, s, cond=cond)
        torch.testing.assert_close(start(x, t, s, cond), truth, rtol=1e-7, atol=1e-7)
    there = start(start(x, 0.9, 0.5, cond), 0.5, 0.2, cond)
    torch.testing.assert_close(there, start(x, 0.9, 0.2, cond), rtol=1e-10, atol=1e-10)
    assert start(x.float(), 0.9, 0.5, cond and {"mean": cond["mean"].float()}).dtype == torch.float32


def test_solvers_converge_to_it():
    """DPM-Solver++ of order 2 to the closed form with slope 2; the rival, a covariance with one variance for all, stays
    where it is."""
    process, mean, cov = orn.VP(), normal(5, seed=2), torch.diag(torch.tensor([4.0, 1.0, 0.5, 0.1, 0.01], dtype=F64))
    start, alike = GaussianStart(process, mean, cov), GaussianStart(process, mean, cov.trace() / 5 * torch.eye(5))
    model, x = orn.exact.Gaussian(mean, cov).denoiser(process), normal(16, 5)
    grid = orn.LogSNR(start=-5.0, end=5.0, to_data=False)
    ends = grid(process, 1)

    def error(closed, n):
        out = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(), grid=grid, steps=n).x
        return float((out - closed(x, ends[0], ends[1])).norm(dim=1).median())

    found = [error(start, n) for n in (40, 80, 160)]
    assert [math.log2(a / b) for a, b in itertools.pairwise(found)] == pytest.approx([2, 2], abs=0.2)
    assert error(alike, 160) > 100 * found[-1]


def test_moments_are_those_of_the_data():
    data = mixture().sample(500, seed=0)
    start = GaussianStart.of(orn.VP(), data)
    torch.testing.assert_close(start.mean, data.mean(0))
    cov = start.basis @ torch.diag(start.values) @ start.basis.T
    torch.testing.assert_close(cov, torch.cov(data.T), rtol=1e-8, atol=1e-10)
    few = GaussianStart.of(orn.VP(), data[:4])  # rank 3: at t = 0 the other directions are the mean's
    assert bool(few(normal(2, 32), 0.0, 0.5).isfinite().all())


@pytest.mark.system(
    "gaussian-start", rival="the same number of evaluations over the whole time; and N(0, sigma^2) there"
)
def test_gaussian_start():
    """64 starts, the exact flow as truth. To log-SNR -3 (VP: 0.55, nearly half of the time) the closed form errs
    by less than 3 % of the state's norm, with no evaluations; 6 steps from there then end closer than 6 over all of
    time, in the mean logarithm by 3 standard errors in pairs. A start with the right level but no covariance, sigma z,
    ends elsewhere."""
    process, world = orn.VP(), mixture()
    model = world.denoiser(process)
    x = process.prior((64, 32), seed=0, dtype=F64)
    truth = world.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    start = GaussianStart.of(process, world.sample(4000, seed=1))
    t = float(process.time(torch.tensor(-3.0, dtype=F64)))
    jumped, true = start(x, 1.0, t), world.flow(process, x, 1.0, t, rtol=1e-8, atol=1e-9)
    assert float(((jumped - true).norm(dim=1) / true.norm(dim=1)).mean()) < 0.03
    assert 1 - t > 0.4

    ends = orn.LogSNR()(process, 12)
    end = float(ends.log_snr[-2])

    def error(x, first):
        grid = orn.LogSNR(start=first, end=end)
        return (orn.sample(model, x_init=x, solver=orn.DPMSolverPP(), grid=grid, steps=6).x - truth).norm(dim=1).log()

    own, whole = error(jumped, -3.0), error(x, float(process.level(1.0).log_snr))
    gain = whole - own
    assert float(gain.mean()) > 3 * float(gain.std()) / 8
    blind = error(float(process.level(t).sigma) * x, -3.0) - own
    assert float(blind.mean()) > 3 * float(blind.std()) / 8


def half_way(process, model, x, truth, start, grid):
    """The log-SNR at which x0 predicted along the flow has half of its final deviation, by direction: regressions of
    the one on the other over the starts, between the grid's points. The model is asked for predictions alone."""
    path = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(), grid=grid.t, trajectory=True).trajectory
    x0 = torch.stack([model(state, level.t).x0 for state, level in zip(path, grid, strict=True)])
    made, final = (x0 - start.mean) @ start.basis, (truth - start.mean) @ start.basis
    part = (made * final).sum(1) / (final**2).sum(0)
    after = (part < 0.5).cumprod(0).sum(0)[None]
    low, high = part.gather(0, after - 1)[0], part.gather(0, after)[0]
    here, there = grid.log_snr[after[0] - 1], grid.log_snr[after[0]]
    return here + (0.5 - low) / (high - low) * (there - here)


@pytest.mark.parametrize("process", [orn.VP(), orn.EDM()], ids=repr)
def test_the_order_of_modes_is_exact_for_gaussian_data(process):
    """Against the flow of DPM-Solver++ in steps of 0.1, whose square and that of the interpolation are below 0.01."""
    root, mean = normal(5, 5, seed=1), normal(5, seed=2)
    start = GaussianStart(process, mean, root @ root.T / 5)
    world = orn.exact.Gaussian(mean, root @ root.T / 5)
    grid = orn.LogSNR(start=-8.0, end=8.0, to_data=False)(process, 160)
    x = start(process.prior((8, 5), seed=0, dtype=F64), 1.0, grid[0])
    found = half_way(process, world.denoiser(process), x, start(x, grid[0], 0.0), start, grid)
    torch.testing.assert_close(found, start.emergence(), rtol=0, atol=0.01)
    assert bool((start.emergence().diff() < 0).all())  # c rises: the outline, which varies most, comes first
    assert start.emergence(0.9) == pytest.approx((start.emergence() + torch.tensor(3 * 0.81 / 0.19).log()).tolist())


@pytest.mark.system("gaussian-start", rival="an isotropic Gaussian, in which all modes emerge at once; fewer steps")
def test_digits():
    """100 digits as a mixture of narrow Gaussians, 64 dimensions, known by an opaque denoiser and samples.

    Modes emerge in the order of their variances: the rank correlation of the predicted and the found log-SNR of 64
    modes exceeds 5 times 1/sqrt(63), its deviation where there is no order. For the ten that vary most the closed form
    is closer than one variance for all, in pairs by 3 standard errors.
    Skipping 40 % of the time costs nothing: 18 evaluations from there end no further off than 30 over all of time, in
    pairs within 3 standard errors and by 1 % of the mean at most, as the jump's own error is a hundredth of the state;
    18 over all of time end further off by 3 standard errors."""
    digits = pytest.importorskip("sklearn.datasets").load_digits().data[:100]
    process, world = orn.VP(), orn.exact.GaussianMixture(torch.tensor(digits / 8 - 1, dtype=F64), 0.1)
    exact = world.denoiser(process)
    model = orn.Denoiser(lambda x, t: exact(x, t).x0, process, "x0")
    start = GaussianStart.of(process, world.sample(4000, seed=1).to(F64))
    x = process.prior((24, 64), seed=0, dtype=F64)
    truth = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(), grid=orn.LogSNR(end=12.0), steps=60).x
    first = float(process.level(1.0).log_snr)
    grid = orn.LogSNR(start=first, end=10.0, to_data=False)(process, 40)
    found, told = half_way(process, model, x, truth, start, grid), start.emergence()

    def rank(values):
        return values.argsort().argsort().double()

    assert float(torch.corrcoef(torch.stack([rank(found), rank(told)]))[0, 1]) > 5 / 63**0.5
    alike = torch.full_like(told, -float((3 * start.values.mean()).log()))
    gain = ((found - alike).abs() - (found - told).abs())[-10:]
    assert float(gain.mean()) > 3 * float(gain.std()) / 10**0.5

    times = torch.linspace(1, 0, 31, dtype=F64)

    def error(x, grid, nfe):
        out = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(), grid=grid)
        assert out.nfe == nfe
        return (out.x - truth).norm(dim=1)

    whole, skipped = error(x, times, 30), error(start(x, 1.0, 0.6), times[12:], 18)
    few = error(x, torch.linspace(1, 0, 19, dtype=F64), 18)
    change, gain = skipped - whole, few - skipped
    assert float(change.mean()) < 3 * float(change.std()) / 24**0.5
    assert float(change.mean().abs() / whole.mean()) < 0.01
    assert float(gain.mean()) > 3 * float(gain.std()) / 24**0.5


def test_refusals():
    process = orn.VP()
    with pytest.raises(ValueError, match=r"has shape \(2, 2\): got \(3, 3\)"):
        GaussianStart(process, torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="a covariance is symmetric"):
        GaussianStart(process, torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="no negative eigenvalue"):
        GaussianStart(process, torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5])))
    with pytest.raises(ValueError, match="share=1: a part of the whole"):
        GaussianStart(process, torch.zeros(2), torch.eye(2)).emergence(1)
    with pytest.raises(ValueError, match="at least 2 samples"):
        GaussianStart.of(process, normal(1, 2))
    with pytest.raises(ValueError, match=r"states have shape \(batch, \*\(2,\)\)"):
        GaussianStart(process, torch.zeros(2), torch.eye(2))(normal(3, 5), 1.0, 0.5)
