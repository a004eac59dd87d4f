"""Error bars: how far a sampler's answer is from the exact flow, estimated as it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .._types import State
from ..denoiser import BaseDenoiser
from ..numerics.tree import parts
from ..processes import Level
from ..random import Noise, fresh_seed
from .brownian import BrownianPath
from .ddim import DDIM
from .deis import DEIS
from .dpm_solver import DPMSolver, DPMSolverPP
from .exponential import finite, half_step, weights
from .grids import Grid, LogSNR
from .heun import Heun
from .sample import Samples, sample
from .solver import Solver
from .table import Evaluation, Expression, Gaussian, Register, Writer, _Linear
from .unipc import UniPC


@dataclass(frozen=True)
class Embedded(Solver):
    """error = safety sqrt(|sum_n J_n d_n|^2 + sum_n |J_n d_n|^2),    the free estimate: `out.error`.

    d is the defect of each step of `solver` against an implicit rule as judge, which integrates the parabola in
    log-SNR through x0 at the step's end, its beginning and the point before (UniPC of order 2, whose corrector that is,
    is judged by the straight line); the answer at the end belongs to the next
    step, so nothing is evaluated for it. A corrected end is not what was evaluated: there x0 is moved by 1/alpha times
    the correction, the most that it moves for normal data of any variance. A step from alpha = 0 is judged by the
    trapezoid in alpha/sigma, one to sigma = 0 by alpha_s (x0 + noise sigma_t/(2 alpha_t)): right to leading order for
    smooth data, and for normal data of any variance no less than the truth. J carries a defect to the end as the flow
    of normal data would carry it,

        J^2 = (alpha_N^2 c + sigma_N^2)/(alpha_s^2 c + sigma_s^2),    c = data_std^2

    The true flow carries defects otherwise, so their sum may cancel where the errors do not; the second term is their
    sum for signs at random. With safety = 2 it covers the true distance for nine samples in ten, on mixtures in 2 to 64
    dimensions, full and low-rank, and on normal data: DDIM, Heun, DPMSolver(PP), UniPC (of x0, to order 3) and DEIS.
    The median estimate is 2 to 9 times the truth for DDIM, up to 65 times for the higher orders, whose errors this
    judge sees but from above.

    That holds where steps are short, and others are refused: more than 0.85 in log(alpha/sigma) once
    alpha data_std > sigma/4 (the default grid keeps that from 8 steps on), and the jump to sigma = 0 from
    sigma > 0.35 alpha data_std. So are other solvers: `Doubled` takes any. A grid that ends above sigma = 0 costs one
    more evaluation.
    """

    solver: Solver
    data_std: float = 1.0
    safety: float = 2.0

    def __post_init__(self) -> None:
        for name in ("data_std", "safety"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite: got {getattr(self, name)}")
        unproven = isinstance(self.solver, UniPC) and (self.solver.order > 3 or self.solver.predicts != "x0")
        unproven = unproven or (isinstance(self.solver, Heun) and self.solver != Heun())
        if unproven or not isinstance(self.solver, _JUDGED):
            measured = ", ".join(judged.__name__ for judged in _JUDGED)
            raise ValueError(f"Embedded is measured for {measured}, not for {self.solver!r}: take Doubled")

    @property
    def exact_for_constant(self) -> bool:
        return self.solver.exact_for_constant

    def write(self, table: Writer, grid: Level) -> None:
        _check_steps(grid, self.data_std)
        watch = _Watch(table, self, grid)
        self.solver.write(watch, grid)
        watch.conclude(table)


def _check_steps(grid: Level, data_std: float = 1.0) -> None:
    """Refuse steps too long for an estimate to cover."""
    for t, s in pairwise(grid):
        if bool((s.sigma == 0).any()):
            wrong = t.sigma > _LAST * t.alpha * data_std
            step = f"jumps to data from sigma/alpha = {float((t.sigma / t.alpha).max()):.3g}, above {_LAST} data_std"
        else:
            wrong = (half_step(t, s).abs() > _REACH) & (torch.maximum(t.alpha, s.alpha) * data_std * 4 > s.sigma)
            step = f"changes log(alpha/sigma) by {float(half_step(t, s).abs().max()):.3g}, more than {_REACH}"
        if bool(wrong.any()):
            raise ValueError(
                f"no error bar that covers: the step from t = {float(t.t.max()):.3g} to {float(s.t.max()):.3g} {step}; "
                "take more steps, or another grid (LogSNR() keeps to this from 8 steps on)"
            )


_JUDGED = (DDIM, Heun, DPMSolver, DPMSolverPP, UniPC, DEIS)
_REACH = 0.85
_LAST = 0.35


class _Deterministic(Writer):
    """A writer onto another's table, for solvers without noise, that knows the last state."""

    last: Register

    def __init__(self, table: Writer, why: str) -> None:
        self.__dict__.update(vars(table))
        self.why = why

    def noise(self, start: Level, end: Level) -> Gaussian:
        raise ValueError(f"{self.why} measures the distance to the flow: {self.solver} adds noise, which leaves it")

    def step(self, value: _Linear, level: Level) -> Register:
        self.last = super().step(value, level)
        return self.last


