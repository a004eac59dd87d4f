"""The fine flow of a model from one level to another, for searches that compare single steps with it."""

from __future__ import annotations

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import Level
from ..random import as_noise
from ..solvers.loop import Loop
from ..solvers.sample import evaluation
from ..solvers.schedule_search import angle
from ..solvers.solver import Solver
from ..solvers.table import Table
from .found import compiled, times_at
from .lessons import process_of


def fine_step(
    denoiser: BaseDenoiser, x: Tensor, t: Level, s: Level, steps: int, solver: Solver, cond: Cond = None
) -> tuple[Tensor, int]:
    """X(x, t, s) by `steps` steps of a solver, even in atan2(sigma, alpha), in model units, and its cost a start."""
    first, last = float(angle(t)), float(angle(s))
    inner = torch.linspace(first, last, steps + 1, dtype=torch.float64)[1:-1].tolist()
    process = process_of(denoiser)
    table = compiled(solver, process, times_at(process, inner, float(t.t), float(s.t)))
    return run(denoiser, table, x, cond), sum(denoiser.cost(table.levels))


def run(denoiser: BaseDenoiser, table: Table, x: Tensor, cond: Cond = None) -> Tensor:
    """Where a table takes x, in model units."""
    noise = as_noise(0, batch=len(x), dtype=x.dtype, device=x.device)
    with evaluation(denoiser), torch.no_grad():
        out: Tensor = Loop(denoiser, table, x, cond).run(noise)
    return out
