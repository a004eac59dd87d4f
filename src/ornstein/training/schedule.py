"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["cosine", "constant"] | Callable[[int], float]


def rise_of(steps: int, warmup: int | None) -> int:
    """The steps of warm-up: `warmup`, by default min(100, steps // 10)."""
    rise = min(100, steps // 10) if warmup is None else warmup
    if rise < 0:
        raise ValueError(f"warmup is a number of steps: got {warmup}")
    return rise


def factor_of(schedule: Schedule, steps: int, warmup: int | None) -> Callable[[int], float]:
    """factor(k) = shape(k) min(1, (k + 1)/(warmup + 1)) for the step after k: what multiplies the learning rate.

    shape(k) is (1 + cos(pi k/steps))/2 for "cosine", 1 for "constant", or the function given; `warmup` is a number of
    steps, by default min(100, steps // 10). Source: Loshchilov, Hutter 2016 (1608.03983), without restarts.
    """
    rise = rise_of(steps, warmup)

    def shape(step: int) -> float:
        if callable(schedule):
            return schedule(step)
        return (1 + math.cos(math.pi * step / steps)) / 2 if schedule == "cosine" else 1.0

    if not callable(schedule) and schedule not in ("cosine", "constant"):
        raise ValueError(f"schedule is 'cosine', 'constant' or a function of the step: got {schedule!r}")
    return lambda step: shape(step) * min(1.0, (step + 1) / (rise + 1))
