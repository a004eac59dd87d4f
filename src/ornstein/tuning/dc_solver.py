"""DC-Solver: the newest output of a predictor-corrector re-timed by a ratio that is found for each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..numerics.quadrature import lagrange
from ..processes import Level
from ..solvers.dpm_solver import DPMSolverPP
from ..solvers.exponential import finite, secant_weights, transfer, weights
from ..solvers.grids import Grid, Uniform
from ..solvers.schedule_search import Calibrated
from ..solvers.solver import Solver
from ..solvers.table import Expression, Register, Table, Writer, _Linear
from .fine import fine_step, run
from .found import Found, compiled
from .lessons import Lessons

Known = tuple[Level, _Linear]
"""An output in the buffer, and the level that it is filed under."""


@dataclass(frozen=True)
class DCSolver(Solver):
    """UniPC whose newest output, before step i uses it, is replaced by the one at t' = rho_i t_i + (1 - rho_i) t_(i-1):

        x0'(t_i) = sum_j l_j(t') x0(t_(i-j)),    l_j the Lagrange polynomials of t_i, ..., t_(i - degree)

    What is replaced stays so for the steps that follow. The output that a corrector leaves in the buffer was evaluated
    at the predicted state, not at the corrected one; rho_i makes up for that. rho_i = 1 changes nothing: with no ratios
    this is `UniPC(order, variant, start="published")`. The coefficients of the outputs still sum to what they did, so
    that constant x0 is followed exactly.

    Args:
        order, variant: as in `UniPC`, which interpolates x0 here.
        ratios: rho_i of steps i = degree, ..., N - 1, those before have too few outputs; found by `calibrate`, or told
            by `Ratios`.
        degree: of the interpolation.

    Source: Zhao, Wang, Zhou, Lu 2024, "DC-Solver" (2409.03755), section 3.2 and algorithm 1.
    """

    order: int = 2
    variant: str = "bh2"
    ratios: tuple[float, ...] = ()
    degree: int = 2
    exact_for_constant = True

    def __post_init__(self) -> None:
        for name, choices in {
            "order": (1, 2, 3),
            "variant": ("bh1", "bh2", "vary_coeff"),
            "degree": (1, 2, 3),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {', '.join(map(str, choices))}")

    def write(self, table: Writer, grid: Level) -> None:
        levels, x = list(grid), table.state
        steps = len(levels) - 1
        if len(self.ratios) > max(steps - self.degree, 0):
            raise ValueError(f"{len(self.ratios)} ratios: {steps} steps take {max(steps - self.degree, 0)}")
        known: list[Known] = [(levels[0], table.evaluate(x, levels[0]).x0)]
        for i, (t, s) in enumerate(pairwise(levels)):
            if 0 <= i - self.degree < len(self.ratios):
                known[0] = (t, table.register(self._retimed(self.ratios[i - self.degree], known)))
            value = self._advance(x, t, s, known[: self.order])
            if i == steps - 1:
                table.step(value, s)
                return
            predicted = table.register(value, s)
            new = table.evaluate(predicted, s).x0
            if finite(t):
                corrected = self._advance(x, t, s, [*known[: self.order], (s, new)])
                x = table.step(predicted + (corrected - value), s)
            else:
                x = table.step(predicted, s)
            known = [(s, new), *known]

    def _retimed(self, ratio: float, known: Sequence[Known]) -> Expression:
        """The outputs' polynomial at t'."""
        nodes = torch.stack([level.t for level, _ in known[: self.degree + 1]], -1)
        at = ratio * nodes[..., :1] + (1 - ratio) * nodes[..., 1:2]
        value = Expression({})
        for c, (_, output) in zip(lagrange(at, nodes)[..., 0, :].unbind(-1), known, strict=False):
            value = value + c * output
        return value

    def _advance(self, x: Register, t: Level, s: Level, known: Sequence[Known]) -> Expression:
        """UniPC's step from the outputs of finite log-SNR; a step from or to an infinite one holds the newest."""
        nodes = [(level, output) for level, output in known if finite(level)]
        if not (finite(t) and finite(s)):
            nodes = [known[0]]
        levels = [level for level, _ in nodes]
        if len(nodes) == 2 and self.variant != "vary_coeff":
            w = secant_weights(t, s, levels[1], b=self.variant)
        else:
            w = weights(t, s, levels)
        value = transfer(t, s) * x
        for c, (_, output) in zip(w, nodes, strict=True):
            value = value + c * output
        return value

    def calibrate(self, lessons: Lessons, steps: int, grid: Grid | None = None, *, fine: int = 20) -> Found:
        """This solver with the ratios that bring it closest to the lessons' flow on a grid (default `Uniform()`).

        rho_i = argmin |x_(i+1) - X(x_(i+1))|^2 in turn, each with those before it fixed, where X is the flow followed
        by `fine` steps of a fine solver for each step; about ten starts are enough. The paper descends by gradients;
        here a scan and golden sections find the minimum.
        """
        if steps <= self.degree:
            raise ValueError(
                f"steps={steps}: an interpolation of degree {self.degree} re-times from {self.degree + 1} on"
            )
        levels: Level = (grid or Uniform())(lessons.process, steps)
        times, truth = levels.t.tolist(), lessons.starts
        lessons.check(compiled(self, lessons.process, times), ["start"])
        denoiser, cond = lessons.denoiser, lessons.cond
        spent = judged = 0
        ratios: list[float] = []
        value = float("inf")
        for i, (t, s) in enumerate(pairwise(levels)):
            truth, cost = fine_step(denoiser, truth, t, s, fine, DPMSolverPP(), cond)
            spent += cost
            if i < self.degree:
                continue

            def apart(ratio: float, i: int = i, truth: Tensor = truth) -> float:
                nonlocal spent, judged
                table = prefix(compiled(replace(self, ratios=(*ratios, ratio)), lessons.process, times), i + 1)
                judged, spent = judged + 1, spent + sum(denoiser.cost(table.levels))
                return float((run(denoiser, table, lessons.starts, cond) - truth).square().mean())

            ratio, value = line_minimum(apart)
            ratios.append(ratio)
        found = Calibrated(lessons.process, (tuple(times),))
        return Found(replace(self, ratios=tuple(ratios)), found, value**0.5, spent * len(lessons), judged)


