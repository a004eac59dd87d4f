"""Orders of convergence to the exact flow, on exact mixtures in float64.

Both ends of the log-SNR range are finite, the reference is the worlds' own DOP853 over the same range. An order is the
slope of log2(error) over the finest two halvings; it may miss theory by 0.2, and all errors stay above 1e-9, four
digits above the reference's own.
"""

import functools
import itertools
import math

import pytest
import torch

import ornstein as orn
from worlds import F64, at, ring

WORLD = ring()
RANGE = {"start": -5.0, "end": 5.0, "to_data": False}
PROCESSES = [orn.VP(), orn.EDM(), orn.Flow()]
GRID = orn.LogSNR(**RANGE)


MIDDLE = orn.LogSNR(start=0.0, end=5.0, to_data=False)


@functools.cache
def start_and_truth(process, grid):
    """16 states where the range begins, and where the exact flow takes them."""
    ends = grid(process, steps=1)
    x = at(process, ends[0], WORLD, 16)
    return x, WORLD.flow(process, x, ends[0], ends[1], rtol=1e-12, atol=1e-13)


def errors(process, solver, steps, *, grid=GRID, predicts="x0"):
    """Median distance to the exact flow for each number of steps."""
    x, truth = start_and_truth(process, grid)
    oracle = WORLD.denoiser(process, predicts=predicts)
    return [
        float((orn.sample(oracle, x_init=x, solver=solver, grid=grid, steps=n).x - truth).norm(dim=1).median())
        for n in steps
    ]


def slopes(found):
    return [math.log2(a / b) for a, b in itertools.pairwise(found)]


CASES = [
    (orn.Euler(), 1, (80, 160, 320)),
    (orn.DDIM(), 1, (80, 160, 320)),
    (orn.Heun(), 2, (40, 80, 160)),
    (orn.DPMSolverPP(order=1), 1, (80, 160, 320)),
    (orn.DPMSolverPP(order=2), 2, (80, 160, 320)),
    (orn.DPMSolverPP(order=3), 3, (160, 320, 640)),
]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    ("solver", "order", "steps"), CASES, ids=lambda v: repr(v) if isinstance(v, orn.Solver) else ""
)
def test_order_from_noise(process, solver, order, steps):
    found = errors(process, solver, steps)
    assert min(found) > 1e-9
    assert slopes(found) == pytest.approx([order, order], abs=0.2)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize(
    ("solver", "order", "steps"), CASES, ids=lambda v: repr(v) if isinstance(v, orn.Solver) else ""
)
def test_order_from_the_middle_of_a_trajectory(process, solver, order, steps):
    found = errors(process, solver, steps, grid=MIDDLE)
    assert min(found) > 1e-9
    assert slopes(found) == pytest.approx([order, order], abs=0.2)


def test_the_published_start_costs_the_third_order():
    """A first step of DDIM leaves an error of order h^2 behind, once: the slope falls to 2 as steps shrink."""
    steps = (80, 160, 320)
    published = errors(orn.VP(), orn.DPMSolverPP(order=3, start="published"), steps, grid=MIDDLE)
    matched = errors(orn.VP(), orn.DPMSolverPP(order=3), steps, grid=MIDDLE)
    assert slopes(published)[-1] == pytest.approx(2, abs=0.2)
    assert slopes(matched)[-1] == pytest.approx(3, abs=0.2)
    assert published[-1] > 5 * matched[-1]


@pytest.mark.parametrize("predicts", ["noise", "score", "velocity", "v"])
def test_the_order_does_not_depend_on_the_predicted_view(predicts):
    own = errors(orn.VP(), orn.DPMSolverPP(order=2), (40,), predicts=predicts)
    x0 = errors(orn.VP(), orn.DPMSolverPP(order=2), (40,))
    assert own == pytest.approx(x0, rel=1e-9)


def test_order_one_of_dpm_solver_pp_is_ddim():
    x = at(orn.VP(), GRID(orn.VP(), steps=1)[0], WORLD, 8)
    one, ddim = (
        orn.sample(WORLD.denoiser(orn.VP()), x_init=x, solver=solver, grid=GRID, steps=9).x
        for solver in (orn.DPMSolverPP(order=1), orn.DDIM())
    )
    torch.testing.assert_close(one, ddim, rtol=1e-13, atol=1e-13)


# The full range: from the end law to data. Errors are medians over 32 samples to the exact flow between the same ends.
BUDGETS = (5, 10, 20, 50)


@functools.cache
def prior_and_truth(process):
    x = process.prior((32, 2), seed=0, dtype=F64)
    return x, WORLD.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)


def full_range(process, solver, nfe):
    x, truth = prior_and_truth(process)
    out = orn.sample(WORLD.denoiser(process), x_init=x, solver=solver, nfe=nfe)
    assert out.nfe <= nfe
    return float((out.x - truth).norm(dim=1).median())


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_higher_order_wins_over_the_full_range(process):
    """Each doubling of the budget helps order 2 by more than it can help order 1 once the regime is reached, and at
    20 and 50 evaluations order 2 is ahead of order 1 (its nearest simpler relative)."""
    one, two = ([full_range(process, solver, n) for n in BUDGETS] for solver in (orn.DDIM(), orn.DPMSolverPP(order=2)))
    assert two[2] < one[2] / 2
    assert two[3] < one[3] / 4
    assert two == sorted(two, reverse=True)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_default_grid_has_no_floor(process):
    """Its ends widen with N, so that a doubling divides the error of order 2 by about 4, the jumps' included; with the
    ends of 25 steps kept (the rival) 200 steps are no better than 100."""
    x, truth = prior_and_truth(process)
    fixed = orn.LogSNR(end=2.4 + 2 * math.log(25), deepest=-0.4 - 2 * math.log(25))
    error = {}
    for grid in (orn.LogSNR(), fixed):
        for steps in (100, 200):
            out = orn.sample(WORLD.denoiser(process), x_init=x, grid=grid, steps=steps)
            error[grid, steps] = float((out.x - truth).norm(dim=1).median())
    assert error[orn.LogSNR(), 200] < error[orn.LogSNR(), 100] / 2.5
    assert error[fixed, 200] > error[fixed, 100] / 1.5


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_floor_of_the_last_jump(process):
    """However many steps, the last jump from the level `end` to data keeps the error of one DDIM step.

    For one Gaussian of variance c the flow scales x by sqrt(c)/sqrt(c + s^2) from s = sigma/alpha to data, the jump by
    c/(c + s^2): the ratio is 1 - s^2/2c + O(s^4), which the floor must show and an earlier end must not.
    """
    c, x0 = 0.3**2, torch.full((1, 1), 1.0, dtype=F64)
    world = orn.exact.Gaussian(torch.zeros(1, dtype=F64), cov=torch.full((1, 1), c, dtype=F64))
    for end in (6.0, 9.0):
        grid = orn.LogSNR(end=end)
        out = orn.sample(world.denoiser(process), x_init=x0, solver=orn.DPMSolverPP(order=3), grid=grid, steps=400)
        truth = world.flow(process, x0, 1.0, 0.0)
        first, s2 = grid(process, steps=400)[1], math.exp(-end)
        jump = 1.0  # the first step from alpha = 0 is DDIM's too, where there is one
        if process == orn.Flow():
            jump = float(first.sigma / torch.sqrt(first.alpha**2 * c + first.sigma**2))
        assert float(out.x / truth) == pytest.approx(jump * math.sqrt(c / (c + s2)), abs=2e-6 + 0.02 * s2 / c)
