"""Sampling: a denoiser, a solver, a grid and a seed."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .._types import Cond, State
from ..denoiser import BaseDenoiser, Scaling
from ..errors import NonFiniteError
from ..numerics.tree import like, parts
from ..processes import Binomial, Interpolant, Level, PhaseSpace, Process, ProductLevel, Reflected, check_times_of
from ..progress import bar
from ..random import Noise, Seed
from .begin import begin
from .binomial import BinomialAncestral
from .deis import DEIS
from .grids import Grid, LogSNR, Uniform, as_grid
from .heun import Heun
from .loop import Hook, Loop, Recorder
from .solver import Solver, compile_table, steps_within
from .table import ProductTable, Table
from .unipc import UniPC


@runtime_checkable
class Checked(Protocol):
    """A table with what it was made for, as `orn.TunedTable`."""

    def check(self, model: BaseDenoiser) -> Table:
        """The table, if it may be run with this model."""


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    x: the samples (batch, *event), in the user's units.
    nfe: network evaluations a sample that were run, guidance branches and gradient passes counted.
    seed: what repeats the run; a generator that was given has moved on.
    table: what was run, None for samplers that are none.
    trajectory: if asked for, the states at all points of the grid, (steps + 1, batch, *event), in the user's units.
    error: where the table carries an embedded estimate, each sample's distance to the exact flow, (batch,): the root
        mean square over the event, in the user's units.
    reason: where a tolerance was asked for and not reached, why.
    """

    x: State
    nfe: int
    seed: Any
    table: Table | ProductTable | None = field(repr=False)
    trajectory: State | None = field(default=None, repr=False)
    error: State | None = None
    reason: str | None = None


