"""Reflow: training on pairs of the two ends that belong together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..numerics.tree import check_batch
from ..processes import GaussianProcess, Level
from ..random import Noise, Share, derive
from ..solvers import Grid, LogSNR, Samples, Solver, Table, sample
from ..solvers.sample import default_grid
from .objective import Objective


@dataclass(frozen=True)
class Coupled(Objective):
    """loss = E_t w |P(x_t, t) - target|^2,    x_t = alpha x0 + sigma noise,    (x0, noise) ~ a coupling

    The noise of each sample comes with it, as a condition, instead of being drawn anew: the minimiser is the velocity
    E[alpha' x0 + sigma' noise | x_t] of the coupling, and its flow keeps the marginals. Pairs from a model's own flow
    (`reflow_pairs`) make a straighter one; pairs of an optimal transport make it straight.

        objective = orn.training.Coupled(time=UShapedTime(), penalty=PseudoHuber())    # RF++
        pairs = orn.training.reflow_pairs(model, (50_000, 2))
        orn.fit(student, pairs.x0, cond=pairs.cond, steps=..., objective=objective)

    Args:
        coupling: the name of the condition that holds the noise, like x0, of unit variance; the network does not see
            it. A process between two laws has a name of its own for its end. A subclass that couples otherwise writes
            `pair`.

    Source: Liu, Gong, Liu 2022 (2209.03003), equation 1.
    """

    coupling: str = "noise"

    def pair(
        self, model: BaseDenoiser, x0: State, cond: Cond, seed: int, share: Share
    ) -> tuple[dict[str, State], Cond]:
        """The noise that belongs to each sample, and the condition that is left for the network."""
        if getattr(model.process, "end", None) is not None:
            return super().pair(model, x0, cond, seed, share)
        if not isinstance(cond, Mapping) or self.coupling not in cond:
            raise ValueError(f"cond[{self.coupling!r}] holds the noise that belongs to each sample: there is none")
        left = {name: c for name, c in cond.items() if name != self.coupling} or None
        return {"noise": cond[self.coupling]}, left


@dataclass(frozen=True)
class OneStep(Coupled):
    """loss = E w |P(x_1, 1) - target|^2: pairs learned at t = 1 alone, distilled into one step.

    For `Flow` and `TwoSided` the answer is E[x1 - x0 | x1], and one step of Euler's from x1 lands in E[x0 | x1]: where
    the pairs are those of a flow, in x0 itself. Other times are left as they were, so other steps are of no use.

    Source: Liu, Gong, Liu 2022 (2209.03003), section 2.2, "Distillation".
    """

    def times(self, model: BaseDenoiser, x0: State, cond: Cond, seed: int, share: Share) -> Tensor:
        return torch.ones(len(share), dtype=torch.float64)


@dataclass(frozen=True)
class Pairs:
    """Samples with the other end that they belong to.

    x0: (n, *event) in the user's units. noise: (n, *event), of unit variance; between two laws it is x1, in the model's
    units. given: the conditions of the samples. end: the name of the other end among them.
    """

    x0: Tensor
    noise: Tensor
    given: Cond = None
    end: str = "noise"

    @property
    def cond(self) -> dict[str, Any]:
        """What `fit` takes beside x0: the conditions, and the other end under the name that training expects."""
        return {**(self.given or {}), self.end: self.noise}

    def __len__(self) -> int:
        return len(self.x0)

    def __add__(self, other: Pairs) -> Pairs:
        """Both sets together, such as pairs of a model and pairs of real data."""
        if set(self.cond) != set(other.cond):
            raise ValueError(f"pairs under different conditions: {', '.join(self.cond)} and {', '.join(other.cond)}")
        mine, others = self.cond, other.cond
        both = {name: torch.cat([mine[name], others[name]]) for name in mine}
        noise = both.pop(self.end)
        return Pairs(torch.cat([self.x0, other.x0]), noise, both or None, self.end)


def reflow_pairs(
    model: BaseDenoiser,
    shape: tuple[int, ...] | None = None,
    *,
    x1: Tensor | None = None,
    cond: Cond = None,
    solver: Solver | None = None,
    grid: Grid | None = None,
    steps: int = 40,
    batch_size: int = 4096,
    seed: int = 0,
) -> Pairs:
    """(x0, noise) with x0 = X(sigma(1) noise, 1, 0), noise ~ N(0, I): a model's own probability flow, from its end law.

    The noise is of unit variance, so pairs made by a model of one process train a model of any other. Noise i is a
    function of (seed, i), whatever the batch size. Between two laws of data the other end is given, and the pairs are
    (X(x1, 1, 0), x1), which train a model of any `TwoSided` process whose end has the same name.

    Args:
        model: the teacher, a denoiser of one GaussianProcess or of a process between two laws.
        shape: (n, *event).
        x1: for a process between two laws, in place of a shape: (n, *event) states at t = 1.
        cond: a mapping of tensors (n, ...), or None.
        solver, grid, steps: as in `orn.sample`, deterministic; the pairs carry the error of these steps.
        batch_size: samples at a time.
        seed: names the noise.

    Source: Liu, Gong, Liu 2022 (2209.03003), algorithm 1.
    """
    process: Any = model.process
    end = getattr(process, "end", None)
    if end is not None and (x1 is None or shape is not None):
        raise ValueError(f"{process!r} runs between two laws: give x1=, states at t = 1, and no shape")
    if end is None and (shape is None or x1 is not None):
        raise ValueError(f"{process!r} draws its noise: give a shape (n, *event), and no x1")
    if end is None:
        _process(model)
    weight = next(iter(model.parameters()), torch.empty(0) if x1 is None else x1)
    size = tuple(shape or ()) if x1 is None else tuple(x1.shape)

    def one(rows: slice, given: Cond) -> tuple[Tensor, Tensor]:
        if x1 is not None:
            start = noise = x1[rows].to(weight)
        else:
            seeds = [derive(seed, "pair", i) for i in range(rows.start, rows.stop)]
            stream = Noise(seeds, batch=len(seeds), dtype=weight.dtype, device=weight.device)
            noise = stream.normal((len(seeds), *size[1:]))
            start = process.corrupt(torch.zeros_like(noise), 1.0, cond=given, noise=noise).x
        return _follow(model, start, given, solver, default_grid(process) if grid is None else grid, steps).x, noise

    return _pairs(one, size[0], cond, batch_size, "noise" if end is None else end)


def invert_pairs(
    model: BaseDenoiser,
    data: Tensor,
    *,
    cond: Cond = None,
    solver: Solver | None = None,
    grid: Grid | None = None,
    steps: int = 40,
    batch_size: int = 4096,
) -> Pairs:
    """(x0, noise) with sigma(1) noise = X(x0, 0, 1): real data, and the noise that the model's flow carries them to.

    The flow is followed from the grid's last level above t = 0, where alpha x0 stands for the state (its noise, of
    standard deviation sigma, is left out), and backwards along the grid to its first.

    Args:
        model: the teacher, a denoiser of one GaussianProcess.
        data: (n, *event) in the user's units.
        cond, solver, grid, steps, batch_size: as in `reflow_pairs`.

    Source: Lee, Lin, Fanti 2024 (2405.20320), section 4.4.
    """
    process = _process(model)
    weight = next(iter(model.parameters()), data)
    times = (LogSNR() if grid is None else grid)(process, steps).t.flip(0)
    end = process.level(times[-1])
    level = process.level(times[times > 0])

    def one(rows: slice, given: Cond) -> tuple[Tensor, Tensor]:
        x0 = data[rows]
        own = x0.to(weight) if model.scaling is None else model.scaling.encode(x0.to(weight))
        start = process.corrupt(own, level[0], cond=given, noise=torch.zeros_like(own)).x
        out = _follow(model, start, given, solver, level, None).x
        out = out if model.scaling is None else model.scaling.encode(out)
        shift = process.shift(end.t, given)
        return x0, (out if shift is None else out - shift) / end.sigma

    return _pairs(one, len(data), cond, batch_size)


def _pairs(
    one: Callable[[slice, Cond], tuple[Tensor, Tensor]], n: int, cond: Cond, batch_size: int, end: str = "noise"
) -> Pairs:
    """The pairs of all rows, `batch_size` at a time."""
    if cond is not None and not isinstance(cond, Mapping):
        raise ValueError(f"the condition of pairs is a mapping of tensors by name, or None: got {type(cond).__name__}")
    if batch_size < 1 or n < 1:
        raise ValueError(f"{n} pairs, batch_size={batch_size}: both at least 1")
    check_batch(cond, n)
    parts = []
    for first in range(0, n, batch_size):
        rows = slice(first, min(first + batch_size, n))
        given = None if cond is None else {name: c[rows] for name, c in cond.items()}
        parts.append(one(rows, given))
    return Pairs(torch.cat([x0 for x0, _ in parts]), torch.cat([noise for _, noise in parts]), cond, end)


def _follow(
    model: BaseDenoiser, start: Tensor, cond: Cond, solver: Solver | None, grid: Grid | Level, steps: int | None
) -> Samples:
    out = sample(model, x_init=start, cond=cond, solver=solver, grid=grid, steps=steps, seed=0, progress=False)
    if isinstance(out.table, Table) and out.table.noises:
        raise ValueError(f"{out.table.solver} draws noise: a pair is the two ends of one deterministic path")
    return out


def _process(model: BaseDenoiser) -> GaussianProcess:
    if not isinstance(model.process, GaussianProcess):
        raise ValueError(f"pairs are made by a denoiser of one GaussianProcess: {model.process!r} is none")
    return model.process
