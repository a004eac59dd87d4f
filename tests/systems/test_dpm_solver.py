"""DPM-Solver: orders 1, 2 and 3 by integrating the noise in log-SNR, and what they buy at a budget."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import DPMSolver
from worlds import F64, at, ring

PROCESS = orn.VP()
WORLD = ring()


@pytest.mark.system("dpm-solver", rival="DDIM, its first order")
def test_dpm_solver():
    """Singlestep, as published: slopes 1, 2, 3 over the last halving, order 1 equal to DDIM to 1e-12.

    At budgets: with 21 evaluations order 3 is closer to the exact flow than DDIM with 8 times as many (the claimed
    speed-up is 4 to 16); with 10 it is not ahead of DDIM with 10, where the multistep form of order 2 is.
    """
    grid = orn.LogSNR(start=0.0, end=5.0, to_data=False)
    ends = grid(PROCESS, steps=1)
    x = at(PROCESS, ends[0], WORLD, 16)
    truth = WORLD.flow(PROCESS, x, ends[0], ends[1], rtol=1e-12, atol=1e-13)

    def inside(solver, steps):
        return orn.sample(WORLD.denoiser(PROCESS), x_init=x, solver=solver, grid=grid, steps=steps).x

    def slope(solver):
        coarse, fine = (float((inside(solver, n) - truth).norm(dim=1).median()) for n in (20, 40))
        return math.log2(coarse / fine)

    for order in (1, 2, 3):
        assert slope(DPMSolver(order=order, mode="singlestep")) == pytest.approx(order, abs=0.2)
        assert slope(DPMSolver(order=order)) == pytest.approx(order, abs=0.25)
    assert slope(orn.DDIM()) == pytest.approx(1, abs=0.2)
    one = inside(DPMSolver(order=1, mode="singlestep"), 7)
    torch.testing.assert_close(one, inside(orn.DDIM(), 7), rtol=1e-12, atol=1e-12)

    start = PROCESS.prior((32, 2), seed=0, dtype=F64)
    flow = WORLD.flow(PROCESS, start, 1.0, 0.0, rtol=1e-8, atol=1e-9)

    def budget(solver, nfe):
        out = orn.sample(WORLD.denoiser(PROCESS), x_init=start, solver=solver, nfe=nfe)
        return float((out.x - flow).norm(dim=1).median())

    third = DPMSolver(order=3, mode="singlestep")
    assert budget(third, 21) < budget(orn.DDIM(), 8 * 21)
    assert budget(third, 10) > 0.9 * budget(orn.DDIM(), 10)
    assert budget(DPMSolver(order=2), 10) < budget(orn.DDIM(), 10) / 5
