"""A training as it runs: its step, its history, and the averaged weights on loan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..errors import NonFiniteError
from .ema import EMA


class Training:
    """A run as its callbacks see it: `model`, `step` (steps done), `steps`, `history` so far, `average()`."""

    def __init__(self, model: BaseDenoiser, ema: EMA | None, rate: Callable[[int], float], steps: int) -> None:
        self.model, self.ema, self.steps, self.step = model, ema, steps, 0
        self._rate = rate
        self._seen = torch.empty(0, 2)  # loss and gradient norm of each step, on the host
        self._new: list[Tensor] = []

    @contextmanager
    def average(self) -> Iterator[BaseDenoiser]:
        """Inside the block the model is as `fit` would leave it now: averaged weights, evaluation mode."""
        training = self.model.training
        self.model.eval()
        try:
            with self.ema.swap() if self.ema else contextlib.nullcontext():
                yield self.model
        finally:
            self.model.train(training)

    @property
    def history(self) -> dict[str, Tensor]:
        """step, loss, grad_norm and lr of every step so far."""
        self.look()
        loss, grad_norm = self._seen.unbind(1)
        lr = torch.tensor([self._rate(k) for k in range(len(loss))], dtype=torch.float64)
        return {"step": torch.arange(1, len(loss) + 1), "loss": loss, "grad_norm": grad_norm, "lr": lr}

    def record(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Note a step; nothing waits for the device."""
        self._new += [loss.detach(), grad_norm.detach()]
        self.step += 1

    def look(self) -> None:
        """Bring the noted steps to the host, and stop at the first that is not finite."""
        if not self._new:
            return
        new = torch.stack(self._new).float().cpu().reshape(-1, 2)
        first, self._new = len(self._seen), []
        self._seen = torch.cat([self._seen, new])
        bad = (~new.isfinite()).any(1).nonzero()
        if len(bad):
            row = int(bad[0])
            raise NonFiniteError(
                f"at step {first + row + 1} of {self.steps} the loss is {float(new[row, 0]):.4g} and the gradient's "
                f"norm {float(new[row, 1]):.4g}: the training stops. The weights in memory are lost; a checkpoint, "
                "if there is one, holds earlier, finite ones. Lower lr, clip, or look for large values in the data"
            )

    def restore(self, seen: Tensor) -> None:
        """Go on after the steps of a checkpoint."""
        self._seen, self.step = seen, len(seen)

    @property
    def seen(self) -> Tensor:
        """(steps so far, 2): loss and gradient norm."""
        self.look()
        return self._seen