class _Watch(_Deterministic):
    """Follows a solver as it writes, and adds up the defects of its steps, in units of the flow of normal data."""

    def __init__(self, table: Writer, wrapper: Embedded, grid: Level) -> None:
        super().__init__(table, "Embedded")
        self.wrapper, self.grid = wrapper, grid
        self.states: list[Register] = [table.state]
        self.answers: dict[int, Evaluation] = {}
        self.done, self.total, self.spread = 0, self.state, self.state

    total: Register
    spread: Register

    def evaluate(self, register: Register, level: Level) -> Evaluation:
        p = super().evaluate(register, level)
        for i in range(self.done, len(self.grid)):
            if torch.equal(level.t, self.grid.t[i]):
                self.answers[i] = p  # the newest: a corrector's answer is better than its predictor's
        return p

    def step(self, value: _Linear, level: Level) -> Register:
        self.states.append(super().step(value, level))
        if len(self.states) > 2:
            self._judge()  # the step before, whose end has all its answers now
        return self.states[-1]

    def conclude(self, table: Writer) -> None:
        """State the error of the last state."""
        last = len(self.grid) - 1
        if not bool((self.grid[last].sigma == 0).all()) and last not in self.answers:
            self.evaluate(self.states[last], self.grid[last])
        self._judge()
        scale = self.wrapper.safety * self._units(self.grid[last])
        table.error(table.apply(torch.hypot, scale * self.total, scale * self.spread))

    def _units(self, level: Level) -> Tensor:
        return torch.sqrt(level.alpha**2 * self.wrapper.data_std**2 + level.sigma**2)

    def _judge(self) -> None:
        i, j = self.done, self.done + 1
        defect = self.register((self._rule(i, j) - self.states[j]) / self._units(self.grid[j]))
        self.total = self.register(self.total + defect) if i else defect
        self.spread = self.apply(torch.hypot, self.spread, defect) if i else defect
        self.done = j

    def _x0(self, i: int) -> _Linear:
        """x0 at the state of point i, whatever state was evaluated there."""
        p, x = self.answers[i], self.states[i]
        return p.x0 if p.register == x.index else p.x0 + (x - Register(p.register)) / p.level.alpha

    def _rule(self, i: int, j: int) -> Expression:
        """The next state by the better rule."""
        t, s, x = self.grid[i], self.grid[j], self.states[i]
        if bool((s.sigma == 0).all()):
            return (s.alpha / 2) * (self._x0(i) + x / t.alpha)
        linear = (s.sigma / t.sigma) * x
        if bool((t.alpha == 0).any() | (t.sigma == 0).any()):
            return linear + (s.alpha - t.alpha * s.sigma / t.sigma) / 2 * (self._x0(i) + self._x0(j))
        own = isinstance(self.wrapper.solver, UniPC) and self.wrapper.solver.order == 2  # whose corrector it is
        nodes = [j, i, i - 1] if i and finite(self.grid[i - 1]) and not own else [j, i]
        for weight, node in zip(weights(t, s, [self.grid[n] for n in nodes]), nodes, strict=True):
            linear = linear + weight * self._x0(node)
        return linear


@dataclass(frozen=True)
class Doubled(Solver):
    """error = k (x_N - x_(N/2)),    k = 2 up to order 2, else 4: `solver` on the grid, and on half its points.

    With an error of order p the coarse run is off by 2^p times the fine one, so that the difference is (2^p - 1) times
    the error of x_N, and half the factor is left for what is of higher order: the coarse run of a method of order 3 has
    seldom reached its order. It costs half as many evaluations again, in one table, and needs nothing to be known of
    the flow. `order` is by default the solver's own, or 1. Steps are bounded as for `Embedded`. Measured as `Embedded`,
    it covers the truth for at least 9 samples in 10.

    Source: Richardson 1911; Hairer, Nørsett, Wanner 1993, II.4.
    """

    solver: Solver
    order: int | None = None

    @property
    def exact_for_constant(self) -> bool:
        return self.solver.exact_for_constant

    def write(self, table: Writer, grid: Level) -> None:
        steps = len(grid) - 1
        if steps < 2:
            raise ValueError("Doubled compares the grid with half of it: give at least 2 steps")
        _check_steps(grid)
        own = self.order if self.order is not None else getattr(self.solver, "order", 1)
        coarse = _Aside(table, "Doubled")
        self.solver.write(coarse, grid[[0, *range(2 - steps % 2, steps + 1, 2)]])
        fine = _Deterministic(table, "Doubled")
        self.solver.write(fine, grid)
        table.error(_factor(own) * (fine.last - coarse.last))


