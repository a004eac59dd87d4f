"""Steps whose length the error decides, sample by sample."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..numerics.tree import tree_map
from ..prediction import predict
from ..processes import GaussianProcess, Level, broadcast, check_shift
from ..random import Noise, Seed
from .begin import begin
from .sample import Samples, evaluation
from .solver import Solver


@dataclass(frozen=True)
class AdaptiveSamples(Samples):
    """What `sample_adaptive` returns: `Samples` (without a table), and what each sample took, (batch,) each.

    nfe: evaluations of the sample that took most. evaluations, steps, rejected: of each sample, rejected steps'
    evaluations counted. t: the time reached, `end` unless the run stopped early; `reason` then says why, else None.
    """

    evaluations: Tensor | None = None
    steps: Tensor | None = None
    rejected: Tensor | None = None
    t: Tensor | None = None
    reason: str | None = None


class AdaptiveSolver(ABC):
    """A method that proposes a step with an estimate of its error. `run` makes the memory of one run."""

    rtol: float
    atol: float

    def check(self) -> None:
        for name in ("rtol", "atol"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is a tolerance, at least 0 and finite: got {getattr(self, name)}")
        if self.rtol == self.atol == 0:
            raise ValueError("no step meets rtol = 0 and atol = 0: give one of them")

    @abstractmethod
    def run(self, problem: Problem, x: Tensor, noise: Noise, start: Level, end: Level) -> Run:
        """The beginning of a run, from the state x, centred, at the level `start`."""


class Run(ABC):
    """One run: a clock for each sample, from `clock` to `target`, and what the method remembers.

    clock, target, h: (batch,) float64 on the host.
    """

    clock: Tensor
    target: Tensor
    h: Tensor

    @abstractmethod
    def attempt(self, rows: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """(h, error) for a step of length h of the samples `rows`: the lengths tried, at most h, on the host, and
        the errors in units of the tolerance on the device. Keeps the proposal."""

    @abstractmethod
    def settle(self, rows: Tensor, h: Tensor, accepted: Tensor) -> None:
        """Take the accepted proposals, and remember what a rejected one must not forget."""

    @abstractmethod
    def longer(self, h: Tensor, error: Tensor, accepted: Tensor) -> Tensor:
        """The next length, from one with this error."""

    @abstractmethod
    def finish(self) -> Tensor:
        """The state reached, centred, with the exact step to the end where that is still to be taken."""

    @abstractmethod
    def times(self) -> Tensor:
        """The time reached by each sample."""


class Problem:
    """The denoiser on some of the samples, each at its own level, in coordinates centred by the shift."""

    def __init__(self, denoiser: BaseDenoiser, cond: Cond, batch: int) -> None:
        if not isinstance(denoiser.process, GaussianProcess):
            raise ValueError(f"adaptive steps are for processes of one component: got {denoiser.process!r}")
        self.denoiser, self.process, self.cond = denoiser, denoiser.process, cond
        self.evaluations = torch.zeros(batch, dtype=torch.long)

    def __call__(self, rows: Tensor, level: Level, x: Tensor) -> Any:
        """The prediction for the states x (n, *event) of the samples `rows` (n,) at levels (n,)."""
        cond = tree_map(lambda leaf: leaf[rows.to(leaf.device)], self.cond)
        shift = self.process.shift(level.t, cond)
        if shift is not None:
            x = x + shift
        self.evaluations[rows] += self.denoiser.cost(level[None])[0]
        output = self.denoiser.bind(level[None], x, cond)[0](x)
        return predict(self.process, level, x, output, self.denoiser.predicts, cond=cond, heads=self.denoiser.heads)


def sample_adaptive(
    denoiser: BaseDenoiser,
    shape: Any = None,
    *,
    solver: AdaptiveSolver | Solver | None = None,
    start: float = 1.0,
    end: float = 0.0,
    max_nfe: int = 1_000,
    x_init: Tensor | None = None,
    cond: Cond = None,
    seed: Seed | Noise = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> AdaptiveSamples:
    """Carry x from the time `start` to the time `end` with steps that keep each sample's error within a tolerance.

        h <- h (error/tolerance)^-r;   a step whose error exceeds the tolerance is tried again, shorter

    Every sample has steps of its own and leaves the batch when it has arrived, so that its result does not depend on
    the others. A tolerance that cannot be met (the step shrinks to nothing, or `max_nfe` evaluations are spent) stops
    those samples in the state reached: see `reason` and `t` of the result.

    Args:
        solver: `AdaptiveRungeKutta()` (the default: the probability flow) or `GottaGoFast()` (the reverse SDE).
        start, end: times; from below 1 give `x_init`, the state there. The flow may also rise, from data to noise.
        max_nfe: evaluations allowed to a sample.
        others: as `orn.sample`.

    One synchronisation a step, for the errors. ValueError for bad options or more than one component.
    """
    solver = AdaptiveRungeKutta() if solver is None else solver
    if not isinstance(solver, AdaptiveSolver):
        raise ValueError(f"an adaptive solver is AdaptiveRungeKutta() or GottaGoFast(): got {solver!r}")
    if start == end:
        raise ValueError(f"start and end are two times: got {start} twice")
    if max_nfe < 1:
        raise ValueError(f"max_nfe={max_nfe}: allow some evaluations")
    x, noise = begin(denoiser, shape, x_init, start, cond, seed, dtype, device)
    smallest = 10 * torch.finfo(noise.dtype).eps
    if max(solver.rtol, solver.atol) < smallest:
        raise ValueError(f"{solver!r} asks for less than the rounding of {noise.dtype}: at least {smallest:.1g}")
    with evaluation(denoiser), torch.no_grad():
        batch = len(x)
        problem = Problem(denoiser, cond, batch)
        levels = problem.process.level(torch.tensor([start, end], dtype=torch.float64)[:, None].expand(-1, batch))
        shift = problem.process.shift(levels[0].t, cond)
        check_shift(shift, x)
        run = solver.run(problem, x if shift is None else x - shift, noise, levels[0], levels[1])
        steps, rejected, stopped = (torch.zeros(batch, dtype=torch.long) for _ in range(3))
        going = run.clock != run.target
        while bool(going.any()):
            rows = going.nonzero().flatten()
            left = (run.target - run.clock)[rows].abs()
            h, error = run.attempt(rows, torch.minimum(run.h[rows], left))
            error = error.to("cpu", torch.float64)
            accepted = error <= 1
            run.settle(rows, h, accepted)
            steps[rows] += accepted
            rejected[rows] += ~accepted
            there = accepted & (left - h <= 1e-12)
            moved = run.clock[rows] + torch.where(accepted, h, 0.0) * (run.target - run.clock)[rows].sign()
            run.clock[rows] = torch.where(there, run.target[rows], moved)
            run.h[rows] = run.longer(h, error, accepted)
            stuck, spent = run.h[rows] < 1e-10, problem.evaluations[rows] >= max_nfe
            stopped[rows] = torch.where(there, 0, torch.where(stuck, 1, torch.where(spent, 2, 0)))
            going[rows[there | stuck | spent]] = False
        t = run.times()
        x = run.finish()
        arrived = run.clock == run.target
        t = torch.where(arrived, end, t)
        shift = problem.process.shift(t, cond)
        x = x if shift is None else x + shift
    x = x if denoiser.scaling is None else denoiser.scaling.decode(x)
    most, table = int(problem.evaluations.max()) if batch else 0, _NO_TABLE
    whys = ("no step is short enough: the network jumps or is not finite", f"max_nfe={max_nfe} evaluations are spent")
    counts = [(int((stopped == code).sum()), why) for code, why in enumerate(whys, start=1)]
    reason = "; ".join(f"{n} of {batch} samples stopped before the end: {why}" for n, why in counts if n) or None
    return AdaptiveSamples(
        x, most, noise.seed, table, evaluations=problem.evaluations, steps=steps, rejected=rejected, t=t, reason=reason
    )


_NO_TABLE: Any = None

# nodes, stages and the difference of the two solutions; the last stage is the first of the next step
_PAIRS: dict[int, tuple[list[float], list[list[float]], list[float]]] = {
    3: (
        [0, 1 / 2, 3 / 4, 1],
        [[], [1 / 2], [0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]],
        [-5 / 72, 1 / 12, 1 / 9, -1 / 8],
    ),
    5: (
        [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1],
        [
            [],
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
            [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
        ],
        [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40],
    ),
}


@dataclass(frozen=True)
class AdaptiveRungeKutta(AdaptiveSolver):
    """du/dphi = v/rho for u = x/rho, by an embedded pair, with rho = |(alpha, sigma)| and phi = atan2(sigma, alpha).

        error = rms over the event of (u - u^)/(atol + rtol max(|u_t|, |u_s|)),    h <- h clip(0.9 error^(-1/order))

    The angle phi runs from pi/2 (pure noise) to 0 (data) and u is of unit size, so that both ends are ordinary points
    of the flow, for every process. At sigma = atol alpha what is left to data is one step x = E[x0 | x], wrong by atol
    at most. order 5: Dormand and Prince, 6 evaluations a step; order 3: Bogacki and Shampine, 3. The tolerance is that
    of one step: the errors of all steps add up.

    Source: Dormand, Prince 1980; Bogacki, Shampine 1989; step control by Hairer, Nørsett, Wanner 1993, II.4.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    order: int = 5

    def __post_init__(self) -> None:
        self.check()
        if self.order not in _PAIRS:
            raise ValueError(f"order={self.order}: choose 3 or 5")

    def run(self, problem: Problem, x: Tensor, noise: Noise, start: Level, end: Level) -> Run:
        return _FlowRun(self, problem, x, start, end)


