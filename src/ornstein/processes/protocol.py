"""What every forward process answers, however wide its space."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch

from .._types import Cond, State, View
from ..random import Noise, Seed


@runtime_checkable
class AnyDraw(Protocol):
    """A draw holds the state, what made it, its level, and every conditional target."""

    @property
    def x(self) -> State: ...

    @property
    def level(self) -> Any: ...

    def target(self, view: View) -> State: ...


@runtime_checkable
class Process(Protocol):
    """The protocol of forward processes: levels, an end law, a corruption with its targets.

    A state is a tensor (batch, *event) or a named tuple of such tensors. t is in [0, 1], a scalar or one value a
    sample; 0 is data, 1 the end law. `views` names what a network of the process may be asked to predict.
    """

    @property
    def views(self) -> tuple[View, ...]: ...

    def level(self, t: Any) -> Any: ...

    def data_of(self, state: Any) -> State: ...

    def prior(
        self,
        shape: Any,
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> State: ...

    def corrupt(
        self,
        x0: State,
        t: Any,
        x1: State | None = None,
        cond: Cond = None,
        *,
        noise: State | None = None,
        seed: Seed | Noise = None,
    ) -> AnyDraw: ...
