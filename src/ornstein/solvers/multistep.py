"""The loop that multistep exponential integrators share: predict from past evaluations, correct with the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch

from .._types import View
from ..processes import Level
from .exponential import Tau, finite, fresh_std, half_step, jump, with_noise
from .table import Evaluation, Expression, Register, Writer

_REACH = 0.6

Advance: TypeAlias = Callable[[Register, Level, Level, Sequence[Evaluation]], Expression]
"""advance(x, t, s, nodes): the state at s from x at t and evaluations, those at t first."""


def multistep(
    table: Writer,
    grid: Level,
    advance: Advance,
    *,
    past: int,
    corrector: int = 0,
    start: int = 0,
    tau: Callable[[Level], Tau] = lambda level: 0.0,
    view: View = "x0",
) -> None:
    """x' = advance(x, t, s, past), e' = evaluate(x', s), x_s = advance(x, t, s, past with e').

    past: evaluations that the predictor looks back on, that at t included; fewer at the beginning.
    corrector: those that the corrector looks back on, 0 for none. It costs nothing: the evaluation of the predicted
        state serves it and all later steps, and the last step, which has no later one, is not corrected.
    start: points that are begun by `begin`, so that a solver keeps the order that it is named for. Where they span more
        than 0.6 in lambda it begins by lower orders instead: there Picard's iteration amplifies (order 3 of DEIS in 10
        steps: an error of 3.1 against 0.013), and the order is a matter of small steps.
    tau: the noise of a step, by the level that it goes to; predictor and corrector share the same numbers. Its standard
        deviation depends on the view that is held in the step.

    Steps from and to infinite log-SNR are exact for constant x0 and are not looked back on.
    """
    levels, x = list(grid), table.state
    for t, s in pairwise(levels):
        if bool((torch.as_tensor(tau(s)) > 0).any()) and bool((s.t > t.t).any()):
            raise ValueError(f"{table.solver} adds the noise of a reversed step: inversion needs tau = 0")
    if not finite(levels[0]):
        x = jump(table, x, table.evaluate(x, levels[0]), levels[1], tau(levels[1]))
        del levels[0]
    data = levels.pop() if len(levels) > 1 and not finite(levels[-1]) else None
    if not finite(levels[-1]):
        return  # the one step was the jump
    if data is None and len(levels) == 1:
        return
    block = levels[: 1 + start]
    if not bool((half_step(block[0], block[-1]).abs() <= _REACH).all()):
        block = block[:1]
    x, known = begin(table, x, block, advance)
    levels = levels[len(known) - 1 :]
    for i, (t, s) in enumerate(pairwise(levels)):
        last = data is None and i == len(levels) - 2
        noise = with_noise(table, Expression({}), t, s, fresh_std(t, s, view, tau(s)))
        value = advance(x, t, s, known[:past]) + noise
        if last:
            table.step(value, s)
        elif corrector:
            predicted = table.register(value, s)
            e = table.evaluate(predicted, s)
            # as a change of the predicted state, so that what a caller paints into that is kept
            x = table.step(predicted + (advance(x, t, s, [*known[:corrector], e]) + noise - value), s)
            known = [e, *known]
        else:
            x = table.step(value, s)
            known = [table.evaluate(x, s), *known]
    if data is not None:
        jump(table, x, known[0], data, tau(data))


def begin(table: Writer, x: Register, levels: Sequence[Level], advance: Advance) -> tuple[Register, list[Evaluation]]:
    """Picard's iteration on the first points: each sweep integrates the polynomial through all of them from the start.

        x_i = advance(x, levels[0], levels[i], evaluations at levels[0], ..., levels[n])

    Every sweep gains an order, until n points have a local error of O(h^(n + 2)). Returns the state at levels[n] and
    the last evaluations, newest first; n^2 + 1 evaluations.
    """
    t, *points = levels
    first = table.evaluate(x, t)
    nodes = [first]
    for _ in points:
        states = [table.register(advance(x, t, s, nodes), s) for s in points]
        nodes = [first, *(table.evaluate(state, s) for state, s in zip(states, points, strict=True))]
    origin = x
    for s in points:
        x = table.step(advance(origin, t, s, nodes), s)
    return x, nodes[::-1]
