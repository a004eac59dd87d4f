"""Denoisers that know a measurement."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser, Call
from ..guidance import Wrapped
from ..guidance.wrapped import calls_in
from ..numerics.conjugate_gradients import cg
from ..processes import AffineProcess, GaussianProcess, Level, broadcast
from .measurement import Measurement

_DEEPEST = -20.0  # log-SNR: at alpha = 0 a network's x0 does not move with x, and what pulls at x0 has no limit


class Measured(Wrapped):
    """A denoiser beside a measurement; a subclass writes `answer`, of one level and its x0 as a function of the state.

    It predicts x0. `passes` is what an evaluation costs beside the network: its gradient passes. `kind` is that of the
    processes for which it holds: a `GaussianProcess` (a bridge with a condition at its end is one) for what takes
    covariances from scores by Tweedie's formula, any `AffineProcess` (`TwoSided` too) for what changes x0 alone.
    """

    passes: int = 0

    def __init__(self, model: BaseDenoiser, measurement: Measurement, *, kind: type[Any] = GaussianProcess) -> None:
        super().__init__(model)
        if not isinstance(model.process, kind):
            raise ValueError(
                f"{type(self).__name__} is for a process that is a {kind.__name__}: {model.process!r} is none"
            )
        self.measurement = measurement
        self.predicts, self.heads = "x0", {}

    @abstractmethod
    def answer(self, x0: Callable[[Tensor], Tensor], level: Level, x: Tensor) -> Any:
        """The output at a state x (batch, *event), x0(x) being the model's own, in the graph of x."""

    def bind(self, levels: Any, x: Tensor, cond: Cond) -> Sequence[Call]:
        reached = self._reached(levels)
        calls = calls_in("x0", self.model, reached, x, cond)
        return [partial(self.answer, call, level) for call, level in zip(calls, reached, strict=True)]

    def cost(self, levels: Any) -> list[int]:
        return [own * (1 + self.passes) for own in self.model.cost(self._reached(levels))]

    def _reached(self, levels: Any) -> Any:
        """The levels, where alpha = 0 that of a log-SNR so low that the state is the same to rounding."""
        process: Any = self.process
        if not bool((levels.log_snr < _DEEPEST).any()):
            return levels
        t = torch.where(levels.log_snr < _DEEPEST, process.time(levels.log_snr.clamp_min(_DEEPEST)), levels.t)
        return process.level(t)


class Plain(Measured):
    """The model's own x0, for solvers that know the measurement themselves."""

    def answer(self, x0: Callable[[Tensor], Tensor], level: Level, x: Tensor) -> Tensor:
        return x0(x)


class Corrected(Measured):
    """x0' = correct(x0, level): an estimate made to agree with the measurement."""

    def __init__(
        self, model: BaseDenoiser, measurement: Measurement, correct: Callable[[Tensor, Level], Tensor]
    ) -> None:
        super().__init__(model, measurement, kind=AffineProcess)
        self._correct = correct

    def answer(self, x0: Callable[[Tensor], Tensor], level: Level, x: Tensor) -> Tensor:
        return self._correct(x0(x), level)


Pull = Callable[[Tensor, Level], Tensor]
"""v(x0, level) (batch, *event): what a measurement asks of x0."""


class Pulled(Measured):
    """Heads x0 ("main") and J^T v ("pull"), J = d x0/dx and v = pull(x0, level): the gradient at x of what v is at x0.

    With `into`, the one head is x0' = x0 + (sigma^2/alpha) J^T v: where v is the gradient of log p(y | x_t) at x0, the
    score of the posterior is score + J^T v, and x0' its posterior mean.
    """

    passes = 1

    def __init__(self, model: BaseDenoiser, measurement: Measurement, pull: Pull, *, into: bool = False) -> None:
        super().__init__(model, measurement, kind=GaussianProcess if into else AffineProcess)
        self._pull, self._into = pull, into

    def answer(self, x0: Callable[[Tensor], Tensor], level: Level, x: Tensor) -> Any:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = x0(x)
            (pulled,) = torch.autograd.grad(mean, x, self._pull(mean.detach(), level))
        mean = mean.detach()
        if self._into:
            return mean + broadcast(level.sigma**2 / level.alpha, mean) * pulled
        return {"main": mean, "pull": pulled}


class Covaried(Measured):
    """x0' = x0 + C A^T (A C A^T + std^2 I)^-1 (y - A x0),    C v = Cov[x0 | x_t] v = (sigma^2/alpha) J^T v

    the mean of x0 given x_t and y if x0 given x_t is Gaussian. The system is solved by `steps` conjugate gradients,
    each a gradient pass.
    """

    def __init__(self, model: BaseDenoiser, measurement: Measurement, std: float, steps: int) -> None:
        super().__init__(model, measurement)
        self._std, self._steps, self.passes = std, steps, steps + 1

    def answer(self, x0: Callable[[Tensor], Tensor], level: Level, x: Tensor) -> Tensor:
        operator = self.measurement.linear(self)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = x0(x)
        scale = broadcast(level.sigma**2 / level.alpha, mean)

        def spread(v: Tensor) -> Tensor:
            return scale * torch.autograd.grad(mean, x, v, retain_graph=True)[0]

        def system(v: Tensor) -> Tensor:
            return operator(spread(operator.adjoint(v))) + self._std**2 * v

        v = cg(system, self.measurement.residual(mean.detach()), limit=self._steps).x
        return mean.detach() + spread(operator.adjoint(v))
