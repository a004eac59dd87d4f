"""Few-step recipes: the solver and the times that come closest to the fine flow within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import GaussianProcess
from ..random import Seed
from .ddim import DDIM
from .dpm_solver import DPMSolverPP
from .grids import CosineGrid, Grid, Karras, LogSNR
from .sample import sample
from .schedule_search import Calibrated, angle, cheapest_paths, coordinate_descent, fine_path, gaussian, jump_costs
from .solver import Solver, steps_within


@dataclass(frozen=True)
class Recipe:
    """What a search found; it runs as `sample(denoiser, shape, solver=r.solver, grid=r.grid, steps=r.steps)`.

    error: root mean square distance to the fine flow's endpoint on the warm-up starts, in model units.
    """

    solver: Solver
    grid: Calibrated
    steps: int
    error: float


@dataclass(frozen=True)
class FewStep:
    """(solver, t_1 > ... > t_(N-1)) = argmin mean |x_N(x_init) - X(x_init, 1, 0)|, X by a fine solver, training-free.

    The truncation error of single jumps along fine trajectories (see `jump_costs`) gives the first placement, beside
    the closed-form grids; from the best one each time is moved in turn while the error at the endpoint falls. All
    candidates spend at most `nfe` evaluations a sample.

    Args:
        nfe: the budget.
        solvers: what may be chosen; deterministic ones.
        grids: closed-form starts of the search.
        fine_steps: steps of the reference, on `fine` with `teacher`.
        sweeps: passes over all times.

    Source: after Li 2025, "Hyperparameters are all you need" (2510.02390), which analyses truncation errors to place
    steps, and Chen et al. 2024 (2405.11326). The descent is ours; the paper's changes to the U-Net are not in it.
    """

    nfe: int = 6
    solvers: tuple[Solver, ...] = (DPMSolverPP(order=2), DPMSolverPP(order=3, start="published"), DDIM())
    grids: tuple[Grid, ...] = (LogSNR(), Karras(), CosineGrid())
    fine: Grid = field(default_factory=LogSNR)
    fine_steps: int = 80
    teacher: Solver = field(default_factory=DPMSolverPP)
    sweeps: int = 12

    def __post_init__(self) -> None:
        if self.nfe < 2 or self.fine_steps <= self.nfe:
            raise ValueError(
                f"nfe={self.nfe}, fine_steps={self.fine_steps}: a budget of at least 2, below the fine steps"
            )
        if not self.solvers:
            raise ValueError("solvers is empty: name at least one to choose from")

    def calibrate(
        self,
        denoiser: BaseDenoiser,
        shape: Sequence[int] | None = None,
        *,
        x_init: Tensor | None = None,
        cond: Cond = None,
        seed: Seed = None,
    ) -> Recipe:
        """The recipe for this denoiser, from warm-up samples of `shape` (batch, *event) or from `x_init`."""
        process = gaussian(denoiser)
        path = fine_path(denoiser, self.teacher, self.fine, self.fine_steps, shape, x_init=x_init, cond=cond, seed=seed)
        cost, times = jump_costs(path), path.levels.t.tolist()
        start, truth = path.states[0], path.states[-1]
        if (shift := process.shift(path.levels.t[0], cond)) is not None:
            start = start + shift
        if (shift := process.shift(path.levels.t[-1], cond)) is not None:
            truth = truth + shift
        if denoiser.scaling is not None:
            truth = denoiser.scaling.decode(truth)
        best: Recipe | None = None
        for solver in self.solvers:

            def error(points: list[float], solver: Solver = solver) -> float:
                out = sample(
                    denoiser,
                    x_init=start,
                    cond=cond,
                    seed=0,
                    solver=solver,
                    grid=_times(process, points),
                    progress=False,
                )
                return float((out.x - truth).flatten(1).square().mean(1).sqrt().mean())

            steps = steps_within(self.nfe, solver, denoiser, lambda n: LogSNR()(process, 2 if n is None else n))
            paths = cheapest_paths(cost, steps)
            starts = [process.level([times[i] for i in paths[steps]]), *(grid(process, steps) for grid in self.grids)]
            first = min((_angles(level.t, process) for level in starts), key=error)
            points, least = coordinate_descent(error, first, self.sweeps)
            if best is None or least < best.error:
                grid = Calibrated(process, (tuple(_times(process, points).tolist()),))
                best = Recipe(solver, grid, steps, least)
        assert best is not None
        return best


def _angles(times: Tensor, process: GaussianProcess) -> list[float]:
    """pi/2 - phi: rising, finite at both ends."""
    points: list[float] = (math.pi / 2 - angle(process.level(times))).tolist()
    return points


def _times(process: GaussianProcess, points: Sequence[float]) -> Tensor:
    phi = math.pi / 2 - torch.tensor(points, dtype=torch.float64)
    times = process.time(-2 * torch.log(torch.tan(phi)))
    times[0], times[-1] = 1.0, 0.0
    return times
