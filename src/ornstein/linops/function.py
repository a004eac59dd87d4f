"""Measurements that are any function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .operator import Operator


class Function(Operator):
    """y = function(x) for a function of tensors through which gradients flow: a network, a simulator in torch.

    function: (batch, *event) -> (batch, *measured), each sample alone.
    measured: found by calling it on one event of zeros if not given.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], event: Sequence[int], measured: Sequence[int] | None = None
    ) -> None:
        self.function: Callable[[Any], Any] = function
        if measured is None:
            with torch.no_grad():
                measured = self.forward(torch.zeros(1, *event)).shape[1:]
        super().__init__(event, measured)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.function(x)
        return answer


class BlackBox(Function):
    """y = function(x) for a function without gradients: a simulator, compiled code, numpy.

    function: x (batch, *event) -> (batch, *measured). It is given and may return tensors or, with `numpy=True`, arrays
    (on the host); the answer has the dtype and device of x. No gradient is recorded.
    """

    differentiable = False

    def __init__(
        self,
        function: Callable[[Any], Any],
        event: Sequence[int],
        measured: Sequence[int] | None = None,
        *,
        numpy: bool = False,
    ) -> None:
        self.numpy = numpy
        super().__init__(function, event, measured)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            answer: Any = self.function(x.detach().cpu().numpy()) if self.numpy else self.function(x.detach())
            return torch.as_tensor(np.asarray(answer) if self.numpy else answer).to(x.dtype).to(x.device)
