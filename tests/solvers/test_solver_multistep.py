"""Runge-Kutta and linear multistep methods on the probability flow."""

import itertools
import math

import pytest
import torch
from scipy.integrate import quad

import ornstein as orn
from orders import GRID, MIDDLE, PROCESSES, WORLDS, check_order, condition, errors, run, slopes, start_and_truth
from ornstein.solvers import (
    DPM2,
    GHVB,
    HB,
    PNDM,
    RK4,
    AcceleratedDDIM,
    AcceleratedDDPM,
    AdamsBashforth,
    Conjugate,
    Kutta3,
    Midpoint,
    Ralston,
)
from ornstein.solvers.table import Output, Register
from worlds import F64, normal

COARSE, MIDDLING, FINE = (20, 40, 80), (40, 80, 160), (80, 160, 320)
IN_SIGMA = [
    (Midpoint(), 2, FINE),
    (Ralston(), 2, MIDDLING),
    (DPM2(), 2, COARSE),
    (Kutta3(), 3, MIDDLING),
    (RK4(), 4, COARSE),
    (AdamsBashforth(1), 1, MIDDLING),
    (AdamsBashforth(2), 2, MIDDLING),
    (AdamsBashforth(3), 3, MIDDLING),
    (AdamsBashforth(4), 4, FINE),
    (RK4("log_snr"), 4, COARSE),
    (AdamsBashforth(4, "log_snr"), 4, MIDDLING),
]
IN_T = [(orn.Heun("t"), 2, MIDDLING), (RK4("t"), 4, COARSE), (AdamsBashforth(3, "t"), 3, MIDDLING)]
ALL = [orn.Euler(), orn.Heun(), HB(2), GHVB(3), PNDM(2), PNDM(4), PNDM(3, "rising"), AcceleratedDDIM(), Conjugate(0.5)]
ALL += [solver for solver, _, _ in (*IN_SIGMA, *IN_T)]


def name(value):
    return repr(value) if isinstance(value, orn.Solver | orn.GaussianProcess) else ""


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("solver", "order", "steps"), IN_SIGMA, ids=name)
def test_order_in_the_frame_of_the_data(solver, order, steps, world):
    """For one process, whose order is that of all: the test of their common frame."""
    check_order(world, orn.MeanReverting(), solver, order, steps)


@pytest.mark.parametrize(("solver", "order", "steps"), IN_T, ids=name)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_order_in_time(solver, order, steps, process):
    check_order("mixture" if process == PROCESSES[3] else "ring", process, solver, order, steps)


@pytest.mark.parametrize(
    "solver", [s for s, _, _ in IN_SIGMA] + [HB(2), GHVB(3), PNDM(3, "rising"), AcceleratedDDIM()], ids=name
)
def test_in_its_own_frame_a_solver_does_not_see_the_process(solver):
    """In sigma/alpha and in log-SNR all processes are one, so the order of one is that of all: the same data and noise
    end in the same (x - shift)/alpha, to rounding. Steps in t are the rival."""

    def ends(solver):
        for process in PROCESSES:
            x = run("ring", process, solver, 8)
            level, cond = GRID(process, steps=1)[-1], condition(process, WORLDS["ring"])
            shift = process.shift(level.t, cond)
            yield (x if shift is None else x - shift) / level.alpha

    first, *others = ends(solver)
    assert all(float((other - first).abs().max()) < 1e-9 for other in others)
    first, *others = ends(AdamsBashforth(3, "t"))
    assert all(float((other - first).abs().max()) > 1e-3 for other in others)


def test_the_weights_are_those_of_lms():
    """int prod_{i != j} (s - s_i)/(s_j - s_i) ds over the step, by adaptive quadrature, on a grid of unequal steps."""
    process = orn.EDM()
    grid = orn.Karras()(process, steps=8)
    table = AdamsBashforth(4, start="published").compile(process, grid)
    s = grid.sigma.tolist()
    for n in range(1, 8):
        terms, count = table.rows[n + 1].terms, min(n + 1, 4)
        assert terms[Register(n)] == 1.0
        for j in range(count):
            rest = [s[n - i] for i in range(count) if i != j]

            def polynomial(u, rest=rest, node=s[n - j]):
                return math.prod((u - other) / (node - other) for other in rest)

            truth = quad(polynomial, s[n], s[n + 1], epsrel=1e-10)[0]
            assert terms[Output(n - j, "noise")] == pytest.approx(truth, rel=1e-8)
        assert len(terms) == count + 1


