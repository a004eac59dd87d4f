"""Inpainting: some numbers of an event are seen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .constant import Constant
from .operator import LinearOperator, Operator
from .svd import SVD


class Mask(LinearOperator):
    """y = mask * x, one where an entry is seen and zero where it is not.

    A = A^T = A^+, the singular values are the mask. Entries of y that are not seen are never read, NaN included (but
    `check_measurement` refuses NaN: put any number there).

    mask: boolean, or zeros and ones; of the event's shape or broadcast to it ((h, w) for an event (c, h, w)), or with
    an axis more in front for one mask a sample: (batch, 1, h, w).
    event: the mask's shape if not given.

    Errors: ValueError for entries other than 0 and 1, and for shapes that do not broadcast.
    """

    def __init__(self, mask: Tensor, event: Sequence[int] | None = None) -> None:
        shape = tuple(mask.shape if event is None else event)
        super().__init__(shape, shape)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(
                f"a mask is 1 where an entry is seen and 0 elsewhere: got {float(mask[(mask != 0) & (mask != 1)][0])}"
            )
        each = mask.dim() == len(shape) + 1
        try:
            whole = mask.bool().expand(len(mask), *shape) if each else mask.bool().expand(shape)
        except RuntimeError as error:
            raise ValueError(
                f"a mask for events {shape} has that shape or broadcasts to it, or has a batch axis in front: "
                f"got {tuple(mask.shape)}"
            ) from error
        self.batch = len(mask) if each else None
        self._seen = Constant(whole)
        self.mask = self._seen.value

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(self._seen(x), x, 0.0)

    def transpose(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def check_measurement(self, y: Tensor) -> Tensor:
        return self.forward(super().check_measurement(y))

    @cached_property
    def svd(self) -> SVD:
        s = self.mask.flatten(0 if self.batch is None else 1).to(torch.float64)
        return SVD(s, vt=_flat, v=self._event, ut=_flat, u=self._event)

    def rows(self, index: Tensor) -> Operator:
        return self if self.batch is None else Mask(self.mask[index.cpu()], self.event)

    def _event(self, c: Tensor) -> Tensor:
        return c.reshape(-1, *self.event)


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)
