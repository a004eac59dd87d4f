"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from ornstein.metrics._samples import flatten


def psnr(x: Tensor, truth: Tensor, bounds: tuple[float, float]) -> Tensor:
    """PSNR = 10 log10((high - low)^2/mean (x - truth)^2), in dB, of each sample: (n,), infinite where they are equal.

    Shapes: x and truth (n, *event). bounds: the least and the greatest value that a number may have.
    Errors: ValueError on shapes that differ, non-finite values, bounds without a range.
    """
    points, true = paired(x, truth)
    return 10 * torch.log10(span(bounds) ** 2 / (points - true).square().mean(1))


def paired(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Both flat, in float64 on the host; ValueError unless they have one shape."""
    if x.shape != truth.shape:
        raise ValueError(f"x and truth have one shape, (n, *event): got {tuple(x.shape)} and {tuple(truth.shape)}")
    points, true = flatten(1, x=x, truth=truth)
    return points, true


def span(bounds: tuple[float, float]) -> float:
    """high - low; ValueError unless it is positive."""
    low, high = bounds
    if not low < high:
        raise ValueError(f"bounds are (low, high), the range of the numbers: got {bounds}")
    return high - low
