"""A sampler as one program: network, table and all, in the graph of `torch.export`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..errors import TableError
from ..guidance import Guided
from ..numerics.tree import check_batch
from ..processes import GaussianProcess, Level
from ..random import Interval, Noise
from ..solvers import Grid, LogSNR, Solver, Table, UniPC
from ..solvers.grids import as_grid
from ..solvers.loop import Loop
from ..solvers.program import program_of
from ..solvers.sample import evaluation
from ..solvers.solver import compile_table


def export_sampler(
    model: BaseDenoiser,
    shape: Sequence[int],
    *,
    solver: Solver | None = None,
    grid: Grid | Level | Tensor | Sequence[float] | None = None,
    steps: int | None = None,
    table: Table | None = None,
    cond: Cond = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.export.ExportedProgram:
    """samples = program(x_init, noises, cond): r_m = sum A r_i + sum B P + sum C z, the loop of `orn.sample` unrolled.

        program = orn.interop.export_sampler(model, (4, 2), solver=orn.DDPM(), steps=20)
        x = program.module()(x_init, noises=noises)

    x_init (batch, *event) is the state at the first time, in model units; `noises` (count, batch, *event) are the
    standard normal numbers in the order in which they are drawn, and an argument only of solvers that draw some (the
    count is that of `program.example_inputs`); cond is an argument only where it is given here. The samples are those
    of `orn.sample(model, x_init=x_init, ...)`, in the user's units. The batch is free, the event's shape and the type
    of numbers are not. Noise of a seed is `noise = orn.Noise(seed, batch=n)`, `noise.normal((n, *event))` as often as
    counted.

    `torch.export.save` writes the program, and it runs wherever torch does, without this library. `torch.export.load`
    may unpickle parts of what it reads: load programs of people whom you trust; `orn.save` is for the others.

    Args:
        model: any denoiser; it is exported in evaluation mode, with the weights that it has.
        shape: (batch, *event); the batch is an example.
        solver, grid, steps, table, cond: as of `orn.sample`; cond is an example too, with the names and shapes to come.

    Raises TableError for rows that depend on the data, for times of each sample's own and for states of several
    components; ValueError for a model whose calls torch.export cannot follow.
    """
    process = model.process
    if not isinstance(process, GaussianProcess):
        raise TableError(f"{process!r} has states of several components: a program is for one tensor")
    if table is None:
        made = compile_table(solver or UniPC(), process, as_grid(LogSNR() if grid is None else grid, process)(steps))
        assert isinstance(made, Table)
        table = made
    elif any(option is not None for option in (solver, grid, steps)):
        raise ValueError("give a table, or solver, grid and steps to compile one: not both")
    else:
        table.check_process(process)
    if table.adaptive:
        raise TableError(f"{table.solver} has rows that depend on the data: run it by orn.sample, or choose another")
    if (
        table.start.shape != ()
        or not program_of(table, model.predicts, model.heads, hooked=False, recorded=False).plain
    ):
        raise TableError(
            f"{table.solver} has coefficients of each sample's own, or with a gradient: a program has floats"
        )
    batch, *event = shape
    check_batch(cond, batch)
    batch = max(batch, 2)  # a batch of one would be taken for a constant
    given: dict[str, Any] = {}
    count = len(table.noises)
    if count:
        given["noises"] = torch.zeros(count, batch, *event, dtype=dtype, device=device)
    if cond is not None:
        given["cond"] = _pytree.tree_map(lambda v: v[:1].repeat(batch, *[1] * (v.dim() - 1)), cond)
    free = torch.export.Dim("batch")
    axes: dict[str, Any] = {"x_init": {0: free}, "noises": {1: free}} | {
        "cond": _pytree.tree_map(lambda _: {0: free}, given.get("cond"))
    }
    x_init = torch.zeros(batch, *event, dtype=dtype, device=device)
    with evaluation(model), _decided(model, table), torch.no_grad():
        try:
            return torch.export.export(
                _Sampler(model, table),
                (x_init,),
                given,
                dynamic_shapes={name: axes[name] for name in ("x_init", *given)},
                strict=False,
            )
        except Exception as error:  # of many kinds, few of them public
            reason = " ".join(str(error).split())
            raise ValueError(
                f"torch.export cannot follow this {type(model).__name__} with {table.solver}: {reason:.300}. What a "
                "program may not do is to look at values of tensors (.item(), if x.max() > 1)"
            ) from error


class _Sampler(nn.Module):
    """The loop as a module."""

    def __init__(self, model: BaseDenoiser, table: Table) -> None:
        super().__init__()
        self.model, self.table = model, table

    def forward(self, x_init: Tensor, noises: Tensor | None = None, cond: Cond = None) -> Tensor:
        x: Tensor = Loop(self.model, self.table, x_init, cond).run(_Given(noises))
        scaling = self.model.scaling
        return x if scaling is None else scaling.decode(x)


class _Given(Noise):
    """Noise that is an argument, in the order of a table; without the generators of a stream."""

    def __init__(self, noises: Tensor | None) -> None:
        self._left = iter(() if noises is None else noises.unbind(0))

    def increment(self, shape: Any, interval: Interval) -> Tensor:  # a batch that is free is no int
        return next(self._left)


@contextmanager
def _decided(model: BaseDenoiser, table: Table) -> Iterator[None]:
    """Guidance that knows before the trace, where nothing can be looked at, at which levels it acts."""
    if not isinstance(model, Guided) or not table.nfe:
        yield
        return
    acts = model.acts(table.levels)
    model.__dict__["acts"] = lambda levels: acts
    try:
        yield
    finally:
        del model.__dict__["acts"]
