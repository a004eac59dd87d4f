"""What every method of restoration is, and the one call that runs them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..linops import NoiseModel, Operator
from ..numerics.tree import check_batch, tree_map
from ..random import derive, fresh_seed
from ..solvers import Grid, LogSNR, Samples, Solver, sample
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

    def run(self, model: BaseDenoiser, measurement: Measurement, cond: Cond, **options: Any) -> Samples:
        """Samples (len(measurement), *event) in the user's units."""
        solver = options.pop("solver", None)
        if solver is not None and not self.guides:
            raise ValueError(f"{self!r} has a solver of its own: got solver={solver!r}, which MMPS() or PiGDM() take")
        options = {"grid": self.grid, **options}
        if "nfe" not in options:
            options.setdefault("steps", self.steps)
        shape = (len(measurement), *measurement.operator.event)
        solver = solver or self.solver(measurement)
        return sample(self.denoiser(model, measurement), shape, solver=solver, cond=cond, **options)


@dataclass(frozen=True)
class Restored:
    """What `restore` returns, in the user's units.

    samples: (batch, samples, *event). nfe: evaluations of the network for a sample, gradient passes counted.
    residual: |y - A x| of each sample, root mean square over the measurement, (batch, samples).
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
        ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=self.samples.dtype, device=self.samples.device)
        low, high = torch.quantile(self.samples, ends, dim=1)
        inside = ((truth >= low) & (truth <= high)).to(torch.float64)
        return torch.mean(inside.flatten(1), 1)


def restore(
    model: BaseDenoiser,
    operator: Operator,
    y: Tensor,
    *,
    method: Method,
    noise: NoiseModel | float = 0.0,
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
        noise: of the measurement: the standard deviation of normal noise, 0 for none, or a model of `orn.linops`.
        samples: how many samples of each posterior.
        cond: conditions of the model, one a measurement.
        seed: each sample's noise is a function of it, of the measurement's row and of the sample's number alone, so a
            restoration does not depend on what else is in the batch or how many samples are asked. Of a method with
            particles, whole populations are drawn, and the first `samples` of them are returned.
        options: of the method's sampler: steps or nfe, grid, progress, debug, dtype, device; and a solver of any kind
            in place of the published one, where the method is a denoiser and nothing else (`guides`).

    Raises:
        ValueError: where operator, measurement, noise or model do not fit each other or the method, before anything
        runs.
    """
    if not isinstance(method, Method):
        raise ValueError(f"a method is an object such as orn.inverse.DPS(): got {method!r}")
    if samples < 1:
        raise ValueError(f"samples={samples}: at least one of each posterior")
    count = math.ceil(samples / method.particles) * method.particles
    measurement = Measurement.of(model, operator, y, noise).repeat(count)
    y = operator.check_measurement(y)  # 0 where nothing is measured
    check_batch(cond, len(y))
    seed = fresh_seed() if seed is None else seed
    seeds = [derive(seed, "restore", i, k) for i in range(len(y)) for k in range(count)]
    weight = next(iter(model.parameters()), y)
    own: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device, **options}
    measurement = _moved(measurement, own["dtype"], own["device"])
    repeated = tree_map(lambda part: part.repeat_interleave(count, 0), cond)
    with torch.no_grad():
        out = method.run(model, measurement, repeated, seed=seeds, **own)
        found = out.x.to(y).unflatten(0, (len(y), count))[:, :samples].flatten(0, 1)
        rows = operator.rows(torch.arange(len(y)).repeat_interleave(samples))
        miss = (y.repeat_interleave(samples, 0) - rows(found)).flatten(1).square().mean(1).sqrt()
    shape, ess = (len(y), samples), getattr(out, "ess", None)
    ess = None if ess is None else ess.reshape(len(y), -1)
    return Restored(found.reshape(*shape, *operator.event), out.nfe, miss.reshape(shape), seed, ess=ess)


def _moved(measurement: Measurement, dtype: torch.dtype, device: torch.device | str) -> Measurement:
    return Measurement(measurement.operator, measurement.y.to(device=device, dtype=dtype), measurement.noise)


def check_positive(**values: float) -> None:
    """Refuse options that are not positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value}: positive and finite")
