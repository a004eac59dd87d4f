"""A training as it runs: its step, its history, and the averaged weights on loan."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..errors import DivergenceWarning, NonFiniteError
from .ema import EMA
from .workers import Workers, load_whole

_WINDOW, _STRETCH = 20, 100  # steps whose median loss is compared, and steps that it is compared with
_RISE = 4.0


class Training:
    """A run as its callbacks see it: `model`, `step` (steps done), `steps`, `history` so far, `averages`, `average()`,
    and `main`, whether this process is the one that writes."""

    def __init__(
        self,
        model: BaseDenoiser,
        averages: Mapping[str, EMA],
        rate: Callable[[int], float],
        steps: int,
        workers: Workers | None = None,
        lent: BaseDenoiser | None = None,
    ) -> None:
        self._lent = model if lent is None else lent  # what callbacks are lent, which is not sharded
        self.model, self.averages, self.steps, self.step = model, averages, steps, 0
        self.workers = workers or Workers()
        self.main = self.workers.main
        self._warned, self._compared, self._least, self._spread = False, 0, math.inf, 0.0
        self._rate = rate
        self._seen = torch.empty(0, 2)  # loss and gradient norm of each step, on the host
        self._new: list[Tensor] = []

    @contextmanager
    def average(self, name: str | None = None) -> Iterator[BaseDenoiser]:
        """Inside the block the model is as `fit` would leave it now: averaged weights, evaluation mode.

        `name` chooses among several averages; by default the first.
        """
        name = next(iter(self.averages), None) if name is None else name
        if self._lent is not self.model:
            load_whole(self._lent, self.model, None if name is None else self.averages[name].state_dict())
            yield self._lent.to(self.workers.device).eval()
            return
        training = self.model.training
        self.model.eval()
        try:
            with contextlib.nullcontext() if name is None else self.averages[name].swap():
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
        new = self.workers.mean(torch.stack(self._new).float()).cpu().reshape(-1, 2)
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

        self._warn()

    def _warn(self) -> None:
        """Say once that the loss is rising: two windows of steps far above the least stretch before them."""
        recent = len(self._seen) - 2 * _WINDOW
        while self._compared + _STRETCH <= recent:
            stretch = self._seen[self._compared : self._compared + _STRETCH, 0]
            median = float(stretch.median())
            if median < self._least:
                self._least, self._spread = median, float((stretch - median).abs().median())
            self._compared += _STRETCH
        # four times the least; a loss that may be negative or nothing is measured by how it scatters
        bound = self._least + (_RISE - 1) * max(abs(self._least), self._spread)
        if self._warned or recent < _STRETCH:
            return
        now = self._seen[recent:, 0].reshape(2, _WINDOW).median(1).values
        if float(now.min()) > bound:
            self._warned = True
            step = recent + int((self._seen[recent:, 0] > bound).nonzero()[0]) + 1
            warnings.warn(
                f"the loss is rising: from {self._least:.4g} to {float(now[1]):.4g}, at step {step} of {self.steps}. "
                "The training may diverge: lower lr, lengthen warmup, or clip",
                DivergenceWarning,
                stacklevel=4,
            )

    def restore(self, seen: Tensor) -> None:
        """Go on after the steps of a checkpoint."""
        if seen.dim() != 2 or seen.shape[1] != 2:
            raise ValueError(f"a history is (steps, 2): got {tuple(seen.shape)}")
        self._seen, self.step = seen, len(seen)

    @property
    def seen(self) -> Tensor:
        """(steps so far, 2): loss and gradient norm."""
        self.look()
        return self._seen
