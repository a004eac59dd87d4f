"""Orders of the exponential integrators to the exact flow, by the protocol of test_orders.

The range of log-SNR is truncated at both ends, the reference is the worlds' own DOP853, an order is the slope of
log2(error) over the last two halvings and may miss theory by 0.2; errors stay above 1e-9.
"""

import functools
import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import DEIS, DPMSolver, DPMSolverPP, DPMSolverV3, SASolver, UniPC
from worlds import F64, normal, ring

RING = ring()
DIMS = 64
WIDE = orn.exact.GaussianMixture(normal(3, DIMS, seed=7), torch.tensor([0.3, 0.5, 0.8], dtype=F64))
MIDDLE = orn.LogSNR(start=0.0, end=5.0, to_data=False)
RANGE = orn.LogSNR(start=-5.0, end=5.0, to_data=False)
VP, EDM, FLOW, REVERTING = orn.VP(), orn.EDM(), orn.Flow(), orn.MeanReverting()


@functools.cache
def start_and_truth(process, grid, world):
    """States where the range begins, where the exact flow takes them, and their condition."""
    ends, n = grid(process, steps=1), 16
    cond = {"mean": normal(n, world.dim, seed=11)} if process == REVERTING else None
    x0 = world.sample(n, seed=0).to(F64)
    x = process.corrupt(x0, ends[0], cond=cond, noise=normal(*x0.shape, seed=1)).x
    return x, world.flow(process, x, ends[0], ends[1], cond=cond, rtol=1e-12, atol=1e-13), cond


def slopes(process, solver, steps, *, grid=MIDDLE, world=RING):
    x, truth, cond = start_and_truth(process, grid, world)
    oracle = world.denoiser(process)
    found = [
        float(
            (orn.sample(oracle, x_init=x, cond=cond, solver=solver, grid=grid, steps=n).x - truth).norm(dim=1).median()
        )
        for n in steps
    ]
    assert min(found) > 1e-9
    return [math.log2(a / b) for a, b in itertools.pairwise(found)]


FEW, SOME, MANY = (10, 20, 40), (20, 40, 80), (40, 80, 160)
CASES = [
    (DPMSolver(order=1), 1, FEW),
    (DPMSolver(order=2), 2, FEW),
    (DPMSolver(order=3), 3, SOME),
    (DPMSolver(order=2, mode="singlestep"), 2, FEW),
    (DPMSolver(order=3, mode="singlestep"), 3, SOME),
    (DPMSolverPP(order=2, mode="singlestep"), 2, FEW),
    (DPMSolverPP(order=3, mode="singlestep"), 3, FEW),
    *((UniPC(order=1, variant=v), 2, FEW) for v in ("bh1", "bh2", "vary_coeff")),
    *((UniPC(order=2, variant=v), 3, SOME) for v in ("bh1", "bh2", "vary_coeff")),
    (UniPC(order=4), 5, (28, 56, 112)),
    (UniPC(order=1, predicts="noise"), 2, MANY),
    (UniPC(order=2, predicts="noise"), 3, FEW),
    (UniPC(order=3, predicts="noise"), 4, MANY),
    (UniPC(order=3, corrector=False), 3, FEW),
    (UniPC(order=4, corrector=False), 4, SOME),
    *((DEIS(order=r, method=m), r + 1, FEW) for m in ("tAB", "rhoAB") for r in (0, 1, 2)),
    (DEIS(order=3), 4, (80, 160, 320)),
    (DEIS(order=3, method="rhoAB"), 4, SOME),
    *((DEIS(order=r, method="rhoRK"), r + 1, MANY if r == 2 else FEW) for r in (1, 2, 3)),
    (SASolver(predictor=3, corrector=0, tau=0.0), 2, SOME),  # begun by lower orders, as published
    (SASolver(predictor=2, corrector=2, tau=0.0), 3, SOME),
]


@pytest.mark.parametrize(("solver", "order", "steps"), CASES, ids=lambda v: repr(v)[:80])
def test_order(solver, order, steps):
    assert slopes(VP, solver, steps) == pytest.approx([order, order], abs=0.2)


@pytest.mark.parametrize("process", [EDM, FLOW, REVERTING], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [
        (DPMSolver(order=2, mode="singlestep"), 2, FEW),
        (UniPC(order=2), 3, SOME),
        (DEIS(order=1), 2, FEW),
        (DEIS(order=3, method="rhoRK"), 4, FEW),
        (SASolver(predictor=2, corrector=2, tau=0.0), 3, SOME),
    ],
    ids=lambda v: repr(v)[:60],
)
def test_order_on_every_process(process, solver, order, steps):
    assert slopes(process, solver, steps) == pytest.approx([order, order], abs=0.2)


@pytest.mark.parametrize(
    ("solver", "order"),
    [(DPMSolver(order=3), 3), (DPMSolverPP(order=3, mode="singlestep"), 3), (UniPC(order=3), 4), (DEIS(order=2), 3)],
    ids=lambda v: repr(v)[:40],
)
def test_order_in_64_dimensions(solver, order):
    assert slopes(VP, solver, MANY, world=WIDE) == pytest.approx([order, order], abs=0.2)


def test_order_from_noise():
    """Over all of -5 to 5, where the flow is curved most."""
    for solver, order, steps in (
        (DPMSolver(order=2), 2, SOME),
        (UniPC(order=2, variant="vary_coeff"), 3, SOME),
        (DEIS(order=3, method="rhoRK"), 4, FEW),
    ):
        assert slopes(VP, solver, steps, grid=RANGE) == pytest.approx([order, order], abs=0.2)


def test_published_forms_lose_their_order():
    """The published third-order multistep formula halves its second difference: order 2, for both views. Starting by
    lower orders costs DEIS its fourth order, and UniPC-3 and 4 theirs: an error of h^2 or h^3 is left behind, once."""
    for solver, order in (
        (DPMSolverPP(order=3, variant="published"), 2),
        (DPMSolver(order=3, variant="published"), 2),
        (DEIS(order=3, start="published"), 2),
        (UniPC(order=3, start="published"), 3),
        (UniPC(order=4, start="published"), 3),
    ):
        assert slopes(VP, solver, (80, 160)) == pytest.approx([order], abs=0.2), solver


def test_v3_has_its_order_whatever_the_statistics():
    """Calibrated on data, or made up: l, s and the mean change the error, never the limit."""
    points = torch.linspace(-1.0, 4.0, 9, dtype=F64)
    waves = torch.stack([torch.sin(points), torch.cos(2 * points)], 1)
    wild = orn.solvers.ModelStatistics(points, 0.5 + 0.2 * waves, 0.3 * waves - 0.5, 0.7 * waves)
    own = DPMSolverV3().calibrate(RING.denoiser(VP), RING.sample(500, seed=3).to(F64), points=40).statistics
    for known in (own, wild):
        for order, corrector, truth in ((1, False, 1), (2, False, 2), (1, True, 2)):
            solver = DPMSolverV3(order=order, corrector=corrector, statistics=known)
            assert slopes(VP, solver, (40, 80)) == pytest.approx([truth], abs=0.2), (known, order, corrector)
