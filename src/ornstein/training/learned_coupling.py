"""Training a flow together with the coupling of data and noise that it runs along."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import CoupledDraw
from .objective import Objective


@dataclass(frozen=True)
class MinimumCurvature(Objective):
    """loss = E_t E_(x0, noise ~ q(. | x0)) w(t) |P(x_t, t) - target|^2/d + beta KL(q(. | x0) || N(0, I))/d

    for a model whose process is a `LearnedCoupling`; both the model and q are trained by it. With the velocity of
    `Flow` and w = 1 the first term is, for the best P, the mean over t of Var(noise - x0 | x_t): how much straight
    paths between pairs cross. It is 0 just where the flow runs along the pairs and is straight. Less beta makes paths
    straighter, and E q(. | x0), the noise trained on, less the N(0, I) in which samples begin. For Gaussian data of
    standard deviation s and a linear encoder, noise = a x0 + b z, both are known: the first term is s b theta, with
    theta the angle of (a s, b), and as beta goes to 0 Var(noise) goes to 1/2, so that samples of a flow without error
    are wider than the data by 1/sqrt(Var(noise)).

    Args:
        weighting: w, by default `UnitTarget`, which is 1/2 for the velocity of `Flow`: beta then counts double.
        beta: weight of the KL, positive.

    Source: Lee, Kim, Ye 2023, "Minimizing Trajectory Curvature of ODE-based Generative Models" (2301.12003), the
    joint objective.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta={self.beta}: positive and finite, large for a coupling near the independent one")

    def compare(self, model: BaseDenoiser, prediction: Any, drawn: Any, cond: Cond) -> Tensor:
        if not isinstance(drawn, CoupledDraw) or drawn.kl is None:
            raise ValueError(
                f"{self!r} learns a coupling: the model's process is a LearnedCoupling, not {model.process!r}"
            )
        return super().compare(model, prediction, drawn, cond) + self.beta * drawn.kl / drawn.x0[0].numel()
