"""Tuning: the table whose samples are closest to a model's own flow, found by Gauss and Newton's method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..prediction import heads_of
from ..random import Noise, derive, generator
from ..solvers.sample import evaluation
from ..solvers.table import Table
from .fingerprint import describe, fingerprint
from .lessons import Lessons, process_of, teach
from .named import named
from .objectives import Endpoint, Objective
from .parameters import Coefficients, Parameters, reduce
from .tuned_table import TunedTable

_FIRST = 32  # starts on which all named tables are tried; the best go on to all
_LONGLIST = 6
_PARTED = 3  # named tables from which a descent is begun; after _OPENING iterations the best goes on
_OPENING = 4
_SPREAD = 2.0  # typical errors at which a start begins to count less
_TRIES = 6  # dampings of one step
_TALL = 64  # rows of J for each number that is tuned, at least, and starts at least
_FEWEST = 128
_LEAST = 1e-3  # share of the loss that a step is to gain


def tune(
    model: BaseDenoiser,
    *,
    nfe: int,
    shape: Sequence[int] | None = None,
    cond: Cond = None,
    lessons: Lessons | Sequence[Lessons] | None = None,
    start: Table | None = None,
    objective: Objective | None = None,
    window: int | None = None,
    rank: int | None = None,
    validation: float = 0.25,
    iterations: int = 40,
    evaluations: int | None = None,
    seed: int = 0,
) -> TunedTable:
    """theta* = argmin sum_i r_i(theta)^2,   r = objective.residuals(table_theta(starts), ends),   from a named table

    by Levenberg and Marquardt's method: with J = dr/dtheta and D = diag(J^T J), theta <- theta - (J^T J + damping D)^-1
    J^T r. A table has few numbers (nfe^2/2) and a start many coordinates, so that J is tall and the step well
    determined. A column of J is a difference of two runs of which only the part behind the changed number is run again:
    no gradient goes through the network, which may be compiled, quantised or very large. The theta that is kept is the
    best on validation starts, or the named table where none is better (with a window, the best that keeps to it, even
    if the named table is better). See `Parameters` for what is free.

    Args:
        model: any denoiser of one GaussianProcess, guided or not.
        nfe: evaluations of the denoiser in a run of the table (a guided evaluation may be two of the network), >= 2.
        shape, cond: (starts, *event) of the lessons that are to be taught, and their conditions; or
        lessons: those that `teach` made; of several models (guidance scales) as a sequence. One serves all budgets.
        start: a table to begin with; by default the best of the named ones on the tuning starts.
        objective: by default `Endpoint()`; `Distribution()` for a `start` with noise.
        window, rank: of the weights, see `Parameters`.
        validation: the share of the starts kept apart.
        iterations, evaluations: bounds on the descent, the second in network evaluations, lessons not counted.
        seed: of the lessons' starts, of the split and of the noise of stochastic tables.

    Raises ValueError or TableError, before the work starts, for what cannot be tuned.

    Source: Levenberg 1944; Marquardt 1963. Non-stationary solvers fitted to a flow: Shaul et al. 2024 (2403.01329).
    """
    process = process_of(model)
    if nfe < 2:
        raise ValueError(f"nfe={nfe}: one evaluation leaves nothing to tune, take 2 or more")
    objective = objective or Endpoint()
    if start is not None and start.nfe != nfe:
        raise ValueError(f"the start ({start.solver}) takes {start.nfe} evaluations, nfe={nfe}")
    if start is not None and start.noises and objective.pathwise:
        raise ValueError(
            f"the start ({start.solver}) has noise, so no start has an endpoint of its own: tune it with "
            "objective=Distribution()"
        )
    if lessons is None:
        if shape is None:
            raise ValueError("give the shape (starts, *event) of the lessons, or lessons from teach(model, shape)")
        lessons = teach(model, shape, cond=cond, seed=seed)
    scenes = [lessons] if isinstance(lessons, Lessons) else list(lessons)
    if not scenes or any(len(scene) < 4 for scene in scenes):
        raise ValueError(
            f"lessons of {[len(scene) for scene in scenes]} starts are too few to tune on: take 64 or more"
        )
    for scene in scenes:
        if repr(scene.process) != repr(process):
            raise ValueError(f"lessons of {scene.process!r} for a model of {process!r}: teach again")
    halves = [scene.split(validation, derive(seed, "split")) for scene in scenes]
    tuning, apart = ([half[i] for half in halves] for i in (0, 1))
    work = Work(tuning, objective, derive(seed, "noise"))
    check = Work(apart, objective, derive(seed, "validation"))
    limit = math.inf if evaluations is None else evaluations
    bases = {"the start given": start} if start is not None else best_named(work, nfe)
    descents = [Descent(Parameters(process, reduce(base), window, rank), work, check) for base in bases.values()]
    for descent in descents if len(descents) > 1 else ():
        descent.go(min(_OPENING, iterations), limit)
    typical = torch.stack([descent.typical for descent in descents]).amin(0)
    ahead = min(descents, key=lambda descent: descent.loss(typical))
    ahead.go(iterations - ahead.made, limit)
    name, base = next(iter(bases.items()))
    table = base
    found = min(descents, key=lambda descent: math.inf if descent.theta is None else descent.best)
    if found.theta is not None and (window is not None or found.best < check.value(reduce(base))):
        made = found.parameters.coefficients(found.theta)
        table = made.table(process, f"tuned, {nfe} evaluations, from {list(bases)[descents.index(found)]}")
    own, before = (torch.cat([scene.errors(t) for scene in apart]) for t in (table, base))
    return TunedTable(
        table,
        own,
        before,
        {
            "nfe": nfe,
            "process": repr(process),
            "fingerprint": fingerprint(model),
            "guidance": [describe(scene.denoiser) for scene in scenes],
            "named": name,
            "objective": repr(objective),
            "starts": sum(map(len, tuning)),
            "validation": sum(map(len, apart)),
            "iterations": sum(descent.made for descent in descents),
            "evaluations": {
                "lessons": sum(scene.evaluations for scene in scenes),
                "tuning": work.spent + check.spent,
            },
            "seed": seed,
        },
    )


def best_named(work: Work, nfe: int) -> dict[str, Table]:
    """The named tables that are best on the tuning starts, best first: all on a few, then the best few on all."""
    found = named(work.scenes[0].process, nfe)
    if not found:
        raise ValueError(f"no named solver takes {nfe} evaluations on {work.scenes[0].process!r}: give start, a table")
    few = Work([scene.take(torch.arange(min(len(scene), _FIRST))) for scene in work.scenes], work.objective, work.seed)
    first = sorted(found, key=lambda name: few.value(reduce(found[name])))[:_LONGLIST]
    work.spent += few.spent
    return {name: found[name] for name in sorted(first, key=lambda name: work.value(reduce(found[name])))[:_PARTED]}


class Descent:
    """Levenberg and Marquardt's method from one table, on pseudo-Huber's loss of the starts' errors s_b:

        sum_b 2 c^2 (sqrt(1 + s_b^2/c^2) - 1),    c = 2 median_b s_b,    so that row b of J and r weighs w_b,
        w_b^2 = 1/sqrt(1 + s_b^2/c^2)

    c falls with the errors, and is a scene's own. A start near the border of two modes that ends in the wrong one has
    an error that no small change of the table mends; under the plain square it holds the descent where it is, here it
    waits.

    J is of a part of the starts, another each time, as long as steps so found lower the loss of all: then of twice as
    many.

    theta: the best on the validation starts, by the objective itself, None where none is better than the table (with a
    window, of all that keep to it); `best` is that value and `made` the number of Jacobians.
    """

    def __init__(self, parameters: Parameters, work: Work, check: Work) -> None:
        self.parameters, self.work, self.check = parameters, work, check
        self._here, self._damping = parameters.begin, 1e-2
        begun = parameters.coefficients(self._here)
        self.made, self.best = 0, check.value(begun)
        # the table itself looks back further than a window allows, so that what is kept is of this form from the start
        self.theta = None if parameters.window is None else self._here
        self._runs = work.follow(begun)
        self._r = work.residuals(self._runs)
        starts = sum(map(len, work.scenes))
        enough = max(_FEWEST, _TALL * len(parameters) * starts // len(self._r))
        noisy = bool((parameters.named.fresh > 0).any())
        self._fraction = 1.0 if noisy or not work.objective.pathwise else min(1.0, enough / starts)

    @property
    def typical(self) -> Tensor:
        """The median of s_b in the scene of each row."""
        return self.work.medians(self.work.errors(self._r))

    def loss(self, typical: Tensor, r: Tensor | None = None) -> float:
        """Pseudo-Huber's, of given spreads; infinite where the table diverges."""
        s, c = self.work.errors(self._r if r is None else r), _SPREAD * typical + 1e-300
        loss = float((2 * c**2 * (torch.sqrt(1 + (s / c) ** 2) - 1)).sum())
        return loss if math.isfinite(loss) else math.inf

    def go(self, iterations: int, evaluations: float) -> None:
        """Up to so many steps, within so many network evaluations in all."""
        work, parameters = self.work, self.parameters
        for _ in range(iterations):
            if work.spent + self.check.spent + self._fraction * work.cost(parameters) > evaluations:
                return
            typical, s = self.typical, work.errors(self._r)
            if not bool(((typical > 0) & typical.isfinite()).all()):
                return
            weight = (1 + (s / (_SPREAD * typical)) ** 2) ** -0.25
            some, runs, rows = work.some(self._runs, self._fraction, self.made)
            r, weight = some.residuals(runs), weight[rows]
            weight = some.spread(weight)
            jacobian = some.jacobian(parameters, self._here, runs, r) * weight[:, None]
            work.spent += some.spent
            self.made += 1
            gram, slope, loss = jacobian.T @ jacobian, jacobian.T @ (r * weight), self.loss(typical)
            scale = torch.diag(gram.diagonal() + 1e-3 * gram.diagonal().mean() + 1e-30)
            for _ in range(_TRIES):
                change = torch.linalg.solve(gram + self._damping * scale, -slope).clamp(-1, 1)
                there = parameters.inside(self._here + change)
                trial = parameters.coefficients(there)
                runs = work.follow(trial)
                r = work.residuals(runs)
                left = self.loss(typical, r)
                if left < loss:
                    self._damping = max(self._damping / 5, 1e-9)
                    break
                self._damping *= 4
            else:
                if self._fraction == 1:
                    return
                self._fraction = min(1.0, 2 * self._fraction)
                continue
            self._here, self._runs, self._r = there, runs, r
            value = self.check.value(trial)
            if value < self.best:
                self.best, self.theta = value, there
            if left > (1 - _LEAST) * loss:
                if self._fraction == 1:
                    return
                self._fraction = min(1.0, 2 * self._fraction)


