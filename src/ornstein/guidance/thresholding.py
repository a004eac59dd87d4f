"""Predictions kept inside the range of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser, Call
from ..numerics.tree import like, parts
from .wrapped import Wrapped, calls_in


class _Thresholded(Wrapped):
    """A denoiser whose x0 passes through a function of its own, and which predicts x0."""

    def __init__(self, model: BaseDenoiser) -> None:
        super().__init__(model)
        self.predicts, self.heads = "x0", {}

    def clip(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        """What x0 passes through, its constants on the device of `like`."""
        raise NotImplementedError

    def bind(self, levels: Any, x: State, cond: Cond) -> Sequence[Call]:
        clips = [self.clip(part) for part in parts(x)]

        def clipped(call: Callable[[State], State], x: State) -> State:
            x0 = call(x)
            return like(x0, [clip(part) for clip, part in zip(clips, parts(x0), strict=True)])

        return [partial(clipped, call) for call in calls_in("x0", self.model, levels, x, cond)]


class StaticThresholding(_Thresholded):
    """x0 = min(max(x0, low), high), in the user's units.

    low, high: numbers or tensors that broadcast to (*event); either may be infinite. An x0 inside the range is returned
    bit for bit. Strong guidance pushes x0 out of the range of the data, and the sampler then leaves the states that the
    network knows.

    Source: Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding"
    (2205.11487), section 2.3; Ho, Jain, Abbeel 2020 (2006.11239).
    """

    def __init__(self, model: BaseDenoiser, low: float | Tensor = -1.0, high: float | Tensor = 1.0) -> None:
        super().__init__(model)
        bounds = [torch.as_tensor(bound, dtype=torch.float64) for bound in (low, high)]
        if not bool((bounds[0] < bounds[1]).all()):
            raise ValueError(f"thresholds need low < high: got {low} and {high}")
        if self.scaling is not None:
            bounds = [self.scaling.encode(bound) for bound in bounds]
        self.low, self.high = bounds

    def clip(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        return partial(torch.clamp, min=self.low.to(like), max=self.high.to(like))


class DynamicThresholding(_Thresholded):
    """x0 = min(max(x0, -s bound), s bound)/s,    s = max(1, quantile_q |x0| / bound) for each sample.

    In the user's units, for data in [-bound, bound]. While the quantile lies inside, s = 1 and only the outliers are
    clipped; beyond it the whole sample is scaled back, which saturates less than clipping. A sample inside the range is
    returned bit for bit. The quantile is that of the flattened event, with linear interpolation.

    Source: Saharia et al. 2022 (2205.11487), section 2.3.
    """

    def __init__(self, model: BaseDenoiser, quantile: float = 0.995, bound: float = 1.0) -> None:
        super().__init__(model)
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile={quantile}: a share of the pixels, above 0 and at most 1")
        if not 0 < bound < math.inf:
            raise ValueError(f"bound={bound}: data lie in [-bound, bound], so it is positive and finite")
        self.quantile, self.bound = quantile, bound

    def clip(self, like: Tensor) -> Callable[[Tensor], Tensor]:
        return self._clip

    def _clip(self, x0: Tensor) -> Tensor:
        user = x0 if self.scaling is None else self.scaling.decode(x0)
        size = user.abs()
        scale = (quantile(size.flatten(1), self.quantile) / self.bound).clamp(min=1)
        s = scale.reshape(-1, *(1,) * (x0.dim() - 1))
        clipped = user.clamp(-s * self.bound, s * self.bound) / s
        if self.scaling is not None:
            clipped = self.scaling.encode(clipped)
        return torch.where((s == 1) & (size <= self.bound), x0, clipped)


def quantile(values: Tensor, q: float) -> Tensor:
    """The q-quantile of each row of (batch, n) with linear interpolation; no limit on n, and no synchronisation."""
    ranked = values.sort(1).values
    place = q * (values.shape[1] - 1)
    low = min(math.floor(place), values.shape[1] - 1)
    return torch.lerp(ranked[:, low], ranked[:, min(low + 1, values.shape[1] - 1)], place - low)
