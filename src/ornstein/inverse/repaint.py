"""RePaint: what is known is put in at every level, and each step taken several times."""

from __future__ import annotations

from dataclasses import dataclass

from ..solvers import Solver
from .measurement import Measurement
from .method import Method
from .projected import Projected, noised


@dataclass(frozen=True)
class RePaint(Method):
    """x_s = (I - A^+ A) x' + A^+ (alpha_s y + sigma_s A z),    x' the ancestral step from x_t; `resamples` times a step

    For a mask: the known pixels, noised to the level of s, beside those that the model made; then back to t by the
    forward process and down again, so that the two agree. One pass is replacement, which they do not. The measurement
    is met to rounding.

    resamples: the published 10, with a jump of one step; evaluations grow as fast.

    Source: Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models" (2201.09865),
    algorithm 1; for other operators, Song et al. 2020 (2011.13456), appendix I.4.
    """

    resamples: int = 10

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ValueError(f"resamples={self.resamples}: each step is taken at least once")

    def solver(self, measurement: Measurement) -> Solver:
        return Projected(repr(self), noised(measurement.linear(self), measurement.y), resamples=self.resamples)
