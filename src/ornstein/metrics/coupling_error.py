"""How well a map keeps the pairs that it was made from."""

from __future__ import annotations

from torch import Tensor

from ornstein.metrics._samples import flatten


def coupling_error(made: Tensor, ends: Tensor) -> float:
    """E |made_i - end_i|^2 / E |end_i - end_j|^2 = E |made_i - end_i|^2 / (2 tr Cov(end))

    for the samples that a map made of the first halves of n pairs, and their second halves: 0 where it keeps the pairs,
    1 in the mean for samples of the right law that do not belong to them, 1/2 for the mean of all.

    Shapes: made, ends (n, *event), row by row. Units: none. Errors: ValueError on different shapes, fewer than two
    samples, non-finite values, ends that coincide.

    Source: Park et al. 2024, "Constant Acceleration Flow" (2411.00322), on coupling preservation, there by
    perceptual distances.
    """
    made, ends = flatten(made=made, ends=ends)
    if len(made) != len(ends):
        raise ValueError(f"one sample for each pair: {len(made)} for {len(ends)}")
    spread = 2 * float(ends.var(0).sum())
    if spread == 0:
        raise ValueError("all ends coincide: a coupling with them has no error to speak of")
    return float((made - ends).square().sum(1).mean()) / spread
