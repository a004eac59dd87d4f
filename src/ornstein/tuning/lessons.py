"""Lessons: starts, and where the fine flow of a model takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..guidance import Guided
from ..numerics.tree import check_batch, tree_map
from ..processes import GaussianProcess, Level
from ..random import Seed, as_noise, generator
from ..solvers.grids import Grid, LogSNR
from ..solvers.loop import Loop, Moment
from ..solvers.sample import evaluation, sample
from ..solvers.schedule_search import FinePath, fine_path
from ..solvers.solver import Solver
from ..solvers.table import ProductTable, Table
from ..solvers.unipc import UniPC


@dataclass(frozen=True, eq=False)
class Lessons:
    """Pairs (x_b, X(x_b)): a start at the first level, and its endpoint under the fine flow of one model.

        endpoint_error(table) = sqrt(mean_b |table(x_b) - X(x_b)|^2 / d)

    denoiser: the model that taught, guidance and all: the tables are judged with it.
    starts, ends: (batch, *event), in model units, at the levels `start` and `end`.
    cond: the condition of each start, a nest of tensors with the batch first.
    evaluations: network evaluations that the lessons cost, all starts together, as the denoiser counts them.
    path: the fine trajectories (levels, states, x0), where they were asked for.

    A model at several guidance scales is one `Lessons` for each. Made by `teach`, or by hand where a better flow is
    known than a solver's (an exact world's).
    """

    denoiser: BaseDenoiser
    starts: Tensor
    ends: Tensor
    start: Level
    end: Level
    cond: Cond = None
    evaluations: int = 0
    path: FinePath | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        process_of(self.denoiser)
        if self.starts.shape != self.ends.shape:
            raise ValueError(f"starts of {tuple(self.starts.shape)} with ends of {tuple(self.ends.shape)}: one of each")
        check_batch(self.cond, len(self.starts))
        for name in ("starts", "ends"):
            if not bool(getattr(self, name).isfinite().all()):
                raise ValueError(f"the {name} of these lessons are not finite: the teacher diverges, take more steps")

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def process(self) -> GaussianProcess:
        return process_of(self.denoiser)

    def take(self, rows: Tensor) -> Lessons:
        """The lessons of some rows (n,) of the batch; `evaluations` stays what all of them cost."""
        if isinstance(self.denoiser, Guided) and torch.as_tensor(self.denoiser.scale).dim():
            raise ValueError(
                "a guidance scale for each start is not split with the starts: give one Lessons for each scale"
            )
        path = self.path
        if path is not None:
            path = FinePath(path.levels, path.states[:, rows], path.x0[:, rows])
        cond = tree_map(lambda leaf: leaf[rows], self.cond)
        return replace(self, starts=self.starts[rows], ends=self.ends[rows], cond=cond, path=path)

    def split(self, share: float = 0.25, seed: int = 0) -> tuple[Lessons, Lessons]:
        """(tuning, validation): a `share` of the starts, drawn by `seed`, is kept apart."""
        kept = round(share * len(self))
        if not 1 <= kept < len(self):
            raise ValueError(f"share={share} of {len(self)} starts leaves one side empty: teach more starts")
        rows = torch.randperm(len(self), generator=generator(seed)).to(self.starts.device)
        return self.take(rows[kept:]), self.take(rows[:kept])

    def run(self, table: Table | ProductTable, seed: Seed = 0) -> Tensor:
        """Where a table takes the starts, in model units; not finite where it diverges. `seed` is its noise."""
        self.check(table)
        noise = as_noise(seed, batch=len(self), dtype=self.starts.dtype, device=self.starts.device)
        with evaluation(self.denoiser), torch.no_grad():
            x: Tensor = Loop(self.denoiser, table, self.starts, self.cond).run(noise)
        return x

    def errors(self, table: Table | ProductTable, seed: Seed = 0) -> Tensor:
        """(batch,) float64: each start's distance between the table's endpoint and the flow's, the root mean square
        over the event."""
        apart = (self.run(table, seed) - self.ends).to("cpu", torch.float64)
        return apart.flatten(1).square().mean(1).sqrt()

    def endpoint_error(self, table: Table | ProductTable, seed: Seed = 0) -> float:
        """The root mean square of `errors`, infinite for a table that diverges."""
        error = float(self.errors(table, seed).square().mean().sqrt())
        return error if error < float("inf") else float("inf")

    def check(self, table: Table | ProductTable, ends: Sequence[str] = ("start", "end")) -> None:
        """Refuse a table of another process, or one that does not go from these starts to these ends."""
        table.check_process(self.process)
        for name in ends:
            own, other = getattr(self, name).t, getattr(table, name).t
            if not torch.allclose(own, other, rtol=0.0, atol=1e-9):
                raise ValueError(
                    f"this table ({table.solver}) has its {name} at t = {float(other):.6g}, the lessons at "
                    f"{float(own):.6g}: compile it on a grid from {float(self.start.t):.6g} to {float(self.end.t):.6g}"
                )


def teach(
    denoiser: BaseDenoiser,
    shape: Sequence[int] | None = None,
    *,
    x_init: Tensor | None = None,
    cond: Cond = None,
    seed: Seed = 0,
    solver: Solver | None = None,
    grid: Grid | None = None,
    steps: int = 100,
    path: bool = False,
    dtype: torch.dtype | None = None,
) -> Lessons:
    """Lessons of a model: its flow from t = 1, followed by a fine solver.

    Args:
        denoiser: any denoiser of one GaussianProcess; guided ones teach their guided flow.
        shape: (batch, *event) of starts drawn from the end law by `seed`, or `x_init`, the starts themselves.
        cond: any nest of tensors with the batch as their first axis.
        solver, grid, steps: the fine solver (default UniPC of order 3 with exact integrals) and its steps on `grid`
            (default `LogSNR()`); a teacher's error should be a tenth of the tuned table's.
        path: keep the trajectories, which costs an evaluation of each of their points.
        dtype: of the starts that are drawn, by default that of the denoiser's parameters.

    One set of lessons serves every budget and search. Raises ValueError for several components, NonFiniteError for a
    teacher that diverges.
    """
    process = process_of(denoiser)
    if x_init is None:
        if shape is None:
            raise ValueError("give the shape (batch, *event) of the starts to teach, or x_init")
        first = next(iter(denoiser.parameters()), None)
        own = torch.get_default_dtype() if first is None else first.dtype
        device = "cpu" if first is None else first.device
        x_init = process.prior(shape, seed=seed, cond=cond, dtype=dtype or own, device=device)
    solver, grid = solver or UniPC(order=3, variant="vary_coeff"), grid or LogSNR()
    levels: Level = grid(process, steps)
    batch = len(x_init)
    if path:
        fine = fine_path(denoiser, solver, grid, steps, x_init=x_init, cond=cond, seed=0)
        shift = process.shift(levels.t[-1], cond)
        ends = fine.states[-1] if shift is None else fine.states[-1] + shift
        table = solver.compile(process, levels)
        cost = sum(denoiser.cost(table.levels)) + sum(denoiser.cost(levels[:-1]))
        return Lessons(denoiser, x_init, ends, levels[0], levels[-1], cond, batch * cost, fine)
    last: list[Any] = [x_init]

    def keep(moment: Moment) -> None:  # model units, where the sampler returns the user's
        if moment.on_grid:
            last[0] = moment.x

    options: dict[str, Any] = {"solver": solver, "grid": levels, "x_init": x_init, "cond": cond, "seed": 0}
    out = sample(denoiser, **options, hooks=[keep], progress=False)
    return Lessons(denoiser, x_init, last[0], levels[0], levels[-1], cond, batch * out.nfe)


def process_of(denoiser: BaseDenoiser) -> GaussianProcess:
    """The process of a denoiser of one component."""
    if not isinstance(denoiser, BaseDenoiser):
        raise ValueError(f"tuning is for a denoiser, as orn.Denoiser(net, process): got {type(denoiser).__name__}")
    if not isinstance(denoiser.process, GaussianProcess):
        raise ValueError(f"tables are tuned for one GaussianProcess: {denoiser.process!r} is none")
    return denoiser.process
