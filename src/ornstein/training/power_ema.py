"""Averages whose length is chosen after training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .ema import EMA


@dataclass(frozen=True)
class PowerEMA:
    """average_t = sum_(k <= t) w_k theta_k,    w_k = (k/t)^(g+1) - ((k-1)/t)^(g+1),    as average <- b average + ...

    with b_k = (1 - 1/k)^(g+1) at update k. The weights spread over the last part of the run in proportion to its
    length t; `length` is their standard deviation over t,

        length^2 = (g + 1)/((g + 2)^2 (g + 3))

    (0.05 averages over about the last tenth). Two lengths kept at some steps are enough to make the average of any
    other length afterwards: `post_hoc`.

    Source: Karras et al. 2023 (2312.02696), section 3.1.
    """

    lengths: tuple[float, ...] = (0.05, 0.10)

    def __post_init__(self) -> None:
        if not self.lengths or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"lengths gives different lengths: got {self.lengths}")
        for length in self.lengths:
            exponent(length)

    def of(self, model: nn.Module) -> dict[str, EMA]:
        """New averages of a model's parameters, by name."""
        return {f"power {length:g}": _PowerAverage(model, length) for length in self.lengths}


class _PowerAverage(EMA):
    def __init__(self, model: nn.Module, length: float) -> None:
        super().__init__(model, 0.0)
        self.exponent = exponent(length)

    def decay_at(self, update: int) -> float:
        return math.pow(1 - 1 / update, self.exponent + 1)


def exponent(length: float) -> float:
    """g > 0 of a relative length, which lies in (0, 1/sqrt(12)): the length falls from there as g grows."""
    if not 0 < length < 12**-0.5:
        raise ValueError(f"the length of an average is a share of the run between 0 and 0.288: got {length}")
    low, high = 0.0, 1.0
    while _length(high) > length:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _length(middle) > length else (low, middle)
    return (low + high) / 2


def profile(length: float, step: int, steps: int) -> Tensor:
    """The weights w_1, ..., w_steps of an average of a relative length at `step`; those after it are 0. float64."""
    edges = (torch.arange(steps + 1, dtype=torch.float64) / step).clamp_max(1.0)
    return (edges ** (exponent(length) + 1)).diff()


def post_hoc(
    kept: Sequence[tuple[float, int, Mapping[str, Tensor]]], length: float, step: int | None = None
) -> dict[str, Tensor]:
    """average = sum_i c_i average_i,    c = argmin |sum_i c_i w^(i) - w|^2:    the average of another length.

    Args:
        kept: (length, step, weights) of averages as a `PowerEMA` had them at some steps.
        length: the relative length wanted.
        step: the step at which; by default the last kept.

    The error is that of the best combination of the profiles w^(i); `profile` gives them.
    """
    if not kept:
        raise ValueError("no averages were kept: give some of (length, step, weights)")
    last = max(at for _, at, _ in kept)
    step = last if step is None else step
    if not 0 < step <= last:
        raise ValueError(f"step={step}: the averages kept reach from 1 to {last}")
    profiles = torch.stack([profile(own, at, last) for own, at, _ in kept])
    wanted = profile(length, step, last)
    weights = torch.linalg.lstsq(profiles.T, wanted[:, None], driver="gelsd").solution[:, 0].tolist()
    names = kept[0][2]
    return {
        name: sum((c * own[name].double() for c, (_, _, own) in zip(weights, kept, strict=True)), torch.zeros(())).to(
            names[name]
        )
        for name in names
    }


def _length(g: float) -> float:
    return math.sqrt((g + 1) / ((g + 2) ** 2 * (g + 3)))
