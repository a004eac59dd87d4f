"""EVODiff: how far a multistep step is corrected is chosen for each sample, by the least variance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..processes import Level
from .exponential import finite, half_step, jump, secant_weights, transfer, weights
from .solver import Solver
from .table import Evaluation, Register, Writer


@dataclass(frozen=True)
class EVODiff(Solver):
    """x_s = (sigma_s/sigma_t) x_t + w (x0(t) + D/2),    w = alpha_s (1 - e^-h),    D = D_p + theta (D_n - D_p)

        D_p = (h/h') (x0(t) - x0(t')),    D_n = x0(s) - x0(t)
        theta = argmin over [0, 1] of |D|^2 = -<D_p, D_n - D_p>/|D_n - D_p|^2, clipped

    per sample, where x0(s) is evaluated at the state that D = D_p predicts, which is DPM-Solver++ 2M's, and serves the
    next step too: no evaluation is added. D_p and D_n estimate the same change of x0, from the step before and from
    this one; |D|^2 is the method's estimate of the variance that the step adds, reference-free. Weights that sum to
    one keep the method consistent whatever theta is, and so of order 2. Where the estimates agree nothing is left to
    choose and the step is 2M's, to rounding. The first step, steps from and to infinite log-SNR and the last step,
    which no evaluation follows, are 2M's too.

    The least |D| errs to one side, short of the true D in nearly every step, and such errors add up: on exact worlds it
    is behind 2M from 10 evaluations on, and far behind `UniPC`, which corrects by fixed weights at the same cost.

    variant="published" has the coefficients of the published code for up to 20 steps. They are squashed by sigmoids,
    the differences are x0(t) - r x0(t') with r another than 1, and their weights sum to less than one: it is of order
    1, not exact for constant x0, and makes larger errors here. Its last step is DDIM's: the code also shrinks the
    state by 1 - sqrt(sigma_t sigma_s) there, which only a small sigma allows.

    Source: Li, Chen, Zeng 2025, "EVODiff" (2509.26096): the variance and its minimiser are the paper's, the interval
    [0, 1] in place of sigmoids is ours.
    """

    variant: str = "convex"

    def __post_init__(self) -> None:
        if self.variant not in ("convex", "published"):
            raise ValueError(f"variant={self.variant!r}: choose convex or published")

    @property
    def exact_for_constant(self) -> bool:
        return self.variant == "convex"

    def write(self, table: Writer, grid: Level) -> None:
        if self.variant == "published" and grid.t.dim() > 1:
            raise ValueError("variant='published' has one set of times for all samples: variant='convex' has its own")
        advance = _published if self.variant == "published" else _convex
        levels, x = list(grid), table.state
        e = table.evaluate(x, levels[0])
        past: Evaluation | None = None
        for i, (t, s) in enumerate(pairwise(levels)):
            last, steps = i == len(levels) - 2, finite(t) and finite(s)
            after: Evaluation | None = None
            if not steps:
                x = jump(table, x, e, s)
            elif past is None or (last and self.variant == "published"):
                x = table.step(transfer(t, s) * x + weights(t, s, [t])[0] * e.x0, s)
            else:
                x, after = advance(table, x, s, e, past, last)
            past = e if steps else None  # evaluations at infinite log-SNR carry no slope
            if not last:
                e = after or table.evaluate(x, s)


def _convex(
    table: Writer, x: Register, s: Level, e: Evaluation, past: Evaluation, last: bool
) -> tuple[Register, Evaluation | None]:
    t = e.level
    total, w = weights(t, s, [t])[0], secant_weights(t, s, past.level)
    value = transfer(t, s) * x + w[0] * e.x0 + w[1] * past.x0
    if last:
        return table.step(value, s), None
    predicted = table.register(value, s)
    after = table.evaluate(predicted, s)
    back = w[1] * past.x0 - w[1] * e.x0  # w D_p/2
    change = (total / 2) * (after.x0 - e.x0) - back
    # as a change of the predicted state, so that what a caller paints into that is kept
    return table.apply(_least, predicted, back, change, level=s, on_grid=True), after


def _least(x: Tensor, back: Tensor, change: Tensor) -> Tensor:
    """x + theta change, where theta in [0, 1] makes |back + theta change| least; x where change is 0."""
    return torch.addcmul(x, _ratio(back, change).clamp(-1, 0), change, value=-1)


def _published(
    table: Writer, x: Register, s: Level, e: Evaluation, past: Evaluation, last: bool
) -> tuple[Register, Evaluation | None]:
    t, o = e.level, past.level
    w, r = float(weights(t, s, [t])[0]), float(half_step(o, t) / half_step(t, s))
    spread = float((s.sigma / t.sigma / (t.sigma / o.sigma)).sqrt())
    mix = float((1 - s.t**2) / 2)
    euler = table.register(transfer(t, s) * x + w * e.x0)
    now, before = table.register(1.0 * e.x0), table.register(1.0 * past.x0)
    predicted = table.apply(partial(_probe, w, r, spread, mix), euler, now, before, level=s)
    after = table.evaluate(predicted, s)
    refine = partial(_refine, w, r, spread, mix)
    x = table.apply(refine, euler, predicted, 1.0 * after.x0, now, before, level=s, on_grid=True)
    return x, after


def _probe(w: float, r: float, spread: float, mix: float, euler: Tensor, now: Tensor, before: Tensor) -> Tensor:
    difference, scale = _balanced(r, spread, mix, now, before)
    return euler + w / 2 * difference / scale


def _refine(
    w: float, r: float, spread: float, mix: float,
    euler: Tensor, predicted: Tensor, after: Tensor, now: Tensor, before: Tensor,
) -> Tensor:  # fmt: skip
    first, scale = _balanced(r, spread, mix, now, before)
    second = _balanced(r, spread, mix, after, now)[0]
    back, ahead = first / r, second * r
    eta = torch.sigmoid((_projection(ahead + back, ahead - back) / 2).abs()) / 2
    slope = (1 - eta) * ahead - eta * back
    zeta = torch.sigmoid((_projection(predicted - euler - w / 2 * slope / scale, first) / w).abs() - 0.5)
    return euler + w / 2 * slope / zeta


def _balanced(r: float, spread: float, mix: float, new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """new - l old with the code's l, and the ratio of steps that it divides by."""
    share = (1 - mix) * spread + mix * _projection(new, old)
    return new - share * old, (torch.sigmoid(share.abs() / 4) * r).clamp(0.25 * r, 1.5 * r)


def _projection(a: Tensor, b: Tensor) -> Tensor:
    return _ratio(a, b).clamp(-2, 2)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>/|b|^2 of each sample, and 0 for 0/0, with as many dimensions as the samples have."""
    return torch.nan_to_num(_dot(a, b) / _dot(b, b))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product = a * b
    return product.sum(tuple(range(1, a.dim())), keepdim=True) if a.dim() > 1 else product
