"""Sampling: a denoiser, a solver, a grid and a seed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser, Scaling
from ..errors import NonFiniteError
from ..numerics.tree import check_batch, like, parts
from ..processes import Level, ProductLevel
from ..progress import bar
from ..random import Noise, Seed, as_noise
from .dpm_solver import DPMSolverPP
from .grids import Grid, LogSNR, as_grid
from .loop import Hook, Loop, Recorder
from .solver import Solver, compile_table, steps_within
from .table import ProductTable, Table


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    x: the samples (batch, *event), in the user's units.
    nfe: network evaluations a sample that were run, guidance branches and gradient passes counted.
    seed: what repeats the run; a generator that was given has moved on.
    table: what was run.
    trajectory: if asked for, the states at all points of the grid, (steps + 1, batch, *event), in the user's units.
    error: where the table carries an embedded estimate, each sample's distance to the exact flow, (batch,): the root
        mean square over the event, in the user's units.
    """

    x: State
    nfe: int
    seed: Any
    table: Table | ProductTable
    trajectory: State | None = None
    error: State | None = None


def sample(
    denoiser: BaseDenoiser,
    shape: Any = None,
    *,
    solver: Solver | Sequence[Solver] | None = None,
    grid: Grid | Level | ProductLevel | Tensor | Sequence[float] | None = None,
    steps: int | None = None,
    nfe: int | None = None,
    table: Table | ProductTable | None = None,
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
        solver: what compiles the table (default DPM-Solver++ of order 2); one a component for a product process.
        grid: a grid (default `LogSNR()`), or its times from first to last.
        steps, nfe: the number of steps (default 20), or a budget of evaluations to stay within.
        table: a compiled table, instead of solver, grid and steps.
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
    if not all(isinstance(part, Tensor) for part in parts(x_init)) and x_init is not None:
        raise ValueError(f"x_init is a tensor, or a named tuple of tensors: got {type(x_init).__name__}")
    if table is None:
        solver, make = solver or DPMSolverPP(), as_grid(LogSNR() if grid is None else grid, denoiser.process)
        if steps is not None and nfe is not None:
            raise ValueError("give steps or nfe, not both")
        if nfe is not None:
            if grid is not None and not isinstance(grid, Grid):
                raise ValueError("these times know their number of steps: nfe chooses one for a grid like orn.LogSNR()")
            steps = steps_within(nfe, solver, denoiser, make)
        table = compile_table(solver, denoiser.process, make(steps))
    elif any(option is not None for option in (solver, grid, steps, nfe)):
        raise ValueError("give a table, or solver, grid, steps or nfe to compile one: not both")
    else:
        table.check_process(denoiser.process)

    first = parts(x_init)[0] if x_init is not None else next(iter(denoiser.parameters()), None)
    dtype = dtype or (torch.get_default_dtype() if first is None else first.dtype)
    device = device or ("cpu" if first is None else first.device)
    shapes = _shapes(shape, x_init)
    batch = parts(shapes)[0][0] if hasattr(shapes, "_fields") else shapes[0]
    check_batch(cond, batch)
    if not dtype.is_floating_point:
        raise ValueError(f"a state is of floating point: got {dtype}")
    if table.start.shape not in ((), (1,), (batch,)):
        raise ValueError(f"the grid has times for {len(table.start)} samples, the batch is {batch}")
    if x_init is None and float(table.start.t.min()) < 1:
        raise ValueError(f"the grid starts at t = {float(table.start.t.min()):.4g}: give x_init, the state there")
    noise = as_noise(seed, batch=batch, dtype=dtype, device=device)

    def begin() -> State:
        noise.rewind()
        if x_init is None:
            return denoiser.process.prior(shapes, seed=noise, cond=cond)
        return like(x_init, [part.to(device=device, dtype=dtype) for part in parts(x_init)])

    start, kept = begin(), list[State]()
    if trajectory:
        kept.append(start)
        hooks = (*hooks, lambda moment: kept.append(moment.x) if moment.on_grid else None)
    show = progress if progress is not None else sys.stderr.isatty() and table.steps >= 10
    with evaluation(denoiser), torch.set_grad_enabled(differentiable):
        loop = Loop(denoiser, table, start, cond, differentiable=differentiable, hooks=hooks, recorder=recorder)
        with bar(table.steps, "sampling", show) as tick:
            x = loop.run(noise, debug=debug, tick=tick if show else None)
        if not all(bool(part.isfinite().all()) for part in parts(x)):
            loop.x = begin()
            loop.run(noise, debug=True)
            raise NonFiniteError(
                "the samples are not finite, but a replay with the same noise is: the network or a hook is random"
            )
        decode = (lambda v: v) if denoiser.scaling is None else denoiser.scaling.decode
        path = None
        if trajectory:
            path = like(x, [torch.stack([decode(parts(s)[c]) for s in kept]) for c in range(len(parts(x)))])
        error = None
        if loop.error:
            std = denoiser.scaling.std if isinstance(denoiser.scaling, Scaling) else torch.ones(())
            rms = [(part * std.to(part)).flatten(1).square().mean(1).sqrt() for part in loop.error]
            error = like(x, rms)
        return Samples(like(x, [decode(part) for part in parts(x)]), loop.nfe, noise.seed, table, path, error)


def _shapes(shape: Any, x_init: State | None) -> Any:
    if x_init is None:
        if shape is None:
            raise ValueError("give the shape (batch, *event) of the samples, or x_init")
        for part in shape if hasattr(shape, "_fields") else (shape,):
            if not isinstance(part, (tuple, list)) or not part or not all(isinstance(n, int) and n >= 0 for n in part):
                raise ValueError(f"a shape is (batch, *event), whole numbers, one such for each component: got {shape}")
        return shape if hasattr(shape, "_fields") else tuple(shape)
    own = like(x_init, [tuple(part.shape) for part in parts(x_init)])
    if len({part.shape[0] for part in parts(x_init)}) > 1:
        raise ValueError(f"the components of x_init have different batches: {own}")
    if shape is not None and own != (shape if hasattr(shape, "_fields") else tuple(shape)):
        raise ValueError(f"x_init has shape {own}, but shape={shape}")
    return own


@contextmanager
def evaluation(denoiser: BaseDenoiser) -> Iterator[None]:
    """Evaluation mode for every module that was training, and back again."""
    training = [module for module in denoiser.modules() if module.training]
    denoiser.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
