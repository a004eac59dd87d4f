"""Conjugate gradients, a system for each sample of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


class Solved(NamedTuple):
    """x; for each sample (batch,) the steps it took and |residual|/|right side|, of the normal equations in `cgls`."""

    x: Tensor
    steps: Tensor
    residual: Tensor


def cg(apply: Map, b: Tensor, x: Tensor | None = None, *, tolerance: float = 0.0, limit: int = 1000) -> Solved:
    """Solve M x = b for symmetric positive definite M = `apply`, by at most `limit` steps from x (0 if not given).

        x += a p,  r -= a M p,  p = r' + (|r'|^2/|r|^2) p,      a = |r|^2/<p, M p>,  r = p = b - M x at the start

    so that step k minimises <x, M x>/2 - <b, x> over x + span(r, M r, ..., M^(k-1) r): one step is the gradient step of
    the best length. b: (batch, ...). Each sample has its own step lengths and rests once |r| <= tolerance |b|, so what
    else is in the batch does not matter. Nothing is raised where that is not reached: see `residual`. Gradients flow.

    Source: Hestenes, Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
    """
    r = b.clone() if x is None else b - apply(x)
    x = torch.zeros_like(b) if x is None else x
    p, rr, size = r, _dot(r, r), _dot(b, b)
    goal = tolerance**2 * size
    running, steps = rr > goal, torch.zeros(len(b), dtype=torch.long, device=b.device)
    for _ in range(limit):
        if tolerance > 0 and not bool(running.any()):
            break
        q = apply(p)
        bend = _dot(p, q)
        running = running & (bend > 0)
        a = _ratio(rr, bend, running)
        x, r = x + _wide(a, p) * p, r - _wide(a, q) * q
        last, rr = rr, torch.where(running, _dot(r, r), rr)
        steps = steps + running
        p = r + _wide(_ratio(rr, last, running), p) * p
        running = running & (rr > goal)
    return Solved(x, steps, _ratio(rr, size, size > 0).sqrt())


def cgls(forward: Map, adjoint: Map, y: Tensor, *, tolerance: float = 0.0, limit: int = 1000) -> Solved:
    """The least-squares solution of A x = y of smallest norm, A^+ y, by conjugate gradients on A^T A x = A^T y.

    The residual y - A x is carried instead of A^T (y - A x), which loses the condition of A to rounding and not its
    square. y: (batch, ...); a sample rests once |A^T (y - A x)| <= tolerance |A^T y|.

    Source: Björck 1996, "Numerical Methods for Least Squares Problems", algorithm 7.4.1.
    """
    r, p = y, adjoint(y)
    x, ss = torch.zeros_like(p), _dot(p, p)
    size, goal = ss, tolerance**2 * ss
    running, steps = ss > goal, torch.zeros(len(y), dtype=torch.long, device=y.device)
    for _ in range(limit):
        if tolerance > 0 and not bool(running.any()):
            break
        q = forward(p)
        bend = _dot(q, q)
        running = running & (bend > 0)
        a = _ratio(ss, bend, running)
        x, r = x + _wide(a, p) * p, r - _wide(a, q) * q
        s = adjoint(r)
        last, ss = ss, torch.where(running, _dot(s, s), ss)
        steps = steps + running
        p = s + _wide(_ratio(ss, last, running), p) * p
        running = running & (ss > goal)
    return Solved(x, steps, _ratio(ss, size, size > 0).sqrt())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _ratio(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """a/b where it is wanted, 0 elsewhere, with finite gradients."""
    return torch.where(where, a / torch.where(where, b, 1.0), 0.0)


def _wide(a: Tensor, like: Tensor) -> Tensor:
    return a.reshape(-1, *[1] * (like.dim() - 1))
