"""Paths between two laws: data at one end, other data at the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond
from ..random import Noise, Seed
from .affine import AffineProcess, Draw
from .flow import Flow
from .level import Level
from .scheduled import Scheduled


@dataclass(frozen=True)
class TwoSided(Scheduled):
    """x_t = alpha(t) x0 + sigma(t) x1: from one law of data to another, along the schedule of `base`.

    With `Flow`, the default, x_t = (1 - t) x0 + t x1 and the velocity is E[x1 - x0 | x_t]: rectified flow of any
    coupling, alpha-(de)blending. x1 stands where the noise stands, so every deterministic solver runs; the view `noise`
    is E[x1 | x_t]. There is no score and no reverse SDE: `Interpolant` has them.

    Training takes the other end as `cond={"x1": x1}`, row by row with the data; the network does not see it. Rows
    that belong together stay together; to pair at random or by optimal transport within each batch see
    `orn.training.MinibatchOT`. Sampling takes it as `x_init`.

    end: the entry of `cond` that holds x1 in training, (batch, *event), in the model's units.

    Source: Liu, Gong, Liu 2022 (2209.03003), equation 1; Heitz, Belcour, Chambon 2023 (2305.03486); Albergo,
    Vanden-Eijnden 2022 (2209.15571).
    """

    base: AffineProcess = field(default_factory=Flow)
    end: str = "x1"

    def draw_noise(self, shape: Sequence[int], noise: Noise, cond: Cond) -> Tensor:
        raise ValueError(no_end(self, self.end))

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
        """Draw x_t given both ends (batch, *event) at t, a scalar or (batch,)."""
        x1 = noise if x1 is None else x1
        check_ends(self, self.end, x0, x1)
        return super().corrupt(x0, t, cond=cond, noise=x1, seed=seed)


def check_ends(process: AffineProcess | object, end: str, x0: Tensor, x1: Tensor | None) -> None:
    """Refuse a draw between two laws without the other end, or with one of another shape."""
    if x1 is None:
        raise ValueError(no_end(process, end))
    if x1.shape != x0.shape:
        raise ValueError(f"the ends differ: x0 is {tuple(x0.shape)}, x1 {tuple(x1.shape)}: give one x1 for each x0")
    if x1.dtype != x0.dtype and not torch.is_floating_point(x1):
        raise ValueError(f"x1 is {x1.dtype}: data are floating-point numbers")


def no_end(process: object, end: str) -> str:
    """What to do about the other end of a process that has two."""
    return (
        f"{process!r} runs between two laws: train with cond={{{end!r}: x1}}, x1 like x0, "
        "and sample with x_init=x1, states at t = 1"
    )
