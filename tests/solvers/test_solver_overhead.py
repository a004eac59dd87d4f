"""What a step costs around the network: ATen calls counted for every solver, none of them a wait for the device."""

import inspect
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn
from ornstein.solvers import Loop, Solver
from ornstein.solvers.program import Combine
from ornstein.solvers.table import Output
from worlds import F64, normal, ring

STEPS, BATCH = 20, 16
FLOW = orn.Flow()
GRID = orn.LogSNR(start=-4.0, end=6.0, to_data=False)
# those that need an argument
GIVEN = {
    "DPMSolverV3": lambda: orn.solvers.DPMSolverV3().calibrate(
        ring().denoiser(FLOW), ring().sample(50, seed=0).to(F64), points=8
    ),
    "Doubled": lambda: orn.solvers.Doubled(orn.DDIM()),
    "Embedded": lambda: orn.solvers.Embedded(orn.DDIM()),
}


def table_solvers():
    """Every solver class that is exported and not the base."""
    found = {name: getattr(orn.solvers, name) for name in orn.solvers.__all__}
    return {
        name: value
        for name, value in found.items()
        if inspect.isclass(value) and issubclass(value, Solver) and value is not Solver
    }


class Linear(orn.BaseDenoiser):
    """x/2, one ATen call, whatever is asked for."""

    def __init__(self, predicts):
        super().__init__()
        self.process, self.predicts = FLOW, predicts

    def bind(self, levels, x, cond):
        return [lambda x: x * 0.5] * len(levels)


class Count(TorchDispatchMode):
    SYNC = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item")

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def run(solver, predicts, wrap=Linear):
    """(table, loop, count) of a run around a network of one call."""
    table = solver.compile(FLOW, GRID(FLOW, steps=STEPS))
    with torch.no_grad():
        loop = Loop(wrap(predicts), table, normal(BATCH, 2))
        noise = orn.Noise(0, batch=BATCH, dtype=F64)
        with Count() as count:
            loop.run(noise)
    return table, loop, count


def make(name):
    return GIVEN[name]() if name in GIVEN else table_solvers()[name]()


def read_by(table):
    """The view that most coefficients of a table multiply."""
    views = Counter(atom.view for row in table.rows for atom in row.terms if isinstance(atom, Output))
    return views.most_common(1)[0][0]


def arrays(table):
    """Coefficients that are tensors: a product and a sum each, where a number takes one call for both."""
    return sum(isinstance(c, torch.Tensor) and c.dim() > 0 for row in table.rows for c in row.terms.values())


@pytest.mark.parametrize("name", table_solvers())
def test_calls_are_bounded_by_the_coefficients(name):
    """With a network that predicts what the table reads: at most one call for each coefficient and six more a step,
    the network's own among them, and none that waits for the device."""
    solver = make(name)
    table, _, count = run(solver, read_by(solver.compile(FLOW, GRID(FLOW, steps=STEPS))))
    assert sum(count.calls[sync] for sync in Count.SYNC) == 0
    assert table.nfe <= count.calls.total() <= table.nonzeros + arrays(table) + 6 * table.steps


@pytest.mark.parametrize("name", table_solvers())
def test_another_view_costs_its_coefficients_only(name):
    """A network that predicts the velocity: conversions are coefficients of the program that is run, nothing beside."""
    table, loop, count = run(make(name), "velocity")
    assert sum(count.calls[sync] for sync in Count.SYNC) == 0
    terms = [step.terms for step in loop._program.steps if isinstance(step, Combine)]
    tensors = sum(isinstance(c, torch.Tensor) for row in terms for _, c in row)
    inputs = sum(len(row.inputs) for row in table.rows)
    assert table.nfe <= count.calls.total() <= sum(map(len, terms)) + tensors + inputs + 6 * table.steps


def test_the_bound_would_notice_a_conversion_a_step():
    """A loop that forms views beside the table, in a few calls and with a wait, breaks the bound."""

    class Wasteful(Linear):
        def bind(self, levels, x, cond):
            return [lambda x: (x * (x * 2).sum().item() + x - x + x - x) * 0.5] * len(levels)

    table, _, count = run(orn.DDIM(), "x0", Wasteful)
    assert count.calls.total() > table.nonzeros + 6 * table.steps
    assert sum(count.calls[name] for name in Count.SYNC) == STEPS
