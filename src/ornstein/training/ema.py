"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .workers import cut


class EMA:
    """average <- average + (1 - d_k) (weights - average) at update k = 1, 2, ..., with d_k = min(decay, (1+k)/(10+k)).

    The early d_k forget the random weights at the start. Buffers and what is not trained are not averaged: the averaged
    model has the model's own.

    Args:
        model: its parameters are averaged, whatever their shape and device; the average starts as a copy of them.
        decay: d, in [0, 1).
        half_life: instead of it, the number of updates after which a weight counts half, d = 2^(-1/half_life).

    Source: Polyak, Juditsky 1992; the warm-up is that of TensorFlow's moving averages.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999, *, half_life: float | None = None) -> None:
        if half_life is not None:
            if not half_life > 0:
                raise ValueError(f"half_life is a positive number of updates: got {half_life}")
            decay = 2 ** (-1 / half_life)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1): got {decay}")
        self.decay, self.updates = decay, 0
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names, self._weights = list(named), list[Tensor](named.values())
        self._average = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are now into the average."""
        self.updates += 1
        torch._foreach_lerp_(self._average, self._weights, 1 - self.decay_at(self.updates))

    def decay_at(self, update: int) -> float:
        """d_k of update k = 1, 2, ..."""
        return min(self.decay, (1 + update) / (10 + update))

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Inside the block the model has the averaged weights; after it, its own again."""
        own = [p.detach().clone() for p in self._weights]
        self.copy()
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, kept in zip(self._weights, own, strict=True):
                    weight.copy_(kept)

    @torch.no_grad()
    def copy(self) -> None:
        """Leave the averaged weights in the model."""
        for weight, average in zip(self._weights, self._average, strict=True):
            weight.copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters."""
        return dict(zip(self._names, self._average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on from averages made by `updates` updates."""
        if set(state) != set(self._names):
            raise ValueError(f"averages of other parameters: {', '.join(sorted(set(state) ^ set(self._names)))}")
        for name, average in self.state_dict().items():
            average.copy_(cut(state[name].to(average.dtype), average))
        self.updates = updates


def averages_of(model: nn.Module, ema: float | Sequence[float] | Averages | None) -> dict[str, EMA]:
    """The averages that `fit` keeps, by name: "ema" the first, "ema 0.999" and so on the further ones."""
    if ema is None:
        return {}
    if isinstance(ema, Averages):
        made: list[tuple[str, EMA]] = list(ema.of(model).items())
    else:
        decays = tuple(ema) if isinstance(ema, Sequence) else (ema,)
        if not decays or len(set(decays)) < len(decays):
            raise ValueError(f"ema gives different decays: got {ema}")
        made = [(f"ema {decay:g}", EMA(model, decay)) for decay in decays]
    return {"ema" if i == 0 else name: average for i, (name, average) in enumerate(made)}


@runtime_checkable
class Averages(Protocol):
    """Another kind of averages."""

    def of(self, model: nn.Module) -> dict[str, EMA]:
        """New averages of a model's parameters, by name."""
