"""A finite law of zeros and ones, of which binomial diffusion leaves everything in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..processes import Binomial, Level
from ..random import generator


class Enumerable:
    """p(x0) = sum_i w_i [x0 = y_i] for states y_i of zeros and ones, and the law of every x_t of `Binomial`:

        log q(x_t | y_i) = a_i log((1 + alpha)/2) + (d - a_i) log((1 - alpha)/2),   a_i: entries in which they agree
        p_t(x_t) = sum_i w_i q(x_t | y_i),    x0 = P(x0 = 1 | x_t) = sum_i r_i y_i,   r = softmax_i(log w_i + log q)

    Args:
        states: (k, *event), zeros and ones, each once.
        weights: (k,) positive, normalised here; uniform by default.
    """

    def __init__(self, states: Tensor, weights: Tensor | None = None) -> None:
        if states.dim() < 2 or len(states) == 0:
            raise ValueError(f"states have one row each, (k, *event): got {tuple(states.shape)}")
        flat = states.detach().cpu().to(torch.float64).flatten(1)
        binary = (flat == 0) | (flat == 1)
        if not bool(binary.all()):
            raise ValueError(f"states are of zeros and ones: got {float(flat[~binary][0]):.6g}")
        if len({tuple(row) for row in flat.tolist()}) < len(flat):
            raise ValueError("a state is listed once, with its weight: some are the same")
        weights = torch.ones(len(flat)) if weights is None else weights.detach().cpu()
        weights = weights.to(torch.float64)
        if weights.shape != (len(flat),) or not bool(((weights > 0) & weights.isfinite()).all()):
            raise ValueError(f"weights are positive and finite, one a state ({len(flat)},): got {weights.tolist()}")
        self.states, self.event = flat, states.shape[1:]
        self.log_weights = weights.log().log_softmax(0)

    def __repr__(self) -> str:
        return f"Enumerable(states={len(self.states)}, event={tuple(self.event)})"

    @classmethod
    def heartbeat(cls, length: int = 20, every: int = 5) -> Enumerable:
        """Sequences with a one in every `every`-th place, in one of `every` phases, all alike: entropy log(every).

        Source: Sohl-Dickstein et al. 2015 (1503.03585), section 3.1.1.
        """
        phase, place = torch.arange(every)[:, None], torch.arange(length)[None]
        return cls((place % every == phase).to(torch.float64))

    @property
    def weights(self) -> Tensor:
        """The probabilities of the states, (k,) in float64."""
        return self.log_weights.exp()

    @property
    def entropy(self) -> float:
        """-sum_i w_i log w_i, in nats."""
        return -float((self.weights * self.log_weights).sum())

    def sample(self, n: int, seed: int | torch.Generator | None = 0, dtype: torch.dtype | None = None) -> Tensor:
        """n exact samples (n, *event), on the host."""
        rows = torch.multinomial(self.weights, n, replacement=True, generator=generator(seed))
        return self.states[rows].to(dtype or torch.get_default_dtype()).reshape(n, *self.event)

    def log_prob(self, x: Tensor, process: Binomial | None = None, t: float | Tensor | Level | None = None) -> Tensor:
        """log P(x_t = x) in nats, (batch,) float64; that of the data without a process."""
        if (process is None) != (t is None):
            raise ValueError("a process and a time belong together: give both, or neither for the data's own law")
        one = torch.ones((), dtype=torch.float64)
        alpha = one if process is None or t is None else process.level(t).alpha
        return self._joint(x, alpha).logsumexp(1)

    def posterior(self, log_likelihood: Callable[[Tensor], Tensor]) -> Enumerable:
        """The law of x0 given what was seen: weights times the likelihood, whose logarithm is a function of states.

        States of likelihood 0 (log -inf) are left out.
        """
        seen = log_likelihood(self.states.reshape(-1, *self.event)).to(torch.float64)
        possible = seen > -math.inf
        if not bool(possible.any()):
            raise ValueError("what was seen is impossible in this world: every state has likelihood 0")
        log_weights = (self.log_weights + seen)[possible].log_softmax(0)
        return Enumerable(self.states[possible].reshape(-1, *self.event), log_weights.exp())

    def denoiser(self, process: Binomial) -> ExactBinomialDenoiser:
        """The exact P(x0 = 1 | x_t), a denoiser like any other."""
        return ExactBinomialDenoiser(self, process)

    def _joint(self, x: Tensor, alpha: Tensor) -> Tensor:
        """log w_i + log q(x | y_i), (batch, k) float64 on the host."""
        if x.shape[1:] != self.event:
            raise ValueError(f"states of {self!r} have shape (batch, *{tuple(self.event)}): got {tuple(x.shape)}")
        flat = x.detach().cpu().to(torch.float64).flatten(1)
        agree = flat @ self.states.T + (1 - flat) @ (1 - self.states).T
        differ = flat.shape[1] - agree
        alpha = alpha.reshape(-1, 1)
        # at alpha = 1 a state that differs nowhere has log 0 no times
        log_q = torch.xlogy(agree, (1 + alpha) / 2) + torch.xlogy(differ, (1 - alpha) / 2)
        return self.log_weights + log_q


class ExactBinomialDenoiser(BaseDenoiser):
    """P(x0 = 1 | x_t) of an enumerable world, to rounding, at every level above data."""

    process: Binomial

    def __init__(self, world: Enumerable, process: Binomial) -> None:
        super().__init__()
        if not isinstance(process, Binomial):
            raise ValueError(f"a world of zeros and ones is diffused by Binomial(): got {process!r}")
        self.world, self.process, self.predicts = world, process, "x0"

    def bind(self, levels: Any, x: Tensor, cond: Cond) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(self._answer, level.alpha) for level in levels]

    def _answer(self, alpha: Tensor, x: Tensor) -> Tensor:
        if bool((alpha == 1).any()):
            raise ViewError("the state at t = 0 is data: ask a little above")
        r = self.world._joint(x, alpha).softmax(1)
        return (r @ self.world.states).to(x).reshape(x.shape)
