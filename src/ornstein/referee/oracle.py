"""The exact denoiser that a sampler under test is given: it counts what it is asked and remembers where."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..exact import Gaussian, GaussianMixture
from ..exact.world import World
from ..processes import Flow

FRAME = Flow()
"""Every x = alpha x0 + sigma noise, divided by alpha + sigma, is a state of the straight path at t = sigma/(alpha +
sigma): one frame for all samplers, finite at both ends."""

Answer = Callable[[Tensor, Tensor], Tensor]
Coefficient = float | Tensor


class Oracle:
    """E[x0 | alpha x0 + sigma noise = x], with honest book-keeping.

    x: (batch, *event), any event of as many numbers as the world's; alpha, sigma: numbers or (batch,). `batch` is the
    number of samples in the run: `evaluations` are counted a sample, however the sampler batches them.
    """

    def __init__(self, answer: World | Answer, batch: int) -> None:
        self.answer, self.batch = answer, batch
        self.asked = 0
        self.levels: list[float] = []
        self.first: State | None = None
        self.last: State | None = None

    @property
    def evaluations(self) -> float:
        return self.asked / self.batch

    def __call__(self, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> Tensor:
        a, s = (torch.as_tensor(c, dtype=torch.float64, device="cpu").reshape(-1) for c in (alpha, sigma))
        a, s = (c[0] if bool((c == c[0]).all()) else c for c in (a, s))  # one level for all of them is one number
        state = State(x.detach().clone(), a, s)
        flat, t = state.straight()
        if isinstance(self.answer, World):
            x0 = self.answer.posterior_mean(flat, FRAME, t)
        else:
            x0 = self.answer(flat, t)
        self.asked += len(x)
        self.levels.append(float((s / a).max()))
        if self.first is None:
            self.first = state
        self.last = state
        return x0.reshape(x.shape).to(x.dtype)


class State:
    """x = alpha x0 + sigma noise, (batch, *event), with its level: float64 scalars, or (batch,) where they differ."""

    def __init__(self, x: Tensor, alpha: Coefficient, sigma: Coefficient) -> None:
        self.x = x
        self.alpha, self.sigma = (torch.as_tensor(c, dtype=torch.float64) for c in (alpha, sigma))

    @property
    def level(self) -> float:
        """sigma/alpha."""
        return float((self.sigma / self.alpha).max())

    def straight(self) -> tuple[Tensor, Tensor]:
        """The state in the straight path's frame, (batch, d), and its time."""
        scale = self.alpha + self.sigma
        flat = self.x.reshape(len(self.x), -1)
        return flat / (scale if scale.dim() == 0 else scale.to(flat)[:, None]), self.sigma / scale

    def clean(self) -> Tensor:
        """x/alpha = x0 + (sigma/alpha) noise, (batch, d) in float64."""
        return self.x.reshape(len(self.x), -1).double() / self.alpha.reshape(-1, 1)


def truth(world: World, start: State, end: State) -> Tensor:
    """Where the exact flow takes `start` at the level of `end`, as x/alpha (batch, d) in float64."""
    (x, t), (_, s) = start.straight(), end.straight()
    x, t, s = x.double().contiguous(), t.reshape(-1), s.reshape(-1)
    moved = _flow(world, x.numpy().tobytes(), tuple(x.shape), tuple(t.tolist()), tuple(s.tolist()))
    return moved / (1 - s).reshape(-1, 1)


@functools.lru_cache(maxsize=64)
def _flow(world: World, x: bytes, shape: tuple[int, ...], t: tuple[float, ...], s: tuple[float, ...]) -> Tensor:
    """The flow from times t to s of the straight path, each one time or one a sample; runs with other numbers of steps
    mostly share it. Its tolerance is a thousandth of the smallest error that is read."""
    state = torch.frombuffer(bytearray(x), dtype=torch.float64).reshape(shape)
    first, last = (torch.tensor(v if len(v) > 1 else v[0], dtype=torch.float64) for v in (t, s))
    return world.flow(FRAME, state, first, last, rtol=1e-9, atol=1e-9)


def error(world: World, start: State, end: State) -> float:
    """Median over samples of the distance of `end` to the exact flow of `start`."""
    return float((end.clean() - truth(world, start, end)).norm(dim=1).median())


@functools.cache
def broad() -> GaussianMixture:
    """Three wide modes in the plane: smooth, so that 40 steps are in the regime where an order shows."""
    means = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.3, -1.0]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0]))


FINEST = 0.15
"""The standard deviation of the ring's modes: the finest detail that a sampler must resolve."""


@functools.cache
def ring() -> GaussianMixture:
    """Six narrow modes on a circle of radius 2: as hard as few-step sampling gets."""
    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3
    means = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    return GaussianMixture(means, torch.full((6,), FINEST, dtype=torch.float64))


@functools.cache
def line() -> Gaussian:
    """N(0.5, 0.3^2) in one dimension."""
    mean, cov = torch.full((1,), 0.5, dtype=torch.float64), torch.full((1, 1), 0.09, dtype=torch.float64)
    return Gaussian(mean, cov=cov)


@functools.cache
def two_modes() -> GaussianMixture:
    """0.3 N(-1, 0.3^2) + 0.7 N(0.8, 0.4^2) in one dimension."""
    means, stds = torch.tensor([[-1.0], [0.8]], dtype=torch.float64), torch.tensor([0.3, 0.4], dtype=torch.float64)
    return GaussianMixture(means, stds, torch.tensor([0.3, 0.7]))


def point(batch_flat: Tensor, _: Tensor) -> Tensor:
    """The denoiser of a point mass at (0.7, -0.4, 0.7, ...)."""
    value = torch.tensor([0.7, -0.4], dtype=batch_flat.dtype).repeat(-(-batch_flat.shape[1] // 2))
    return value[: batch_flat.shape[1]].expand_as(batch_flat)