def prefix(table: Table, steps: int) -> Table:
    """The table up to its state after some steps of the grid."""
    last = [m for m, row in enumerate(table.rows) if row.on_grid][steps]
    order = table.order[: table.order.index(("row", last)) + 1]
    count = sum(kind == "evaluate" for kind, _ in order)
    return Table(table.solver, table.rows[: last + 1], table.evaluations[:count], table.noises, order)


def line_minimum(function: Callable[[float], float]) -> tuple[float, float]:
    """(argmin, min): the best of some points, 1 among them, then golden sections about it."""
    values = {x: function(x) for x in (0.0, 0.5, 1.0, 1.5, 2.0)}
    middle, golden = min(values, key=values.__getitem__), (5**0.5 - 1) / 2
    a, b = middle - 0.5, middle + 0.5
    left, right = b - golden * (b - a), a + golden * (b - a)
    values |= {x: function(x) for x in (left, right)}
    for _ in range(5):
        if values[left] < values[right]:
            b, right = right, left
            left = new = b - golden * (b - a)
        else:
            a, left = left, right
            right = new = a + golden * (b - a)
        values[new] = function(new)
    best = min(values, key=values.__getitem__)
    return best, values[best]


@dataclass(frozen=True)
class Ratios:
    """rho_i(N, w) = sum_a c_a(N, w) u^a,  c_a(N, w) = sum_b c_ab(w) N^b,  c_ab(w) = sum_c c_abc w^c,    u = i/N

    Cascade polynomial regression: the ratios of a solver for budgets N and guidance scales w that were never searched.
    Three regressions, one after the other: of the ratios in the step, of the coefficients found in the number of steps,
    and of those in the scale. `coefficients` is (a + 1, b + 1, c + 1); `degree` is that of the solver.

    Source: Zhao, Wang, Zhou, Lu 2024 (2409.03755), section 3.3.
    """

    coefficients: Tensor
    degree: int = 2

    @classmethod
    def fit(cls, searched: Mapping[tuple[int, float], DCSolver], degrees: tuple[int, int, int] = (4, 1, 1)) -> Ratios:
        """The regression through solvers that were searched, by (steps, scale): all pairs of some steps and scales."""
        steps, scales = sorted({n for n, _ in searched}), sorted({w for _, w in searched})
        if len(searched) != len(steps) * len(scales):
            raise ValueError(f"{len(searched)} searches: one for each of {len(steps)} steps and {len(scales)} scales")
        degree = next(iter(searched.values())).degree
        for (n, w), solver in searched.items():
            if solver.degree != degree or len(solver.ratios) != n - degree:
                raise ValueError(
                    f"the solver of {n} steps and scale {w} has {len(solver.ratios)} ratios of degree {solver.degree}, "
                    f"{n - degree} of degree {degree} are told: `calibrate` finds them"
                )
        by_scale = []
        for w in scales:
            by_steps = []
            for n in steps:
                ratios = torch.tensor(searched[n, w].ratios, dtype=torch.float64)
                u = torch.arange(degree, n, dtype=torch.float64) / n
                by_steps.append(_polynomial(u, ratios[:, None], degrees[0])[:, 0])
            by_scale.append(_polynomial(torch.tensor(steps, dtype=torch.float64), torch.stack(by_steps), degrees[1]))
        stacked = torch.stack([c.flatten() for c in by_scale])
        found = _polynomial(torch.tensor(scales, dtype=torch.float64), stacked, degrees[2])
        return cls(found.reshape(-1, *by_scale[0].shape).permute(2, 1, 0), degree)

    def __call__(self, steps: int, scale: float) -> tuple[float, ...]:
        """The ratios of N steps at a guidance scale."""
        u = torch.arange(self.degree, steps, dtype=torch.float64) / steps
        at = (u, torch.tensor([steps], dtype=torch.float64), torch.tensor([scale], dtype=torch.float64))
        a, b, c = (_powers(x, k - 1) for x, k in zip(at, self.coefficients.shape, strict=True))
        return tuple(torch.einsum("ia,nb,wc,abc->i", a, b, c, self.coefficients).tolist())


def _powers(x: Tensor, degree: int) -> Tensor:
    return x[:, None] ** torch.arange(degree + 1, dtype=x.dtype)


def _polynomial(x: Tensor, y: Tensor, degree: int) -> Tensor:
    """Coefficients (degree + 1, k) of the least-squares polynomials for y (n, k) at x (n,), lower where n is."""
    c = torch.linalg.lstsq(_powers(x, min(degree, len(x) - 1)), y, driver="gelsd").solution
    return torch.cat([c, c.new_zeros(degree + 1 - len(c), c.shape[1])])