def test_the_published_start_costs_the_order():
    """Euler's first step leaves an error of order 2 behind, once, which shrinking steps uncover."""
    steps = (40, 80, 160)
    published = errors("ring", orn.VP(), AdamsBashforth(4, start="published"), steps, MIDDLE)
    matched = errors("ring", orn.VP(), AdamsBashforth(4), steps, MIDDLE)
    assert slopes(published)[-1] == pytest.approx(2, abs=0.2)
    assert published[-1] > 50 * matched[-1]
    assert slopes(matched)[-1] == pytest.approx(4, abs=0.2)


def test_first_orders_are_one_method():
    process = orn.VP()
    ddim = run("ring", process, orn.DDIM(), 9)
    for same in (AdamsBashforth(1), orn.Euler("sigma"), HB(1, beta=1.0), GHVB(1, beta=1.0), PNDM(1), Conjugate(0.0)):
        torch.testing.assert_close(run("ring", process, same, 9), ddim, rtol=1e-12, atol=1e-12)
    euler = run("ring", process, orn.Euler(), 9)
    torch.testing.assert_close(run("ring", process, AdamsBashforth(1, "t"), 9), euler, rtol=1e-12, atol=1e-12)
    assert float((euler - ddim).abs().max()) > 1e-3


def test_the_stages_stand_where_they_should():
    """The arithmetic mean of the noise levels for the midpoint rule, the geometric one for DPM2."""
    process = orn.VP()
    grid = GRID(process, steps=3)
    rho = grid.sigma / grid.alpha
    for solver, mean in ((Midpoint(), (rho[1:] + rho[:-1]) / 2), (DPM2(), torch.sqrt(rho[1:] * rho[:-1]))):
        table = solver.compile(process, grid)
        stages = table.levels[1::2]
        torch.testing.assert_close(stages.sigma / stages.alpha, mean, rtol=1e-12, atol=0)
        assert table.nfe == 6
    thirds = Ralston("t").compile(process, grid).levels[1::2]
    torch.testing.assert_close(thirds.t, grid.t[:-1] + 2 / 3 * grid.t.diff())


def test_evaluations_are_counted():
    for solver, nfe in (
        (orn.Heun(), 11),  # the last step, to data, is DDIM's
        (DPM2(), 11),
        (Midpoint(), 12),
        (RK4(), 21),
        (AdamsBashforth(4), 12),  # 3 steps of order 3
        (AdamsBashforth(3), 8),
        (AdamsBashforth(4, start="published"), 6),
        (PNDM(4), 15),
        (PNDM(2), 7),
        (PNDM(4, "rising"), 6),
        (GHVB(2), 6),
        (AcceleratedDDIM(), 10),
        (AcceleratedDDPM(), 6),
    ):
        assert solver.compile(orn.EDM(), orn.Karras()(orn.EDM(), steps=6)).nfe == nfe, solver


@pytest.mark.parametrize("process", [orn.VP(), orn.Flow(), orn.EDM()], ids=repr)
@pytest.mark.parametrize("solver", [s for s in ALL if s.exact_for_constant], ids=repr)
def test_no_defect_on_a_point_mass(solver, process):
    """x0 is constant: the law at level s is N(alpha_s m, sigma_s^2), from pure noise to data too."""
    for grid in (GRID(process, steps=3), orn.LogSNR()(process, steps=3), orn.Karras()(process, steps=5)):
        table = solver.compile(process, grid)
        out = orn.response(table, 1.7, 0.0)
        a, s = float(grid.alpha[-1]), float(grid.sigma[-1])
        assert float(out.mean(table.start.alpha * 1.7)) == pytest.approx(a * 1.7, rel=1e-11)
        assert float(out.variance(table.start.sigma**2)) == pytest.approx(s**2, rel=1e-9, abs=1e-13)


def test_solvers_that_do_not_declare_it_have_a_defect():
    grid = GRID(orn.VP(), steps=3)
    for solver in ALL:
        if not solver.exact_for_constant:
            table = solver.compile(orn.VP(), grid)
            out = orn.response(table, 1.7, 0.0)
            error = float(out.variance(table.start.sigma**2) - grid.sigma[-1] ** 2)
            assert abs(error) > 1e-4, solver


