"""EDM's churn: renewed noise forgets the errors of earlier steps, at the second order of Heun's method."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import Churn, EulerMaruyama
from worlds import F64

PROCESS = orn.EDM(sigma_max=20.0)
C, START, BIAS = 1.0, 20.0**2 + 1.0, 10.0


def end(solver, steps):
    """(part of the start's error that is left, variance), computed from the table."""
    table = solver.compile(PROCESS, orn.Karras(sigma_min=0.02)(PROCESS, steps=steps))
    out = orn.response(table, 0.0, C)
    return float(out.gain), float(out.variance(START))


def published(denoise, x, grid, churn, low, high, extra, noise):
    """Algorithm 2 written out, in the paper's own terms (sigma is t): the judge of the table."""
    n = len(grid) - 1
    for i in range(n):
        t, s = float(grid[i]), float(grid[i + 1])
        gamma = min(churn / n, math.sqrt(2) - 1) if low <= t <= high else 0.0
        hat = t + gamma * t
        if gamma > 0:
            x = x + math.sqrt(hat**2 - t**2) * extra * noise.normal(x.shape)
        d = (x - denoise(x, hat)) / hat
        euler = x + (s - hat) * d
        x = euler if s == 0 else x + (s - hat) * (d / 2 + (euler - denoise(euler, s)) / (2 * s))
    return x


def test_edm_churn():
    """Rivals: Heun's method without churn, and Euler-Maruyama at equal evaluations. Source: 2206.00364, algorithm 2."""
    # the table is the paper's algorithm, step for step; without churn it is Heun's method
    world = orn.exact.GaussianMixture(
        torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=F64), torch.tensor([0.3, 0.5], dtype=F64)
    )
    oracle, x = world.denoiser(PROCESS), PROCESS.prior((6, 2), seed=0, dtype=F64)
    grid = orn.Karras()(PROCESS, steps=12)
    for options in ((4.0, 0.05, 15.0, 1.003), (40.0, 0.3, 10.0, 1.0)):
        own = orn.sample(oracle, x_init=x, solver=Churn(*options), grid=grid, seed=7).x
        stream = orn.Noise(7, batch=6, dtype=F64)
        theirs = published(lambda y, s: oracle(y, s / 20.0).x0, x, grid.sigma, *options, stream)
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-10)
    heun = orn.sample(oracle, x_init=x, solver=orn.Heun(), grid=grid).x
    torch.testing.assert_close(orn.sample(oracle, x_init=x, solver=Churn(0.0), grid=grid).x, heun, rtol=0, atol=0)

    # from a start that is off by half its standard deviation, 59 evaluations: the flow keeps sqrt(1/401) = 5 % of the
    # error, churn forgets it ten times over, and is nearer the truth than Euler-Maruyama, which forgets less
    (kept, flow), (left, churned), (sde, rough) = (
        end(solver, steps) for solver, steps in ((orn.Heun(), 30), (Churn(40.0), 30), (EulerMaruyama(), 59))
    )
    assert kept == pytest.approx(math.sqrt(1 / 401), rel=0.02)
    assert left < kept / 100
    distance = {
        name: math.hypot(BIAS * gain, math.sqrt(variance) - 1)
        for name, gain, variance in (("heun", kept, flow), ("churn", left, churned), ("sde", sde, rough))
    }
    assert distance["churn"] < distance["heun"] / 10
    assert distance["churn"] < distance["sde"]

    # order 2 in the variance, where Euler-Maruyama has 1
    ratio = {
        name: (end(solver, 60)[1] - 1) / (end(solver, 120)[1] - 1)
        for name, solver in (("churn", Churn(10.0)), ("sde", EulerMaruyama()))
    }
    assert math.log2(ratio["churn"]) > 1.6
    assert math.log2(ratio["sde"]) < 1.2

    # S_noise > 1 is no help to an exact denoiser: it only adds variance
    assert end(Churn(40.0, noise=1.007), 30)[1] > churned + 1e-3
