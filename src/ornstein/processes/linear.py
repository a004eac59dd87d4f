"""What grids and solvers ask of every process whose drift is linear and whose noise is Gaussian."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._types import VIEWS, Cond, State, View
from ..random import Noise, Seed, as_noise
from .level import Level, holds


class LinearProcess(ABC):
    """dx = F(t) x dt + G(t) dw, for t in [0, 1]: 0 is data, 1 is the end law.

    F and G are numbers in a `GaussianProcess`, matrices in `PhaseSpace`. The log-SNR is that of all that x_t tells of
    x0; it falls in t, and grids are placed by it.
    """

    @property
    def finest(self) -> float:
        """The least time at which a network is asked by default; from there one step goes to data."""
        return 0.0

    @property
    def diffuses(self) -> bool:
        """Whether stochastic samplers exist."""
        return True

    @property
    def readable(self) -> tuple[View, ...]:
        """What a solver may ask of it."""
        return VIEWS

    @property
    def supports(self) -> tuple[str, ...]:
        """Which of score, velocity, ODE, reverse SDE, likelihood and ELBO it has; what is missing is refused by name.

        score and velocity: views of a prediction. ODE, reverse SDE: samplers in `orn.sample`. likelihood:
        `orn.log_likelihood`. ELBO: `density.variational_bound`.
        """
        views = tuple(view for view in ("score", "velocity") if view in self.readable)
        return (*views, *(("ODE",) if "velocity" in views else ()), *(("reverse SDE",) if self.diffuses else ()))

    @property
    def end(self) -> str | None:
        """For a process between two laws: the entry of `cond` that holds the other end in training."""
        return None

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """The log of the signal-to-noise ratio, falling in t; infinite where there is no noise or no signal."""

    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, by bisection to the last bit unless a process knows it."""
        return inverse(self.log_snr, log_snr)

    @abstractmethod
    def level(self, t: float | Sequence[float] | Tensor | Level) -> Level:
        """The level(s) at t, in float64 on the host."""

    def shift(self, t: Tensor, cond: Cond) -> Tensor | None:
        """Mean that does not come from x0, (batch, *event), or None. Coefficients of t meet `cond` by `broadcast`."""
        return None

    def d_shift(self, t: Tensor, cond: Cond) -> Tensor | None:
        """d shift/dt, or None."""
        if self.shift(t, cond) is None:
            return None
        tangent = torch.func.jvp(lambda s: self.shift(s, cond), (t,), (torch.ones_like(t),))[1]
        assert isinstance(tangent, Tensor)
        return tangent

    def data_of(self, state: State) -> Any:
        """What of a state are data: all of it, unless a process adds to it."""
        return state


def inverse(falling: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The t in [0, 1] at which a falling function has the value, by bisection to the last bit."""
    low, high = torch.zeros_like(value), (value < torch.inf).to(value)
    for _ in range(100):
        middle = (low + high) / 2
        if not holds(((low < middle) & (middle < high)).any()):
            break
        above = falling(middle) > value
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high


def check_one_end(process: object, x1: object) -> None:
    """Refuse a second end of a process that has one."""
    if x1 is not None:
        raise ValueError(f"{type(process).__name__} has one end of data: x1 belongs to two-sided processes")


def _normal(shape: Sequence[int], stream: Noise) -> Tensor:
    return stream.normal(shape)


def noise_like(
    x0: Tensor, noise: Tensor | None, seed: Seed | Noise, draw: Callable[[Sequence[int], Noise], Tensor] = _normal
) -> Tensor:
    """The noise that was given, refused where it is not like x0, or a draw of it, by default standard normal."""
    if noise is None:
        return draw(x0.shape, as_noise(seed, batch=x0.shape[0], dtype=x0.dtype, device=x0.device))
    if noise.shape != x0.shape:
        raise ValueError(f"noise of shape {tuple(noise.shape)} for data of shape {tuple(x0.shape)}")
    return noise


def check_times(t: Tensor) -> None:
    """Refuse times outside [0, 1]."""
    inside = (t >= 0) & (t <= 1)
    if not holds(inside):
        raise ValueError(f"t = {float(t[~inside].flatten()[0]):.6g} lies outside [0, 1]: 0 is data, 1 is the end law")
