"""IIA: each step's coefficients refitted so that it lands where the fine flow does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..processes import Level
from ..solvers.ddim import DDIM
from ..solvers.dpm_solver import DPMSolverPP
from ..solvers.grids import Grid, LogSNR
from ..solvers.sample import evaluation
from ..solvers.solver import Solver
from ..solvers.table import Atom, Evaluation, Expression, Output, Register, Table
from .fine import fine_step
from .found import compiled
from .lessons import Lessons


@dataclass(frozen=True)
class Refitted:
    """A solver's table with other coefficients, as `sample(..., table=refitted.table)` takes it.

    table: rows of the same registers and evaluations, and some outputs more.
    residuals: for each step the root mean square of what the fine flow and the step differ by, before and after.
    evaluations: network evaluations that the fit spent, all starts together.
    """

    table: Table
    residuals: tuple[tuple[float, float], ...]
    evaluations: int


@dataclass(frozen=True)
class IIA:
    """x_s = base step + sum_j g_j (x0(e_(k-j)) - x0(e_k)),    g = argmin E |X(x_t, t, s) - x_s|^2

    for each step of the grid: e_k is the newest evaluation that the step of the base solver knows, e_(k-1), ... the
    `window` before it, X the fine flow from the step's own start. A least-squares problem of at most `window` unknowns,
    solved step after step along the refitted solver's own path. The changes vanish for constant x0, which the refitted
    table follows as the base does; with window = 0 it is the base.

    `scale=True` fits also the one coefficient of noise(e_k), as the paper does for guided models, which gives that up.

    Args:
        solver: the base, a deterministic one whose rows are no functions of the data.
        window: past outputs that a step may read.
        fine: steps of the fine solver, `teacher`, within one step.

    Source: Zhang, Niwa, Kleijn 2023, "On Accelerating Diffusion-Based Sampling Process via Improved Integration
    Approximation" (2304.11328), sections 3 and 4.
    """

    solver: Solver = field(default_factory=DDIM)
    window: int = 2
    scale: bool = False
    fine: int = 10
    teacher: Solver = field(default_factory=DPMSolverPP)

    def __post_init__(self) -> None:
        if self.window < 0 or self.fine < 2:
            raise ValueError(f"window={self.window}, fine={self.fine}: outputs, 0 or more, and at least 2 fine steps")

    def fit(self, lessons: Lessons, steps: int, grid: Grid | None = None) -> Refitted:
        """The refitted table of `steps` steps on a grid (default `LogSNR()`) from the lessons' starts."""
        denoiser, process, cond = lessons.denoiser, lessons.process, lessons.cond
        levels: Level = (grid or LogSNR())(process, steps)
        base = compiled(self.solver, process, levels.t.tolist())
        _check(base)
        lessons.check(base, ["start"])

        def moved(x: Tensor, level: Level, sign: int) -> Tensor:
            shift = process.shift(level.t, cond)
            return x if shift is None else x + sign * shift

        registers: dict[int, Tensor] = {0: moved(lessons.starts, base.start, -1)}
        answers: dict[int, Any] = {}

        def value(terms: Mapping[Atom, Any]) -> Tensor:
            total = torch.zeros_like(lessons.starts)
            for atom, c in terms.items():
                own = registers[atom.index] if isinstance(atom, Register) else _view(answers, atom)
                total = total + own * c
            return total

        rows, known, residuals = list(base.rows), list[Evaluation](), list[tuple[float, float]]()
        here, start, spent = 0, base.start, sum(denoiser.cost(base.levels))
        for kind, index in base.order:
            if kind == "evaluate":
                e = base.evaluations[index]
                with evaluation(denoiser), torch.no_grad():
                    answers[index] = denoiser(moved(registers[e.register], e.level, 1), e.level, cond)
                known.insert(0, e)
                continue
            row, s = rows[index], rows[index].level
            if row.on_grid and s is not None:
                x = moved(registers[here], start, 1)
                truth, cost = fine_step(denoiser, x, start, s, self.fine, self.teacher, cond)
                free: list[Expression] = [past.x0 - known[0].x0 for past in known[1 : 1 + self.window]]
                free += [Expression({known[0].noise: 1.0})] if self.scale else []
                apart = moved(truth, s, -1) - value(row.terms)
                found, before, after = _least_squares([value(term.terms()) for term in free], apart)
                total = Expression(dict(row.terms))
                for g, term in zip(found, free, strict=True):
                    total = total + g * term
                row = rows[index] = replace(row, terms=total.terms())
                residuals.append((before, after))
                here, start, spent = index, s, spent + cost
            registers[index] = value(row.terms)
        table = Table(repr(self), tuple(rows), base.evaluations, (), base.order, base.error)
        return Refitted(table, tuple(residuals), spent * len(lessons))


def _check(table: Table) -> None:
    """Refuse a table that is not a list of numbers, one answer a level."""
    atoms = [(atom, c) for row in table.rows for atom, c in row.terms.items()]
    plain = all(isinstance(c, float) and (not isinstance(a, Output) or (a.view, a.head) in _READ) for a, c in atoms)
    if table.noises or table.adaptive or not plain:
        raise ValueError(
            f"{table.solver} draws noise, reads a head of its own or has coefficients that are no numbers: "
            "IIA refits deterministic solvers such as DDIM(), Heun() or DPMSolverPP()"
        )


_READ = {(view, "main") for view in ("x0", "noise", "score", "v")}


def _view(answers: Mapping[int, Any], atom: Atom) -> Tensor:
    assert isinstance(atom, Output)
    answer: Tensor = getattr(answers[atom.evaluation], atom.view)
    return answer


def _least_squares(columns: list[Tensor], target: Tensor) -> tuple[list[float], float, float]:
    """argmin_g |target - sum_j g_j column_j|^2, and the root mean squares of the target and of what is left of it."""
    b = target.to("cpu", torch.float64).flatten()
    before = float(b.square().mean().sqrt())
    if not columns:
        return [], before, before
    a = torch.stack([column.to("cpu", torch.float64).flatten() for column in columns], 1)
    g = torch.linalg.lstsq(a, b[:, None], driver="gelsd").solution[:, 0]
    return g.tolist(), before, float((b - a @ g).square().mean().sqrt())
