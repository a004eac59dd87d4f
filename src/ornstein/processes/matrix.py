"""Coefficients that mix the components of a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Matrix:
    """(M z)_i = sum_j M[i, j] z_j for the components z_j of a state.

    value: (..., k, k) in float64 on the host; the axes before are those of levels. Products keep their order, a number
    c stands for c times the identity, and 1/M is the inverse.
    """

    value: Tensor

    def __mul__(self, other: Matrix | Tensor | float) -> Matrix:
        if not isinstance(other, (Matrix, Tensor, float, int)):
            return NotImplemented
        return Matrix(self.value @ other.value if isinstance(other, Matrix) else self.value * _scalar(other))

    def __rmul__(self, other: Tensor | float) -> Matrix:
        return Matrix(_scalar(other) * self.value)

    def __truediv__(self, other: Matrix | Tensor | float) -> Matrix:
        return self * (1 / other)

    def __rtruediv__(self, other: Tensor | float) -> Matrix:
        return Matrix(_scalar(other) * torch.linalg.inv(self.value))

    def __add__(self, other: Matrix | Tensor | float) -> Matrix:
        if isinstance(other, Matrix):
            return Matrix(self.value + other.value)
        return Matrix(self.value + _scalar(other) * torch.eye(self.value.shape[-1], dtype=self.value.dtype))

    __radd__ = __add__

    def __neg__(self) -> Matrix:
        return Matrix(-self.value)

    def __sub__(self, other: Matrix | Tensor | float) -> Matrix:
        return self + -other

    def __rsub__(self, other: Tensor | float) -> Matrix:
        return -self + other

    @property
    def mT(self) -> Matrix:
        """The transpose."""
        return Matrix(self.value.mT)

    def root(self) -> Matrix:
        """The lower triangular R with R R^T = M, for a positive semidefinite M of two components."""
        return Matrix(lower_root(self.value))

    def entry(self, i: int, j: int) -> float | Tensor:
        """M[i, j], a float for one level, (batch,) for a level a sample."""
        value = self.value[..., i, j]
        return float(value) if value.dim() == 0 and not value.requires_grad else value


def _scalar(c: Any) -> Any:
    """A number, or one a level, in the shape in which it multiplies matrices."""
    return c[..., None, None] if isinstance(c, Tensor) and c.dim() else c


def lower_root(covariance: Tensor) -> Tensor:
    """L with L L^T = covariance (..., 2, 2), lower triangular; a zero first variance leaves a zero first column."""
    first = covariance[..., 0, 0].sqrt()
    cross = torch.where(first == 0, torch.zeros_like(first), covariance[..., 1, 0] / first)
    second = (covariance[..., 1, 1] - cross**2).clamp_min(0).sqrt()
    return torch.stack([torch.stack([first, torch.zeros_like(first)], -1), torch.stack([cross, second], -1)], -2)


def inverse_lower(root: Tensor) -> Tensor:
    """The inverse of [[a, 0], [b, c]]."""
    a, b, c = root[..., 0, 0], root[..., 1, 0], root[..., 1, 1]
    return torch.stack([torch.stack([1 / a, torch.zeros_like(a)], -1), torch.stack([-b / (a * c), 1 / c], -1)], -2)
