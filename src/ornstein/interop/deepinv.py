"""deepinv's physics objects as measurement operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..linops import LinearOperator, Operator


class DeepInvOperator(Operator):
    """y = physics.A(x): what deepinv's object measures, without its noise."""

    def __init__(self, physics: Any, event: Sequence[int]) -> None:
        self.physics = physics
        self.dtype, self.device = _precision(physics)
        with torch.no_grad():
            answer = physics.A(torch.zeros(1, *event, dtype=self.dtype, device=self.device))
        if not isinstance(answer, Tensor):
            raise ValueError(
                f"{type(physics).__name__} measures {type(answer).__name__} and not one tensor: convert its parts and "
                "put them together with orn.linops.Stack"
            )
        if answer.is_complex():
            raise ValueError(
                f"{type(physics).__name__} measures complex numbers: wrap it so that they are two real channels"
            )
        super().__init__(event, answer.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.physics.A(x)
        return answer

    def __repr__(self) -> str:
        return f"from_deepinv({type(self.physics).__name__}: {self.event} -> {self.measured})"


class DeepInvLinearOperator(DeepInvOperator, LinearOperator):
    """y = A x with physics.A_adjoint for the adjoint, and with `dagger` physics.A_dagger for the pseudo-inverse."""

    def __init__(self, physics: Any, event: Sequence[int], dagger: bool = False) -> None:
        super().__init__(physics, event)
        self.dagger = dagger

    def transpose(self, y: Tensor) -> Tensor:
        answer: Tensor = self.physics.A_adjoint(y)
        return answer

    def pinv(self, y: Tensor) -> Tensor:
        if not self.dagger:
            return super().pinv(y)
        self._check("y", y, self.measured)
        answer: Tensor = self.physics.A_dagger(y)
        return answer


def from_deepinv(physics: Any, event: Sequence[int] | None = None, *, dagger: bool = False) -> Operator:
    """The operator of a deepinv physics object: linear if it has `A_adjoint`. Its noise model is left behind.

    physics: an object with `A(x)`, as deepinv's, on batches (batch, *event); deepinv itself is not imported. It is
    tried in the dtype and on the device of its parameters and buffers.
    event: the shape of one image, the object's `img_size` if not given.
    dagger: take `A_dagger` for the pseudo-inverse. deepinv's own default is an iteration stopped at a loose tolerance,
    no pseudo-inverse to rounding (`orn.linops.check` gives the figure), so this library finds its own if False.

    Errors: ValueError without `A` or a known event, or for measurements that are not one real tensor.
    """
    if not callable(getattr(physics, "A", None)):
        raise ValueError(f"a physics object has a method A(x): got {type(physics).__name__}")
    shape = getattr(physics, "img_size", None) if event is None else event
    if shape is None:
        raise ValueError(f"{type(physics).__name__} has no img_size: give the shape of one image, event=(c, h, w)")
    linear = callable(getattr(physics, "A_adjoint", None))
    if dagger and not callable(getattr(physics, "A_dagger", None)):
        raise ValueError(f"{type(physics).__name__} has no A_dagger: leave dagger=False")
    return DeepInvLinearOperator(physics, tuple(shape), dagger) if linear else DeepInvOperator(physics, tuple(shape))


def _precision(physics: Any) -> tuple[torch.dtype, torch.device]:
    """The dtype and device of an object's numbers, torch's default and the host where it has none."""
    if isinstance(physics, nn.Module):
        for tensor in (*physics.parameters(), *physics.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                return tensor.dtype.to_real(), tensor.device
    return torch.get_default_dtype(), torch.device("cpu")
