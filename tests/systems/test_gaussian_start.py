"""The analytic start: the flow of the data's mean and covariance in place of the first steps."""

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


def test_refusals():
    process = orn.VP()
    with pytest.raises(ValueError, match=r"has shape \(2, 2\): got \(3, 3\)"):
        GaussianStart(process, torch.zeros(2), torch.eye(3))
    with pytest.raises(ValueError, match="a covariance is symmetric"):
        GaussianStart(process, torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="no negative eigenvalue"):
        GaussianStart(process, torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5])))
    with pytest.raises(ValueError, match="at least 2 samples"):
        GaussianStart.of(process, normal(1, 2))
    with pytest.raises(ValueError, match=r"states have shape \(batch, \*\(2,\)\)"):
        GaussianStart(process, torch.zeros(2), torch.eye(2))(normal(3, 5), 1.0, 0.5)
