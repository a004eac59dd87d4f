"""GITS: the grid on which Euler's jumps err least along the trajectories of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..random import Seed
from .dpm_solver import DPMSolverPP
from .grids import Grid, LogSNR
from .schedule_search import Calibrated, cheapest_paths, fine_path, gaussian, jump_costs
from .solver import Solver


@dataclass(frozen=True)
class GITS:
    """Times t_(i_0) > ... > t_(i_N) of a fine grid that minimise sum_n growth^n C[i_n, i_(n+1)].

    C[i, j] is the local truncation error of one Euler (DDIM) jump from the state at t_i to t_j, averaged over a few
    warm-up trajectories of the model (see `jump_costs`); the minimum is found by dynamic programming. Trajectories of
    one model have nearly one shape (see `trajectory_variance`), so that few suffice.

    `calibrate` returns a grid that knows every number of steps up to `steps`.

    Args:
        steps: the largest number of steps wanted.
        fine: the grid of candidates, and `fine_steps`, its number of steps.
        growth: the factor by which each jump is dearer than the one before; errors made late have less flow left that
            contracts them.
        teacher: the solver that makes the warm-up trajectories.

    Source: Chen, Zhou, Wang, Shen, Lyu 2024, "On the Trajectory Regularity of ODE-based Diffusion Sampling"
    (2405.11326).
    """

    steps: int = 10
    fine: Grid = field(default_factory=LogSNR)
    fine_steps: int = 60
    growth: float = 1.15
    teacher: Solver = field(default_factory=DPMSolverPP)

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.fine_steps:
            raise ValueError(f"steps={self.steps} are chosen among fine_steps={self.fine_steps}: 1 <= steps <= them")
        if not self.growth > 0:
            raise ValueError(f"growth={self.growth}: a positive factor, 1 weighs all jumps alike")

    def calibrate(
        self,
        denoiser: BaseDenoiser,
        shape: Sequence[int] | None = None,
        *,
        x_init: Tensor | None = None,
        cond: Cond = None,
        seed: Seed = None,
    ) -> Calibrated:
        """The grid for this denoiser, from warm-up trajectories of `shape` (batch, *event) or from `x_init`."""
        path = fine_path(denoiser, self.teacher, self.fine, self.fine_steps, shape, x_init=x_init, cond=cond, seed=seed)
        paths = cheapest_paths(jump_costs(path), self.steps, self.growth)
        times = path.levels.t.tolist()
        return Calibrated(gaussian(denoiser), tuple(tuple(times[i] for i in nodes) for nodes in paths.values()))


def trajectory_variance(trajectory: Tensor, components: int = 3) -> Tensor:
    """The share of a trajectory's variance in its own first principal components, (batch,).

        sum_(k <= components) s_k^2 / sum_k s_k^2,    s: singular values of the centred (points, d) trajectory

    trajectory: (points, batch, *event), as `sample(..., trajectory=True)` returns it.

    Source: Chen et al. 2024 (2405.11326).
    """
    if not components >= 1:
        raise ValueError(f"components={components}: at least one")
    points = trajectory.flatten(2).transpose(0, 1)
    energy = torch.linalg.svdvals(points - points.mean(1, keepdim=True)).square()
    share: Tensor = energy[:, :components].sum(1) / energy.sum(1)
    return share
