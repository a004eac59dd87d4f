"""What a step costs around the network: ATen calls counted for every solver, none of them a wait for the device."""

import inspect
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn
from ornstein.processes import PSLD
from ornstein.solvers import Loop, Solver
from ornstein.solvers.table import Output
from phases import ALONE
from worlds import F64, normal, ring

STEPS, BATCH = 20, 16
FLOW = orn.Flow()
GRID = orn.LogSNR(start=-4.0, end=6.0, to_data=False)
PHASE_SOLVERS = [
    orn.DDIM(),
    orn.DEIS(order=2),
    orn.Euler(),
    orn.Heun("t"),
    orn.EulerMaruyama(),
    orn.solvers.Conjugate(1.0),
    orn.solvers.ReducedSymplecticEuler(),
    orn.solvers.Splitting(),
    orn.solvers.Splitting("OBA"),
]
# those that need an argument
GIVEN = {
    "DPMSolverV3": lambda: orn.solvers.DPMSolverV3().calibrate(
        ring().denoiser(FLOW), ring().sample(50, seed=0).to(F64), points=8
    ),
    "Doubled": lambda: orn.solvers.Doubled(orn.DDIM()),
    "Embedded": lambda: orn.solvers.Embedded(orn.DDIM()),
}


def table_solvers():
    """Every solver class that is exported, not the base, and serves a process of scalars."""
    found = {name: getattr(orn.solvers, name) for name in orn.solvers.__all__}
    return {
        name: value
        for name, value in found.items()
        if inspect.isclass(value) and issubclass(value, Solver) and value is not Solver and name not in ALONE
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


VIEWS = ("x0", "noise", "velocity", "v", "score")


@pytest.mark.parametrize("name", table_solvers())
def test_calls_are_bounded_by_the_coefficients(name):
    """Whatever the network predicts: at most one call for each coefficient of the table and six more a step, noise and
    conversions among them, and none that waits for the device. The network's own call is no call of the loop."""
    solver = make(name)
    for predicts in VIEWS:
        table, _, count = run(solver, predicts)
        assert sum(count.calls[sync] for sync in Count.SYNC) == 0
        assert 0 < count.calls.total() - table.nfe <= table.nonzeros + 6 * table.steps, predicts


class Halves(Linear):
    """z/2, one ATen call for each component."""

    def __init__(self, predicts):
        super().__init__(predicts)
        self.process = PSLD()

    def bind(self, levels, x, cond):
        return [lambda z: type(z)(z.position * 0.5, z.momentum * 0.5)] * len(levels)


@pytest.mark.parametrize("solver", PHASE_SOLVERS, ids=repr)
def test_calls_in_phase_space(solver):
    """The same where coefficients are matrices of 2 x 2 terms, and a view two of them: of the state, of the answer."""
    process = PSLD()
    table = solver.compile(process, orn.LogSNR(end=5.0, to_data=False)(process, steps=STEPS))
    for predicts in process.views:
        with torch.no_grad():
            loop = Loop(Halves(predicts), table, process.prior((BATCH, 2), seed=0, dtype=F64))
            noise = orn.Noise(0, batch=BATCH, dtype=F64)
            with Count() as count:
                loop.run(noise)
        assert sum(count.calls[sync] for sync in Count.SYNC) == 0
        views = sum(isinstance(atom, Output) for row in table.rows for atom in row.terms)
        assert 0 < count.calls.total() - 2 * table.nfe <= table.nonzeros + 4 * views + 6 * table.steps, predicts


@pytest.mark.parametrize("name", table_solvers())
def test_all_views_give_the_same_samples(name):
    """One law, read as each view by a network that predicts each view: formed or folded, the same to rounding. In
    log-SNR -4 to 6 alpha, sigma >= 1e-2, so a view loses two digits at most; 1e-9 leaves five for the chaos of
    the flow between modes."""
    table, x, found = make(name).compile(FLOW, GRID(FLOW, steps=STEPS)), normal(BATCH, 2), []
    for predicts in VIEWS:
        found.append(Loop(ring().denoiser(FLOW, predicts), table, x).run(orn.Noise(0, batch=BATCH, dtype=F64)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


def test_the_bound_would_notice_a_conversion_a_step():
    """A loop that forms views beside the table, in a few calls and with a wait, breaks the bound."""

    class Wasteful(Linear):
        def bind(self, levels, x, cond):
            return [lambda x: (x * (x * 2).sum().item() + x - x + x - x) * 0.5] * len(levels)

    table, _, count = run(orn.DDIM(), "x0", Wasteful)
    assert count.calls.total() - table.nfe > table.nonzeros + 6 * table.steps
    assert sum(count.calls[name] for name in Count.SYNC) == STEPS
