"""Parallel in time: all network calls of a sampler at once, again and again until they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..errors import NonFiniteError
from ..numerics.tree import like, parts, tree_map
from ..processes import Level, ProductLevel
from ..random import Interval, Noise, Seed
from .begin import begin
from .grids import Grid, LogSNR, as_grid
from .loop import Stepper
from .sample import Samples, evaluation, in_units
from .solver import Solver, compile_table
from .table import ProductTable, Table
from .unipc import UniPC


@dataclass(frozen=True)
class ParallelSamples(Samples):
    """What `sample_parallel` returns: `Samples`, and `rounds`, the network calls made one after another."""

    rounds: int = 0


def sample_parallel(
    denoiser: BaseDenoiser,
    shape: Any = None,
    *,
    window: int | None = None,
    block: int | None = None,
    tol: float = 1e-3,
    solver: Solver | Sequence[Solver] | None = None,
    grid: Grid | Level | ProductLevel | Tensor | Sequence[float] | None = None,
    steps: int | None = None,
    table: Table | ProductTable | None = None,
    x_init: State | None = None,
    cond: Cond = None,
    seed: Seed | Noise = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ParallelSamples:
    """The answers of a table's E evaluations as one triangular system, solved by fixed-point rounds:

        P_e <- evaluate(r_e(P_0, ..., P_(e-1)), tau_e)    for all e of a window at once,

    where r_e is the state that the rows make of the answers (and of noise drawn once). Answer e is right after e + 1
    rounds at the latest, so at tol = 0 the limit is the sequential answer, to rounding, in at most E rounds; where the
    rows carry the linear part of the flow, far fewer do. The states asked about are x/sqrt(alpha^2 + sigma^2); an
    answer is settled when all before it are and its state moved, in every sample, by a root mean square of `tol` at
    most since it was asked. The window then slides on. An answer not asked for yet is taken to be the last one known.

    Args:
        window: evaluations asked at once (default all): the batch of a call is up to window times as large.
        block: evaluations of a window asked at once, the blocks one after another with the newest answers: 1 is
            Gauss-Seidel, which needs one sweep, as sampling in sequence does; by default the window is one block.
        tol: 0 asks for the sequential answer.
        others: as `orn.sample`. Any solver, stochastic ones too.

    `rounds` counts calls made one after another, `nfe` all evaluations of a sample: more than the sequential run's. The
    answers of all evaluations are kept. One synchronisation a round. ValueError for bad options; NonFiniteError.

    Source: Shih et al. 2023, "Parallel Sampling of Diffusion Models" (2305.16317), algorithm 1, for Picard iteration
    over a sliding window; Song et al. 2020, "Accelerating Feedforward Computation via Parallel Nonlinear Equation
    Solving" (2002.03629), for Jacobi and Gauss-Seidel iteration of a triangular system.
    """
    for name, count in (("window", window), ("block", block)):
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}: at least one evaluation is asked at once")
    if not tol >= 0:
        raise ValueError(f"tol={tol}: a change allowed is not negative; 0 asks for the sequential answer")
    if table is None:
        make = as_grid(LogSNR() if grid is None else grid, denoiser.process)
        table = compile_table(solver or UniPC(), denoiser.process, make(steps))
    elif any(option is not None for option in (solver, grid, steps)):
        raise ValueError("give a table, or solver, grid and steps to compile one: not both")
    else:
        table.check_process(denoiser.process)
    if isinstance(table, Table) and len(table.components) > 1:
        raise ValueError(f"{denoiser.process!r} mixes components by matrices: sample it step by step, by orn.sample")
    x, noise = begin(denoiser, shape, x_init, table.start.t, cond, seed, dtype, device)
    if table.start.shape not in ((), (1,), (len(parts(x)[0]),)):
        raise ValueError(f"the grid has times for {len(table.start)} samples, the batch is {len(parts(x)[0])}")
    with evaluation(denoiser), torch.no_grad():
        system = _System(denoiser, table, x, cond, noise)
        width = table.nfe if window is None else window
        while system.settled < table.nfe:
            # the first state is known, and its answer is a guess for the others
            stop = min(system.settled + width, table.nfe) if system.rounds else 1
            system.sweep(stop, width if block is None else block)
            system.settle(stop, tol)
        x = system.finish()
    if not all(bool(part.isfinite().all()) for part in parts(x)):
        raise NonFiniteError("the samples are not finite: orn.sample(..., debug=True) with this table names the step")
    return ParallelSamples(in_units(denoiser, x), system.nfe, noise.seed, table, rounds=system.rounds)


class _System:
    """The answers known so far, the states they were given for, and how many are settled."""

    def __init__(self, denoiser: BaseDenoiser, table: Table | ProductTable, x: State, cond: Cond, noise: Noise) -> None:
        self.denoiser, self.cond, self.batch = denoiser, cond, len(parts(x)[0])
        self.levels, self.cost = table.levels, denoiser.cost(table.levels) if table.nfe else []
        self.stepper = Stepper(table, denoiser.process, denoiser.predicts, x, cond, heads=denoiser.heads)
        self.noise = _Kept(noise)
        self.asked: list[State] = []
        self.answers: list[Any] = []
        self.settled = self.rounds = self.nfe = 0

    def states(self, stop: int) -> list[State]:
        """The states that the answers known now make of the first `stop` evaluations."""
        self.noise.rewind()
        stream, found = self.stepper.stream(self.noise), []
        index, x = next(stream)
        while True:
            found.append(x)
            if len(found) == stop:
                stream.close()
                return found
            index, x = stream.send(self.answers[min(index, len(self.answers) - 1)])

    def sweep(self, stop: int, block: int) -> None:
        """Ask about the states of evaluations from the first unsettled to `stop`, block by block."""
        for low in range(self.settled, stop, block):
            high = min(low + block, stop)
            states = self.states(high)[low:]
            levels = _spread(self.levels[list(range(low, high))], self.batch)
            x = like(states[0], [torch.cat(part) for part in zip(*map(parts, states), strict=True)])
            copies = high - low
            cond = tree_map(partial(_repeat, copies), self.cond)
            output = self.denoiser.bind(levels, x, cond)[0](x)
            self.asked[low:high] = states
            self.answers[low:high] = [tree_map(partial(_part, i, copies), output) for i in range(copies)]
            self.rounds += 1
            self.nfe += sum(self.cost[low:high])

    def settle(self, stop: int, tol: float) -> None:
        """Pass over the evaluations whose states have not moved since they were asked about."""
        levels, changes = self.levels, []
        for e, x in enumerate(self.states(stop)):
            if e < self.settled:
                continue
            moved = []
            for level, new, old in zip(_components(levels[e]), parts(x), parts(self.asked[e]), strict=True):
                size = (new - old).flatten(1).square().mean(1).sqrt()
                moved.append((size / torch.hypot(level.alpha, level.sigma).to(size)).max())
            changes.append(torch.stack(moved).max())
        within = torch.stack(changes) <= tol
        self.settled += max(1, int(within.cumprod(0).sum()))  # the first is right, or not a number

    def finish(self) -> State:
        """The last state."""
        self.noise.rewind()
        stream = self.stepper.stream(self.noise)
        try:
            index, _ = next(stream)
            while True:
                index, _ = stream.send(self.answers[index])
        except StopIteration as stop:
            return stop.value


class _Kept(Noise):
    """A stream whose numbers are drawn once and given again after each `rewind`."""

    def __init__(self, source: Noise) -> None:
        self.source, self.drawn, self.position = source, list[Tensor](), 0

    def rewind(self) -> None:
        self.position = 0

    def increment(self, shape: Sequence[int], interval: Interval) -> Tensor:
        if self.position == len(self.drawn):
            self.drawn.append(self.source.increment(shape, interval))
        self.position += 1
        return self.drawn[self.position - 1]


def _repeat(copies: int, leaf: Tensor) -> Tensor:
    return leaf.repeat(copies, *(1,) * (leaf.dim() - 1))


def _part(i: int, copies: int, leaf: Tensor) -> Tensor:
    return leaf.chunk(copies)[i]


def _components(level: Level | ProductLevel) -> Sequence[Level]:
    return level.components if isinstance(level, ProductLevel) else (level,)


def _spread(levels: Any, batch: int) -> Any:
    """Levels (n,) or (n, batch) as those of one call on n times the batch, (1, n batch)."""
    if isinstance(levels, ProductLevel):
        return ProductLevel(tuple(_spread(level, batch) for level in levels.components))
    values = [getattr(levels, f.name) for f in fields(levels)]
    return Level(*(v.reshape(len(v), -1).expand(-1, batch).reshape(1, -1) for v in values))