def test_from_the_end_law_to_data():
    """Both ends infinite, in 60 steps: each method of order 2 or more is at least four times nearer to
    the exact flow than DDIM (with h the step, an order more is a factor 1/h = 4 here, as log-SNR has 15 to cross)."""
    process, world = orn.Flow(), WORLDS["ring"]
    x = process.prior((24, 2), seed=0, dtype=F64)
    truth = world.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    oracle = world.denoiser(process)

    def error(solver):
        return float((orn.sample(oracle, x_init=x, solver=solver, steps=60).x - truth).norm(dim=1).median())

    ddim = error(orn.DDIM())
    for solver in (Midpoint(), DPM2(), RK4(), PNDM(2), PNDM(4), GHVB(3), AdamsBashforth(2), AdamsBashforth(4)):
        assert error(solver) < ddim / 4, solver


@pytest.mark.parametrize(
    "solver", [RK4(), RK4("t"), DPM2(), AdamsBashforth(4), AdamsBashforth(3, "t"), GHVB(3), PNDM(4)], ids=repr
)
def test_inversion(solver):
    """On the grid turned round the flow is followed upwards, to the noise that DDIM misses by far."""
    process = orn.VP()
    down, truth = start_and_truth("ring", process, GRID)
    grid = GRID(process, steps=60)
    rising = process.level(grid.t.flip(0))
    oracle = WORLDS["ring"].denoiser(process)

    def error(solver):
        return float((orn.sample(oracle, x_init=truth, solver=solver, grid=rising).x - down).norm(dim=1).median())

    assert error(solver) < error(orn.DDIM()) / 20


@pytest.mark.parametrize(
    "solver", [*(s for s in ALL if s != orn.Euler()), GHVB(4, weights="published"), DPM2()], ids=repr
)
def test_each_sample_may_have_its_own_times(solver):
    process = orn.VP()
    times = torch.stack([torch.linspace(0.9, 0.1, 8, dtype=F64), torch.linspace(0.7, 0.05, 8, dtype=F64) ** 1.2], 1)
    x, oracle = normal(2, 2), WORLDS["ring"].denoiser(process)
    both = orn.sample(oracle, x_init=x, solver=solver, grid=times).x
    each = [orn.sample(oracle, x_init=x[i : i + 1], solver=solver, grid=times[:, i]).x for i in range(2)]
    torch.testing.assert_close(both, torch.cat(each), rtol=1e-10, atol=1e-10)


def test_ancestral_steps_refuse_to_rise():
    rising = orn.VP().level([0.2, 0.5, 0.9])
    with pytest.raises(ValueError, match="this grid rises"):
        AcceleratedDDPM().compile(orn.VP(), rising)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdamsBashforth(5), "order=5: choose 1, 2, 3 or 4"),
        (lambda: AdamsBashforth(2, "lambda"), "variable='lambda': choose t, sigma, log_snr"),
        (lambda: AdamsBashforth(2, start="late"), "start='late': choose matched or published"),
        (lambda: RK4("x"), "variable='x'"),
        (lambda: PNDM(0), "order=0"),
        (lambda: PNDM(4, "heun"), "start='heun': choose runge-kutta or rising"),
        (lambda: GHVB(2, 0.0), r"beta=0.0: the damping lies in \(0, 1\]"),
        (lambda: HB(2, 1.5), "beta=1.5"),
        (lambda: GHVB(2, weights="equal"), "weights='equal': choose exact or published"),
        (lambda: Conjugate(math.inf), "rate=inf"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_heun_is_the_papers():
    """Karras et al.'s algorithm 1 without churn, written out with the exact denoiser, on its own process."""
    process, world = orn.EDM(), WORLDS["ring"]
    grid = orn.Karras()(process, steps=7)
    oracle, x = world.denoiser(process), process.prior((5, 2), seed=3, dtype=F64)
    own = x
    for (t, s), (a, b) in zip(itertools.pairwise(grid.t), itertools.pairwise(grid.sigma), strict=True):
        d = (own - oracle(own, t).x0) / a
        y = own + (b - a) * d
        own = y if b == 0 else own + (b - a) * (d + (y - oracle(y, s).x0) / b) / 2
    out = orn.sample(oracle, x_init=x, solver=orn.Heun(), grid=grid)
    torch.testing.assert_close(out.x, own, rtol=1e-11, atol=1e-11)
