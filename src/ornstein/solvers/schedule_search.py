"""The engine of calibrated grids: jumps between the points of a fine grid, what they cost, the cheapest path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import GaussianProcess, Level, LinearProcess
from ..random import Seed
from .grids import Grid
from .loop import Moment
from .sample import sample
from .solver import Solver


@dataclass(frozen=True)
class Calibrated(Grid):
    """Times that were found for one model, a schedule for each number of steps.

    `schedules` holds the falling times, one tuple of N + 1 for each N; `steps` are the N that are known. Made by
    `GITS(...).calibrate(...)` and its relatives; it prints as the numbers it is.
    """

    process: GaussianProcess
    schedules: tuple[tuple[float, ...], ...]

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(len(times) - 1 for times in self.schedules)

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        if repr(process) != repr(self.process):
            raise ValueError(f"these times were calibrated for {self.process!r}, not for {process!r}: calibrate again")
        if steps not in self.steps:
            raise ValueError(f"no schedule of {steps} steps was calibrated: choose from {sorted(self.steps)}")
        return torch.tensor(self.schedules[self.steps.index(steps)], dtype=torch.float64)


def cheapest_paths(cost: Tensor, steps: int, growth: float = 1.0) -> dict[int, tuple[int, ...]]:
    """For each k <= steps the path 0 = i_0 < ... < i_k = M that minimises sum_n growth^n cost[i_n, i_(n+1)].

    By dynamic programming from the end: V_k(i) = min_(j > i) cost[i, j] + growth V_(k-1)(j), V_0 = 0 at M alone.
    cost: (M + 1, M + 1), read above its diagonal. growth > 1 makes late jumps dearer.

    Source: Bellman 1957; as a search for schedules: Watson et al. 2021 (2106.03802).
    """
    last = len(cost) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"steps={steps}: {last + 1} points allow 1 to {last} jumps")
    ahead = torch.ones_like(cost, dtype=torch.bool).triu(1)
    cost = torch.where(ahead, cost, torch.inf)
    value = torch.full_like(cost[0], torch.inf)
    value[last] = 0.0
    choices: list[Tensor] = []
    paths: dict[int, tuple[int, ...]] = {}
    for k in range(1, steps + 1):
        value, chosen = (cost + growth * value).min(1)
        choices.append(chosen)
        if bool(value[0].isfinite()):
            path = [0]
            for left in reversed(range(k)):
                path.append(int(choices[left][path[-1]]))
            paths[k] = tuple(path)
    return paths


@dataclass(frozen=True)
class FinePath:
    """Trajectories along a fine grid: levels (M + 1,), states (M + 1, batch, *event) centred by the shift, and x0
    predicted at all points but the last, (M, batch, *event)."""

    levels: Level
    states: Tensor
    x0: Tensor


def fine_path(
    denoiser: BaseDenoiser,
    solver: Solver,
    grid: Grid,
    steps: int,
    shape: Sequence[int] | None = None,
    *,
    x_init: Tensor | None = None,
    cond: Cond = None,
    seed: Seed = None,
) -> FinePath:
    """Follow the flow of a denoiser along `grid` with many steps; arguments as in `sample`."""
    process = gaussian(denoiser)
    states: list[Tensor] = []

    def keep(moment: Moment) -> None:
        if moment.on_grid:
            states.append(_centred(process, moment.x, moment.level, cond))

    table = solver.compile(process, grid(process, steps))
    begin: dict[str, Any] = {"shape": shape} if x_init is None else {"x_init": x_init}
    if x_init is None:
        if shape is None:
            raise ValueError("give the shape (batch, *event) of the warm-up samples, or x_init")
        first = next(iter(denoiser.parameters()), None)
        dtype = torch.get_default_dtype() if first is None else first.dtype
        device = "cpu" if first is None else first.device
        x_init = process.prior(shape, seed=seed, cond=cond, dtype=dtype, device=device)
        begin = {"x_init": x_init}
    states.append(_centred(process, x_init, table.start, cond))
    sample(denoiser, **begin, table=table, cond=cond, seed=seed, hooks=[keep], progress=False)
    levels = grid(process, steps)
    with torch.no_grad():
        x0 = [
            denoiser(_uncentred(process, x, level, cond), level, cond).x0
            for x, level in zip(states[:-1], list(levels)[:-1], strict=True)
        ]
    return FinePath(levels, torch.stack(states), torch.stack(x0))


def jump_costs(path: FinePath) -> Tensor:
    """C[i, j] = mean over samples of |x_j - DDIM(x_i, t_i -> t_j)| / alpha_j: the local truncation error of one jump.

    DDIM is Euler's method in sigma/alpha, and x/alpha the frame in which it is; the norm is the root mean square over
    the event. (M + 1, M + 1) in float64 on the host, zero at and below the diagonal.

    Source: Chen et al. 2024 (2405.11326).
    """
    levels, last = path.levels, len(path.states) - 1
    cost = torch.zeros(last + 1, last + 1, dtype=torch.float64)
    for i in range(last):
        here, ahead = levels[i], levels[i + 1 :]
        left = ahead.sigma / here.sigma
        shape = (-1, *(1,) * (path.states.dim() - 1))
        a = left.reshape(shape).to(path.states)
        b = (ahead.alpha - left * here.alpha).reshape(shape).to(path.states)
        error = (a * path.states[i] + b * path.x0[i] - path.states[i + 1 :]).flatten(2)
        size = error.square().mean(2).sqrt().mean(1).to("cpu", torch.float64)
        cost[i, i + 1 :] = size / ahead.alpha
    return cost


def coordinate_descent(
    objective: Callable[[list[float]], float], start: Sequence[float], sweeps: int = 12, reach: float = 0.5
) -> tuple[list[float], float]:
    """Move one inner point of an increasing sequence at a time while the objective falls; the ends stay.

    A point tries a share `reach` of the way to either neighbour; a sweep without a gain halves the share.
    """
    points = list(start)
    best = objective(points)
    for _ in range(sweeps):
        gained = False
        for i in range(1, len(points) - 1):
            for neighbour in (points[i - 1], points[i + 1]):
                trial = [*points[:i], points[i] + reach * (neighbour - points[i]), *points[i + 1 :]]
                value = objective(trial)
                if value < best:
                    points, best, gained = trial, value, True
                    break
        if not gained:
            reach /= 2
    return points, best


def angle(level: Level) -> Tensor:
    """phi = atan2(sigma, alpha): a coordinate of noise that is finite at both ends."""
    return torch.atan2(level.sigma, level.alpha)


def gaussian(denoiser: BaseDenoiser) -> GaussianProcess:
    """The process of a denoiser of one component."""
    if not isinstance(denoiser.process, GaussianProcess):
        raise ValueError(f"schedules are searched for one GaussianProcess: got {denoiser.process!r}")
    return denoiser.process


def _centred(process: GaussianProcess, x: Tensor, level: Any, cond: Cond) -> Tensor:
    shift = process.shift(level.t, cond)
    return x if shift is None else x - shift


def _uncentred(process: GaussianProcess, x: Tensor, level: Level, cond: Cond) -> Tensor:
    shift = process.shift(level.t, cond)
    return x if shift is None else x + shift
