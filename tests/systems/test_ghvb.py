"""Momentum: HB and GHVB, their orders, their regions of stability, and what they do to outliers."""

import math

import pytest
import torch

import ornstein as orn
from orders import PROCESSES, WORLDS, check_order, errors, run, slopes
from ornstein.solvers import GHVB, HB, PNDM, AdamsBashforth
from ornstein.solvers.table import Output, Register
from worlds import F64


def amplification(solver, q):
    """The matrix of one step of dx/ds = lambda x, q = step times lambda, from the last rows of the solver's own table.

    The state is (x_n, ..., x_(n-3), v), the slope of evaluation j is lambda x_j.
    """
    process = orn.EDM(sigma_max=1.0)
    table = solver.compile(process, process.level(torch.linspace(1.0, 0.5, 11, dtype=F64)))
    (v_row, v_terms), (_, x_terms) = [(m, row.terms) for m, row in enumerate(table.rows)][-2:]
    h = -0.05  # the step in sigma
    assert x_terms[Register(v_row)] == pytest.approx(h)
    v = torch.zeros(5, dtype=F64)
    v[4] = v_terms.get(Register(v_row - 2), 0.0)
    for j in range(4):
        v[j] = v_terms.get(Output(table.nfe - 1 - j, "noise"), 0.0) * q / h
    step = torch.zeros(5, 5, dtype=F64)
    step[0] = h * v
    step[0, 0] += 1
    step[1:4, :3] = torch.eye(3, dtype=F64)
    step[4] = v
    return step


def reach(solver, angle=math.pi):
    """How far from 0 the solver is stable on a ray: the largest r with spectral radius at most 1 up to there."""
    table = amplification(solver, 1.0)
    still = amplification(solver, 0.0)

    def radius(r):
        q = complex(r * math.cos(angle), r * math.sin(angle))
        matrix = still.to(torch.complex128) + q * (table - still)
        return float(torch.linalg.eigvals(matrix).abs().max())

    r, high = 0.0, 8.0
    grid = torch.linspace(0.01, high, 800).tolist()
    for value in grid:
        if radius(value) > 1 + 1e-9:
            high = value
            break
        r = value
    for _ in range(30):
        middle = (r + high) / 2
        r, high = (middle, high) if radius(middle) <= 1 + 1e-9 else (r, middle)
    return r


# At the end of the real interval a root is -1: (4 - 2 beta) = r S with S the alternating sum of the method's numbers,
# those of Adams and Bashforth (times beta) for HB, those of the generalised method for GHVB.
ADAMS = {1: 1, 2: 2, 3: 11 / 3, 4: 20 / 3}


def ghvb(order, beta):
    return {1: beta, 2: 2, 3: 4 - beta / 3, 4: (22 - 2 * beta) / 3}[order]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_regions_of_stability(order):
    base = reach(HB(order, beta=1.0))
    assert base == pytest.approx(2 / ADAMS[order], abs=1e-6)
    for beta in (0.8, 0.5):
        hb, general = reach(HB(order, beta=beta)), reach(GHVB(order, beta=beta, start="published"))
        assert hb == pytest.approx((4 - 2 * beta) / (beta * ADAMS[order]), abs=1e-6)
        assert general == pytest.approx((4 - 2 * beta) / ghvb(order, beta), abs=1e-6)
        assert hb > 1.2 * base
        assert general > 1.1 * base


