"""The pair behind every state: x_t = alpha(t) x0 + shift(t, cond) + sigma(t) noise, whatever the law of the noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond, View
from ..errors import ViewError
from ..random import Noise, Seed, as_noise
from .level import Level, broadcast, holds
from .linear import LinearProcess, check_one_end, check_times, noise_like


def check_shift(shift: Tensor | None, x: Tensor) -> None:
    """Refuse a shift that would be broadcast: it has the state's shape."""
    if shift is not None and shift.shape != x.shape:
        raise ValueError(
            f"the mean in cond has shape {tuple(shift.shape)}, the state {tuple(x.shape)}: give one like it"
        )


def derivative(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """df/dt at each entry of t, by forward-mode differentiation."""
    t = t.contiguous()  # the same time for a whole batch may be one number in memory, which has no tangent
    tangent: Tensor = torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]
    return tangent


@dataclass(frozen=True)
class Draw:
    """One draw of a process: the state with the pair and the noise that made it, and every conditional target.

    x, x0, noise (and x1 where the process has two ends) have shape (batch, *event).
    """

    process: AffineProcess
    level: Level
    x: Tensor
    x0: Tensor
    noise: Tensor
    x1: Tensor | None = None
    cond: Cond = None

    def target(self, view: View) -> Tensor:
        """What a network that predicts `view` should answer to this draw: view = a x0 + b noise (+ d shift/dt)."""
        if view == "x0":
            return self.x0
        if view == "noise":
            return self.noise
        a, b = self.level.rows(view)
        if not torch.compiler.is_compiling() and not holds(a.isfinite() & b.isfinite()):
            raise ViewError(f"{view} is not finite at the ends of {self.process!r}: draw times inside (0, 1)")
        target = broadcast(a, self.x0) * self.x0 + broadcast(b, self.noise) * self.noise
        slope = self.process.d_shift(self.level.t, self.cond) if view == "velocity" else None
        return target if slope is None else target + slope


class AffineProcess(LinearProcess):
    """A state that is a line in its data and its noise, for t in [0, 1]: 0 is data, 1 is the end law.

        x_t = alpha(t) x0 + shift(t, cond) + sigma(t) noise,     noise ~ any law of its own, independent of t

    `alpha` and `sigma` are float64 tensors in, the same shape out; log-SNR = log(alpha^2/sigma^2) must fall. x0, noise,
    velocity and v are then lines in each other at every level, so deterministic solvers, which use nothing else, run
    on any such process. What depends on the law of the noise is asked of the process: `draw_noise`, `colouring`,
    `precision`, `log_prior`. Where the noise is standard normal it is a `GaussianProcess`.
    """

    views: tuple[View, ...] = ("x0", "noise", "velocity", "v")
    """What a network of this process may be asked to predict."""

    readable: tuple[View, ...] = ("x0", "noise", "velocity", "v")
    """What a solver may ask of it."""

    diffuses: bool = False
    """Whether the noise is Gaussian, so that x_t is a diffusion and stochastic samplers exist."""

    @property
    def supports(self) -> tuple[str, ...]:
        known = type(self).log_prior is not AffineProcess.log_prior
        return (*super().supports, *(("likelihood",) if known else ()))

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the data at t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise at t."""

    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha/dt."""
        return derivative(self.alpha, t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """d sigma/dt."""
        return derivative(self.sigma, t)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), falling in t; infinite where sigma or alpha is 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def wronskian(self, t: Tensor) -> Tensor:
        """alpha sigma' - sigma alpha' > 0: the determinant of (state, velocity) in (x0, noise)."""
        return self.alpha(t) * self.d_sigma(t) - self.sigma(t) * self.d_alpha(t)

    def drift(self, t: Tensor) -> Tensor:
        """f = alpha'/alpha of dx = f (x - shift) dt + ..., finite on the open interval."""
        return self.d_alpha(t) / self.alpha(t)

    def diffusion2(self, t: Tensor) -> Tensor:
        """g^2 = 2 sigma (alpha sigma' - sigma alpha') / alpha, finite on the open interval."""
        return 2 * self.sigma(t) * self.wronskian(t) / self.alpha(t)

    def level(self, t: float | Sequence[float] | Tensor | Level) -> Level:
        """The level(s) at t, in float64 on the host; times outside [0, 1] are refused.

        Times that already live on an accelerator are evaluated there, in their own precision and unchecked, for
        samplers whose times depend on the data.
        """
        if isinstance(t, Level):
            return t
        t = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=torch.float64)  # a Python float has no float32
        if t.device.type == "cpu":
            t = t.to(torch.float64)
            if not torch.compiler.is_compiling():
                check_times(t)
        alpha, sigma = self.alpha(t), self.sigma(t)
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            if not isinstance(value, Tensor) or value.shape != t.shape:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"{self!r}.{name}(t) must return a tensor of t's shape {tuple(t.shape)}: got {got} "
                    "(a constant c is c * torch.ones_like(t))"
                )
        return Level(t, alpha, sigma, self.log_snr(t), self.d_alpha(t), self.d_sigma(t))

    @abstractmethod
    def draw_noise(self, shape: Sequence[int], noise: Noise, cond: Cond) -> Tensor:
        """A draw of the noise, (batch, *event), from a stream of standard normal numbers."""

    def colouring(self, x: Tensor, cond: Cond) -> Callable[[Tensor], Tensor]:
        """What makes of standard normal numbers the noise of states like x (batch, *event), where it is Gaussian."""
        raise ValueError(f"the noise of {self!r} is not Gaussian: it cannot be made from normal numbers")

    def colour(self, z: Tensor, cond: Cond) -> Tensor:
        """The noise that standard normal numbers z (batch, *event) make."""
        return self.colouring(z, cond)(z)

    def precision(self, noise: Tensor, cond: Cond) -> Tensor:
        """Cov(noise)^-1 noise, by which a score -Cov^-1 noise/sigma is told from a noise, where that is Gaussian."""
        raise ViewError(f"{self!r} has no score: its noise is not Gaussian (its velocity is what moves samples)")

    def log_prior(self, x: Tensor, cond: Cond = None) -> Tensor:
        """log of the density of the end law at x (batch, *event): (batch,) in the dtype of x."""
        raise ValueError(f"the end law of {self!r} has no known density")

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A draw of the end law, shift(1, cond) + sigma(1) noise, of shape (batch, *event)."""
        noise = self.draw_noise(shape, as_noise(seed, batch=shape[0], dtype=dtype, device=device), cond)
        end = self.level(1.0)
        shift = self.shift(end.t, cond)
        x = end.sigma * noise
        check_shift(shift, x)
        return x if shift is None else x + shift.to(x)

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor | Level,
        x1: Tensor | None = None,
        cond: Cond = None,
        *,
        noise: Tensor | None = None,
        seed: Seed | Noise = None,
    ) -> Draw:
        """Draw x_t given x0 (batch, *event) at t, a scalar or (batch,); the noise may be given."""
        check_one_end(self, x1)
        noise = noise_like(x0, noise, seed, lambda shape, stream: self.draw_noise(shape, stream, cond))
        level = self.level(t)
        x = broadcast(level.alpha, x0) * x0 + broadcast(level.sigma, x0) * noise
        shift = self.shift(level.t, cond)
        check_shift(shift, x)
        return Draw(self, level, x if shift is None else x + shift, x0, noise, cond=cond)
