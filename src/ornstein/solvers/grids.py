"""Time grids: the levels that a solver visits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from ..processes import DiscreteTime, Level, LinearProcess, Process, ProductLevel


class Grid(ABC):
    """A rule for placing N + 1 times, falling from the end law to data; the last one is t = 0 exactly.

    `grid(process, steps=N)` returns a `Level` of shape (N + 1,). Frozen dataclasses, so that they print their
    defaults. For a product process the times are placed by its first component.
    """

    @abstractmethod
    def times(self, process: LinearProcess, steps: int) -> Tensor:
        """The N + 1 falling times, float64."""

    def __call__(self, process: Process, steps: int) -> Any:
        if steps < 1:
            raise ValueError(f"steps={steps}: a grid has at least one step")
        first: Any = getattr(process, "processes", (process,))[0]
        times = self.times(first, index(steps))
        if not bool(((times >= 0) & (times <= 1)).all()):
            raise ValueError(
                f"{self!r} reaches outside [0, 1]: the log-SNR of {first!r} falls from {_log_snr(first, 0.0):.4g} to "
                f"{_log_snr(first, 1.0):.4g}"
            )
        grid = process.level(times)
        check_grid(grid)
        return grid


@dataclass(frozen=True)
class Uniform(Grid):
    """t_i = start + (end - start) i/N."""

    start: float = 1.0
    end: float = 0.0

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        return torch.linspace(self.start, self.end, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Quadratic(Grid):
    """t_i = (sqrt(start) + (sqrt(end) - sqrt(start)) i/N)^2: denser near data.

    Source: Song, Meng, Ermon 2020 (2010.02502), appendix D.
    """

    start: float = 1.0
    end: float = 0.0

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        return torch.linspace(math.sqrt(self.start), math.sqrt(self.end), steps + 1, dtype=torch.float64) ** 2


@dataclass(frozen=True)
class Polynomial(Grid):
    """t_i = (start^(1/p) + (end^(1/p) - start^(1/p)) i/N)^p with p = power, denser near data for p > 1.

    power = 1 is `Uniform`, 2 `Quadratic`. The same rule in sigma/alpha is `Karras`.

    Source: Song, Meng, Ermon 2020 (2010.02502), appendix D; Zhang, Chen 2022 (2204.13902).
    """

    power: float = 2.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.power < math.inf:
            raise ValueError(f"power={self.power}: it is positive and finite, 1 is uniform")
        for name, t in (("start", self.start), ("end", self.end)):
            if not 0 <= t <= 1:
                raise ValueError(f"{name}={t}: times lie in [0, 1], 0 is data, 1 is the end law")

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        a, b = self.start ** (1 / self.power), self.end ** (1 / self.power)
        return _pinned(torch.linspace(a, b, steps + 1, dtype=torch.float64) ** self.power, self.start, self.end)


@dataclass(frozen=True)
class CosineGrid(Grid):
    """phi_i = phi(start) + (phi(end) - phi(start)) i/N for the angle phi = atan2(sigma, alpha sigma_data).

    Equal steps of the angle: with sigma_data = 1 they put the cosine schedule alpha_i = cos(pi i/2N) on every process,
    for noise-to-data ratios sigma/alpha = sigma_data tan(phi). The angle is finite at both ends: no level is cut.

    Source: Nichol, Dhariwal 2021 (2102.09672), equation 17; the tangent form, as the optimum of the probability flow of
    Gaussian data: Sabour, Fidler, Kreis 2024 (2404.14507).
    """

    sigma_data: float = 1.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data={self.sigma_data}: the standard deviation of the data, positive and finite")

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        ends = process.level([self.start, self.end])
        first, last = torch.atan2(ends.sigma, ends.alpha * self.sigma_data).tolist()
        phi = torch.linspace(first, last, steps + 1, dtype=torch.float64)
        return _pinned(process.time(-2 * torch.log(self.sigma_data * torch.tan(phi))), self.start, self.end)


@dataclass(frozen=True)
class LogSNR(Grid):
    """N levels with equal steps of log-SNR, from t = 1 to `end`, and one exact step from there to data.

    Where the log-SNR at t = 1 is below `deepest`, t = 1 takes the place of that level: the first step, of infinite
    log-SNR, is exact but for the part alpha/sigma = e^(deepest/2) of the data in the state. The last step is exact but
    for noise of sigma/alpha = e^(-end/2). The relative errors of these two jumps are their squares. By default the
    range widens with N so that they fall as N^-2, as the error of a solver of order 2 does:

        end = 2.4 + 2 ln N,    deepest = -(0.4 + 2 ln N)

    (10 steps: 7.0 and -5.0). Both are levels that one may give; by default the end is no closer to data than a network
    of the process was trained (timestep 0 of `DiscreteTime`). `to_data=False` has N + 1 levels and stops at `end`; a
    `start` of one's own replaces t = 1 and needs `x_init`.

    Source: Lu et al. 2022 (2206.00927) for equal steps; the ends are ours, chosen on mixtures.
    """

    start: float | None = None
    end: float | None = None
    deepest: float | None = None
    to_data: bool = True

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        widen = 2 * math.log(steps)
        data = _log_snr(process, 0.0)  # finite where sigma(0) > 0: the grid then ends there, with no jump
        known = _log_snr(process, process.finest) if process.finest > 0 else math.inf
        end = min(data, min(2.4 + widen, known) if self.end is None else self.end)
        deepest = -0.4 - widen if self.deepest is None else self.deepest
        start = self.start if self.start is not None else max(_log_snr(process, 1.0), deepest)
        to_data = self.to_data and data > end
        if not start < end:
            raise ValueError(f"{self!r} starts at log-SNR {start:.4g}, not below its end {end:.4g}")
        levels = torch.linspace(start, end, steps + (not to_data), dtype=torch.float64)
        times = _with_ends(process.time(levels), self.start is None, to_data)
        if self.to_data:
            times[-1] = 0.0
        return times


@dataclass(frozen=True)
class Karras(Grid):
    """s_i = (s_max^(1/rho) + i/(N-1) (s_min^(1/rho) - s_max^(1/rho)))^rho for s = sigma/alpha, and t_N = 0.

    s is the noise level in the frame x/alpha, so that the grid serves every process. s_max is by default the process's
    own at t = 1; where that is over 80, t = 1 takes the place of the level 80, as in `LogSNR`.

    Source: Karras et al. 2022 (2206.00364), equation 5.
    """

    sigma_min: float = 0.002
    sigma_max: float | None = None
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho must be positive and finite: got {self.rho}")

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        own = math.exp(-_log_snr(process, 1.0) / 2)
        largest = self.sigma_max if self.sigma_max is not None else min(own, 80.0)
        least = math.exp(-_log_snr(process, 0.0) / 2)  # above 0 where sigma(0) > 0: the grid then ends there, no jump
        smallest = max(self.sigma_min, least)
        if not 0 < smallest < largest:
            raise ValueError(f"Karras needs 0 < sigma_min < sigma_max: got {self.sigma_min}, {largest:.4g}")
        to_data = smallest > least
        a, b = largest ** (1 / self.rho), smallest ** (1 / self.rho)
        ramp = torch.linspace(0, 1, steps + (not to_data), dtype=torch.float64)
        times = process.time(-2 * self.rho * torch.log(a + ramp * (b - a)))
        times = _with_ends(times, self.sigma_max is None, to_data)
        times[-1] = 0.0
        return times


@dataclass(frozen=True)
class Timesteps(Grid):
    """N of the timesteps 0, ..., T - 1 that a discrete-time model was trained on, then data. t = (timestep + 1)/T.

        "trailing"   round(T - i T/N) - 1          begins at pure noise, the last of the training
        "leading"    (N - 1 - i) floor(T/N) + offset
        "linspace"   round((N - 1 - i) (T - 1)/(N - 1))

    for i = 0, ..., N - 1. `final` is what follows them: "data" (t = 0), or "first", the level of timestep 0.

    Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2305.08891), table 2.
    """

    spacing: str = "trailing"
    offset: int = 0
    final: str = "data"

    def __post_init__(self) -> None:
        if self.spacing not in ("trailing", "leading", "linspace"):
            raise ValueError(f"spacing={self.spacing!r}: choose trailing, leading or linspace")
        if self.final not in ("data", "first"):
            raise ValueError(f"final={self.final!r}: choose data or first")

    def chosen(self, total: int, steps: int) -> Tensor:
        """The N timesteps out of 0, ..., total - 1, falling, float64."""
        if steps > total:
            raise ValueError(f"steps={steps}: this model has {total} timesteps")
        i = torch.arange(steps, dtype=torch.float64)
        match self.spacing:
            case "trailing":
                found = (total - i * (total / steps)).round() - 1
            case "leading":
                found = (steps - 1 - i) * (total // steps) + self.offset
            case _:
                found = ((steps - 1 - i) * ((total - 1) / max(steps - 1, 1))).round()
        if not 0 <= float(found[-1]) <= float(found[0]) < total:
            raise ValueError(f"{self!r} asks for timestep {int(found[0])} of a model that has 0 to {total - 1}")
        return found

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        process = getattr(process, "base", process)
        if not isinstance(process, DiscreteTime):
            raise ValueError(f"{self!r} is for orn.DiscreteTime: {process!r} has no timesteps")
        times = process.time_of(self.chosen(process.steps, steps))
        last = times.new_zeros(1) if self.final == "data" else process.time_of(0)[None]
        return torch.cat([times, last[:1] if float(times[-1]) > float(last) else last[:0]])


@dataclass(frozen=True)
class Shifted(Grid):
    """Another grid with every noise level s = sigma/alpha multiplied by `shift`.

    For the straight path s = t/(1 - t), so t' = shift t/(1 + (shift - 1) t): the timestep shift of flow models for
    images of more pixels (their mu is log shift). t = 0 and t = 1 stay.

    Source: Esser et al. 2024, "Scaling Rectified Flow Transformers" (2403.03206), equation 23.
    """

    grid: Grid
    shift: float

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift={self.shift}: a positive factor of sigma/alpha, 1 for none")

    def times(self, process: LinearProcess, steps: int) -> Tensor:
        times = self.grid.times(process, steps)
        moved = process.time(process.log_snr(times) - 2 * math.log(self.shift)).clamp(0, 1)
        return torch.where((times == 0) | (times == 1), times, moved)


def _pinned(times: Tensor, start: float, end: float) -> Tensor:
    """The ends exactly as they were asked for."""
    times = times.clone()
    times[0], times[-1] = start, end
    return times


def _log_snr(process: LinearProcess, t: float) -> float:
    return float(process.log_snr(torch.tensor(t, dtype=torch.float64)).detach())


def _with_ends(times: Tensor, from_end_law: bool, to_data: bool) -> Tensor:
    if from_end_law:
        times = times.clone()
        times[0] = 1.0
    return torch.cat([times, times.new_zeros(1)]) if to_data else times


def check_grid(grid: Level | ProductLevel) -> None:
    """Refuse a grid that is too short, repeats a time, or turns back."""
    t = grid.t
    if t.dim() == 0 or len(t) < 2:
        raise ValueError(f"a grid has at least two times: got shape {tuple(t.shape)}")
    change = t.diff(dim=0)
    if not bool(((change < 0).all(0) | (change > 0).all(0)).all()):
        flat = t.reshape(len(t), -1)
        column = int((~((change < 0).all(0) | (change > 0).all(0))).reshape(-1).nonzero()[0])
        times = flat[:, column]
        rise = times.diff() * torch.sign(times[-1] - times[0])
        i = int((rise <= 0).nonzero()[0])
        raise ValueError(
            f"times must be strictly monotone: t[{i}] = {float(times[i]):.6g} is followed by "
            f"t[{i + 1}] = {float(times[i + 1]):.6g}"
        )


def as_grid(
    grid: Grid | Level | ProductLevel | Tensor | Sequence[float], process: Process
) -> Callable[[int | None], Any]:
    """A function from a number of steps (None for 20) to levels; given times know their own number."""
    if isinstance(grid, Grid):
        return lambda steps: grid(process, steps=20 if steps is None else steps)
    if isinstance(grid, (str, type)):
        raise ValueError(f"a grid is an object such as orn.LogSNR(), or its times from first to last: got {grid!r}")
    levels = process.level(torch.as_tensor(grid, dtype=torch.float64) if isinstance(grid, (list, tuple)) else grid)

    def fixed(steps: int | None) -> Any:
        if steps is not None and steps != len(levels) - 1:
            raise ValueError(f"these times make {len(levels) - 1} steps: steps={steps} does not fit")
        return levels

    return fixed
