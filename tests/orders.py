"""The protocol of orders of convergence, for worlds and processes that several tests share.

Both ends of the log-SNR range are finite, the reference is the worlds' own DOP853 over the same range. An order is the
slope of log2(error) over the finest two halvings; it may miss theory by 0.2, and all errors stay above 1e-9, four
digits above the reference's own.
"""

import functools
import itertools
import math

import pytest
import torch

import ornstein as orn
from worlds import F64, normal, ring

GRID = orn.LogSNR(start=-5.0, end=5.0, to_data=False)
MIDDLE = orn.LogSNR(start=0.0, end=5.0, to_data=False)
PROCESSES = [orn.VP(), orn.EDM(), orn.Flow(), orn.MeanReverting()]
STARTS = 16


def mixture(dim: int = 64) -> orn.exact.GaussianMixture:
    """Four modes of standard deviation 0.3 to 0.6 in 64 dimensions, their means 2 apart."""
    return orn.exact.GaussianMixture(
        normal(4, dim, seed=3) / math.sqrt(dim / 2),
        torch.tensor([0.3, 0.4, 0.5, 0.6], dtype=F64),
        torch.tensor([1.0, 2, 3, 4], dtype=F64),
    )


WORLDS = {"ring": ring(), "mixture": mixture()}


def condition(process, world, n=STARTS):
    """What the process needs besides: a mean for each sample."""
    return {"mean": normal(n, *world.event, seed=7)} if isinstance(process, orn.MeanReverting) else None


@functools.cache
def start_and_truth(name, process, grid=GRID):
    """States where the range begins, and where the exact flow takes them."""
    world, ends = WORLDS[name], grid(process, steps=1)
    cond = condition(process, world)
    x = process.corrupt(world.sample(STARTS, seed=0).to(F64), ends[0], cond=cond, noise=normal(STARTS, *world.event)).x
    return x, world.flow(process, x, ends[0], ends[1], rtol=1e-12, atol=1e-13, cond=cond)


@functools.cache
def compiled(process, solver, steps, grid):
    """A table, made once for all worlds."""
    return solver.compile(process, grid(process, steps=steps))


def run(name, process, solver, steps, grid=GRID):
    world, (x, _) = WORLDS[name], start_and_truth(name, process, grid)
    table = compiled(process, solver, steps, grid)
    return orn.sample(world.denoiser(process), x_init=x, table=table, cond=condition(process, world)).x


def errors(name, process, solver, steps, grid=GRID):
    """Median distance to the exact flow for each number of steps."""
    truth = start_and_truth(name, process, grid)[1]
    return [float((run(name, process, solver, n, grid) - truth).norm(dim=1).median()) for n in steps]


def slopes(found):
    return [math.log2(a / b) for a, b in itertools.pairwise(found)]


def check_order(name, process, solver, order, steps, grid=GRID):
    """The order of the protocol, or an AssertionError that shows the errors."""
    found = errors(name, process, solver, steps, grid)
    assert min(found) > 1e-9, found
    assert slopes(found) == pytest.approx([order] * (len(steps) - 1), abs=0.2), (found, slopes(found))
