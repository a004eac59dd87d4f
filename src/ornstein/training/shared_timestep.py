"""A timestep that samples near data share, so that the network need not change infinitely fast in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..processes import GaussianProcess, Level


@dataclass(frozen=True)
class SharedTimestep:
    """c(t) = until floor(t n/until)/n for t < until, and t from there: what the network is told of a level.

    [0, until) is cut into n intervals, and within each the network is told their left end. Give it to the denoiser, in
    training and sampling alike: `Denoiser(net, process, timestep=SharedTimestep())`. The process stays what it is; what
    is given up is that the answer follows t inside an interval: the network learns its mean there given x.

    The noise that a VP network predicts is sigma(t) times something smooth, and sigma' is infinite at t = 0. With c it
    is a function of c whose ratio is finite, at most its change from one interval to the next by their width. As a
    function of t it jumps, so finer and finer steps across an end of an interval find no bound.

    Args:
        until: the end of the last interval, in (0, 1].
        intervals: their number n.
        of: what is told of a level instead of its t (`DiscreteTime.timestep`), asked at the left ends; needs `process`.

    Source: Yang et al. 2023, "Lipschitz Singularities in Diffusion Models" (2306.11251), published also as "Eliminating
    Lipschitz Singularities in Diffusion Models", section 4; 100 of 1000 timesteps in 5 intervals there.
    """

    until: float = 0.1
    intervals: int = 5
    of: Callable[[Level], Tensor] | None = None
    process: GaussianProcess | None = None

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise ValueError(f"until={self.until}: the end of the shared times, in (0, 1]")
        if self.intervals < 1:
            raise ValueError(f"intervals={self.intervals}: at least one")
        if (self.of is None) != (self.process is None):
            raise ValueError("`of` tells the network of the levels of a process: give both, or neither")
        if self.of is not None and self.process is not None:
            first = self.of(self.process.level(0.0))
            if not bool(first.isfinite().all()):
                raise ValueError(
                    f"`of` is {float(first)} at t = 0, which the first interval shares: tell another number"
                )

    def times(self, t: Tensor) -> Tensor:
        """c(t)."""
        width = self.until / self.intervals
        # a time that is a left end up to rounding belongs to the interval that it begins
        left = torch.floor(t / width * (1 + 4e-16) + 4e-16) * width
        return torch.where(t < self.until, left, t)

    def __call__(self, level: Level) -> Tensor:
        t = self.times(level.t)
        return t if self.of is None or self.process is None else self.of(self.process.level(t))
