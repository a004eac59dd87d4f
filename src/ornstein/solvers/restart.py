"""Restart: going back up in noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from ..errors import TableError
from ..processes import Level
from .compose import write_from
from .heun import Heun
from .reverse_sde import check_falling
from .solver import Solver
from .table import Writer


@dataclass(frozen=True)
class Restart(Solver):
    """Whenever the base solver reaches the level `low`, noise is put back up to `high`, and it solves down again:

        x_high = (alpha_high/alpha_low) x_low + sqrt(sigma_high^2 - (alpha_high sigma_low/alpha_low)^2) z

    `repeats` times. The jump is the forward process and keeps the marginals; it adds much noise at once where an
    SDE adds a little in every step, so that errors made above are contracted while the steps stay those of an ODE. For
    Gaussian data of variance c the mean of x/alpha keeps (c + s_low^2)^(1/2)/(c + s_high^2)^(1/2), s = sigma/alpha, of
    its error each time.

    intervals: (s_low, s_high, repeats) of each, s taken to the nearest point of the grid. steps: of a pass from high to
    low, equal in log-SNR; by default the grid's own. Without intervals this is the base.

    Source: Xu et al. 2023, "Restart Sampling for Improving Generative Processes" (2306.14878), algorithm 1.
    """

    base: Solver = field(default_factory=Heun)
    intervals: tuple[tuple[float, float, int], ...] = ((0.1, 1.0, 1),)
    steps: int | None = None

    def __post_init__(self) -> None:
        for low, high, repeats in self.intervals:
            if not 0 < low < high < math.inf or repeats < 1:
                raise ValueError(
                    f"an interval is (s_low, s_high, repeats) with s_low < s_high: got {low, high, repeats}"
                )
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps}: a pass has at least one")

    @property
    def exact_for_constant(self) -> bool:
        return self.base.exact_for_constant

    def write(self, table: Writer, grid: Level) -> None:
        if not self.intervals:
            self.base.write(table, grid)
            return
        check_falling(self, grid)
        x, at = table.state, 0
        for s_low, s_high, repeats in sorted(self.intervals, reverse=True):
            low, high = (_nearest(grid, s) for s in (s_low, s_high))
            if not max(high, at) < low:
                raise TableError(
                    f"{self!r}: the grid has no step from {s_high} to {s_low}: take more steps or a wider interval"
                )
            down = self._down(table, grid[high : low + 1])
            up, end = down[0], down[-1]
            scale = up.alpha / end.alpha
            std = torch.sqrt(up.sigma**2 - (scale * end.sigma) ** 2)
            x, at = write_from(self.base, table, x, grid[at : low + 1]), low
            for _ in range(repeats):
                x = table.register(scale * x + std * table.noise(end, up), up)
                x = write_from(self.base, table, x, down)
        if at < len(grid) - 1:
            write_from(self.base, table, x, grid[at:])

    def _down(self, table: Writer, own: Level) -> Level:
        """The levels of a pass: the grid's own, or `steps` equal steps of log-SNR between the same ends."""
        if self.steps is None:
            return own
        assert table.process is not None  # what compiles a table gives it
        top, end = own[0], own[-1]
        ramp = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64).reshape(-1, *(1,) * top.t.dim())
        times = table.process.time(top.log_snr + ramp * (end.log_snr - top.log_snr))
        times[0], times[-1] = top.t, end.t
        return table.level(times)


def _nearest(grid: Level, s: float) -> int:
    """The point of the grid whose log-SNR is nearest to that of sigma/alpha = s, infinite levels left out."""
    log_snr = grid.log_snr.reshape(len(grid), -1)[:, 0]
    return int(torch.where(log_snr.isfinite(), (log_snr + 2 * math.log(s)).abs(), math.inf).argmin())
