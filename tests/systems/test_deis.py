"""DEIS: the noise extrapolated by polynomials of t or rho, integrated exactly."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import DEIS
from worlds import F64, at, ring

WORLD = ring()
GRID = orn.LogSNR(start=0.0, end=5.0, to_data=False)


@pytest.mark.system("deis", rival="DDIM, its order 0")
def test_deis():
    """Order 0 equals DDIM to 1e-10 and order r converges at r + 1, on VP and VE, for polynomials in t and in rho; in 10
    evaluations tAB-3 has a sixth of DDIM's error. With a weight of the wrong node the order falls to 1."""
    for process in (orn.VP(), orn.VE()):
        ends = GRID(process, steps=1)
        x = at(process, ends[0], WORLD, 16)
        truth = WORLD.flow(process, x, ends[0], ends[1], rtol=1e-11, atol=1e-12)

        def run(solver, steps, process=process, x=x):
            return orn.sample(WORLD.denoiser(process), x_init=x, solver=solver, grid=GRID, steps=steps).x

        ddim = run(orn.DDIM(), 10)
        for method in ("tAB", "rhoAB"):
            torch.testing.assert_close(run(DEIS(order=0, method=method), 10), ddim, rtol=1e-10, atol=1e-10)
        for method, order, steps in (("tAB", 1, 20), ("rhoAB", 2, 20), ("rhoAB", 3, 40), ("rhoRK", 3, 10)):
            solver = DEIS(order=order, method=method)
            a, b = (float((run(solver, n) - truth).norm(dim=1).median()) for n in (steps, 2 * steps))
            assert math.log2(a / b) == pytest.approx(order + 1, abs=0.2), solver
        a, b = (float((run(orn.DDIM(), n) - truth).norm(dim=1).median()) for n in (20, 40))
        assert math.log2(a / b) == pytest.approx(1, abs=0.2)

    process = orn.VP()
    start = process.prior((32, 2), seed=0, dtype=F64)
    flow = WORLD.flow(process, start, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    errors = [
        float((orn.sample(WORLD.denoiser(process), x_init=start, solver=s, nfe=10).x - flow).norm(dim=1).median())
        for s in (DEIS(order=3), orn.DDIM())
    ]
    assert errors[0] < errors[1] / 5
