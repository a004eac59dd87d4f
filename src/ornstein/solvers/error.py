"""Error bars: how far a sampler's answer is from the exact flow, estimated as it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
from .dpm_solver import DPMSolver, DPMSolverPP
from .exponential import weights
from .grids import Grid, LogSNR
from .heun import Heun
from .sample import Samples, sample
from .solver import Solver
from .table import Evaluation, Expression, Gaussian, Output, Register, Writer, _Linear
from .unipc import UniPC


@dataclass(frozen=True)
class Embedded(Solver):
    """E_s = J E_t + safety d,    d = (sigma_s/sigma_t) x_t + sum_j w_j x0_j - x_s,    the free estimate: `out.error`.

    d is the defect of each step of `solver` against the rule that interpolates x0 in log-SNR between its answers at
    both ends of the step (the later one belongs to the next step, so nothing is evaluated for it): an implicit method
    used as judge only. For a step from alpha = 0 the rule is the trapezoid in alpha/sigma, for one to sigma = 0 it
    takes x0 to be linear in (sigma/alpha)^2, as it is for every smooth density. The defect is carried to the end as the
    flow of normal data would carry it,

        J^2 = (alpha_s^2 c + sigma_s^2)/(alpha_t^2 c + sigma_t^2),    c = data_std^2

    A grid that ends above sigma = 0 costs one more evaluation. It is as good as the step is short: on exact mixtures it
    covers the true distance for nine samples in ten over the full range with DDIM and Heun from 10 steps, with
    DPM-Solver(++) of order 2 from 20. Other solvers are refused: `Doubled` is dearer and surer.
    """

    solver: Solver
    data_std: float = 1.0
    safety: float = 1.5

    def __post_init__(self) -> None:
        for name in ("data_std", "safety"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite: got {getattr(self, name)}")

    @property
    def exact_for_constant(self) -> bool:
        return self.solver.exact_for_constant

    def write(self, table: Writer, grid: Level) -> None:
        second = isinstance(self.solver, (DPMSolver, DPMSolverPP)) and self.solver.order <= 2
        if not second and not isinstance(self.solver, (DDIM, Heun)):
            raise ValueError(
                f"Embedded is measured for DDIM, Heun, DPMSolver and DPMSolverPP of orders 1 and 2, and does not cover "
                f"the error of {self.solver!r}: take Doubled"
            )
        watch = _Watch(table, self, grid)
        self.solver.write(watch, grid)
        table.error(watch.total())


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
    """Follows a solver as it writes, and adds the register of the error after each step."""

    def __init__(self, table: Writer, wrapper: Embedded, grid: Level) -> None:
        super().__init__(table, "Embedded")
        self.wrapper, self.grid = wrapper, grid
        self.states: list[Register] = [table.state]
        self.x0: dict[int, Output] = {}
        self.done, self.error_so_far = 0, None

    error_so_far: Register | None

    def evaluate(self, register: Register, level: Level) -> Evaluation:
        p = super().evaluate(register, level)
        for i in range(self.done, len(self.grid)):
            if torch.equal(level.t, self.grid.t[i]):
                self.x0[i] = p.x0  # the newest: a corrector's answer is better than its predictor's
                self._advance()
        return p

    def step(self, value: _Linear, level: Level) -> Register:
        self.states.append(super().step(value, level))
        self._advance()
        return self.states[-1]

    def total(self) -> _Linear:
        """The error of the last state."""
        last = len(self.grid) - 1
        if len(self.states) != last + 1:
            raise ValueError(f"Embedded follows one state from point to point of the grid: {self.solver} does not")
        if not bool((self.grid[last].sigma == 0).all()) and last not in self.x0:
            self.evaluate(self.states[last], self.grid[last])
        if self.error_so_far is None or self.done != last:
            raise ValueError(f"Embedded needs an evaluation at each point of the grid: {self.solver} has others")
        return self.error_so_far

    def _advance(self) -> None:
        i, j = self.done, self.done + 1
        to_data = j == len(self.grid) - 1 and bool((self.grid[j].sigma == 0).all())
        if j >= len(self.states) or i not in self.x0 or not (to_data or j in self.x0):
            return
        t, s, safety = self.grid[i], self.grid[j], self.wrapper.safety
        defect = (self._rule(i, j) - self.states[j]) * safety
        if self.error_so_far is not None:
            c = self.wrapper.data_std**2
            carried = torch.sqrt((s.alpha**2 * c + s.sigma**2) / (t.alpha**2 * c + t.sigma**2))
            defect = defect + carried * self.error_so_far
        self.error_so_far = self.register(defect)
        self.done = j

    def _rule(self, i: int, j: int) -> Expression:
        """The next state by the better rule."""
        t, s, here = self.grid[i], self.grid[j], self.x0[i]
        if bool((s.sigma == 0).all()):
            before = self.grid[i - 1] if i else t
            near, far = ((level.sigma / level.alpha) ** 2 for level in (t, before))
            share = torch.where(far.isfinite() & (far > near), near / (far - near), torch.zeros_like(near))
            return s.alpha * (1 + share) * here - s.alpha * share * self.x0[max(i - 1, 0)]
        there = self.x0[j]
        linear = (s.sigma / t.sigma) * self.states[i]
        if bool((t.alpha == 0).any() | (t.sigma == 0).any()):
            return linear + (s.alpha - t.alpha * s.sigma / t.sigma) / 2 * (here + there)
        a, b = weights(t, s, [t, s])
        return linear + a * here + b * there


@dataclass(frozen=True)
class Doubled(Solver):
    """error = k (x_N - x_(N/2)),    k = 2 for order 1 and 1 from order 2: `solver` on the grid, and on half its points.

    With an error of order p the coarse run is off by 2^p times the fine one, so that the difference is (2^p - 1) times
    the error of x_N: the estimate is 2 to 7 times too large where the order has set in, and needs nothing to be known
    of the flow. It costs half as many evaluations again, in one table. `order` is by default the solver's own, or 1.
    Measured on exact mixtures in 2 and 64 dimensions, 10 to 50 steps, it covers the truth for at least 9 samples in 10
    at orders 1 and 2; from order 3 on it needs 20 steps.

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
        own = self.order if self.order is not None else getattr(self.solver, "order", 1)
        coarse = _Aside(table, "Doubled")
        self.solver.write(coarse, grid[[0, *range(2 - steps % 2, steps + 1, 2)]])
        fine = _Deterministic(table, "Doubled")
        self.solver.write(fine, grid)
        table.error(_factor(own) * (fine.last - coarse.last))


def _factor(order: int) -> float:
    return 2.0 if order <= 1 else 1.0


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
