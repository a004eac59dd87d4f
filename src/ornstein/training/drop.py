"""Dropping conditions in training, so that one network also learns the unconditional answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..random import Share, generator


def dropper(model: BaseDenoiser, drop: Mapping[str, float] | None) -> Callable[[Cond, int, Share], Cond]:
    """cond[name][i] <- model.null[name] with probability drop[name], for each sample and each name on its own.

    The function returned takes the condition, the seed of the step, and the share of the batch that the condition is.
    Source: Ho, Salimans 2022 (2207.12598).
    """
    drop = {} if drop is None else drop
    if not isinstance(drop, Mapping):
        raise ValueError(f"drop gives a probability by name, as {{'label': 0.1}}: got {drop!r}")
    null = model.null or {}
    for name, probability in drop.items():
        if name not in null:
            raise ValueError(
                f"drop={{{name!r}: ...}} needs a null value for {name!r}: build the model with "
                f"Denoiser(..., null={{{name!r}: value}}), orn.nets.NULL for labels"
            )
        if not 0 <= probability <= 1:
            raise ValueError(f"drop[{name!r}] is a probability: got {probability}")

    def apply(cond: Cond, seed: int, share: Share) -> Cond:
        if not drop:
            return cond
        if not isinstance(cond, Mapping) or not set(drop) <= set(cond):
            raise ValueError(f"drop names {', '.join(map(repr, drop))}: the condition must be a dict that holds them")
        rng, dropped = generator(seed), dict(cond)
        for name, probability in drop.items():
            value: Tensor = cond[name]
            gone = share(torch.rand(share.total, generator=rng)) < probability
            gone = gone.to(value.device).reshape(-1, *(1,) * (value.dim() - 1))
            dropped[name] = torch.where(gone, torch.as_tensor(null[name], dtype=value.dtype).to(value.device), value)
        return dropped

    return apply
