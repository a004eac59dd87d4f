"""Conjugate integrators: DDIM and its neighbours."""

import math

import pytest
import torch
from scipy.integrate import quad

import ornstein as orn
from orders import PROCESSES, WORLDS, check_order, run
from ornstein.processes import CLD, PSLD
from ornstein.solvers import Conjugate, ReducedSymplecticEuler, Splitting
from ornstein.solvers.table import Output, Register
from phases import gaussian_law, law_of
from worlds import F64


@pytest.mark.system("conjugate-integrators", rival="DDIM, the integrator of rate 0")
def test_conjugate():
    """rate = 0 is DDIM, the limit of small rates too; each rate is of order 1; with 10 equal steps of time a rate of -2
    is nearer to the flow of VP than DDIM, one of the other sign further."""
    process = orn.VP()
    ddim = run("ring", process, orn.DDIM(), 12)
    assert torch.equal(run("ring", process, Conjugate(0.0), 12), ddim)
    torch.testing.assert_close(run("ring", process, Conjugate(1e-13), 12), ddim, rtol=1e-11, atol=1e-11)
    assert float((run("ring", process, Conjugate(0.1), 12) - ddim).norm(dim=1).median()) > 1e-3

    for rate in (-1.0, 1.0):
        check_order("ring", process, Conjugate(rate), 1, (40, 80, 160))

    world, grid = WORLDS["ring"], orn.Uniform(end=1e-3)
    x = process.prior((48, 2), seed=0, dtype=F64)
    truth = world.flow(process, x, 1.0, 1e-3, rtol=1e-8, atol=1e-9)

    def error(rate):
        out = orn.sample(world.denoiser(process), x_init=x, solver=Conjugate(rate), grid=grid, steps=10)
        return float((out.x - truth).norm(dim=1).median())

    table = {rate: error(rate) for rate in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0)}
    assert table[-2.0] < table[0.0] / 3
    assert min(table, key=table.get) == -2.0
    assert table[1.0] > 2 * table[0.0]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_order_one(process, world):
    check_order(world, process, Conjugate(0.5), 1, (80, 160, 320))


@pytest.mark.parametrize("process", [orn.VP(), orn.Flow(), orn.MeanReverting()], ids=repr)
def test_the_coefficients(process):
    """A_t/A_s (1 + rate (s - t)) and int_t^s exp(rate (tau - s)) d rho(tau), by adaptive quadrature in rho; to data,
    where rho is not smooth in t, too."""
    rate, levels = 1.7, process.level([0.9, 0.4, 0.05, 0.0])
    table = Conjugate(rate).compile(process, levels)
    for n in range(3):
        t, s = float(levels.t[n]), float(levels.t[n + 1])
        rho = [float(levels.sigma[i] / levels.alpha[i]) for i in (n, n + 1)]

        def kernel(r, s=s):
            tau = float(process.time(torch.tensor(-2 * math.log(r), dtype=F64))) if r > 0 else 0.0
            return math.exp(rate * (tau - s))

        terms, scale = table.rows[n + 1].terms, float(levels.alpha[n + 1] / levels.alpha[n])
        assert terms[Register(n)] == pytest.approx(scale * math.exp(rate * (t - s)) * (1 + rate * (s - t)), rel=1e-12)
        truth = float(levels.alpha[n + 1]) * quad(kernel, *rho, epsrel=1e-11, limit=200)[0]
        assert terms[Output(n, "noise")] == pytest.approx(truth, rel=1e-8)


def flows(process):
    """Gaussian data in two dimensions under `process`: its denoiser, 16 states at t = 0.9, and where the linear flow
    carries them by t = 0.15: both laws are Gaussian, and the flow's map solves M' = (F + G G^T S^-1/2) M."""
    std = 0.6
    world = orn.exact.Gaussian(torch.zeros(2, dtype=F64), std=std)
    start = process.corrupt(world.sample(16, seed=0).to(F64), 0.9, seed=1).x
    moved, steps = torch.eye(2, dtype=F64), 4_000
    times = torch.linspace(0.9, 0.15, 2 * steps + 1, dtype=F64)
    level = process.level(times)
    total = level.root @ level.root.mT + std**2 * level.mean[:, :, :1] @ level.mean[:, :, :1].mT
    field = level.drift + level.diffusion @ torch.linalg.inv(total) / 2
    h = float(times[2] - times[0])
    for i in range(0, 2 * steps, 2):
        k1 = field[i] @ moved
        k2 = field[i + 1] @ (moved + h / 2 * k1)
        k3 = field[i + 1] @ (moved + h / 2 * k2)
        k4 = field[i + 2] @ (moved + h * k3)
        moved = moved + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    truth = moved[0, 0] * start.position + moved[0, 1] * start.momentum
    return world.denoiser(process), start, truth


@pytest.mark.system("conjugate-integrators", rival="Euler's method and DDIM, in phase space")
def test_integrators_of_phase_space():
    """Gaussian data in phase space: rate = 0 is DDIM to the last bit and its neighbours converge to it; every rate and
    the splitting are of order 1, and at equal evaluations the reduced symplectic Euler method has less than half of
    Euler's error, with CLD and with PSLD."""
    for process in (CLD(), PSLD()):
        denoiser, start, truth = flows(process)

        def run(solver, steps, denoiser=denoiser, start=start):
            grid = torch.linspace(0.9, 0.15, steps + 1, dtype=F64)
            return orn.sample(denoiser, x_init=start, solver=solver, grid=grid).x

        def error(solver, steps, truth=truth, run=run):
            return float((run(solver, steps) - truth).norm(dim=1).median())

        ddim = run(orn.DDIM(), 12)
        assert torch.equal(run(Conjugate(0.0), 12), ddim)
        torch.testing.assert_close(run(Conjugate(1e-12), 12), ddim, rtol=1e-9, atol=1e-9)
        assert float((run(Conjugate(1.0), 12) - ddim).norm(dim=1).median()) > 1e-3
        for solver in (Conjugate(0.0), Conjugate(1.0), ReducedSymplecticEuler(), orn.Euler()):
            a, b = error(solver, 80), error(solver, 160)
            assert math.log2(a / b) == pytest.approx(1, abs=0.2), solver
        for steps in (40, 80):
            assert error(ReducedSymplecticEuler(), steps) < error(orn.Euler(), steps) / 2


@pytest.mark.system("conjugate-integrators", rival="Euler-Maruyama at equal evaluations")
def test_stochastic_splitting():
    """Gaussian data under CLD and PSLD: at 20, 40 and 80 evaluations the variance of the position by SSCS (LBL) is
    wrong by less than a fifth of what Euler-Maruyama's is, without sampling; the flows in another order are worse."""
    for process in (CLD(), PSLD()):
        denoiser = orn.exact.Gaussian(torch.zeros(1, dtype=F64), std=0.6).denoiser(process)
        first, last = (gaussian_law(process, t, 0.6) for t in (0.9, 0.15))
        for steps in (20, 40, 80):
            grid = process.level(torch.linspace(0.9, 0.15, steps + 1, dtype=F64))
            sscs, oba, euler = (
                abs(float(law_of(denoiser, solver.compile(process, grid), first)[0, 0] / last[0, 0] - 1))
                for solver in (Splitting("LBL"), Splitting("OBA"), orn.EulerMaruyama())
            )
            assert sscs < euler / 5
            assert sscs < oba / 3
