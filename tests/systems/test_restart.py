"""Restart: errors made above are contracted as by an SDE, in the steps of an ODE."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import EulerMaruyama, Restart
from worlds import F64

PROCESS = orn.EDM(sigma_max=20.0)
C, START, BIAS = 1.0, 20.0**2 + 1.0, 10.0  # variance of the data, of the state at t = 1, error of the mean there


def end(solver, steps):
    """(evaluations, part of the start's error that is left, variance), computed from the table."""
    table = solver.compile(PROCESS, orn.Karras(sigma_min=0.02)(PROCESS, steps=steps))
    out = orn.response(table, 0.0, C)
    return table.nfe, float(out.gain), float(out.variance(START))


def distance(solver, steps):
    """W_2 to N(0, 1) of the end when the start is off by BIAS."""
    nfe, gain, variance = end(solver, steps)
    assert 56 <= nfe <= 59
    return math.hypot(BIAS * gain, math.sqrt(variance) - 1)


def test_restart():
    """Rivals: the same solver without restarts, and the reverse SDE, at equal evaluations. Source: 2306.14878."""
    base, interval = orn.DPMSolverPP(order=2), (0.5, 8.0)
    grid = orn.Karras(sigma_min=0.02)(PROCESS, steps=40)

    # no restarts: the base itself, number for number
    for row, own in zip(Restart(base, ()).compile(PROCESS, grid).rows, base.compile(PROCESS, grid).rows, strict=True):
        assert row.terms == own.terms

    # each restart multiplies what is left of an error by the gain of one pass, which tends to the exact
    # sqrt((c + s_low^2)/(c + s_high^2)); the renewed noise keeps the variance
    low, high = (float(grid.sigma[(grid.sigma.log() - math.log(s)).abs().argmin()]) for s in interval)
    exact = math.sqrt((C + low**2) / (C + high**2))
    _, gain, _ = end(Restart(base, ((*interval, 1),), steps=64), 40)
    for k in (1, 2, 3):
        _, left, variance = end(Restart(base, ((*interval, k),), steps=64), 40)
        assert left == pytest.approx(gain * exact ** (k - 1), rel=2e-3 * k)
        assert variance == pytest.approx(1, abs=0.02)
    assert exact < 0.15

    # 56 to 59 evaluations from a start that is off by half its standard deviation
    restart = distance(Restart(base, ((*interval, 2),), steps=8), 40)
    ode = distance(base, 59)
    sde = min(distance(EulerMaruyama(), 59), distance(orn.DDIM(eta=1.0), 59))
    assert ode > 0.4  # the flow keeps the error: sqrt(c/(c + 400)) of it
    assert restart < ode / 20
    assert restart < sde / 2
    # under the paper's base, Heun's method, the steps left for the pass are too long for that here
    assert distance(Restart(orn.Heun(), ((*interval, 2),), steps=5), 20) < ode / 10

    # the same on a run: what the table says of the mean, on 4000 samples with a standard error of 1/sqrt(4000)
    world = orn.exact.Gaussian(torch.zeros(1, dtype=F64), std=1.0)
    x = PROCESS.prior((4000, 1), seed=0, dtype=F64) + BIAS
    for solver, steps, mean in ((base, 59, BIAS * end(base, 59)[1]), (Restart(base, ((*interval, 2),), 8), 40, 0.0)):
        table = solver.compile(PROCESS, orn.Karras(sigma_min=0.02)(PROCESS, steps=steps))
        out = orn.sample(world.denoiser(PROCESS), x_init=x, table=table, seed=1).x
        assert float(out.mean()) == pytest.approx(mean, abs=4 / math.sqrt(4000) + 0.02)
