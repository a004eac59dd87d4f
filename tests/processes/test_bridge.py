"""Bridges with a given end: the law of data given the end, by every family of solvers; the price of delta."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.processes import I2SB, BrownianBridge
from worlds import F64, normal

# A coupling of data and end: x0 ~ N(MEAN, COV), x1 = A x0 + noise of std 0.5; the end is seen, and x0 | x1 is exact.
MEAN = torch.tensor([1.0, -0.5, 0.3], dtype=F64)
FACTOR = torch.tensor([[0.8, 0.0, 0.0], [0.5, 0.6, 0.0], [-0.3, 0.2, 0.4]], dtype=F64)
A = torch.tensor([[0.9, 0.3, 0.0], [0.0, 0.7, 0.2], [0.1, 0.0, 0.8]], dtype=F64)
END = torch.tensor([0.4, 1.1, -0.9], dtype=F64)
GIVEN = orn.exact.Gaussian(MEAN, cov=FACTOR @ FACTOR.T).posterior(END, A, 0.5)
WHERE, SPREAD = GIVEN.moments()
BRIDGES = [BrownianBridge(noise_level=0.7), I2SB(beta_min=0.1, beta_max=1.0)]
RANGE = orn.LogSNR(start=-6.0, end=8.0, to_data=False)


def along() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The directions in which x0 given the end is independent: its mean, its variances, and the end, there."""
    values, basis = torch.linalg.eigh(SPREAD)
    return basis.T @ WHERE, values, basis.T @ END


def test_the_posterior_is_the_coupling_conditioned() -> None:
    """By the joint covariance of (x0, x1), inverted as a whole: the world that the tests below trust."""
    cov = FACTOR @ FACTOR.T
    joint = torch.cat([torch.cat([cov, cov @ A.T], 1), torch.cat([A @ cov, A @ cov @ A.T + 0.25 * torch.eye(3)], 1)])
    precision = torch.linalg.inv(joint)
    spread = torch.linalg.inv(precision[:3, :3])
    torch.testing.assert_close(SPREAD, spread)
    torch.testing.assert_close(WHERE, MEAN - spread @ precision[:3, 3:] @ (END - A @ MEAN))


SOLVERS = {
    orn.DDPM(): 1, orn.EulerMaruyama(): 1, orn.DDIM(): 1, orn.DPMSolverPP(order=2): 2, orn.UniPC(order=2): 3,
}  # fmt: skip


@pytest.mark.parametrize("process", BRIDGES, ids=repr)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver_returns_the_conditional_law(process: BrownianBridge | I2SB, solver: orn.Solver) -> None:
    """Mean and variance of x0 given the end, propagated exactly through the table from the exact law at log-SNR -6
    to 8: the slope of the last halving of their error is at least the order less 0.2."""
    mean, variance, _ = along()
    defects = []
    for steps in (100, 200) if SOLVERS[solver] < 3 else (40, 80):
        table = solver.compile(process, RANGE(process, steps=steps))
        first, last, out = table.start, table.end, orn.response(table, mean, variance)
        moved = out.mean(first.alpha * mean) - last.alpha * mean
        spread = out.variance(first.alpha**2 * variance + first.sigma**2) - last.alpha**2 * variance - last.sigma**2
        defects.append(float(moved.abs().max() + spread.abs().max()))
    assert min(defects) > 1e-12
    assert math.log2(defects[0] / defects[1]) > SOLVERS[solver] - 0.2


@pytest.mark.parametrize("process", BRIDGES, ids=repr)
def test_samples_from_the_given_end(process: BrownianBridge | I2SB) -> None:
    """From the end and a seed: mean and covariance of 4,000 samples within 5 standard errors of x0 given the end, the
    price of delta = 1e-4 (a percent, below) and that of the steps, which the table gives exactly (variances 5 % too
    small for DDPM in 200 steps, 1 % too large for UniPC in 20). The rival, a process of the same noise that starts at
    the end and knows of no way to it (VE), misses the mean by more than 10 of these."""
    n = 4000
    width, end = SPREAD.diagonal().sqrt(), {"end": END.expand(n, 3)}
    for solver, steps in ((orn.DDPM(), 200), (orn.UniPC(), 20)):
        x = orn.sample(GIVEN.denoiser(process), (n, 3), solver=solver, cond=end, steps=steps, seed=0, dtype=F64).x
        assert float(((x.mean(0) - WHERE).abs() / width).max()) < 5 / math.sqrt(n) + 0.015
        scale = width[:, None] * width
        assert float(((torch.cov(x.T) - SPREAD).abs() / scale).max()) < 5 * math.sqrt(2 / n) + 0.055
    rival = orn.VE(sigma_max=0.35)  # the largest noise of the bridge, s/2
    start = END + rival.prior((n, 3), seed=0, dtype=F64)
    x = orn.sample(GIVEN.denoiser(rival), x_init=start, steps=20, seed=0).x
    assert float(((x.mean(0) - WHERE).abs() / width).max()) > 10 * (5 / math.sqrt(n) + 0.015)


