"""Phase space from its differential equations alone, and the law of a stochastic table without sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein.numerics.dop853 import dop853
from ornstein.processes import Phase, PhaseSpace
from ornstein.random import Noise
from worlds import F64

ALONE = {"BinomialAncestral", "PerturbedDDPM", "RDDM", "ReducedSymplecticEuler", "Splitting"}
"""The solvers of one kind of process: those that split position and momentum, that read two heads, that flip bits."""


def coefficients(process: PhaseSpace) -> tuple[Tensor, Tensor]:
    """F and G G^T over beta, from the recipe: F = -(D + Q) diag(1, 1/mass)."""
    p = process
    d = torch.tensor([[p.damping, p.cross], [p.cross, p.mass * p.friction]], dtype=F64) / 2
    q = torch.tensor([[0.0, -p.coupling], [p.coupling, 0.0]], dtype=F64) / 2
    return -(d + q) @ torch.diag(torch.tensor([1.0, 1 / p.mass], dtype=F64)), 2 * d


def moments(process: PhaseSpace, t: float, momentum: float) -> tuple[Tensor, Tensor]:
    """(Phi, S) by Phi' = F Phi and S' = F S + S F^T + G G^T from S(0) = diag(0, momentum)."""
    drift, noise = coefficients(process)

    def slope(at: Tensor | float, y: Tensor) -> Tensor:
        beta = process.beta_min + float(at) * (process.beta_max - process.beta_min)
        phi, s = y.reshape(2, 2, 2)
        return beta * torch.stack([drift @ phi, drift @ s + s @ drift.T + noise]).reshape(1, 8)

    start = torch.stack([torch.eye(2, dtype=F64), torch.diag(torch.tensor([0.0, momentum], dtype=F64))])
    out = dop853(lambda at, y: slope(at, y), start.reshape(1, 8), 0.0, t, rtol=1e-12, atol=1e-15).y.reshape(2, 2, 2)
    return out[0], out[1]


def gaussian_law(process: PhaseSpace, t: float, std: float) -> Tensor:
    """The covariance of z_t for data N(0, std^2) in one dimension."""
    phi, s = moments(process, t, process.gamma * process.mass)
    return s + std**2 * torch.outer(phi[:, 0], phi[:, 0])


class OneByOne(Noise):
    """Row b of the batch gets a 1 in the draw b - first, and nothing in any other."""

    def __init__(self, batch: int, first: int) -> None:
        super().__init__(0, batch=batch, dtype=F64)
        self.count = first

    def increment(self, shape: Any, interval: Any) -> Tensor:
        out = torch.zeros(shape, dtype=F64)
        out[self.count] = 1.0
        self.count += 1
        return out


def law_of(denoiser: Any, table: Any, covariance: Tensor) -> Tensor:
    """The covariance of the last state on a world whose denoiser is linear, exactly: the loop runs on unit vectors."""
    rows = 2 + 2 * len(table.noises)
    start = torch.zeros(rows, 2, dtype=F64)
    start[:2] = torch.linalg.cholesky(covariance).T
    kept: list[Any] = []
    run = orn.solvers.Loop(denoiser, table, Phase(start[:, :1], start[:, 1:]), hooks=[lambda m: kept.append(m.x)])
    with torch.no_grad():
        run.run(OneByOne(rows, 2))
    last = torch.cat(list(kept[-1]), 1)
    return last.T @ last