class _FlowRun(Run):
    def __init__(self, solver: AdaptiveRungeKutta, problem: Problem, x: Tensor, start: Level, end: Level) -> None:
        self.solver, self.problem, self.end = solver, problem, end
        self.clock, self.target = _angle(start), _angle(end)
        self.first, self.last = (self.clock.clone(), start), (self.target, end)
        self.jumps = bool((end.sigma == 0).all())
        if self.jumps:
            near = torch.full_like(self.target, math.atan(solver.atol or solver.rtol))
            self.target = torch.minimum(near, self.clock)
        self.u = x / broadcast(torch.hypot(start.alpha, start.sigma), x)
        self.sign = (self.target - self.clock).sign()
        self.h = torch.full_like(self.clock, max(solver.rtol, solver.atol) ** (1 / solver.order) / 2)
        rows = torch.arange(len(x))
        self.slope = self._slope(rows, self.clock, self.u)

    def _level(self, clock: Tensor, rows: Tensor) -> Level:
        log_snr = -2 * torch.log(torch.tan(clock))
        t = self.problem.process.time(log_snr).clamp(0, 1)
        for at, level in (self.first, self.last):  # the ends as they are, not through an inverse
            t = torch.where(clock == at[rows], level.t[rows], t)
        return self.problem.process.level(t)

    def _slope(self, rows: Tensor, clock: Tensor, u: Tensor) -> Tensor:
        level = self._level(clock, rows)
        rho = broadcast(torch.hypot(level.alpha, level.sigma), u)
        slope: Tensor = self.problem(rows, level, rho * u).v / rho
        return slope

    def attempt(self, rows: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        nodes, stages, difference = _PAIRS[self.solver.order]
        u, step = self.u[rows], broadcast(h * self.sign[rows], self.u[rows])
        slopes = [self.slope[rows]]
        for node, row in zip(nodes[1:], stages[1:], strict=True):
            new = u + step * sum(c * k for c, k in zip(row, slopes, strict=True) if c)
            clock = self.clock[rows] + node * h * self.sign[rows]
            slopes.append(self._slope(rows, _snap(clock, self.target[rows]), new))
        error = step * sum(c * k for c, k in zip(difference, slopes, strict=True) if c)
        allowed = self.solver.atol + self.solver.rtol * torch.maximum(u.abs(), new.abs())
        self.proposed = new, slopes[-1]
        return h, (error / allowed).flatten(1).square().mean(1).sqrt()

    def settle(self, rows: Tensor, h: Tensor, accepted: Tensor) -> None:
        taken = accepted.nonzero().flatten().to(self.u.device)
        self.u[rows[accepted]], self.slope[rows[accepted]] = (part[taken] for part in self.proposed)

    def longer(self, h: Tensor, error: Tensor, accepted: Tensor) -> Tensor:
        factor = 0.9 * error.clamp(min=1e-10) ** (-1 / self.solver.order)
        return h * torch.where(error.isfinite(), factor, 0.2).clamp(min=0.2, max=5.0)

    def times(self) -> Tensor:
        return self._level(self.clock, torch.arange(len(self.clock))).t

    def finish(self) -> Tensor:
        rows = torch.arange(len(self.u))
        level = self._level(self.clock, rows)
        x = broadcast(torch.hypot(level.alpha, level.sigma), self.u) * self.u
        return _to_data(self.problem, x, level, self.end, (self.clock == self.target)) if self.jumps else x


def _to_data(problem: Problem, x: Tensor, level: Level, end: Level, arrived: Tensor) -> Tensor:
    """x = alpha E[x0 | x] at the level `end` where sigma = 0, for the samples that have arrived."""
    rows = (arrived & (level.sigma > 0)).nonzero().flatten()
    if len(rows):
        x = x.clone()
        x[rows] = problem(rows, level[rows.tolist()], x[rows]).x0 * broadcast(end.alpha[rows], x[rows])
    return x


def _angle(level: Level) -> Tensor:
    return torch.atan2(level.sigma, level.alpha)


def _snap(clock: Tensor, target: Tensor) -> Tensor:
    return torch.where((clock - target).abs() < 1e-13, target, clock)


@dataclass(frozen=True)
class GottaGoFast(AdaptiveSolver):
    """Euler-Maruyama and the stochastic improved Euler method on the reverse SDE, with one noise dW, and their gap.

        x'  = x - h a(x, t) + g(t) dW,        a(x, t) = f x - g^2 score,     dW ~ N(0, h)
        x'' = (x' + x - h a(x', t - h) + g(t - h) dW)/2,                     which an accepted step takes
        error = rms over the event of (x' - x'')/max(atol, rtol max(|x'|, |x'_prev|))
        h <- min(left, theta h error^-r)

    for x centred by the shift, in the process's own time. At a rejection dW is kept: the shorter step takes the part of
    it that a Brownian bridge gives, and later steps the rest, so that the path's law is not bent towards increments
    that were accepted (with fresh noise it is). Two evaluations a step, one for a step tried again.

    The first step from t = 1, where the log-SNR there is below `deepest`, is ancestral; the SDE ends at the log-SNR
    `last`, and a step x = E[x0 | x] reaches data.

    Measured on exact mixtures: a quarter to a third of the steps is rejected in 2 to 64 dimensions (15 % in 256), and
    Euler-Maruyama with the same last step is as good for as many evaluations as the slowest sample takes.

    Source: Jolicoeur-Martineau et al. 2021, "Gotta Go Fast When Generating Data with Score-Based Models" (2105.14080),
    algorithm 1; the kept noise is that of Rackauckas, Nie 2017 (RSwM1).
    """

    rtol: float = 0.02
    atol: float = 0.0078
    theta: float = 0.9
    r: float = 0.9
    h: float = 0.01
    deepest: float = -10.1
    last: float = 9.0

    def __post_init__(self) -> None:
        self.check()
        for name in ("theta", "r", "h"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite: got {getattr(self, name)}")

    def run(self, problem: Problem, x: Tensor, noise: Noise, start: Level, end: Level) -> Run:
        if bool((end.t > start.t).any()):
            raise ValueError("GottaGoFast runs from noise to data: to rise from data use AdaptiveRungeKutta()")
        return _ReverseRun(self, problem, x, noise, start, end)


class _ReverseRun(Run):
    def __init__(
        self, solver: GottaGoFast, problem: Problem, x: Tensor, noise: Noise, start: Level, end: Level
    ) -> None:
        self.solver, self.problem, self.noise, self.end = solver, problem, noise, end
        process = problem.process
        self.x, rows = x.clone(), torch.arange(len(x))
        self.clock, self.target = start.t.clone(), end.t.clone()
        deep = start.log_snr < solver.deepest
        if bool(deep.any()):
            there = process.level(process.time(torch.full_like(start.t, solver.deepest)))
            left = (there.sigma / start.sigma) * torch.exp((start.log_snr - there.log_snr) / 2)  # DDIM's with eta = 1
            std = there.sigma * torch.sqrt(-torch.expm1(start.log_snr - there.log_snr))
            x0 = problem(rows, start, x).x0
            self.x = (
                broadcast(left, x) * x
                + broadcast(there.alpha - left * start.alpha, x) * x0
                + broadcast(std, x) * noise.normal(x.shape)
            )
            self.clock = there.t.clone()
        self.jumps = bool((end.log_snr > solver.last).all())
        if self.jumps:
            self.target = torch.minimum(process.time(torch.full_like(end.t, solver.last)), self.clock)
        self.h = torch.full_like(self.clock, solver.h)
        self.before = self.x.clone()
        self.slope = torch.zeros_like(self.x)
        self.known = torch.zeros(len(x), dtype=torch.bool)
        self.increments = Increments(self.x)

    def _slope(self, rows: Tensor, level: Level, x: Tensor) -> Tensor:
        f, g2 = self.problem.process.drift(level.t), self.problem.process.diffusion2(level.t)
        slope: Tensor = broadcast(f, x) * x - broadcast(g2, x) * self.problem(rows, level, x).score
        return slope

    def attempt(self, rows: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        process = self.problem.process
        z = self.noise.normal(self.x.shape)  # for all, so that each sample's numbers do not depend on the others
        fresh = rows[~self.known[rows]]
        if len(fresh):
            self.slope[fresh] = self._slope(fresh, process.level(self.clock[fresh]), self.x[fresh])
            self.known[fresh] = True
        h, dw = self.increments.take(rows, h, z)
        x, t = self.x[rows], self.clock[rows]
        first, after = process.level(t), process.level((t - h).clamp(min=0))
        g, g_after = (broadcast(process.diffusion2(level.t).sqrt(), x) for level in (first, after))
        step = broadcast(h, x)
        low = x - step * self.slope[rows] + g * dw
        high = (low + x - step * self._slope(rows, after, low) + g_after * dw) / 2
        size = self.solver.rtol * torch.maximum(low.abs(), self.before[rows].abs())
        self.proposed = low, high, dw
        return h, ((low - high) / size.clamp(min=self.solver.atol)).flatten(1).square().mean(1).sqrt()

    def settle(self, rows: Tensor, h: Tensor, accepted: Tensor) -> None:
        low, high, dw = self.proposed
        taken, back = (part.nonzero().flatten().to(dw.device) for part in (accepted, ~accepted))
        self.before[rows[accepted]], self.x[rows[accepted]] = low[taken], high[taken]
        self.known[rows[accepted]] = False
        self.increments.give_back(rows[~accepted], h[~accepted], dw[back])

    def longer(self, h: Tensor, error: Tensor, accepted: Tensor) -> Tensor:
        factor = self.solver.theta * error.clamp(min=1e-10) ** -self.solver.r
        factor = torch.where(accepted, factor, factor.clamp(max=0.9))  # with the noise kept, as long a step fails again
        return h * torch.where(error.isfinite(), factor, 0.2)

    def times(self) -> Tensor:
        return self.clock

    def finish(self) -> Tensor:
        level = self.problem.process.level(self.clock)
        return _to_data(self.problem, self.x, level, self.end, self.clock == self.target) if self.jumps else self.x


class Increments:
    """The Brownian increments of each sample that rejected steps have shown and no step has used: a stack.

        take h of a known increment dW over H >= h:   (h/H) dW + sqrt(h (H - h)/H) z,   and the rest stays

    A step is cut at the end of the increment on top.

    Source: Rackauckas, Nie 2017, "Adaptive methods for stochastic differential equations via natural embeddings and
    rejection sampling with memory", algorithm RSwM1.
    """

    def __init__(self, x: Tensor) -> None:
        self.value = x.new_zeros(1, *x.shape)
        self.length = torch.zeros(1, len(x), dtype=torch.float64)
        self.depth = torch.zeros(len(x), dtype=torch.long)

    def take(self, rows: Tensor, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """(h, dW): at most h of the samples `rows`, z (batch, *event) fresh normal numbers."""
        known, top = self.depth[rows] > 0, (self.depth[rows] - 1).clamp(min=0)
        whole = self.length[top, rows]
        h = torch.where(known, torch.minimum(h, whole), h)
        share = torch.where(known, h / whole, 0.0)
        std = torch.where(known, h * (1 - share), h).sqrt()
        dw = broadcast(share, z[rows]) * self.value[top, rows] + broadcast(std, z[rows]) * z[rows]
        partly, all_ = known & (h < whole), known & (h == whole)
        self.value[top[partly], rows[partly]] -= dw[partly]
        self.length[top[partly], rows[partly]] -= h[partly]
        self.depth[rows[all_]] -= 1
        return h, dw

    def give_back(self, rows: Tensor, h: Tensor, dw: Tensor) -> None:
        """Keep the increments dW over h that were not used, for the next steps of the samples `rows`."""
        if len(rows) and int(self.depth[rows].max()) == len(self.length):
            self.value = torch.cat([self.value, torch.zeros_like(self.value)])
            self.length = torch.cat([self.length, torch.zeros_like(self.length)])
        self.value[self.depth[rows], rows], self.length[self.depth[rows], rows] = dw, h
        self.depth[rows] += 1
