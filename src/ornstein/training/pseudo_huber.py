"""The pseudo-Huber penalty: square for small errors, the norm for large ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PseudoHuber:
    """penalty(e) = sqrt(|e|^2 + c^2) - c,    |e|^2 the sum of squares over the event, c = scale sqrt(d).

    About |e|^2/(2c) where |e| << c and |e| - c where |e| >> c, so that no sample's gradient has a norm above 1 and the
    hard samples do not drown the others. Its minimiser is the posterior mean only where the target is certain given
    x_t, as it nearly is for pairs from a flow; for large c in general. (batch, *event) -> (batch,).

    Args:
        scale: c/sqrt(d), d the number of entries of an event.

    Source: Lee, Lin, Fanti 2024 (2405.20320), section 4.2; Song, Dhariwal 2023 (2310.14189), equation 10.
    """

    scale: float = 0.00054

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale={self.scale}: c/sqrt(d) is positive and finite")

    def __call__(self, error: Tensor) -> Tensor:
        flat = error.flatten(1)
        squares, c = flat.square().sum(1), self.scale * math.sqrt(flat.shape[1])
        return squares / ((squares + c**2).sqrt() + c)  # the same, without cancelling
