"""Direct diffusion bridges that keep to the measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..denoiser import BaseDenoiser
from ..processes import Level, Reverting, TwoSided
from ..solvers import Grid, Solver, Uniform
from .direct_bridge import DirectBridge
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Corrected, Pulled


@dataclass(frozen=True)
class CDDB(Method):
    """x0' = x0 + step A^T (y - A x0), in place of x0 in every step of a direct bridge (`DirectBridge`)

    a gradient step on |y - A x0|^2/2. A bridge knows the measurement by where it started only, and drifts away from it.
    `deep` goes through the network, x0' = x0 + step J^T A^T (y - A x0) with J = d x0/dx_t: a gradient pass more, and
    what is added lies where the network's answers do.

    The model is that of a direct bridge x_t = alpha x0 + (1 - alpha) end + sigma noise: `I2SB`, `BrownianBridge`,
    `indi` or any `Residual`, with cond={"end": end}, or `TwoSided` with x_init=end, in the model's units; the end is
    what it was trained on, often y itself or operator.pinv(y). It is no sampler of the posterior: a bridge samples x0
    given the end already, and the step takes y for exact, noise and all.

    step: below 2/|A|^2, from where it leads away from y; the deep one has no such bound known beforehand, since |J|
    exceeds 1 early on a bridge of little noise. The published code has |y - A x0|^2, so half the step for the same, and
    adds the deep gradient to x_s unweighted, however short the bridge's step, which can diverge: here both gradients
    are weighted alike, by the 1 - r of `DirectBridge`.

    Source: Chung, Kim, Ye 2023, "Direct Diffusion Bridge using Data Consistency for Inverse Problems" (2305.19809).
    """

    guides = True

    step: float = 1.0
    deep: bool = False

    def __post_init__(self) -> None:
        check_positive(step=self.step)

    @property
    def grid(self) -> Grid:
        return Uniform()

    def fits(self, model: BaseDenoiser) -> None:
        if not isinstance(model.process, (Reverting, TwoSided)):
            raise ValueError(
                f"{self!r} is for a model of a direct bridge, such as I2SB() or TwoSided(): got {model.process!r}"
            )

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        operator = measurement.linear(self)
        size = operator.norm() ** 2
        if not self.step * size < 2:
            raise ValueError(f"step={self.step} leads away from y: it stays below 2/|A|^2 = {2 / size:.4g}")

        def pull(x0: Tensor, level: Level) -> Tensor:
            return self.step * operator.adjoint(measurement.residual(x0))

        if self.deep:
            return _Deep(model, measurement, pull)
        return Corrected(model, measurement, lambda x0, level: x0 + pull(x0, level))

    def solver(self, measurement: Measurement) -> Solver:
        return DirectBridge()


class _Deep(Pulled):
    """x0' = x0 + J^T v."""

    def answer(self, x0: Callable[[Tensor], Tensor], level: Level, x: Tensor) -> Tensor:
        heads = super().answer(x0, level, x)
        moved: Tensor = heads["main"] + heads["pull"]
        return moved
