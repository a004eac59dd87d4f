"""DEIS: the noise extrapolated by polynomials of t or rho, integrated exactly."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.numerics.dop853 import dop853
from ornstein.processes import PSLD, Phase
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


@pytest.mark.system("deis", rival="DDIM, its order 0, in phase space")
def test_deis_of_a_matrix_sde():
    """Where drift and diffusion are matrices, order 0 is DDIM in phase space to 1e-10, r converges at r + 1, in t and
    in sigma/alpha, and order 2 has a tenth of DDIM's error in 40 steps."""
    world = orn.exact.GaussianMixture(torch.tensor([[1.0], [-1.5]], dtype=F64), stds=0.5)
    denoiser = world.denoiser(PSLD())
    start = PSLD().corrupt(world.sample(12, seed=0).to(F64), 0.9, seed=1).x

    def slope(t, z):
        return torch.cat(list(denoiser(Phase(z[:, :1], z[:, 1:]), float(t)).velocity), 1)

    truth = dop853(slope, torch.cat(list(start), 1), 0.9, 0.2, rtol=1e-10, atol=1e-11).y[:, :1]

    def run(solver, steps):
        grid = torch.linspace(0.9, 0.2, steps + 1, dtype=F64)
        return orn.sample(denoiser, x_init=start, solver=solver, grid=grid).x

    def error(solver, steps):
        return float((run(solver, steps) - truth).abs().median())

    torch.testing.assert_close(run(DEIS(order=0), 10), run(orn.DDIM(), 10), rtol=1e-10, atol=1e-10)
    for solver, order in ((orn.DDIM(), 1), (DEIS(order=1), 2), (DEIS(order=1, method="rhoAB"), 2), (DEIS(order=2), 3)):
        a, b = error(solver, 40), error(solver, 80)
        assert math.log2(a / b) == pytest.approx(order, abs=0.3), solver
    assert error(DEIS(order=2), 40) < error(orn.DDIM(), 40) / 10
