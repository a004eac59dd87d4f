"""Diffusion posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..linops import GaussianNoise, LinearOperator
from ..processes import Level, ancestral
from ..solvers import Grid, Solver, Uniform
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Writer
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Pulled


@dataclass(frozen=True)
class DPS(Method):
    """x_s = c_x x_t + c_x0 x0 + std z - zeta grad_x |y - A(x0(x_t))|

    the ancestral step (see `ancestral`), and a step of length zeta down the misfit, per sample, through the network.
    For noise that is not normal the square root of the deviance, 2 log p(y | y) - 2 log p(y | x0), is in place of
    |y - A(x0)|. Linear or not, the operator needs gradients.

    It is no sampler of the posterior. The step knows no noise and does not shrink: near data, where x0 follows x, the
    residual r of a measured direction turns into r - zeta A A^T r/|r|, a cycle about |r| = zeta |A A^T r|/(2 |r|),
    whatever the noise of the measurement is. So what the prior can explain is fitted down to zeta/2 for A of norm 1,
    noise with it, and samples agree on it; what lies outside the data's manifold is not, as its gradient vanishes.

    The grid is the published one, equal steps of t: on one with more steps near data, they are long beside the noise
    of their level, and may leave the data for good.

    zeta: the published values are 0.3 (deblurring, super-resolution), 0.5 (inpainting), 1 (phase retrieval), with 1,000
    steps and data in [-1, 1].

    Source: Chung et al. 2022, "Diffusion Posterior Sampling for General Noisy Inverse Problems" (2209.14687), algorithm
    1. For Poisson noise the published code follows the mean of |y - A x0|/|y|, the paper a least-squares misfit weighed
    by 1/(2 y); here it is the likelihood.
    """

    zeta: float = 0.5

    def __post_init__(self) -> None:
        check_positive(zeta=self.zeta)

    @property
    def steps(self) -> int:
        return 1000

    @property
    def grid(self) -> Grid:
        return Uniform()

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        measurement.gradient(self)
        return Pulled(model, measurement, lambda x0, level: ascent(measurement, x0))

    def solver(self, measurement: Measurement) -> Solver:
        return Ascending(self.zeta)


def ascent(measurement: Measurement, x0: Tensor) -> Tensor:
    """-grad |y - A(x0)| at x0 for normal noise, else -grad sqrt(deviance), which is the same but for 1/std; 0 where the
    misfit is."""
    if isinstance(measurement.noise, GaussianNoise) and isinstance(measurement.operator, LinearOperator):
        residual = measurement.residual(x0)
        length = residual.flatten(1).norm(dim=1).clamp_min(torch.finfo(x0.dtype).tiny)
        return measurement.operator.adjoint(residual / length.reshape(-1, *(1,) * (residual.dim() - 1)))
    with torch.enable_grad():
        x0 = x0.detach().requires_grad_()
        if isinstance(measurement.noise, GaussianNoise):
            misfit = measurement.residual(x0).flatten(1).square().sum(1)
        else:
            misfit = measurement.deviance(x0)
        (slope,) = torch.autograd.grad(misfit.sum(), x0)
    misfit = torch.where(misfit > 0, misfit, torch.inf).detach()
    length = 2 * misfit.sqrt()
    return -slope / length.reshape(-1, *(1,) * (x0.dim() - 1))


@dataclass(frozen=True)
class Ascending(Solver):
    """The ancestral step, and zeta times the head "pull" of the state that it began with."""

    zeta: float

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        x = table.state
        for t, s in pairwise(grid):
            p, step = table.evaluate(x, t), ancestral(t, s)
            value = step.c_x * x + step.c_x0 * p.x0 + self.zeta * p.head("pull").raw
            x = table.step(value + step.posterior * table.noise(t, s) if bool((s.sigma > 0).any()) else value, s)
