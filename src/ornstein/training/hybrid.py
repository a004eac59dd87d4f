"""Training on the variational bound of a discrete chain, alone or as the hybrid loss that learns the variances."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser, Scaling
from ..density import Quantised, bound_term, check_chain, floor_of
from ..processes import GaussianProcess, Level
from ..random import Share, fresh_seed
from ..solvers.grids import Grid, Uniform
from .loss_second_moment import LossSecondMoment
from .objective import Objective


@dataclass(frozen=True)
class VLB(Objective):
    """L_vlb = 1/d sum over steps t > s of E KL(q(x_s|x_t, x0) || p(x_s|x_t)), the last of them -log p(x0|x_1),

    in nats per entry, by one step a sample: it is the step in which a time drawn from the law `time` falls, and counts
    1/(width of the step x density of the law), so the mean is L_vlb whatever the law. With `LossSecondMoment`, which is
    told every step's cost, the mean varies least. The KL of the prior has no weights and is left out.

    Args:
        time: the law of t.
        grid, steps: the chain from noise to data. `Uniform()` on `Cosine(offset=0.008)` is the paper's, but for its
            first step: no x0 comes from noise at alpha = 0, so predict v or x0, or begin at Uniform(start=0.999).
        variance: "learned" (the network has a head "variance"), "posterior" or "forward".
        values: those of quantised data, for the last step.

    Source: Nichol, Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models" (2102.09672), equation 4.
    """

    grid: Grid = field(default_factory=Uniform)
    steps: int = 1000
    variance: str = "learned"
    values: Quantised | None = None

    def losses(
        self,
        model: BaseDenoiser,
        x0: Tensor,
        cond: Cond = None,
        *,
        seed: int | None = None,
        share: Share | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(loss of each sample, its time), both (batch,): the weighted cost of its step, and the time drawn."""
        seed, share = fresh_seed() if seed is None else seed, share or Share(0, len(x0), len(x0))
        law = self.time
        if isinstance(law, LossSecondMoment) and len(share) < share.total:
            raise ValueError(f"{self.time!r} must see whole batches: train in one process, without accumulation")
        chain = self._chain(model)
        if self.values is not None and not torch.is_grad_enabled():  # as `fit` asks before it starts: no step waits
            self.values.check(x0 if model.scaling is None else model.scaling.decode(x0))
        u = self.times(model, x0, cond, seed, share)
        # the law is on (0, 1), the chain on (0, start)
        rising, start = chain.t.flip(0), chain.t[0]
        k = torch.searchsorted(rising, u * start).clamp(1, self.steps)
        weight = start / (self.steps * (rising[k] - rising[k - 1]) * self.time.density(model.process.level(u)))
        at = (self.steps - k).tolist()
        drawn, cond = self.draw(model, x0, chain.t[at], cond, seed, share)
        prediction = model(drawn.x, drawn.level, cond)
        cost, step = self._cost_of(model, prediction, drawn, chain, at, cond)
        if isinstance(law, LossSecondMoment) and torch.is_grad_enabled():
            law.observe(u, step)
        return weight.to(cost) * cost, u

    def _chain(self, model: BaseDenoiser) -> Level:
        if not isinstance(model.process, GaussianProcess):
            raise ValueError(f"the bound is of a process of one component: got {model.process!r}")
        self._check(model)
        chain: Level = self.grid(model.process, self.steps)
        check_chain(chain)
        return chain

    def _check(self, model: BaseDenoiser) -> None:
        if self.weighting is not None or self.penalty is not None or self.observed is not None:
            raise ValueError(f"{type(self).__name__} has weights of its own: no weighting, penalty or observed")

    def _cost_of(
        self, model: BaseDenoiser, prediction: Any, drawn: Any, chain: Level, at: list[int], cond: Cond
    ) -> tuple[Tensor, Tensor]:
        """(what is averaged, what the law is told) of each sample, for the steps that begin at chain[at]."""
        step = self.steps * self._term(model, prediction, drawn, chain, at)
        return step, step

    def _term(
        self, model: BaseDenoiser, prediction: Any, drawn: Any, chain: Level, at: list[int], stop_mean: bool = False
    ) -> Tensor:
        after, scaling = [i + 1 for i in at], model.scaling
        if scaling is not None and not isinstance(scaling, Scaling):
            if self.values is not None:
                raise ValueError(
                    f"{type(scaling).__name__} has no Jacobian: give no values, the bound is of its states"
                )
            scaling = None
        cost = bound_term(
            prediction,
            chain[at],
            chain[after],
            floor_of(chain),
            drawn.x0,
            self.variance,
            self.values,
            scaling,
            stop_mean=stop_mean,
        )
        return cost.flatten(1).mean(1)


@dataclass(frozen=True)
class HybridLoss(VLB):
    """L_simple + factor L_vlb with the gradient of L_vlb stopped at the mean: it teaches the variances alone.

    L_simple is the loss of `Objective` (with its weighting, penalty and observed) at the times of the chain, L_vlb that
    of `VLB`. The head "variance", v, is so fitted to the mean that L_simple finds: for a mean that is right the best
    std^2 is post^2 + c_x0^2 Var[x0 | x_t], averaged over what the network cannot tell apart.

    Args:
        factor: of L_vlb, which is a sum over steps in nats per entry.

    Source: Nichol, Dhariwal 2021 (2102.09672), equation 16.
    """

    factor: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"factor={self.factor}: positive and finite")
        if self.variance != "learned":
            raise ValueError(f"variance={self.variance!r}: the hybrid loss is there to learn it")

    def _check(self, model: BaseDenoiser) -> None:
        if self.observed is not None:
            raise ValueError("the bound needs all entries: no observed")

    def _cost_of(
        self, model: BaseDenoiser, prediction: Any, drawn: Any, chain: Level, at: list[int], cond: Cond
    ) -> tuple[Tensor, Tensor]:
        step = self.steps * self._term(model, prediction, drawn, chain, at, stop_mean=True)
        total = self.compare(model, prediction, drawn, cond) + self.factor * step
        return total, total