@pytest.mark.system("ghvb", rival="the same Adams-Bashforth numbers without momentum (PLMS), and HB")
def test_ghvb():
    """Order kept where HB falls to 1; larger stable interval; fewer outliers under strong guidance in 8 steps."""
    process, steps = orn.VP(), (40, 80, 160)
    check_order("ring", process, GHVB(2, beta=0.5), 2, steps)
    check_order("ring", process, HB(2, beta=0.5), 1, steps)
    kept, lost = (errors("ring", process, solver(2, beta=0.5), (160,))[0] for solver in (GHVB, HB))
    assert kept < lost / 10

    # the wider interval of the first
    assert reach(HB(4, beta=0.5)) > 2.9 * reach(HB(4, beta=1.0))
    assert reach(GHVB(4, beta=0.5)) > 1.3 * reach(GHVB(4, beta=1.0))

    # Outliers: samples beyond 1.5 times the furthest of a fine run. Without momentum 0.41 of them; the standard error
    # of a share of 300 is below 0.03. The exact weights of the steps need no momentum: none.
    x, cond = process.prior((300, 2), seed=0, dtype=F64), {"label": torch.arange(6).repeat(50)}
    guided = orn.CFG(WORLDS["ring"].denoiser(process), 8.0)

    def radius(solver, steps=8):
        return orn.sample(guided, x_init=x, cond=cond, solver=solver, grid=orn.Uniform(), steps=steps).x.norm(dim=1)

    limit = 1.5 * radius(orn.DPMSolverPP(order=2), 100).max()

    def outliers(solver):
        return float((radius(solver) > limit).double().mean())

    plain = outliers(PNDM(4, "rising"))
    published = {"weights": "published", "start": "published"}
    general = [outliers(GHVB(4, beta=beta, **published)) for beta in (1.0, 0.5, 0.2)]
    assert plain > 0.3
    assert general[0] == plain
    assert general[1] < plain - 0.09
    assert general[2] < general[1] - 0.05
    assert outliers(HB(4, beta=0.5, **published)) < 0.02
    assert outliers(AdamsBashforth(4, start="published")) == 0


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_orders(process, world):
    check_order(world, process, GHVB(2, beta=0.8), 2, (40, 80, 160))
    if process == PROCESSES[0]:
        check_order(world, process, GHVB(4, beta=0.5), 4, (80, 160, 320))
        check_order(world, process, GHVB(1, beta=0.5), 1, (40, 80, 160))
        check_order(world, process, GHVB(2, beta=0.8, variable="t"), 2, (40, 80, 160))


def test_no_damping_is_the_base():
    for order in (1, 2, 3, 4):
        base = run("ring", orn.VP(), AdamsBashforth(order), 9)
        torch.testing.assert_close(run("ring", orn.VP(), GHVB(order, beta=1.0), 9), base, rtol=1e-10, atol=1e-10)
        base = run("ring", orn.VP(), AdamsBashforth(order, start="published"), 9)
        torch.testing.assert_close(run("ring", orn.VP(), HB(order, beta=1.0), 9), base, rtol=1e-10, atol=1e-10)
        pndm = run("ring", orn.VP(), PNDM(order, "rising"), 9)
        for solver in (GHVB, HB):
            published = solver(order, beta=1.0, weights="published", start="published")
            torch.testing.assert_close(run("ring", orn.VP(), published, 9), pndm, rtol=1e-10, atol=1e-10)


def test_the_numbers_are_the_papers_on_equal_steps():
    """((2 + b), -(2 - b))/2, ((18 + 5b), -(24 - 8b), (6 - b))/12, ((46 + 9b), -(78 - 19b), (42 - 5b), -(10 - b))/24,
    the expansion of (b + (1 - b) D)(1 + D/2 + 5/12 D^2 + 3/8 D^3) in backward differences D."""
    b, process = 0.7, orn.EDM(sigma_max=1.0)
    numbers = {
        2: [(2 + b) / 2, -(2 - b) / 2],
        3: [(18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12],
        4: [(46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24],
    }
    equal = process.level(torch.linspace(1.0, 0.5, 9, dtype=F64))
    unequal = process.level(torch.linspace(1.0, 0.5, 9, dtype=F64) ** 2)
    for order, expected in numbers.items():
        for grid, weights in ((equal, "exact"), (equal, "published"), (unequal, "published"), (unequal, "exact")):
            table = GHVB(order, beta=b, weights=weights, start="published").compile(process, grid)
            terms = table.rows[-2].terms
            found = [terms[Output(table.nfe - 1 - j, "noise")] for j in range(order)]
            assert terms[Register(len(table.rows) - 4)] == pytest.approx(1 - b)
            assert (found == pytest.approx(expected, rel=1e-9)) == (grid is equal or weights == "published")


def test_the_papers_numbers_lose_the_order_on_unequal_steps():
    for order in (3, 4):
        kept = GHVB(order, beta=0.8, weights="published")
        assert slopes(errors("ring", orn.VP(), kept, (160, 320)))[0] == pytest.approx(2, abs=0.2)
