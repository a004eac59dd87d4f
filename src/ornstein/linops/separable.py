"""Operators that act on each axis of an event by a small matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .constant import Constant, finite
from .operator import LinearOperator
from .svd import SVD, SeparableSVD, along


class Separable(LinearOperator):
    """y = (M_1 x M_2 x ... x M_n) x,      y[j1, ..., jn] = sum M_1[j1, i1] ... M_n[jn, in] x[i1, ..., in].

    matrices: one for each axis of the event, (m_i, n_i), or None for the identity. The singular values are all products
    of those of the factors, and nothing larger than a factor is ever decomposed.

    Errors: ValueError for the wrong number or sizes of matrices, NaN, infinity.
    """

    def __init__(self, matrices: Sequence[Tensor | None], event: Sequence[int]) -> None:
        sizes = tuple(event)
        if len(matrices) != len(sizes):
            raise ValueError(f"events {sizes} have {len(sizes)} axes, a matrix or None for each: got {len(matrices)}")
        for axis, (matrix, size) in enumerate(zip(matrices, sizes, strict=True)):
            if matrix is not None and (matrix.dim() != 2 or matrix.shape[1] != size):
                raise ValueError(f"the matrix of axis {axis} is (m, {size}): got {tuple(matrix.shape)}")
            if matrix is not None:
                finite(f"the matrix of axis {axis}", matrix)
        super().__init__(sizes, [n if m is None else len(m) for m, n in zip(matrices, sizes, strict=True)])
        self._matrices = [None if matrix is None else Constant(matrix) for matrix in matrices]

    def forward(self, x: Tensor) -> Tensor:
        return along([None if matrix is None else matrix(x) for matrix in self._matrices], x)

    def transpose(self, y: Tensor) -> Tensor:
        return along([None if matrix is None else matrix(y).mT for matrix in self._matrices], y)

    @cached_property
    def svd(self) -> SVD:
        factors = [None if matrix is None else matrix.value.detach() for matrix in self._matrices]
        eps = max((matrix.eps for matrix in self._matrices if matrix is not None), default=None)
        return SeparableSVD(factors, self.event, self.event, self.measured, eps)


def last_axes(event: Sequence[int], matrices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Matrices for the last axes of an event, None for those before."""
    if len(matrices) > len(event):
        raise ValueError(f"events {tuple(event)} have fewer than {len(matrices)} axes")
    return [None] * (len(event) - len(matrices)) + list(matrices)


class Downsample(Separable):
    """y = the means of blocks of `factor` entries along each of the last axes: super-resolution.

    A^T y spreads y/F over its block, A^+ y repeats y, F the number of entries in a block; every singular value that is
    not 0 is 1/sqrt(F).

    factor: a number, for the last two axes (the only one of an event with one), or one for each of the last axes.

    Errors: ValueError where a factor does not divide its axis.
    """

    def __init__(self, factor: int | Sequence[int], event: Sequence[int]) -> None:
        factors = [factor] * min(2, len(event)) if isinstance(factor, int) else list(factor)
        sizes = list(event)[len(event) - len(factors) :] if len(factors) <= len(event) else []
        if not sizes or any(f < 1 or n % f for f, n in zip(factors, sizes, strict=True)):
            raise ValueError(f"factors that divide the last axes of {tuple(event)} are wanted: got {factor}")
        self.factor = tuple(factors)
        means = [torch.eye(n // f).repeat_interleave(f, 1).double() / f for f, n in zip(factors, sizes, strict=True)]
        super().__init__(last_axes(event, means), event)


class Colour(Separable):
    """y[j, ...] = sum_i weights[j, i] x[i, ...] over channels, the first axis of an event: colourisation.

    weights: (out, channels) or (channels,) for one channel out; the mean of all channels, grey, if not given.
    """

    def __init__(self, event: Sequence[int], weights: Tensor | None = None) -> None:
        mixed = torch.full((1, event[0]), 1 / event[0], dtype=torch.float64) if weights is None else weights
        mixed = mixed[None] if mixed.dim() == 1 else mixed
        super().__init__([mixed] + [None] * (len(event) - 1), event)
