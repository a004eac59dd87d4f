"""PNDM: Adams-Bashforth's numbers in DDIM's step."""

import pytest
import torch

import ornstein as orn
from orders import PROCESSES, WORLDS, check_order, compiled, errors, run, slopes
from ornstein.solvers import PNDM, AdamsBashforth
from ornstein.solvers.table import Output
from worlds import F64


class EqualSteps(orn.solvers.Grid):
    """Equal steps of sigma/alpha from 3 to 0.1: the grid for which the numbers are right."""

    def times(self, process, steps):
        return process.time(-2 * torch.linspace(3.0, 0.1, steps + 1, dtype=F64).log())

    def __hash__(self):
        return 1

    def __eq__(self, other):
        return isinstance(other, EqualSteps)


@pytest.mark.system("pndm", rival="DDIM, its first order")
def test_pndm():
    """Second order, as the paper proves, and 50 evaluations nearer to the flow than 1000 of DDIM."""
    process, steps = orn.VP(), (40, 80, 160)
    for solver in (PNDM(2), PNDM(4)):
        check_order("ring", process, solver, 2, steps)
    assert slopes(errors("ring", process, orn.DDIM(), steps)) == pytest.approx([1, 1], abs=0.2)

    # the first order is DDIM, to the last bit
    assert torch.equal(run("ring", process, PNDM(1), 9), run("ring", process, orn.DDIM(), 9))

    # On the quadratic grid that the paper offers, from the end law to data: with 50 evaluations (12 of them for the
    # first three steps, or none) nearer than DDIM with 1000; with 20, iPNDM 8 times nearer than DDIM with 20.
    grid = orn.Quadratic()
    for world in WORLDS.values():
        x = process.prior((16, *world.event), seed=0, dtype=F64)
        truth = world.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)

        def error(solver, steps, nfe, world=world, x=x, truth=truth):
            out = orn.sample(world.denoiser(process), x_init=x, table=compiled(process, solver, steps, grid))
            assert out.nfe == nfe
            return float((out.x - truth).norm(dim=1).median())

        many = error(orn.DDIM(), 1000, 1000)
        assert error(PNDM(4), 41, 50) < many
        assert error(PNDM(4, "rising"), 50, 50) < many
        assert error(orn.DDIM(), 50, 50) > 10 * many  # the rival
        assert error(PNDM(4, "rising"), 20, 20) < error(orn.DDIM(), 20, 20) / 8


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_second_order_on_unequal_steps(process, world):
    """The numbers of order 3 and 4 do not help there; the exact weights of Adams and Bashforth do."""
    check_order(world, process, PNDM(4, "rising"), 2, (40, 80, 160))
    if process == PROCESSES[0]:
        exact = slopes(errors(world, process, AdamsBashforth(4), (80, 160)))
        assert exact[0] > 3.7


def test_the_order_of_the_name_on_equal_steps():
    """With equal steps of sigma/alpha the method is Adams and Bashforth's of the order given."""
    for order in (2, 3, 4):
        found = slopes(errors("ring", orn.VP(), PNDM(order), (160, 320), EqualSteps()))
        assert found[0] == pytest.approx(order, abs=0.2)


def test_the_numbers():
    """noise' = (55 n0 - 59 n1 + 37 n2 - 9 n3)/24 in DDIM's step, row by row; and (3 n0 - n1)/2 second."""
    process = orn.VP()
    grid = orn.Uniform(start=0.9, end=0.1)(process, steps=6)
    table, rho = PNDM(4, "rising").compile(process, grid), grid.sigma / grid.alpha
    for n, numbers in ((1, (1.5, -0.5)), (2, (23 / 12, -16 / 12, 5 / 12)), (4, (55 / 24, -59 / 24, 37 / 24, -9 / 24))):
        for j, number in enumerate(numbers):
            found = table.rows[n + 1].terms[Output(n - j, "noise")]
            assert found == pytest.approx(float(number * grid.alpha[n + 1] * (rho[n + 1] - rho[n])), rel=1e-12)
    # the classical start, (n1 + 2 n2 + 2 n3 + n4)/6, visits the middle of the times twice
    table = PNDM(4).compile(process, grid)
    levels, width = table.levels, float(grid.alpha[1] * (rho[1] - rho[0]))
    row = next(row for row in table.rows[1:] if row.on_grid)
    for j, number in enumerate((1, 2, 2, 1)):
        assert row.terms[Output(j, "noise")] == pytest.approx(number / 6 * width, rel=1e-12)
    middle = (grid.t[0] + grid.t[1]) / 2
    assert levels.t[:4].tolist() == pytest.approx([float(v) for v in (grid.t[0], middle, middle, grid.t[1])])
