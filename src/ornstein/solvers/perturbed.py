"""Ancestral sampling multiplied by a perturbation in each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ..processes import GaussianProcess, Level, ancestral, broadcast
from .reverse_sde import check_falling
from .solver import Solver
from .table import Writer

Quadratic = Callable[[Level], tuple[Tensor | float, Tensor | float]]
"""(centre, precision) of log r_s(x) = -precision (x - centre)^2/2 at a level, numbers or tensors like (*event)."""


@dataclass(frozen=True)
class PerturbedDDPM(Solver):
    """x_s ~ N(mean, std^2) r_s, normalised:  N(mean + k (centre - mean), (1 - k) std^2),   k = std^2 L/(1 + std^2 L)

    with r_s(x) = exp(-L (x - centre)^2/2), L the precision, and the mean and std of `DDPM`: the product of the reverse
    step with a perturbation, exact at any size of step. As for `BinomialAncestral` the samples follow the posterior
    p(x0) r(x0), in the limit of small steps, where r_t(x) = E[r(x0) | x_t = x], and another law where r is the same at
    all levels. The last step has no spread and is the model's own.

    Args:
        perturbation: of the level: (centre, precision), which may be 0.
        variance: "posterior" or "forward", as in `DDPM`.

    Source: Sohl-Dickstein et al. 2015 (1503.03585), section 2.5 and table App.1.
    """

    perturbation: Quadratic
    variance: str = "forward"

    def __post_init__(self) -> None:
        if self.variance not in ("posterior", "forward"):
            raise ValueError(f"variance={self.variance!r}: choose posterior or forward")

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        process, x = table.process, table.state
        if not isinstance(process, GaussianProcess) or process.shift(grid.t[0], None) is not None:
            raise ValueError(f"{self!r} is for a GaussianProcess without a shift: got {process!r}")
        for t, s in pairwise(grid):
            p, step = table.evaluate(x, t), ancestral(t, s)
            mean = step.c_x * x + step.c_x0 * p.x0
            if bool((s.sigma == 0).all()):
                x = table.step(mean, s)
                continue
            std = step.posterior if self.variance == "posterior" else step.forward
            multiply = partial(_multiply, std=std, quadratic=self.perturbation(s))
            x = table.apply(multiply, mean, table.noise(t, s), level=s, on_grid=True)


def _multiply(mean: Tensor, z: Tensor, *, std: Tensor, quadratic: tuple[Tensor | float, Tensor | float]) -> Tensor:
    centre, precision = (torch.as_tensor(value).to(mean) for value in quadratic)
    std = broadcast(std, mean)
    gain = std**2 * precision / (1 + std**2 * precision)
    return mean + gain * (centre - mean) + std * torch.sqrt(1 - gain) * z
