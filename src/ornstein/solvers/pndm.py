"""Pseudo numerical methods: classical combinations of noises, carried by DDIM's step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..processes import Level
from .exponential import finite, jump
from .solver import Solver
from .table import Evaluation, Expression, Register, Writer
from .variable import VARIABLES

ADAMS = {1: (1,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


@dataclass(frozen=True)
class PNDM(Solver):
    """x_s = transfer(x, noise', t, s),    noise' = (55 noise_0 - 59 noise_1 + 37 noise_2 - 9 noise_3)/24

    where transfer is DDIM's step, x_s/alpha_s = x/alpha_t + (sigma_s/alpha_s - sigma_t/alpha_t) noise', and noise_0,
    noise_1, ... are the predictions here and at the points before; orders 1 (DDIM) to 3 take Adams and Bashforth's
    numbers for that many. They are those of equal steps of sigma/alpha: on such a grid the method has the order given,
    on others (equal times, log-SNR) it is of order 2 for each order above 1. `AdamsBashforth` has exact weights.

    start: "runge-kutta" takes the first order - 1 steps by a pseudo Runge-Kutta method, Heun's (order 2, S-PNDM) or
    the classical one (orders 3 and 4, F-PNDM), with stages at the middle of the times; "rising" takes what past there
    is, with no more evaluations (iPNDM). Steps at infinite log-SNR are DDIM's, without memory.

    Source: Liu, Ren, Lin, Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds" (2202.09778);
    Zhang, Chen 2022 (2204.13902) for the rising start.
    """

    order: int = 4
    start: str = "runge-kutta"
    exact_for_constant = True

    def __post_init__(self) -> None:
        if self.order not in ADAMS:
            raise ValueError(f"order={self.order}: choose 1, 2, 3 or 4")
        if self.start not in ("runge-kutta", "rising"):
            raise ValueError(f"start={self.start!r}: choose runge-kutta or rising")

    def write(self, table: Writer, grid: Level) -> None:
        x, sigma = table.state, VARIABLES["sigma"]
        past: list[Evaluation] = []  # newest first
        for t, s in pairwise(grid):
            e = table.evaluate(x, t)
            if not sigma.reaches(t, s) or self.order == 1:
                x = jump(table, x, e, s)
                continue
            past = [e, *past[: self.order - 1]]
            if len(past) < self.order and self.start == "runge-kutta" and finite(s):
                noise = _heun(table, e, s) if self.order == 2 else _classical(table, e, s)
            else:
                noise = _sum(ADAMS[len(past)], past)
            x = table.step(sigma.move(x, t, s, noise), s)


def _sum(weights: Sequence[float], evaluations: Sequence[Evaluation]) -> Expression:
    total = Expression({})
    for weight, e in zip(weights, evaluations, strict=True):
        total = total + weight * e.noise
    return total


def _stage(table: Writer, first: Evaluation, noise: Evaluation, s: Level) -> Evaluation:
    """The prediction at s, to where the noise of another stage carries the state of the first."""
    x = VARIABLES["sigma"].move(Register(first.register), first.level, s, noise.noise * 1.0)
    return table.evaluate(table.register(x, s), s)


def _heun(table: Writer, e: Evaluation, s: Level) -> Expression:
    return _sum((1 / 2, 1 / 2), (e, _stage(table, e, e, s)))


def _classical(table: Writer, e: Evaluation, s: Level) -> Expression:
    middle = table.level((e.level.t + s.t) / 2)
    second = _stage(table, e, e, middle)
    third = _stage(table, e, second, middle)
    fourth = _stage(table, e, third, s)
    return _sum((1 / 6, 1 / 3, 1 / 3, 1 / 6), (e, second, third, fourth))
