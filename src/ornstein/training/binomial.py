"""Training on zeros and ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..density import check_chain
from ..density.binomial_bound import binomial_term
from ..processes import Binomial, Level
from .hybrid import VLB
from .objective import Objective


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """loss = E_t E[-x0 log P - (1 - x0) log(1 - P)], P the predicted probability of a one, the mean over the event.

    For t and x_t held fixed it is H(x0 | x_t) + KL(P(x0 | x_t) || P), entry by entry: its minimiser is the exact
    P(x0 = 1 | x_t), as that of the plain `Objective`, which for zeros and ones is the Brier score. Logarithms are
    taken above -100.
    """

    def __post_init__(self) -> None:
        if self.weighting is not None or self.penalty is not None or self.observed is not None:
            raise ValueError(f"{type(self).__name__} has weights of its own: no weighting, penalty or observed")

    def compare(self, model: BaseDenoiser, prediction: Any, drawn: Any, cond: Cond) -> Tensor:
        if not isinstance(model.process, Binomial):
            raise ValueError(f"{self!r} is for zeros and ones: {model.process!r} is no Binomial()")
        cost = torch.nn.functional.binary_cross_entropy(prediction.x0, drawn.x0, reduction="none")
        return cost.flatten(1).mean(1)


@dataclass(frozen=True)
class BinomialVLB(VLB):
    """L_vlb = 1/d sum over steps t > s of E KL(q(x_s|x_t, x0) || p(x_s|x_t)), in nats per entry, of `binomial_bound`,

    by one step a sample, as `VLB` takes it. The KL of the prior is 0 for alpha(1) = 0 and left out.

    Args:
        time: the law of t. grid, steps: the chain from noise to data.

    Source: Sohl-Dickstein et al. 2015 (1503.03585), equation 14.
    """

    def __post_init__(self) -> None:
        if self.variance != "learned" or self.values is not None:
            raise ValueError("zeros and ones have no variance to choose and are no grid of values: give neither")

    def _chain(self, model: BaseDenoiser) -> Level:
        if not isinstance(model.process, Binomial):
            raise ValueError(f"{self!r} is for zeros and ones: {model.process!r} is no Binomial()")
        self._check(model)
        chain: Level = self.grid(model.process, self.steps)
        check_chain(chain)
        return chain

    def _term(
        self, model: BaseDenoiser, prediction: Any, drawn: Any, chain: Level, at: list[int], stop_mean: bool = False
    ) -> Tensor:
        after = [i + 1 for i in at]
        return binomial_term(drawn.x, prediction.x0, drawn.x0, chain[at], chain[after]).flatten(1).mean(1)
