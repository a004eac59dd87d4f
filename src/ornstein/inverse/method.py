"""What every method of restoration is, and the one call that runs them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..linops import NoiseModel, Operator
from ..numerics.tree import check_batch, tree_map
from ..processes import AffineProcess, Level
from ..random import derive, fresh_seed
from ..solvers import Grid, LogSNR, Samples, Solver, sample
from ..solvers.reverse_sde import check_falling
from .measurement import Measurement


class Method(ABC):
    """A way from a denoiser and a measurement to samples of x0 given y; a subclass is a frozen dataclass of options.

    Most are a denoiser that knows the measurement (`denoiser`) under a solver (`solver`), and nothing else. Others
    write `run`.
    """

    guides: ClassVar[bool] = False
    """Whether its denoiser is all that knows the measurement, so that any solver may run it: `restore(solver=...)`."""

    @property
    def steps(self) -> int:
        """The published number of steps."""
        return 100

    @property
    def grid(self) -> Grid:
        """Where the steps lie."""
        return LogSNR()

    @property
    def particles(self) -> int:
        """How many samples of a measurement are drawn together, side by side in the batch, in no order of their own."""
        return 1

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        """The denoiser that the solver asks."""
        return model

    @abstractmethod
    def solver(self, measurement: Measurement) -> Solver:
        """What steps from noise to data."""

    def fits(self, model: BaseDenoiser) -> None:
        """Refuse a model that the method is not for: every one is for x_t = alpha x0 + shift + sigma noise."""
        if not isinstance(model.process, AffineProcess):
            raise ValueError(f"{self!r} is for an AffineProcess: {model.process!r} is none")

    def check(self, model: BaseDenoiser, measurement: Measurement) -> None:
        """Refuse a model and a measurement that do not fit the method, and run nothing."""
        self.fits(model)
        self.denoiser(model, measurement)
        self.solver(measurement)

    def run(self, model: BaseDenoiser, measurement: Measurement, cond: Cond, **options: Any) -> Samples:
        """Samples (len(measurement), *event) in the user's units."""
        solver = options.pop("solver", None)
        if solver is not None and not self.guides:
            raise ValueError(f"{self!r} has a solver of its own: got solver={solver!r}, which MMPS() or PiGDM() take")
        options = {"grid": self.grid, **{name: value for name, value in options.items() if value is not None}}
        grid = options["grid"]
        if isinstance(grid, Grid) and "nfe" not in options:
            options.setdefault("steps", self.steps)
        if isinstance(times := getattr(grid, "t", grid), Tensor) and times.dim() > 2:
            raise ValueError(f"{self!r} takes one level a sample: got a grid of shape {tuple(times.shape)}")
        shape = (len(measurement), *measurement.operator.event)
        solver = solver or self.solver(measurement)
        return sample(self.denoiser(model, measurement), shape, solver=solver, cond=cond, **options)


@dataclass(frozen=True)
class Restored:
    """What `restore` returns, in the user's units.

    samples: (batch, samples, *event). nfe: evaluations of the network for a sample, gradient passes counted.
    residual: |y - A x| of each sample, root mean square over what was measured, (batch, samples).
    seed: what repeats the run.
    ess: of a method that weighs its samples, the smallest effective sample size of each population on the way, (batch,
        populations); near 1 a population has been the copies of one sample.
    """

    samples: Tensor
    nfe: int
    residual: Tensor
    seed: int
    ess: Tensor | None = field(default=None, kw_only=True)

    @property
    def mean(self) -> Tensor:
        """Mean over samples, (batch, *event)."""
        return self.samples.mean(1)

    @property
    def std(self) -> Tensor:
        """Standard deviation over samples, (batch, *event); NaN for one sample."""
        return self.samples.std(1)

    def coverage(self, truth: Tensor, level: float = 0.9) -> Tensor:
        """The share of the entries of `truth` (batch, *event) between the samples' quantiles (1 -+ level)/2: (batch,).

        For the true posterior it is on average level (K - 1)/(K + 1) of K samples, and a little more by interpolation.
        """
        if truth.shape != self.mean.shape:
            raise ValueError(f"the truth has the shape {tuple(self.mean.shape)} of the means: got {tuple(truth.shape)}")
        if not 0 < level < 1:
            raise ValueError(f"level={level}: a share between 0 and 1")
        samples = self.samples.to(torch.promote_types(self.samples.dtype, torch.float32))
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=samples.dtype, device=samples.device)
        low, high = torch.quantile(samples, ends, dim=1)
        inside = ((truth >= low) & (truth <= high)).to(torch.float64)
        return torch.mean(inside.flatten(1), 1)


