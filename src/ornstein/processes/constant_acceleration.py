"""Paths of constant acceleration between data and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond
from ..random import Noise
from .affine import AffineProcess
from .gaussian import GaussianProcess
from .level import broadcast


@dataclass(frozen=True)
class ConstantAcceleration(GaussianProcess):
    """x_t = noise + v0 u + a u^2/2,    u = 1 - t,    v0 = h (x0 - noise),    a = 2 (1 - h) (x0 - noise)

    so that alpha = h u + (1 - h) u^2 and sigma = 1 - alpha: the way from noise to data begins with the velocity v0 (in
    u) and changes it at the constant rate a. h = 1 is `Flow`; below it the path gains speed, above it loses. A model of
    it, trained on pairs (`Coupled`), knows the initial velocity: see `orn.solvers.initial_velocity`. The acceleration
    is left to a second, of `GivenVelocity`.

    h: in [0, 2]; outside alpha would not rise towards data.

    Source: Park, Lee, Kim, Lee, Hong, Kim 2024, "Constant Acceleration Flow" (2411.00322), whose time is u.
    """

    h: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.h <= 2:
            raise ValueError(f"h={self.h}: between 0, from rest, and 2, to rest; 1 is constant velocity")

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) * (self.h + (1 - self.h) * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        return t * (2 - self.h - (1 - self.h) * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.wronskian(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.wronskian(t)

    def wronskian(self, t: Tensor) -> Tensor:
        return self.h + 2 * (1 - self.h) * (1 - t)

    def time(self, log_snr: Tensor) -> Tensor:
        # the root of (2 - h) t - (1 - h) t^2 = sigma in [0, 1], in the form that does not cancel
        sigma, b = torch.sigmoid(-log_snr / 2), 2 - self.h
        return 2 * sigma / (b + torch.sqrt((b**2 - 4 * (1 - self.h) * sigma).clamp_min(0)))


@dataclass(frozen=True)
class GivenVelocity(AffineProcess):
    """x_t = noise + v0 u + a u^2/2,    u = 1 - t,    a = 2 (x0 - noise - v0),    v0 = cond[velocity]

        alpha = u^2,    sigma = 1 - u^2,    shift = u (1 - u) v0

    The path from noise to x0 that begins with a given velocity, right or wrong: the acceleration makes up for it, and
    a = 2 (x0 - noise - v0) of any two views is what a model of it answers. Told v0, it tells apart paths that cross.
    DDIM's steps, x_s = x_t + v0 (u_s - u_t) + a (u_s^2 - u_t^2)/2, follow a constant acceleration exactly. Predict "v"
    or "x0": at t = 1 the velocity is v0 and says nothing about the acceleration.

    The network sees v0 too. It depends on the noise, so there is no score and no reverse SDE. Training and sampling
    in two stages: see `orn.solvers.ConstantAccelerationFlow`.

    velocity: the name of the condition that holds v0, (batch, *event), in the model's units.

    Source: Park, Lee, Kim, Lee, Hong, Kim 2024, "Constant Acceleration Flow" (2411.00322), on
    conditioning by the initial velocity.
    """

    velocity: str = "velocity"

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2

    def sigma(self, t: Tensor) -> Tensor:
        return t * (2 - t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -2 * (1 - t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return 2 * (1 - t)

    def time(self, log_snr: Tensor) -> Tensor:
        sigma = torch.sigmoid(-log_snr / 2)
        return sigma / (1 + torch.sqrt(1 - sigma))

    def velocity_of(self, cond: Cond) -> Tensor:
        """What `cond` holds under the name `velocity`."""
        if not isinstance(cond, Mapping) or self.velocity not in cond:
            raise ValueError(
                f"{self!r} needs cond[{self.velocity!r}], the initial velocity of each sample: see "
                "orn.solvers.initial_velocity"
            )
        velocity: Tensor = cond[self.velocity]
        return velocity

    def shift(self, t: Tensor, cond: Cond) -> Tensor:
        v0 = self.velocity_of(cond)
        return broadcast(t * (1 - t), v0) * v0

    def d_shift(self, t: Tensor, cond: Cond) -> Tensor:
        v0 = self.velocity_of(cond)
        return broadcast(1 - 2 * t, v0) * v0

    def draw_noise(self, shape: Sequence[int], noise: Noise, cond: Cond) -> Tensor:
        return noise.normal(shape)
