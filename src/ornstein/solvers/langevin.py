"""Langevin dynamics: correctors between the steps of a solver, and a chain of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..processes import GaussianProcess, Level
from .compose import write_from
from .reverse_sde import EulerMaruyama
from .sample import Samples, sample
from .solver import Solver
from .table import Register, Table, Writer


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """After each step of the predictor, `corrections` steps of Langevin dynamics at the level reached:

        x <- x + h score + sqrt(2h) z,     h = 2 (snr |z|/|score|)^2 ("norm"), or 2 (snr sigma)^2 ("level")

    "norm" is the paper's, its norms over the whole event and each sample's own here. It depends on the noise that it
    scales, which is harmless only where |z|^2 is nearly its mean d: in a few dimensions the law it leaves is not the
    one of the level, and below three the mean of h is infinite. "level" puts the mean of the noise's norms in their
    place, |z| = sqrt(d), |score| = sqrt(d)/sigma: a linear table of fixed steps. Either leaves a bias of order h.

    The predictor starts anew after every correction, so that it should be a method of one step. There is no correction
    at sigma = 0. The paper's factor 1 - beta_i for VP, 1 up to the size of a step, is left out.

    Source: Song et al. 2020 (2011.13456), algorithms 4 and 5.
    """

    predictor: Solver = field(default_factory=EulerMaruyama)
    corrections: int = 1
    snr: float = 0.16
    step: str = "level"

    def __post_init__(self) -> None:
        if self.corrections < 0:
            raise ValueError(f"corrections={self.corrections}: the number after each step, 0 or more")
        if not 0 < self.snr < 1:
            raise ValueError(f"snr={self.snr} lies between 0 and 1: larger steps of Langevin dynamics diverge")
        if self.step not in ("level", "norm"):
            raise ValueError(f"step={self.step!r}: choose level or norm")

    def write(self, table: Writer, grid: Level) -> None:
        x = table.state
        for t, s in pairwise(grid):
            x = write_from(self.predictor, table, x, Level.stack([t, s]))
            if not bool((s.sigma == 0).any()):
                for _ in range(self.corrections):
                    x = self._correct(table, x, t, s)

    def _correct(self, table: Writer, x: Register, t: Level, s: Level) -> Register:
        p, z = table.evaluate(x, s), table.noise(t, s)  # one more noise of the step
        if self.step == "norm":
            return table.apply(self._by_norms, x, p.score, z, level=s)
        h = 2 * (self.snr * s.sigma) ** 2
        return table.register(x + h * p.score + torch.sqrt(2 * h) * z, s)

    def _by_norms(self, x: Tensor, score: Tensor, z: Tensor) -> Tensor:
        over = tuple(range(1, x.dim()))
        h = 2 * self.snr**2 * (z**2).sum(over, keepdim=True) / (score**2).sum(over, keepdim=True)
        return x + h * score + torch.sqrt(2 * h) * z


def langevin_table(process: GaussianProcess, t: float, step: float, steps: int) -> Table:
    """x <- x + h score(x, t) + sqrt(2h) z at one level, h = step in units of x^2, `steps` times: a table."""
    if not 0 < step < math.inf:
        raise ValueError(f"step={step}: the step h of x + h score + sqrt(2h) z, positive")
    if steps < 1:
        raise ValueError(f"steps={steps}: a chain has at least one")
    level = process.level(t)
    table = Writer(f"langevin(t={t}, step={step}, steps={steps})", level, process)
    x, std = table.state, math.sqrt(2 * step)
    for _ in range(steps):
        p = table.evaluate(x, level)
        x = table.step(x + step * p.score + std * table.noise(level, level), level)
    return table.table()


def langevin(
    denoiser: BaseDenoiser, x_init: Tensor, *, step: float, steps: int, t: float = 0.0, **options: Any
) -> Samples:
    """x <- x + h score(x, t) + sqrt(2h) z, at one level of noise, from states that are given: those of the data.

    With t near 0 this is sampling by the vanilla score. Between far modes the chain does not move in any time one could
    wait, so that the weights of the modes stay those of the start: right if it starts at data, and wrong from anywhere
    else, for the score hardly depends on the weights. An estimated score that has them wrong pulls the chain away as it
    crosses over: `steps` stops it early, when each mode is filled and no later (`trajectory=True` shows all times).

    x_init: (batch, *event) in model units. step: h, in units of x^2, well below the variance of the narrowest mode; the
    law within a mode of variance v is off by h/2v of v. options: those of `orn.sample`.

    Source: Koehler, Vuong 2023, "Sampling Multimodal Distributions with the Vanilla Score" (2310.01762).
    """
    if not isinstance(denoiser.process, GaussianProcess):
        raise ValueError(f"langevin runs on a process of one component: got {denoiser.process!r}")
    return sample(denoiser, x_init=x_init, table=langevin_table(denoiser.process, t, step, steps), **options)
