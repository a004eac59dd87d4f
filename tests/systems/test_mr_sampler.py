"""MR Sampler: its formulas are DPM-Solver's and DPM-Solver++'s, ODE and SDE, in states centred by the shift."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import DPMSolver, DPMSolverPP, SDEDPMSolverPP
from worlds import F64, normal, ring

PROCESS, WORLD = orn.MeanReverting(), ring()
GRID = orn.LogSNR(start=-4.0, end=6.0, to_data=False)


def mr_sampler(oracle, x, mu, levels, order, view, stochastic, seed=0):
    """The paper's update rules in the coordinates of the state, mu written out, by hand:

    noise, ODE  x_s = a x + (1 - a) mu - sigma_s (e^h - 1) [n + D/2],  a = alpha_s/alpha_t
    noise, SDE  x_s = a x + (1 - a) mu - 2 sigma_s (e^h - 1) [n + D/2] + sigma_s sqrt(e^2h - 1) z
    x0, ODE     x_s = b x + (1 - alpha_s - b (1 - alpha_t)) mu + alpha_s (1 - e^-h) [x0 + D/2],  b = sigma_s/sigma_t
    x0, SDE     x_s = b e^-h x + (1 - a e^-2h - alpha_s + alpha_s e^-2h) mu + alpha_s (1 - e^-2h) [x0 + D/2]
                      + sigma_s sqrt(1 - e^-2h) z

    with D = 0 (order 1), or (h/h') (the view less that of the step before) (order 2, multistep).
    """
    draws, before = orn.Noise(seed, batch=len(x), dtype=F64), None
    for t, s in itertools.pairwise(levels):
        p = oracle(x, t.t, {"mean": mu})
        value, h = getattr(p, view), float(s.log_snr - t.log_snr) / 2
        d = value
        if order == 2 and before is not None:
            d = value + h / before[1] * (value - before[0]) / 2
        before, e = (value, h), math.exp(h)
        a, b = float(s.alpha / t.alpha), float(s.sigma / t.sigma)
        at, as_, ss = float(t.alpha), float(s.alpha), float(s.sigma)
        z = draws.normal(x.shape) if stochastic else 0.0
        if view == "noise" and not stochastic:
            x = a * x + (1 - a) * mu - ss * (e - 1) * d
        elif view == "noise":
            x = a * x + (1 - a) * mu - 2 * ss * (e - 1) * d + ss * math.sqrt(e**2 - 1) * z
        elif not stochastic:
            x = b * x + (1 - as_ - b * (1 - at)) * mu + as_ * (1 - 1 / e) * d
        else:
            x = b / e * x + (1 - a / e**2 - as_ + as_ / e**2) * mu + as_ * (1 - 1 / e**2) * d
            x = x + ss * math.sqrt(1 - 1 / e**2) * z
    return x


def start():
    mu, level = normal(16, 2, seed=5), GRID(PROCESS, steps=1)[0]
    x0 = WORLD.sample(16, seed=0).to(F64)
    return PROCESS.corrupt(x0, level, cond={"mean": mu}, noise=normal(16, 2, seed=1)).x, mu


@pytest.mark.system("mr-sampler", rival="the same solver on states that are not centred; Euler with 200 steps")
def test_mr_sampler():
    """All eight formulas to rounding, from networks of any view; slopes 1, 2, 3; the moments of the SDE; and 10 steps
    of order 2 against 200 of Euler's method, on which the claimed 10 to 20 times rests."""
    x, mu = start()
    cond, levels = {"mean": mu}, GRID(PROCESS, steps=9)
    for view, stochastic, order in itertools.product(("x0", "noise"), (False, True), (1, 2)):
        if stochastic:
            solver = SDEDPMSolverPP(order=order, predicts=view)
        else:
            solver = (DPMSolverPP if view == "x0" else DPMSolver)(order=order)
        expected = mr_sampler(WORLD.denoiser(PROCESS), x, mu, levels, order, view, stochastic)
        for predicts in ("x0", "noise", "velocity") if order == 2 else ("x0",):
            oracle = WORLD.denoiser(PROCESS, predicts=predicts)
            out = orn.sample(oracle, x_init=x, cond=cond, solver=solver, grid=GRID, steps=9, seed=0).x
            torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        wrong = mr_sampler(WORLD.denoiser(PROCESS), x, 0 * mu, levels, order, view, stochastic)
        assert float((wrong - expected).abs().max()) > 0.1

    inner = orn.LogSNR(start=0.0, end=5.0, to_data=False)
    ends = inner(PROCESS, steps=1)
    y = PROCESS.corrupt(WORLD.sample(16, seed=0).to(F64), ends[0], cond=cond, noise=normal(16, 2, seed=1)).x
    truth = WORLD.flow(PROCESS, y, ends[0], ends[1], cond=cond, rtol=1e-11, atol=1e-12)

    def error(solver, steps, grid=inner):
        out = orn.sample(WORLD.denoiser(PROCESS), x_init=y, cond=cond, solver=solver, grid=grid, steps=steps).x
        return float((out - truth).norm(dim=1).median())

    for order, solver in itertools.product((1, 2, 3), (DPMSolver, DPMSolverPP)):
        found = solver(order=order, mode="singlestep")
        assert math.log2(error(found, 20) / error(found, 40)) == pytest.approx(order, abs=0.2)
    uniform = orn.solvers.Uniform(start=float(ends.t[0]), end=float(ends.t[1]))
    assert error(DPMSolverPP(order=2), 10) < error(orn.Euler(), 200, uniform)

    for order, weak in ((1, 1), (2, 2)):  # the variance of Gaussian data under the reverse SDE, exactly
        defects = []
        for n in (100, 200):
            table = SDEDPMSolverPP(order=order).compile(PROCESS, GRID(PROCESS, steps=n))
            first, last = table.start, table.end
            found = orn.response(table, 0.3, 0.7).variance(first.alpha**2 * 0.7 + first.sigma**2)
            defects.append(abs(float(found - last.alpha**2 * 0.7 - last.sigma**2)))
        assert math.log2(defects[0] / defects[1]) == pytest.approx(weak, abs=0.2)