def sample(
    denoiser: BaseDenoiser,
    shape: Any = None,
    *,
    solver: Solver | Sequence[Solver] | None = None,
    grid: Grid | Level | ProductLevel | Tensor | Sequence[float] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    tol: float | None = None,
    table: Table | ProductTable | Checked | None = None,
    x_init: State | None = None,
    cond: Cond = None,
    seed: Seed | Noise = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    trajectory: bool = False,
    hooks: Sequence[Hook] = (),
    differentiable: bool = False,
    progress: bool | None = None,
    debug: bool = False,
    recorder: Recorder | None = None,
) -> Samples:
    """Carry x from the grid's first time, drawn from the end law or given, to its last.

    Args:
        denoiser: any denoiser; its network is used in evaluation mode.
        shape: (batch, *event), a named tuple of shapes for a product process; not needed with `x_init`.
        solver: what compiles the table (see `default_solver`); one a component for a product process.
        grid: a grid (see `default_grid`), or its times from first to last.
        steps, nfe: the number of steps (default 20), or a budget of evaluations to stay within.
        tol: the distance to the exact flow, a root mean square over the event in the user's units, that nine samples in
            ten are to keep by estimate: the steps are doubled until they do, within the budget `nfe` (default 1000).
            The estimate is `error`, all evaluations are counted; where the budget does not reach the tolerance,
            `reason` says so and a warning is given. See `choose_steps`.
        table: a compiled or tuned table, instead of solver, grid and steps.
        x_init: the state at the table's first time, in model units.
        cond: any nest of tensors with the batch as their first axis.
        seed: an int, a generator, one seed a sample, or a stream such as a `BrownianPath` (see `orn.Noise`).
        dtype, device: of the state, by default those of `x_init`, else of the denoiser's parameters.
        trajectory: keep the states at the grid's points; otherwise memory does not grow with steps.
        hooks: called after every row of the table with a `Moment`; may replace the state.
        differentiable: run with gradients, each evaluation checkpointed.
        progress: a bar on stderr, by default where that is a terminal.
        debug: look for NaN after every row instead of once at the end.
        recorder: see `orn.record`.

    Raises:
        ValueError: for shapes, conditions, grids, tables or budgets that do not fit, before anything runs.
        NonFiniteError: if the result is not finite; the run is replayed with the same noise to name the step.
    """
    if tol is not None:
        from .error import choose_steps  # which runs this

        if steps is not None or table is not None or recorder is not None:
            raise ValueError("tol chooses the steps: give it with nfe, a budget, but not with steps, table or recorder")
        own: dict[str, Any] = {"solver": solver, "grid": grid, "x_init": x_init, "cond": cond, "seed": seed}
        own |= {"dtype": dtype, "device": device, "trajectory": trajectory, "hooks": hooks}
        own |= {"differentiable": differentiable, "progress": progress, "debug": debug}
        chosen = choose_steps(denoiser, shape, tol=tol, max_nfe=1_000 if nfe is None else nfe, **own)
        if chosen.reason is not None:
            warnings.warn(chosen.reason, stacklevel=2)
        return replace(chosen.samples, reason=chosen.reason)
    if table is None:
        solver = solver or default_solver(denoiser.process)
        make = as_grid(default_grid(denoiser.process) if grid is None else grid, denoiser.process)
        if steps is not None and nfe is not None:
            raise ValueError("give steps or nfe, not both")
        if nfe is not None:
            if grid is not None and not isinstance(grid, Grid):
                raise ValueError("these times know their number of steps: nfe chooses one for a grid like orn.LogSNR()")
            steps = steps_within(nfe, solver, denoiser, make)
        table = compile_table(solver, denoiser.process, make(steps))
    elif any(option is not None for option in (solver, grid, steps, nfe)):
        raise ValueError("give a table, or solver, grid, steps or nfe to compile one: not both")
    elif isinstance(table, Checked):
        table = table.check(denoiser)
    else:
        table.check_process(denoiser.process)

    start, noise = begin(denoiser, shape, x_init, table.start.t, cond, seed, dtype, device)
    batch = len(parts(start)[0])
    if table.start.shape[:1] not in ((), (1,), (batch,)):
        raise ValueError(f"the grid has times for {len(table.start)} samples, the batch is {batch}")
    for part in parts(start):
        check_times_of(table.start.shape, part.shape)
    kept = list[State]()
    if trajectory:
        kept.append(start)
        hooks = (*hooks, lambda moment: kept.append(moment.x) if moment.on_grid else None)
    show = progress if progress is not None else sys.stderr.isatty() and table.steps >= 10
    with evaluation(denoiser), torch.set_grad_enabled(differentiable):
        loop = Loop(denoiser, table, start, cond, differentiable=differentiable, hooks=hooks, recorder=recorder)
        with bar(table.steps, "sampling", show) as tick:
            x = loop.run(noise, debug=debug, tick=tick if show else None)
        if not all(bool(part.isfinite().all()) for part in parts(x)):
            loop.x, _ = begin(denoiser, shape, x_init, table.start.t, cond, noise, dtype, device)
            loop.run(noise, debug=True)
            raise NonFiniteError(
                "the samples are not finite, but a replay with the same noise is: the network or a hook is random"
            )
        path = None
        if trajectory:
            states = [in_units(denoiser, state) for state in kept]
            path = like(states[0], [torch.stack(column) for column in zip(*map(parts, states), strict=True)])
        error = None
        if loop.error:
            std = denoiser.scaling.std if isinstance(denoiser.scaling, Scaling) else torch.ones(())
            rms = [(part * std.to(part)).flatten(1).square().mean(1).sqrt() for part in loop.error]
            error = like(x, rms)
        return Samples(in_units(denoiser, x), loop.nfe, noise.seed, table, path, error)


def default_solver(process: Process) -> Solver:
    """UniPC of order 2; DEIS in phase space, Heun's method in t where a process has no x0, and for zeros and ones
    their own."""
    if isinstance(process, Binomial):
        return BinomialAncestral()
    if isinstance(process, PhaseSpace):
        return DEIS()
    return UniPC() if "x0" in getattr(process, "readable", ("x0",)) else Heun(variable="t")


def default_grid(process: Process) -> Grid:
    """`LogSNR()`; equal steps of t between two laws with noise of their own, in a box and for zeros and ones."""
    return Uniform() if isinstance(process, (Interpolant, Reflected, Binomial)) else LogSNR()


def in_units(denoiser: BaseDenoiser, state: State) -> State:
    """The data of a state, in the user's units."""
    data = denoiser.process.data_of(state)
    return data if denoiser.scaling is None else like(data, [denoiser.scaling.decode(part) for part in parts(data)])


@contextmanager
def evaluation(denoiser: nn.Module) -> Iterator[None]:
    """Evaluation mode for every module that was training, and back again."""
    training = [module for module in denoiser.modules() if module.training]
    denoiser.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
