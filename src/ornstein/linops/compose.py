"""Operators made from operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .operator import LinearOperator, Operator
from .svd import SVD


def compose(outer: Operator, inner: Operator) -> Operator:
    """outer @ inner: linear if both are."""
    if isinstance(outer, LinearOperator) and isinstance(inner, LinearOperator):
        return LinearComposed(outer, inner)
    return Composed(outer, inner)


class Composed(Operator):
    """y = A(B(x)).

    Errors: ValueError where what B measures is not an event of A.
    """

    def __init__(self, outer: Operator, inner: Operator) -> None:
        if outer.event != inner.measured:
            raise ValueError(f"{outer!r} takes {outer.event}, and {inner!r} before it gives {inner.measured}")
        super().__init__(inner.event, outer.measured)
        self.outer, self.inner = outer, inner
        self.batch = _batch([outer, inner])
        self.differentiable = outer.differentiable and inner.differentiable
        self.dtype, self.device = _probe([outer, inner])

    def forward(self, x: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(x))

    def check_measurement(self, y: Tensor) -> Tensor:
        return self.outer.check_measurement(super().check_measurement(y))

    def rows(self, index: Tensor) -> Operator:
        if self.batch is None:
            return self
        return _as_hard(self, compose(self.outer.rows(index), self.inner.rows(index)))


class LinearComposed(Composed, LinearOperator):
    """y = A B x, with A^T and B^T in the other order."""

    outer: LinearOperator
    inner: LinearOperator

    def transpose(self, y: Tensor) -> Tensor:
        return self.inner.transpose(self.outer.transpose(y))


class Stack(LinearOperator):
    """y = (A_1 x, A_2 x, ...), each flattened, one after the other: several measurements of one event as one.

    `join(parts)` makes y (batch, m) of the measurements of the operators, `split(y)` takes it apart.

    Errors: ValueError without operators, or where they take different events.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        if not operators:
            raise ValueError("a stack has at least one operator")
        events = {operator.event for operator in operators}
        if len(events) > 1:
            raise ValueError(f"the operators of a stack take one event: got {', '.join(map(str, sorted(events)))}")
        self.operators = tuple(operators)
        self.sizes = [math.prod(operator.measured) for operator in operators]
        super().__init__(operators[0].event, (sum(self.sizes),))
        self.batch = _batch(operators)
        self.differentiable = all(operator.differentiable for operator in operators)
        self.dtype, self.device = _probe(operators)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The measurements of the operators, (batch, *measured) each, as one (batch, m)."""
        if len(parts) != len(self.operators):
            raise ValueError(f"a stack of {len(self.operators)} operators has as many measurements: got {len(parts)}")
        for operator, part in zip(self.operators, parts, strict=True):
            operator._check("y", part, operator.measured)
        return torch.cat([part.flatten(1) for part in parts], 1)

    def split(self, y: Tensor) -> list[Tensor]:
        """The measurements of the operators from y (batch, m)."""
        pieces = zip(self.operators, torch.split(y, self.sizes, 1), strict=True)
        return [piece.reshape(len(y), *operator.measured) for operator, piece in pieces]

    def check_measurement(self, y: Tensor) -> Tensor:
        parts = self.split(super().check_measurement(y))
        return self.join([op.check_measurement(part) for op, part in zip(self.operators, parts, strict=True)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([operator.forward(x).flatten(1) for operator in self.operators], 1)

    def transpose(self, y: Tensor) -> Tensor:
        first, *others = (op.transpose(part) for op, part in zip(self.operators, self.split(y), strict=True))
        return sum(others, first)

    def rows(self, index: Tensor) -> Operator:
        if self.batch is None:
            return self
        chosen = [operator.rows(index) for operator in self.operators]
        return _as_hard(self, Stack([operator for operator in chosen if isinstance(operator, LinearOperator)]))


class Truncated(LinearOperator):
    """y = U diag(s where s > rcond max(s)) V^T x: the operator A without its small singular values.

    What an operator hardly measures (a strong blur's high frequencies) its pseudo-inverse fills with amplified noise,
    and rounding in float32; here it counts as not measured. Measurements are still those of A, whose part that is cut
    away the SVD ignores.

    rcond: in [0, 1). Errors: ValueError for an operator without an SVD.
    """

    def __init__(self, operator: LinearOperator, rcond: float) -> None:
        if not 0 <= rcond < 1:
            raise ValueError(f"rcond is in [0, 1), a part of the largest singular value: got {rcond}")
        whole = operator.svd
        if whole is None:
            raise ValueError(f"{operator!r} has no SVD to truncate")
        super().__init__(operator.event, operator.measured)
        self.operator, self.rcond, self.batch, self._whole = operator, rcond, operator.batch, whole

    @cached_property
    def svd(self) -> SVD:
        whole = self._whole
        kept = torch.where(whole.s > self.rcond * whole.s.amax(-1, keepdim=True), whole.s, 0.0)
        return SVD(kept, vt=whole.vt, v=whole.v, ut=whole.ut, u=whole.u)

    def check_measurement(self, y: Tensor) -> Tensor:
        return self.operator.check_measurement(super().check_measurement(y))

    def forward(self, x: Tensor) -> Tensor:
        return self.svd.u(self.svd.spectrum(x) * self.svd.vt(x))

    def transpose(self, y: Tensor) -> Tensor:
        return self.svd.v(self.svd.spectrum(y) * self.svd.ut(y))

    def rows(self, index: Tensor) -> Operator:
        if self.batch is None:
            return self
        chosen = self.operator.rows(index)
        assert isinstance(chosen, LinearOperator)
        return Truncated(chosen, self.rcond)


def _as_hard(old: Operator, new: Operator) -> Operator:
    """`new`, solving systems to the tolerance and limit of `old`."""
    if isinstance(old, LinearOperator) and isinstance(new, LinearOperator):
        new.tolerance, new.limit = old.tolerance, old.limit
    return new


def _batch(operators: Sequence[Operator]) -> int | None:
    sizes = {operator.batch for operator in operators} - {None}
    if len(sizes) > 1:
        raise ValueError(f"operators for batches of {' and '.join(map(str, sizes))} samples do not go together")
    return next(iter(sizes), None)


def _probe(operators: Sequence[Operator]) -> tuple[torch.dtype, torch.device]:
    """The least precise of their dtypes, and a device that is not the host if one has it."""
    dtype = min((operator.dtype for operator in operators), key=lambda dtype: -torch.finfo(dtype).eps)
    devices = [operator.device for operator in operators]
    return dtype, next((device for device in devices if device.type != "cpu"), devices[0])
