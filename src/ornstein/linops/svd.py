"""Singular value decompositions in transforms that are never written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .constant import Constant

Map = Callable[[Tensor], Tensor]


class SVD:
    """A = U diag(s) V^T of a linear operator, V orthonormal and square, everything real.

        V V^T = V^T V = I (d x d),      U^T U = diag(s > 0),      A^+ = V diag(1/s where s > 0) U^T

    Coefficients are flat, (batch, d) for d = the size of an event, on either side; s is (d,), or (batch, d) where each
    sample has its own operator, in no order. Where s = 0 lies the null space: `ut` answers 0 there and `u` reads
    nothing. Singular values below d eps max(s) are rounding and are set to 0; eps is float64's if not given.

    s: float64 on the host; `spectrum(like)` is s in the dtype and on the device of `like`.
    v, vt: coefficients -> x (batch, *event) and back.
    u, ut: coefficients -> y (batch, *measured) and back; u(ut(y)) projects on the range of A.
    """

    def __init__(self, s: Tensor, *, vt: Map, v: Map, ut: Map, u: Map, eps: float | None = None) -> None:
        largest = s.amax(-1, keepdim=True)
        eps = torch.finfo(torch.float64).eps if eps is None else eps
        s = torch.where(s > s.shape[-1] * eps * largest, s, 0.0)
        self.spectrum = Constant(s)
        self.s = self.spectrum.value
        self.vt, self.v, self._ut, self._u = vt, v, ut, u

    def ut(self, y: Tensor) -> Tensor:
        return torch.where(self.spectrum(y) > 0, self._ut(y), 0.0)

    def u(self, c: Tensor) -> Tensor:
        return self._u(torch.where(self.spectrum(c) > 0, c, 0.0))

    def filter(self, function: Map, x: Tensor) -> Tensor:
        """V f(s) V^T x, the function f(A^T A) of an event if f(s) is one of s^2; f works in the dtype of x."""
        return self.v(function(self.spectrum(x)) * self.vt(x))


def along(matrices: Sequence[Tensor | None], x: Tensor) -> Tensor:
    """(M_1 x ... x M_n) x: M_i along axis i of each event of x, None for the identity; M_n may be one a sample."""
    for axis, matrix in enumerate(matrices, start=1):
        if matrix is not None:
            x = (x.movedim(axis, -1) @ matrix.mT).movedim(-1, axis)
    return x


class SeparableSVD(SVD):
    """The SVD of M_1 x ... x M_n from those of its small factors: s is the outer product of theirs.

    matrices: float64; None for the identity along an axis of `grid`, the shape in which the d numbers of an event lie.
    A single dense matrix (m, d), or one a sample (batch, m, d), is [None, matrix] on the grid (1, d).
    """

    def __init__(
        self,
        matrices: Sequence[Tensor | None],
        grid: tuple[int, ...],
        event: tuple[int, ...],
        measured: tuple[int, ...],
        eps: float | None = None,
    ) -> None:
        self.grid, self.event, self.measured = grid, event, measured
        self.out = tuple(n if m is None else m.shape[-2] for n, m in zip(grid, matrices, strict=True))
        s, left, right = torch.ones(1, dtype=torch.float64), [], []
        for size, matrix in zip(grid, matrices, strict=True):
            if matrix is None:
                values, u, v = torch.ones(size, dtype=torch.float64), None, None
            else:
                values, u, v = _square(matrix)
            s = (s[..., :, None] * values[..., None, :]).flatten(-2)
            left.append(None if u is None else Constant(u))
            right.append(None if v is None else Constant(v))
        self._left, self._right = left, right
        super().__init__(s, vt=self._to_right, v=self._from_right, ut=self._to_left, u=self._from_left, eps=eps)

    def _to_right(self, x: Tensor) -> Tensor:
        return along(_cast(self._right, x, turn=True), x.reshape(-1, *self.grid)).flatten(1)

    def _from_right(self, c: Tensor) -> Tensor:
        return along(_cast(self._right, c), c.reshape(-1, *self.grid)).reshape(-1, *self.event)

    def _to_left(self, y: Tensor) -> Tensor:
        return along(_cast(self._left, y, turn=True), y.reshape(-1, *self.out)).flatten(1)

    def _from_left(self, c: Tensor) -> Tensor:
        return along(_cast(self._left, c), c.reshape(-1, *self.grid)).reshape(-1, *self.measured)


def _square(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s (..., n), U (..., m, n), V (..., n, n) of a matrix (..., m, n): values and columns of U beyond m are 0."""
    m, n = matrix.shape[-2:]
    u, s, vh = torch.linalg.svd(matrix, full_matrices=m < n)
    s = torch.nn.functional.pad(s, (0, n - s.shape[-1]))
    return s, torch.nn.functional.pad(u, (0, n - u.shape[-1])), vh.mT


def _cast(bases: Sequence[Constant | None], like: Tensor, turn: bool = False) -> list[Tensor | None]:
    made = [None if basis is None else basis(like) for basis in bases]
    return [None if basis is None else basis.mT for basis in made] if turn else made


def dense(matrix: Tensor, event: tuple[int, ...], measured: tuple[int, ...], eps: float | None = None) -> SVD:
    """The SVD of a float64 matrix (m, d), or one a sample (batch, m, d), whose entries are known to `eps`."""
    return SeparableSVD([None, matrix], (1, math.prod(event)), event, measured, eps)
