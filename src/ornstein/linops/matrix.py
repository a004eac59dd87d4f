"""Any matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from .constant import Constant, finite
from .operator import LinearOperator, Operator
from .svd import SVD, dense


class Matrix(LinearOperator):
    """y = M x for the flattened event.

    values: M (m, d), or (batch, m, d) for one a sample, d the product of the sizes of an event.
    event, measured: (d,) and (m,) if not given.

    Where M asks for a gradient it flows through A and A^T; what an inverse is needed for has the values of M as it is
    at the call, and no gradient. What is below the rounding of its dtype counts as not measured.

    Errors: ValueError for shapes that do not fit, NaN, infinity.
    """

    def __init__(
        self, values: Tensor, event: Sequence[int] | None = None, measured: Sequence[int] | None = None
    ) -> None:
        if values.dim() not in (2, 3) or not values.is_floating_point():
            raise ValueError(
                f"a matrix is (m, d) or (batch, m, d), floating: got {tuple(values.shape)}, {values.dtype}"
            )
        m, d = values.shape[-2:]
        super().__init__((d,) if event is None else event, (m,) if measured is None else measured)
        if math.prod(self.event) != d or math.prod(self.measured) != m:
            raise ValueError(f"a matrix {m} x {d} takes no event {self.event} to a measurement {self.measured}")
        self.batch = len(values) if values.dim() == 3 else None
        self._values = Constant(finite("the matrix", values))

    def forward(self, x: Tensor) -> Tensor:
        return _times(self._values(x), x).reshape(-1, *self.measured)

    def transpose(self, y: Tensor) -> Tensor:
        return _times(self._values(y).mT, y).reshape(-1, *self.event)

    @property
    def svd(self) -> SVD:
        return self._decomposed() if self._values.value.requires_grad else self._kept

    @cached_property
    def _kept(self) -> SVD:
        return self._decomposed()

    def _decomposed(self) -> SVD:
        return dense(self._values.value.detach(), self.event, self.measured, eps=self._values.eps)

    def matrix(self) -> Tensor:
        return self._values.value

    def rows(self, index: Tensor) -> Operator:
        if self.batch is None:
            return self
        chosen = Matrix(self._values.value[index.cpu()], self.event, self.measured)
        chosen._values.eps = self._values.eps
        return chosen


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    return (x.flatten(1)[:, None] @ matrix.mT).squeeze(1) if matrix.dim() == 3 else x.flatten(1) @ matrix.mT
