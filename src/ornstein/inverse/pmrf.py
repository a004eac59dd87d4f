"""Posterior-mean rectified flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import Reverting
from ..solvers import Euler, Grid, Samples, Solver, Uniform
from ..solvers.sample import evaluation
from .measurement import Measurement
from .method import Method


@dataclass(frozen=True)
class PMRF(Method):
    """x = the flow from N(f(y), s^2 I) at t = 1 to data at t = 0,    f(y) = E[x0 | y]

    Two fits: f by the squared error on pairs (x0, y), and a model of `indi(s)`, x_t = (1 - t) x0 + t (f(y) + s noise),
    whose velocity is the rectified flow's:

        flow = orn.Denoiser(net, indi(0.025), "velocity")
        orn.fit(flow, x, cond={"end": f(y)})
        orn.restore(flow, operator, y, method=PMRF(f), noise=std)

    Of all estimates of x0 whose law is that of the data, the optimal transport of f(y) to x0 has the least squared
    error, MMSE + W2^2(f(y), x0), at most that of a sample of the posterior, 2 MMSE. A rectified flow carries f(y) to
    the data's law and is that transport where its paths do not cross; s > 0 fills the directions in which f(y) does not
    vary. It is one estimate and no sampler of the posterior: its samples of one y differ by the noise s alone.

    mean: f, measurements (batch, *measured) to (batch, *event), in the model's units: for a model of x = std u + mean,
        one number each, f is given (y - A mean)/std, for other scalings y itself; one evaluation.

    Source: Ohayon, Michaeli, Elad 2024, "Posterior-Mean Rectified Flow: Towards Minimum MSE Photo-Realistic Image
    Restoration" (2410.00418), algorithm 1.
    """

    guides = True

    mean: Callable[[Tensor], Tensor]

    @property
    def steps(self) -> int:
        return 25

    @property
    def grid(self) -> Grid:
        return Uniform()

    def solver(self, measurement: Measurement) -> Solver:
        return Euler()

    def fits(self, model: BaseDenoiser) -> None:
        if not isinstance(model.process, Reverting):
            raise ValueError(f"{self!r} flows from its mean: train a model of indi(), not of {model.process!r}")

    def run(self, model: BaseDenoiser, measurement: Measurement, cond: Cond, **options: Any) -> Samples:
        self.fits(model)
        assert isinstance(model.process, Reverting)
        if not (cond is None or isinstance(cond, Mapping)):
            raise ValueError(f"cond is a mapping of tensors by name, or None: got {type(cond).__name__}")
        shape = (len(measurement), *measurement.operator.event)
        with evaluation(self.mean) if isinstance(self.mean, nn.Module) else nullcontext():
            mean = self.mean(measurement.y)
        if mean.shape != shape:
            raise ValueError(f"the mean answers {tuple(mean.shape)} for events {shape}: one estimate a measurement")
        if (nfe := options.get("nfe")) is not None:
            if nfe < 2:
                raise ValueError(f"nfe={nfe}: the mean takes one evaluation and the flow one or more")
            options["nfe"] = nfe - 1
        out = super().run(model, measurement, {**(cond or {}), model.process.mean: mean}, **options)
        return replace(out, nfe=out.nfe + 1)