@dataclass
class Run:
    """States x_0, ..., x_n, centred by the shift, and the x0 answered at all but the last."""

    states: list[Tensor]
    x0: list[Tensor]


@dataclass
class Work:
    """Lessons and an objective: runs of tables on the starts, with what they cost in network evaluations."""

    scenes: Sequence[Lessons]
    objective: Objective
    seed: int
    spent: int = field(default=0, init=False)
    _row: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long), init=False, repr=False)
    _rows: list[int] = field(default_factory=list, init=False, repr=False)

    def follow(self, table: Coefficients, known: Sequence[Run] | None = None, first: int = 0) -> list[Run]:
        """The runs on all scenes; before evaluation `first` they are those that are known."""
        runs = []
        for i, scene in enumerate(self.scenes):
            self.spent += len(scene) * (sum(scene.denoiser.cost(table.asked[first:])) if first < len(table.keep) else 0)
            runs.append(follow(scene, table, self.seed, known[i] if known else None, first))
        return runs

    def residuals(self, runs: Sequence[Run]) -> Tensor:
        """r of all scenes, flat, each weighted by its share of the starts."""
        total, found, rows, sizes = sum(map(len, self.scenes)), list[Tensor](), list[int](), list[int]()
        for scene, run in zip(self.scenes, runs, strict=True):
            shift = scene.process.shift(scene.end.t, scene.cond)
            x = run.states[-1] if shift is None else run.states[-1] + shift
            own = self.objective.residuals(x, scene.ends).to("cpu", torch.float64)
            found.append((len(scene) / total) ** 0.5 * own.flatten())
            sizes += [own.shape[1]] * len(own)
            rows.append(len(own))
        self._rows = rows
        self._row = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return torch.cat(found)

    def errors(self, r: Tensor) -> Tensor:
        """|r| of each row: of each start."""
        return r.new_zeros(int(self._row[-1]) + 1).index_add(0, self._row, r.square()).sqrt()

    def medians(self, errors: Tensor) -> Tensor:
        """On each row the median of its scene."""
        return torch.cat([part.median().expand(len(part)) for part in torch.split(errors, self._rows)])

    def spread(self, rows: Tensor) -> Tensor:
        """One number for each row, on all that is in the row."""
        return rows[self._row]

    def some(self, runs: Sequence[Run], fraction: float, draw: int) -> tuple[Work, list[Run], Tensor]:
        """A part of the starts with their runs, and which rows they are; the draw has a number."""
        if fraction == 1:
            return replace(self), list(runs), torch.arange(sum(self._rows))
        scenes, kept, rows, before = list[Lessons](), list[Run](), list[Tensor](), 0
        for i, (scene, run) in enumerate(zip(self.scenes, runs, strict=True)):
            own = torch.randperm(len(scene), generator=generator(derive(self.seed, "some", draw, i)))
            own = own[: math.ceil(fraction * len(scene))].sort().values
            scenes.append(scene.take(own))
            kept.append(Run([x[own] for x in run.states], [x[own] for x in run.x0]))
            rows.append(before + own)
            before += len(scene)
        return replace(self, scenes=scenes), kept, torch.cat(rows)

    def value(self, table: Coefficients) -> float:
        """sqrt(L), infinite where the table diverges."""
        value = float(self.residuals(self.follow(table)).square().sum().sqrt())
        return value if math.isfinite(value) else math.inf

    def jacobian(self, parameters: Parameters, theta: Tensor, runs: Sequence[Run], r: Tensor) -> Tensor:
        """dr/dtheta by differences, of a step that splits the digits between rounding and curvature."""
        step = 10 * math.sqrt(torch.finfo(self.scenes[0].starts.dtype).eps)
        columns = torch.empty(len(r), len(parameters), dtype=torch.float64)
        # downwards, for the first evaluation has no neighbour above
        h = torch.tensor([-step if kind == "asked" else step for kind, _, _ in parameters.slots], dtype=torch.float64)
        tables = parameters.coefficients(theta + torch.diag(h))
        for k, first in enumerate(parameters.first):
            columns[:, k] = (self.residuals(self.follow(tables[k], runs, first)) - r) / h[k]
        return columns.nan_to_num(0.0, 0.0, 0.0)

    def cost(self, parameters: Parameters) -> int:
        """Network evaluations of one iteration."""
        levels, n = parameters.named.asked, parameters.steps
        runs = n + sum(n - first for first in parameters.first)
        return sum(len(s) * runs * sum(s.denoiser.cost(levels)) // n for s in self.scenes)


def follow(scene: Lessons, table: Coefficients, seed: int, known: Run | None = None, first: int = 0) -> Run:
    """The run of a table from the starts of one scene, by the recursion of `Coefficients`."""
    denoiser, process, cond, n = scene.denoiser, scene.process, scene.cond, len(table.keep)
    start = scene.starts
    shift = process.shift(table.levels[0].t, cond)
    states = known.states[:first] if known and first else [start if shift is None else start - shift]
    x0 = known.x0[:first] if known else []
    noise = Noise(seed, batch=len(start), dtype=start.dtype, device=start.device)
    drawn = [noise.normal(start.shape) if fresh > 0 else None for fresh in table.fresh.tolist()]
    keep, weights, fresh = table.keep.tolist(), table.weights.tolist(), table.fresh.tolist()

    def step(m: int) -> Tensor:
        value = keep[m] * states[m]
        for w, answer in zip(weights[m], x0, strict=False):
            if w:
                value = torch.add(value, answer, alpha=w)
        z = drawn[m]
        return value if z is None else torch.add(value, z, alpha=fresh[m])

    with evaluation(denoiser), torch.no_grad():
        if first < n:
            levels = table.asked[first:]
            calls = denoiser.bind(levels, start, cond)
            pairs = list(zip(*(c.tolist() for c in levels.conversion(denoiser.predicts, "x0")), strict=True))
        for m in range(first, n):
            if m:
                states.append(step(m - 1))
            x, level = states[m], table.asked[m]
            shift = process.shift(level.t, cond)
            answer = heads_of(calls[m - first](x if shift is None else x + shift))["main"]
            slope = process.d_shift(level.t, cond) if denoiser.predicts == "velocity" else None
            c_x, c_p = pairs[m - first]
            own = c_p * (answer if slope is None else answer - slope)
            x0.append(own if c_x == 0 else torch.add(own, x, alpha=c_x))
        states.append(step(n - 1))
    return Run(states, x0)