@pytest.mark.parametrize("delta", [1e-2, 1e-4])
def test_the_price_of_delta(delta: float) -> None:
    """Begun at the end and not in the law of x_t there, the mean is off by sqrt(c delta)/s (x1 - E x0) after the flow,
    by c delta/s^2 (x1 - E x0) after the reverse SDE: exactly by c' = delta^2 c + s^2 delta (1 - delta) in place of
    s^2 delta. Fine tables of order 2 have it to a percent; and the KL bound of the docstring holds."""
    s, (mean, c, end) = 0.7, along()
    process = BrownianBridge(noise_level=s, delta=delta)
    law = delta**2 * c + s**2 * delta * (1 - delta)
    gain = {
        orn.DPMSolverPP(order=2): (c / law).sqrt(),
        orn.solvers.SDEDPMSolverPP(order=2): delta * c / law,
    }
    for solver, expected in gain.items():
        table = solver.compile(process, orn.LogSNR(end=14.0)(process, steps=200))
        off = orn.response(table, mean, c).mean(delta * end) - mean  # centred states: the prior has delta x1 there
        torch.testing.assert_close(off, expected * delta * (end - mean), rtol=0.01, atol=1e-7)
        simple = (c * delta).sqrt() / s if solver == orn.DPMSolverPP(order=2) else c * delta / s**2
        torch.testing.assert_close(off, simple * (end - mean), rtol=0.03, atol=1e-7)
    sigma2 = s**2 * delta * (1 - delta)
    exact = ((law - sigma2) / sigma2 - (law / sigma2).log() + (delta * (end - mean)) ** 2 / sigma2).sum() / 2
    distance2 = (c + (end - mean) ** 2).sum()
    bound = float(distance2) * delta / (2 * s**2 * (1 - delta))
    assert 0.3 * bound < float(exact) < bound


def test_ancestral_sampling_is_the_papers_posterior() -> None:
    """One step of DDPM by hand: mean (u_s/u_t) x_t + (1 - u_s/u_t) x0 and variance s^2 u_s (u_t - u_s)/u_t, the end
    nowhere in it; and as the paper's, in the variances gathered up to s and between s and t."""
    process = BRIDGES[1]
    levels = process.level([0.8, 0.45, 0.2])
    x, z, end = normal(5, 3), orn.Noise(0, batch=5, dtype=F64), normal(5, 3, seed=3)
    oracle = GIVEN.denoiser(process)
    found = orn.sample(oracle, x_init=x, cond={"end": end}, solver=orn.DDPM(), grid=levels, seed=0).x
    total = process.std**2
    for t, s in itertools.pairwise(levels):
        before, between = (float(total * v) for v in (1 - s.alpha, s.alpha - t.alpha))
        x0 = oracle(x, t.t, {"end": end}).x0
        mean = (between * x0 + before * x) / (before + between)
        x = mean + math.sqrt(before * between / (before + between)) * z.normal(x.shape)
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-10)
    plain = orn.sample(oracle, x_init=normal(5, 3), cond={"end": end + 1}, solver=orn.DDPM(), grid=levels, seed=0).x
    assert float((plain - found).abs().max()) > 0.01  # the end speaks through the network alone


def test_a_network_learns_the_way_between_two_sets() -> None:
    """A pair of one number each, x1 = -2 x0 + noise: a fitted bridge sends the end to E[x0 | x1] and keeps the spread.
    The bounds are three times the largest of 3 fits: 0.055, 0.009."""
    n = 2000
    x0 = normal(n, 1).float()
    x1 = -2 * x0 + 0.5 * normal(n, 1, seed=1).float()
    torch.manual_seed(0)
    net = orn.nets.MLP(1, width=32, depth=2, conditions={"end": 1})
    model = orn.Denoiser(net, BrownianBridge(noise_level=0.5), precondition=orn.EDMPrecondition(1.0))
    orn.fit(model, x0, cond={"end": x1}, steps=150, batch_size=256, lr=3e-3, seed=0, progress=False)
    ends = torch.linspace(-3, 3, 7)[:, None]
    out = orn.sample(model, (7 * 200, 1), cond={"end": ends.repeat_interleave(200, 0)}, steps=10, seed=0).x
    out = out.reshape(7, 200)
    gain, rest = -2 / (4 + 0.25), 1 - 4 / (4 + 0.25)
    assert float((out.mean(1) - gain * ends[:, 0]).abs().max()) < 0.165
    assert float(out.std(1).mean()) == pytest.approx(math.sqrt(rest), abs=0.028)
