"""DPM-Solver and DPM-Solver++, multistep and singlestep."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .._types import View
from ..processes import Level
from .exponential import combine, finite, half_step, jump, kernel, moments, secant_weights, weights
from .multistep import multistep
from .solver import Solver
from .table import Evaluation, Expression, Register, Writer

STAGES: dict[int, tuple[float, ...]] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


@dataclass(frozen=True)
class _DPMSolver(Solver):
    order: int = 2
    mode: str = "multistep"
    start: str = "matched"
    variant: str = "exact"
    exact_for_constant = True

    def __post_init__(self) -> None:
        if self.order not in STAGES:
            raise ValueError(f"order={self.order}: choose 1, 2 or 3")
        for name, choices in {
            "mode": ("multistep", "singlestep"),
            "start": ("matched", "published"),
            "variant": ("exact", "published"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(choices)}")

    @property
    @abstractmethod
    def view(self) -> View:
        """The view that is interpolated."""

    def write(self, table: Writer, grid: Level) -> None:
        if self.mode == "singlestep":
            return self._singlestep(table, grid)
        begun = 1 if self.order == 3 and self.start == "matched" else 0
        return multistep(table, grid, self._advance, past=self.order, start=begun)

    def _singlestep(self, table: Writer, grid: Level) -> None:
        x = table.state
        for t, s in pairwise(grid):
            nodes = [table.evaluate(x, t)]
            if not (finite(t) and finite(s)):
                x = jump(table, x, nodes[0], s)
                continue
            for r in STAGES[self.order]:
                m = between(table, t, s, r)
                stage = table.register(self._advance(x, t, m, nodes), m)
                nodes = [nodes[0], table.evaluate(stage, m)]
            x = table.step(self._advance(x, t, s, nodes), s)

    def _advance(self, x: Register, t: Level, s: Level, nodes: Sequence[Evaluation]) -> Expression:
        levels, published = [node.level for node in nodes], self.variant == "published"
        if len(nodes) == 2 and (self.order == 2 or (published and self.mode == "multistep")):
            w = secant_weights(t, s, levels[1], self.view)
        else:
            w = weights(t, s, levels, self.view)
        if len(nodes) == 3 and published:
            w = [a - b / 2 for a, b in zip(w, _curvature(t, s, levels, self.view), strict=True)]
        return combine(x, t, s, w, nodes, self.view)


@dataclass(frozen=True)
class DPMSolver(_DPMSolver):
    """x_s = (alpha_s/alpha_t) x_t - sigma_s int_{-h}^0 e^-u noise(lambda_s + u) du, h = lambda_s - lambda_t.

    Order 1 is DDIM. "singlestep" evaluates between the grid's points, at half (order 2) or a third and two thirds
    (order 3) of the step in lambda = log(alpha/sigma), `order` evaluations a step; "multistep" extrapolates the noise
    from past steps, as `DPMSolverPP` does x0: see there for `start` and `variant`.

    Steps at infinite log-SNR, to data or from pure noise, are DDIM's.

    Source: Lu et al. 2022, "DPM-Solver" (2206.00927), algorithms 1 and 2.
    """

    @property
    def view(self) -> View:
        return "noise"


@dataclass(frozen=True)
class DPMSolverPP(_DPMSolver):
    """x_s = (sigma_s/sigma_t) x_t + alpha_s int_{-h}^0 e^u x0(lambda_s + u) du, x0 extrapolated from past evaluations.

    order 1 is DDIM. order 2 is the paper's 2M: with h' the step before, x0 is constant at
    (1 + h/2h') x0(t) - h/2h' x0(t'). order 3 integrates the parabola through the last three evaluations exactly;
    variant="published" halves its second difference, as the published code does, and so is of order 2.
    mode="singlestep" is the paper's 2S, and 3S, with `order` evaluations a step.

    start: with "matched" the first step of order 3, where it is short (see `multistep`), is a predictor and a corrector
    whose evaluation at the predicted state serves the next step too, so that the method has the order it is named for;
    with "published" it is DDIM, and the order is 2. Evaluations at infinite log-SNR carry no slope and are not
    extrapolated from, so that steps from pure noise and to data are exact for constant x0.

    Source: Lu et al. 2022, "DPM-Solver++" (2211.01095), algorithms 1 and 2.
    """

    @property
    def view(self) -> View:
        return "x0"


def between(table: Writer, t: Level, s: Level, ratio: float) -> Level:
    """The level at lambda_t + ratio h."""
    if table.process is None:
        return table.level(t.t)  # which says what is missing
    return table.level(table.process.time(t.log_snr + ratio * (s.log_snr - t.log_snr)))


def _curvature(t: Level, s: Level, nodes: Sequence[Level], view: View) -> list[Tensor]:
    """The part of three nodes' weights that integrates (u + h)^2 f[0, 1, 2], their second divided difference."""
    scale, exponent = kernel(t, s, view)
    whole = scale * (moments(exponent, 3) * torch.tensor([1.0, 2.0, 1.0], dtype=exponent.dtype)).sum(-1)
    r = [half_step(t, node) / half_step(t, s) for node in nodes]
    return [whole / ((r[i] - r[i - 1]) * (r[i] - r[i - 2])) for i in range(3)]