def _factor(order: int) -> float:
    return 2.0 if order <= 2 else 4.0


class _Aside(_Deterministic):
    """Writes a run whose states are no points of the table's trajectory."""

    def step(self, value: _Linear, level: Level) -> Register:
        self.last = self.register(value, level)
        return self.last


@dataclass(frozen=True)
class Choice:
    """What `choose_steps` returns.

    steps: the number chosen. samples: its run, `samples.error` (batch,) estimated and `samples.nfe` that of all runs.
    error: the quantile of the estimate that was held against the tolerance. reason: None, or why it was not reached.
    """

    steps: int
    samples: Samples
    error: float
    reason: str | None


def choose_steps(
    denoiser: BaseDenoiser,
    shape: Any = None,
    *,
    tol: float,
    solver: Solver | None = None,
    grid: Grid | None = None,
    quantile: float = 0.9,
    start: int = 5,
    max_nfe: int = 1_000,
    **options: Any,
) -> Choice:
    """The number of steps whose estimated error is below `tol` for a share `quantile` of the samples.

        error_N = k rms(x_N - x_(N/2)),    N = start, 2 start, 4 start, ...    (k as in `Doubled`)

    All runs begin in the same state, the error is a root mean square over the event, in the user's units, and all
    evaluations together stay within `max_nfe` a sample. Where that does not reach the tolerance, `reason` says so and
    how many steps the rate seen so far would take; the best run is returned all the same. Options are those of
    `orn.sample`; a stochastic solver needs seed=BrownianPath(...), so that all runs have one path.
    """
    if not 0 < tol < math.inf or not 0 < quantile <= 1 or start < 1:
        raise ValueError(f"need tol > 0, 0 < quantile <= 1, start >= 1: got {tol}, {quantile}, {start}")
    for name in ("steps", "nfe", "table"):
        if name in options:
            raise ValueError(f"choose_steps chooses {name}: give tol, solver and grid")
    solver, grid = UniPC() if solver is None else solver, LogSNR() if grid is None else grid
    if not isinstance(solver, Solver):
        raise ValueError(f"choose_steps takes one solver, an object such as orn.DDIM(): got {solver!r}")
    if not isinstance(grid, Grid):
        raise ValueError(
            f"choose_steps needs a grid for any number of steps, such as orn.LogSNR(): got {type(grid).__name__}"
        )
    seed = options.pop("seed", None)
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=seed, device=seed.device).item())
    seed = fresh_seed() if seed is None else seed
    factor, steps, spent = _factor(getattr(solver, "order", 1)), start, 0
    errors: list[float] = []
    before: Samples | None = None
    while True:
        table = solver.compile(denoiser.process, grid(denoiser.process, steps=steps))
        noisy = any(component.noises for component in table.components)
        if noisy and not (isinstance(seed, Noise) and isinstance(seed, BrownianPath)):
            raise ValueError(f"{solver!r} adds noise: give seed=BrownianPath(...), one path for all runs")
        cost = sum(denoiser.cost(table.levels))
        if spent + cost > max_nfe:
            break
        found = sample(denoiser, shape, table=table, seed=seed, **options)
        spent += cost
        if before is not None:
            error = factor * _distance(found.x, before.x)
            errors.append(float(torch.quantile(error.double(), quantile)))
            found = Samples(found.x, spent, found.seed, table, found.trajectory, error)
            if errors[-1] <= tol:
                return Choice(steps, found, errors[-1], None)
        before, steps = found, 2 * steps
    if not errors:
        raise ValueError(f"max_nfe={max_nfe} allows no two runs of {start} and {2 * start} steps: raise it")
    assert before is not None
    rate = math.log2(errors[-2] / errors[-1]) if len(errors) > 1 and errors[-1] > 0 else 0.0
    more = "the error does not fall with more steps"
    if rate > 0.3:
        more = f"at the rate seen, about {math.ceil(steps / 2 * (errors[-1] / tol) ** (1 / rate))} steps would"
    reason = f"{spent} evaluations of max_nfe={max_nfe} reach an error of {errors[-1]:.3g}, not {tol:.3g}: {more}"
    return Choice(steps // 2, before, errors[-1], reason)


def _distance(x: State, y: State) -> Tensor:
    """The root mean square over the event, all components together, (batch,)."""
    both = torch.cat([(a - b).flatten(1) for a, b in zip(parts(x), parts(y), strict=True)], 1)
    return both.square().mean(1).sqrt()
