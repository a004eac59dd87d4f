"""The arithmetic of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
_LEAST = 2.0**-14  # the scale at which no gradient below 1e9 overflows: 2^-14 1e9 < 65504
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Arithmetic:
    """grad = grad(S loss)/S, the network under autocast, weights and averages in their own dtype.

    For fp16, whose smallest number is 6e-8, the scale S is doubled every 2,000 steps and halved when a gradient
    overflows, and that step is passed over. bf16 has the range of fp32 and needs no scale.

    Source: Micikevicius et al. 2017 (1710.03740).
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        if precision != "fp32" and precision not in _DTYPES:
            raise ValueError(f"precision is 'fp32', 'bf16' or 'fp16': got {precision!r}")
        self.precision, self.device = precision, device
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None

    def autocast(self) -> AbstractContextManager[object]:
        """Where the network and the loss are computed."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, _DTYPES[self.precision])

    def backward(self, loss: Tensor) -> None:
        """Add the (scaled) gradient of a loss."""
        torch.autograd.backward([loss if self.scaler is None else self.scaler.scale(loss)])

    def step(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip: float) -> Tensor:
        """Clip the gradient to the norm `clip`, take the step, and return the norm before, 0 for one passed over."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
            if self.scaler.get_scale() < _LEAST:
                raise NonFiniteError(
                    "the gradient overflows in fp16 at any scale: the training stops. Use bf16 or fp32, or lower lr"
                )
            norm = norm.nan_to_num(0.0, posinf=0.0)
        return norm

    def state(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        if self.scaler is not None:
            self.scaler.load_state_dict(state)
