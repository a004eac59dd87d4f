"""What an operator is made of, in the precision of what it meets."""

from __future__ import annotations

import torch
from torch import Tensor


class Constant:
    """A tensor kept on the host, in float64 if it is floating, and given in the dtype and on the device of a state.

    Complex ones are given in the state's precision, boolean and integer ones as they are. It is a copy, which no change
    of the caller's tensor reaches, but for a tensor that asks for a gradient (an operator whose parameters are sought):
    then it flows. eps is the relative error of the entries, that of the dtype in which they came.
    """

    def __init__(self, value: Tensor) -> None:
        self.eps = torch.finfo(value.dtype).eps if value.is_floating_point() or value.is_complex() else 0.0
        if value.is_complex():
            value = value.to(torch.complex128)
        elif value.is_floating_point():
            value = value.to(device="cpu").to(torch.float64)
        with torch.inference_mode(False):  # what is kept must serve gradients too
            self.value = value.to("cpu") if value.requires_grad else value.to("cpu").clone()
        self._made: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, like: Tensor) -> Tensor:
        dtype = self.value.dtype
        if dtype.is_complex:
            dtype = like.dtype.to_complex()
        elif dtype.is_floating_point:
            dtype = like.dtype
        if self.value.requires_grad:
            return self.value.to(dtype).to(like.device)
        key = (dtype, like.device)
        if key not in self._made:
            with torch.inference_mode(False):
                self._made[key] = self.value.to(dtype).to(like.device)
        return self._made[key]


def finite(name: str, value: Tensor) -> Tensor:
    """`value`, or ValueError if it holds NaN or infinity."""
    bad = int((~value.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} must be finite: {bad} of {value.numel()} entries are NaN or infinite")
    return value
