"""Nonlinear measurements with a formula: phase retrieval, clipping, quantisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .operator import Operator


class PhaseRetrieval(Operator):
    """y = |F(x padded with zeros)|, the amplitudes of an orthonormal Fourier transform without their phases.

    x, x shifted within its frame, turned by half a turn, and -x give the same y. The gradient is 0 where y is.

    oversample: >= 1, how many times larger the frame is along each of the last two axes, rounded.

    Source: Fienup 1982, "Phase retrieval algorithms: a comparison".
    """

    def __init__(self, event: Sequence[int], oversample: float = 2.0) -> None:
        if not oversample >= 1 or len(event) < 2:
            raise ValueError(f"images (..., h, w) and oversample >= 1: got events {tuple(event)}, {oversample}")
        *others, height, width = event
        super().__init__(event, (*others, round(oversample * height), round(oversample * width)))

    def forward(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.fft2(x, s=self.measured[-2:], norm="ortho")
        return spectrum.abs()


class Clipping(Operator):
    """y = clip(scale x, low, high): an over-exposed photograph, whose range is to be restored (HDR).

    The gradient is `scale` between the limits and 0 beyond. `pinv` has A(pinv(A(x))) = A(x).
    """

    def __init__(self, event: Sequence[int], scale: float = 2.0, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(event, event)
        if not (low < high and scale > 0):
            raise ValueError(f"low < high and scale > 0 are wanted: got low={low}, high={high}, scale={scale}")
        self.scale, self.low, self.high = scale, low, high

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x).clamp(self.low, self.high)

    def pinv(self, y: Tensor) -> Tensor:
        """y/scale."""
        return y / self.scale


class Quantisation(Operator):
    """y = the nearest of `levels` numbers spread evenly over [low, high], ends included; the lower one of two.

    Its gradient is 0 almost everywhere, so it counts as not differentiable. `pinv` has A(pinv(A(x))) = A(x).
    """

    differentiable = False

    def __init__(self, event: Sequence[int], levels: int = 8, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(event, event)
        if levels < 2 or not low < high:
            raise ValueError(f"at least two levels and low < high are wanted: got levels={levels}, {low} .. {high}")
        self.levels, self.low, self.high = levels, low, high

    def forward(self, x: Tensor) -> Tensor:
        step = (self.high - self.low) / (self.levels - 1)
        return self.low + step * torch.ceil((x - self.low) / step - 0.5).clamp(0, self.levels - 1)

    def pinv(self, y: Tensor) -> Tensor:
        """y itself."""
        return y
