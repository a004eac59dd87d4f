"""Ensemble Kalman diffusion guidance: restoration through a black box."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import Level
from ..solvers import DPMSolverPP, Samples, Solver
from ..solvers.compose import write_from
from ..solvers.reverse_sde import check_falling
from ..solvers.table import Writer
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Plain

CORRECTIONS = ("posterior", "published")


@dataclass(frozen=True)
class EnKG(Method):
    """x_i <- mean x + sum_j M_ij (x_j - mean x),    M from G_i = A(F_t(x_i)), F_t the probability flow from t to data

    Noise and data are one through the flow, so the posterior at t is p_t(x) p(y | A(F_t(x))). An ensemble of K follows
    the flow and takes up the likelihood in `corrections` equal shares w on the way, each by the Kalman filter that
    reads A from the ensemble's own spread, S = (G - mean G)/(std sqrt(K - 1)) = U s V^T:

        M = I + U [(1 + w s^2)^(-1/2) - 1] U^T + 1 [U (w s/(1 + w s^2)) V^T (y - mean G)/std]^T/sqrt(K - 1)

    It needs values of A alone, no gradients, of a numpy function as well. For normal data and a linear A the ensemble
    has the posterior's mean and covariance as K grows; for other problems it is a statistical linearisation and its
    posterior a guess: an ensemble with two modes is treated as one wide one.

    correction: "published" is x_i <- x_i - guidance sum_j D_ij (x_j - mean x)/|D|, D_ij = (G_i - y).(G_j - mean G),
    |D| its Frobenius norm: down the misfit, of no likelihood and until the ensemble is one point; it wants a
    correction at every step.
    base: what steps along the flow, and to look ahead, the rest of the grid from every correction.

    Source: Zheng, Chu, Wang, Kovachki, Baptista, Yue 2024, "Ensemble Kalman Diffusion Guidance: A Derivative-free
    Method for Inverse Problems" (2409.20175), algorithm 1; the square-root filter: Bishop, Etherton, Majumdar 2001; a
    likelihood in shares: Emerick, Reynolds 2013.
    """

    particles: int = 64
    corrections: int = 8
    correction: str = "posterior"
    guidance: float = 1.0
    base: Solver = field(default_factory=DPMSolverPP)

    def __post_init__(self) -> None:
        check_positive(guidance=self.guidance)
        if self.correction not in CORRECTIONS:
            raise ValueError(f"correction={self.correction!r}: choose from {', '.join(CORRECTIONS)}")
        if self.particles < 2 or self.corrections < 1:
            raise ValueError(
                f"particles={self.particles}, corrections={self.corrections}: at least two and one, for a spread"
            )

    @property
    def steps(self) -> int:
        return 20

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        return Plain(model, measurement)

    def solver(self, measurement: Measurement) -> Solver:
        std = measurement.density(self).std(self)
        share = 1 / self.corrections

        def correct(x: Tensor, x0: Tensor) -> Tensor:
            ensemble = x.reshape(-1, self.particles, x[0].numel())
            clean, y = (
                part.reshape(len(ensemble), self.particles, -1) / std
                for part in (measurement.operator(x0), measurement.y)
            )
            if self.correction == "posterior":
                mixing = kalman(clean, y, share)
            else:
                mixing = descent(clean, y, self.guidance)
            mean = ensemble.mean(1, keepdim=True)
            moved: Tensor = mean + mixing @ (ensemble - mean)
            return moved.reshape(x.shape)

        return Ensemble(repr(self), correct, self.corrections, self.base)

    def run(self, model: BaseDenoiser, measurement: Measurement, cond: Cond, **options: Any) -> Samples:
        if options.get("x_init") is not None:
            raise ValueError(f"{self!r} begins with a spread of states, and x_init is one a measurement: leave it out")
        return super().run(model, measurement, cond, **options)


def kalman(clean: Tensor, y: Tensor, share: float) -> Tensor:
    """M (..., K, K) of clean (..., K, m) and y in units of the noise, for the likelihood to the power `share`."""
    count = clean.shape[-2]
    mean = clean.mean(-2, keepdim=True)
    u, s, vt = torch.linalg.svd((clean - mean) / math.sqrt(count - 1), full_matrices=False)
    shrink = 1 / torch.sqrt(1 + share * s**2) - 1
    gain = share * s / (1 + share * s**2) / math.sqrt(count - 1)
    moved = (u * gain[..., None, :]) @ (vt @ (y - mean)[..., :1, :].mT)
    eye = torch.eye(count, dtype=clean.dtype, device=clean.device)
    mixing: Tensor = eye + (u * shrink[..., None, :]) @ u.mT + moved.mT
    return mixing


def descent(clean: Tensor, y: Tensor, guidance: float) -> Tensor:
    """M of the published step, whose length is that of the guidance."""
    slopes = (clean - y) @ (clean - clean.mean(-2, keepdim=True)).mT
    length = torch.linalg.matrix_norm(slopes, keepdim=True).clamp_min(torch.finfo(clean.dtype).tiny)
    eye = torch.eye(clean.shape[-2], dtype=clean.dtype, device=clean.device)
    mixing: Tensor = eye - guidance * slopes / length
    return mixing


@dataclass(frozen=True)
class Ensemble(Solver):
    """Steps of `base`, and corrections spread over the grid, from the state and where the rest of the grid takes it."""

    name: str
    correct: Callable[[Tensor, Tensor], Tensor]
    corrections: int
    base: Solver

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        steps = len(grid) - 1
        if steps < self.corrections:
            raise ValueError(f"{self!r} corrects at points of the grid: give as many steps or more, not {steps}")
        places = [i * steps // self.corrections for i in range(self.corrections)]
        x = table.state
        for first, last in zip(places, [*places[1:], steps], strict=True):
            x0 = write_from(self.base, table, x, grid[first:], aside=True)
            x = table.apply(self.correct, x, x0, level=grid[first])
            x = write_from(self.base, table, x, grid[first : last + 1])
