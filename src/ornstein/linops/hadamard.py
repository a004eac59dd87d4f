"""Subsampled Walsh-Hadamard transforms: single-pixel cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .constant import Constant
from .operator import LinearOperator
from .svd import SVD


class Hadamard(LinearOperator):
    """y = (H x)[rows],   H[i, j] = (-1)^(number of ones common to i and j in binary)/sqrt(d), orthonormal.

    A A^T = I: every singular value is 1 or 0, and A^+ = A^T.

    rows: indices (m,) of the patterns measured, each once, in Hadamard's own order.
    event: of d numbers, a power of 2.

    Errors: ValueError for another d, for rows outside 0 .. d-1 or given twice.
    """

    def __init__(self, rows: Tensor | Sequence[int], event: Sequence[int]) -> None:
        index = torch.as_tensor(rows, dtype=torch.long).cpu()
        super().__init__(event, index.shape)
        d = math.prod(self.event)
        if d & (d - 1):
            raise ValueError(f"a Hadamard transform is of 2^n numbers: events {self.event} have {d}; pad them")
        if index.dim() != 1 or int(index.min()) < 0 or int(index.max()) >= d or len(set(index.tolist())) < len(index):
            raise ValueError(f"rows are different indices in 0 .. {d - 1}, (m,)")
        self._rows = Constant(index)

    def forward(self, x: Tensor) -> Tensor:
        return walsh_hadamard(x.flatten(1))[:, self._rows(x)]

    def transpose(self, y: Tensor) -> Tensor:
        return self._v(self._spread(y))

    @cached_property
    def svd(self) -> SVD:
        s = torch.zeros(math.prod(self.event), dtype=torch.float64).index_fill(0, self._rows.value, 1.0)
        return SVD(s, vt=self._vt, v=self._v, ut=self._spread, u=self._gather)

    def _vt(self, x: Tensor) -> Tensor:
        return walsh_hadamard(x.flatten(1))

    def _v(self, c: Tensor) -> Tensor:
        return walsh_hadamard(c).reshape(-1, *self.event)

    def _spread(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), math.prod(self.event)).index_copy(1, self._rows(y), y)

    def _gather(self, c: Tensor) -> Tensor:
        return c[:, self._rows(c)]


def walsh_hadamard(x: Tensor) -> Tensor:
    """H x for x (batch, 2^n), orthonormal, in n 2^n additions; its own inverse."""
    batch, d = x.shape
    half = 1
    while half < d:
        a, b = x.reshape(batch, d // (2 * half), 2, half).unbind(2)
        x = torch.stack([a + b, a - b], 2).reshape(batch, d)
        half *= 2
    return x / math.sqrt(d)
