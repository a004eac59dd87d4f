"""Exact worlds under noise with heavy tails."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .._types import Cond, View
from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..numerics.gamma import gamma_quantile
from ..processes import PFGMPP, Level
from .covariance import column, over
from .empirical import Empirical
from .world import NULL, World, coefficients, denoises

Answer = Callable[[Tensor], Tensor]


@denoises(PFGMPP)
class ExactHeavyTailedDenoiser(BaseDenoiser):
    """The exact denoiser of a world under `PFGMPP`: E[view | x_t].

    Of points y_i the weights are those of the kernel, and of any other world the answers p(w | x) E[view | x, w] at the
    noise sigma sqrt(D/w) are added up over the width w of the noise, p(w | x) ~ p(w) p(x | w):

        r_i ~ w_i (1 + |x - alpha y_i|^2/(D sigma^2))^(-(N + D)/2),     E[x0 | x] = sum_i r_i y_i

        E[view | x] = sum_j p_j p(x | w_j) E[view | x, w_j] / sum_j p_j p(x | w_j)

    with nodes at equal steps of log w, the trapezoidal rule. In log w the integrand is analytic and falls off at both
    sides as a gamma law's, so that the error of the rule falls as e^(-c/step): see `nodes`.
    """

    process: PFGMPP

    def __init__(self, world: World, process: PFGMPP, predicts: View = "x0") -> None:
        super().__init__()
        if predicts not in process.views:
            raise ViewError(f"{process!r} has no {predicts}: choose from {', '.join(process.views)}")
        self.world, self.process, self.predicts = world, process, predicts
        self.null = {"label": NULL}
        self._nodes = nodes(process.aux_dim, world.dim)

    def bind(self, levels: Level, x: Tensor, cond: Cond) -> Sequence[Answer]:
        flat, label = self._flat(levels[0], x, cond), self.world._label(cond, len(x))
        make = self._of_points if isinstance(self.world, Empirical) else self._over_widths
        calls = []
        for level in levels:
            a, c = coefficients(self.world, self.process, level, self.predicts)
            calls.append(partial(self._answer, make(level, flat, label, a, c), level, cond))
        return calls

    def _of_points(self, level: Level, like: Tensor, label: Tensor | None, a: Tensor, c: Tensor) -> Answer:
        world, alpha, sigma = self.world, level.alpha, level.sigma
        assert isinstance(world, Empirical)
        data, log_weights, labels = world._cast(like)
        if label is not None:
            log_weights = torch.where((label[:, None] == labels) | (label[:, None] < 0), log_weights, -torch.inf)
        # distances in the frame x/alpha; where alpha is nothing the weights are equal
        frame = torch.maximum(alpha, torch.finfo(like.dtype).eps * 1e-2 / world.scale * sigma)
        own_frame, width2 = column(frame, like), column(self.process.aux_dim * (sigma / frame) ** 2, like)
        # the score of one point is (alpha y - x)/sigma^2
        by_score = over(c, sigma**2)
        by_x0, by_x = column(a + by_score * alpha, like), column(-by_score, like)
        power = (world.dim + self.process.aux_dim) / 2
        width2 = width2.clamp_min(1e-200 if like.dtype == torch.float64 else 1e-25)  # without noise: the nearest point

        def view(x: Tensor) -> Tensor:
            z = x / own_frame
            still = z.detach()  # cdist has no forward-mode derivative: the square's value, and all its derivatives
            delta = z - still
            square = torch.cdist(still, data, compute_mode="donot_use_mm_for_euclid_dist").square()
            square = square + (delta * (z + still)).sum(1, keepdim=True) - 2 * delta @ data.mT
            terms = log_weights - power * torch.log1p(square / width2)
            return by_x0 * (terms.softmax(1) @ data) + by_x * x

        return view

    def _over_widths(self, level: Level, like: Tensor, label: Tensor | None, a: Tensor, c: Tensor) -> Answer:
        ratios, log_mass = self._nodes
        shape = (len(ratios), len(like))  # a row of the world's law for each width and sample

        def tiled(value: Tensor) -> Tensor:
            return value.expand(shape).flatten()

        wide = ratios[:, None]
        law = self.world._law(
            tiled(level.alpha), tiled(wide * level.sigma), like, None if label is None else tiled(label)
        )
        # the noise of the process is `ratio` times that of the law, -sigma ratio^2 the law's score
        answer = law.combine(tiled(a), tiled(wide**2 * c))

        def view(x: Tensor) -> Tensor:
            rows = x.expand(len(ratios), -1, -1).flatten(0, 1)
            posterior = (law.log_prob(rows).reshape(shape) + log_mass.to(x)[:, None]).softmax(0)
            return torch.einsum("jb,jbd->bd", posterior, answer(rows).reshape(*shape, -1))

        return view

    def _flat(self, level: Level, x: Tensor, cond: Cond) -> Tensor:
        shift = self.process.shift(level.t, cond)
        return self.world._centred(None, None, x if shift is None else x - shift, None)

    def _answer(self, view: Answer, level: Level, cond: Cond, x: Tensor) -> Tensor:
        out = view(self._flat(level, x, cond)).to(x.dtype).reshape(x.shape)
        slope = self.process.d_shift(level.t, cond) if self.predicts == "velocity" else None
        return out if slope is None else out + slope


def nodes(aux_dim: float, dim: int, step: float = 1.0) -> tuple[Tensor, Tensor]:
    """(sqrt(D/w_j), log p_j): widths of the noise at equal steps of log w, (J,) float64 each.

    Given x, w lies between the chi-square laws with D and with N + D degrees, and below by as much as x is far out; the
    nodes leave out 1e-18 of the first below, of the second above. They serve the states that the process reaches, not
    those that it would not draw in 1e18 times (hundreds of sigma away at large D).

    Under a chi-square law of k = 2a degrees the error of the rule with step h is 2 |Gamma(a + 2 pi i/h)|/Gamma(a) of
    the whole, ~ e^(-(2 pi/h)^2/2a) for large a and e^(-pi^2/h) for small: h = 0.75/(sqrt(a) + 2) with the larger
    a = (N + D)/2 leaves less than 1e-15 of either.

    step: a multiple of that step.
    """
    a, edge = (dim + aux_dim) / 2, torch.tensor([-8.8, 8.8], dtype=torch.float64)
    low = math.log(2 * float(gamma_quantile(aux_dim / 2, edge)[0]) / aux_dim)
    high = math.log(2 * float(gamma_quantile(a, edge)[1]) / aux_dim)
    h = step * 0.75 / (math.sqrt(a) + 2)
    v = low + h * torch.arange(math.ceil((high - low) / h) + 1, dtype=torch.float64)  # log(w/D)
    peak = aux_dim / 2 * (math.log(aux_dim / 2) - 1) - math.lgamma(aux_dim / 2)
    return torch.exp(-v / 2), aux_dim / 2 * (v - torch.expm1(v)) + peak + math.log(h)
