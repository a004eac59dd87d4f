"""Conjugate integrators: DDIM and its neighbours."""

import math

import pytest
import torch
from scipy.integrate import quad

import ornstein as orn
from orders import PROCESSES, WORLDS, check_order, run
from ornstein.solvers import Conjugate
from ornstein.solvers.table import Output, Register
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