def restore(
    model: BaseDenoiser,
    operator: Operator,
    y: Tensor,
    *,
    method: Method,
    noise: NoiseModel | float | Tensor = 0.0,
    samples: int = 1,
    cond: Cond = None,
    seed: int | None = None,
    **options: Any,
) -> Restored:
    """x ~ p(x0 | y) for y = A(x0) + noise, by `method`, from a model of p(x0).

    Args:
        model: any denoiser of a GaussianProcess, or of a bridge where the method is for one; y and x0 in the user's
            units.
        operator: A, one of `orn.linops` or a subclass of its `Operator`.
        y: (batch, *measured), any number of measurements.
        method: such as `orn.inverse.DPS()`.
        noise: of the measurement: the standard deviation of normal noise, 0 for none, or one a measurement, (batch,),
            or a model of `orn.linops`.
        samples: how many samples of each posterior.
        cond: conditions of the model, one a measurement.
        seed: each sample's noise is a function of it, of the measurement's row and of the sample's number alone, so a
            restoration does not depend on what else is in the batch or how many samples are asked. Of a method with
            particles, whole populations are drawn, and the first `samples` of them are returned.
        options: of the method's sampler: steps or nfe, grid, x_init (one a measurement), progress, debug, dtype,
            device; and a solver of any kind in place of the published one, where the method is a denoiser and nothing
            else (`guides`).

    Raises:
        ValueError: where operator, measurement, noise or model do not fit each other or the method, before anything
        runs.
    """
    if not isinstance(method, Method):
        raise ValueError(f"a method is an object such as orn.inverse.DPS(): got {method!r}")
    if samples < 1:
        raise ValueError(f"samples={samples}: at least one of each posterior")
    count = math.ceil(samples / method.particles) * method.particles
    seed = fresh_seed() if seed is None else seed
    measurement, repeated, own = prepared(model, operator, y, noise, count, cond, seed, options)
    with torch.no_grad():
        method.fits(model)
        out = method.run(model, measurement, repeated, **own)
        found = out.x.to(y).unflatten(0, (len(y), count))[:, :samples]
        miss = residuals(operator, y, found)
    ess = getattr(out, "ess", None)
    return Restored(found, out.nfe, miss, seed, ess=None if ess is None else ess.reshape(len(y), -1))


def prepared(
    model: BaseDenoiser,
    operator: Operator,
    y: Tensor,
    noise: NoiseModel | float | Tensor,
    count: int,
    cond: Cond,
    seed: int,
    options: Mapping[str, Any],
) -> tuple[Measurement, Cond, dict[str, Any]]:
    """The measurement in the model's units and its conditions, each `count` times, and the options of a run, with a
    seed for every sample."""
    measurement = Measurement.of(model, operator, y, noise).repeat(count)
    check_batch(cond, len(y))
    weight = next(iter(model.parameters()), y)
    own: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device, **options}
    own["seed"] = [derive(seed, "restore", i, k) for i in range(len(y)) for k in range(count)]
    if own.get("x_init") is not None:
        check_batch({"x_init": own["x_init"]}, len(y))
        own["x_init"] = tree_map(lambda part: part.repeat_interleave(count, 0), own["x_init"])
    moved = replace(measurement, y=measurement.y.to(device=own["device"], dtype=own["dtype"]))
    return moved, tree_map(lambda part: part.repeat_interleave(count, 0), cond), own


def residuals(operator: Operator, y: Tensor, samples: Tensor) -> Tensor:
    """|y - A x| of samples (batch, k, *event), root mean square over what is measured: (batch, k)."""
    index = torch.arange(len(y)).repeat_interleave(samples.shape[1])
    own, y = operator.rows(index), y.repeat_interleave(samples.shape[1], 0)
    miss = own.check_measurement(y) - own(samples.flatten(0, 1))
    measured = own.seen(y).flatten(1).sum(1)
    return (miss.flatten(1).square().sum(1) / measured.clamp_min(1)).sqrt().reshape(samples.shape[:2])


def check_to_data(solver: Solver, grid: Level) -> None:
    """Refuse grids that do not fall to data, where what a method promises of its samples begins."""
    check_falling(solver, grid)
    if bool((grid[-1].sigma > 0).any()):
        raise ValueError(
            f"{solver!r} ends at data, sigma = 0: these times end at sigma = {float(grid[-1].sigma.max()):.4g}"
        )


def check_share(**values: float) -> None:
    """Refuse options that are not from 0 to 1."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: from 0 to 1")


def check_positive(**values: float) -> None:
    """Refuse options that are not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: positive and finite")
