"""DPS: its gradient goes through the network, so noise outside the data's manifold is not reproduced; nor sampled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import DPS, MCG, Measured, Measurement, restore
from ornstein.inverse.dps import ascent
from worlds import F64, normal

VP, STD, N = orn.VP(), 0.3, 64


class Straight(Measured):
    """The gradient with respect to x0, not through the network to x."""

    def answer(self, x0: Callable[[Tensor], Tensor], level: orn.Level, x: Tensor) -> Any:
        mean = x0(x).detach()
        return {"main": mean, "pull": ascent(self.measurement, mean)}


@dataclass(frozen=True)
class WithoutJacobian(DPS):
    def denoiser(self, model: Any, measurement: Measurement) -> Any:
        return Straight(model, measurement)


def run(world: Any, operator: Any, y: Tensor, method: Any, noise: Any, steps: int) -> Tensor:
    out = restore(world.denoiser(VP), operator, y, method=method, noise=noise, steps=steps, seed=1, dtype=F64)
    return out.samples[:, 0]


@pytest.mark.system("dps", rival="MCG; the gradient without the network")
def test_dps() -> None:
    """Data in 3 of 16 dimensions, all 16 measured with noise e; 64 measurements, 100 steps.

    Through the network the gradient is tangent to the data, so a sample stays on it to rounding and its error is at
    best that of least squares there: 3 std^2, and |e|^2 = 16 std^2 for MCG's projection, which reproduces the noise.
    A mean of 64 chi-squares of 3 has deviation sqrt(6/64)/3 = 10 %: within 1.5 of the best, where the projection is not
    within 3. Without the network's derivative a step leaves the data, by more than a tenth of it. The same with
    Poisson's noise (its variance (x + 6)/8 is 0.75 on average), and when only amplitudes of a Fourier transform of one
    of six flat pieces are known: the median error is then less than two thirds of that of straight steps.
    It is no sampler, though: see test_the_residual_ends_at_half_a_step.
    """
    basis = torch.linalg.qr(normal(16, 3, seed=1)).Q
    flat = orn.exact.Gaussian(torch.zeros(16, dtype=F64), std=0.0, factor=basis)
    truth, identity = flat.sample(N, seed=3).to(F64), linops.Matrix(torch.eye(16, dtype=F64))

    def outside(x: Tensor) -> float:
        return float((x - x @ basis @ basis.mT).norm(dim=1).max())

    counts = linops.PoissonNoise(8.0, offset=6.0)
    noisy = truth + STD * normal(N, 16, seed=4)
    for noise, y, variance in ((STD, noisy, STD**2), (counts, counts.sample(truth, seed=5), 0.75)):
        found = {m: run(flat, identity, y, m, noise, 100) for m in (DPS(0.3), WithoutJacobian(0.3), MCG(0.1))}
        error = {m: float((x - truth).square().sum(1).mean()) for m, x in found.items()}
        assert outside(found[DPS(0.3)]) < 1e-12
        assert outside(found[WithoutJacobian(0.3)]) > 0.3 / 10
        assert error[DPS(0.3)] < 1.5 * 3 * variance < 3 * 3 * variance < error[MCG(0.1)]

    phases = linops.PhaseRetrieval((4, 4), 2.0)
    pieces = torch.linalg.qr(normal(96, 3, seed=1).reshape(6, 16, 3)).Q
    world = orn.exact.GaussianMixture(normal(6, 16, seed=8).reshape(6, 4, 4), 0.0, factors=0.3 * pieces)
    truth = world.sample(N, seed=3).to(F64)
    y = phases(truth) + 0.1 * normal(N, 8, 8, seed=4)
    errors = [
        (run(world, phases, y, method, 0.1, 100) - truth).flatten(1).norm(dim=1).median()
        for method in (DPS(1.0), WithoutJacobian(1.0))
    ]
    assert float(errors[0]) < float(errors[1]) / 1.5


def test_the_residual_ends_at_half_a_step() -> None:
    """Where the prior can explain everything, a residual r near data becomes r - zeta r/|r|: a cycle about zeta/2, and
    |y - x| ends there, within 10 %, for noise of 0.05 and 0.4 alike, in 32 dimensions; the posterior's has
    std sqrt(32) on average. Samples of one measurement agree: their variance is less than 1/5 of the posterior's where
    the noise is 0.4. (Published: zeta = 0.3 to 1 with 1,000 steps; also in these equal steps of t.)"""
    basis = torch.linalg.qr(normal(32, 32, seed=5)).Q
    cov = basis @ torch.diag(torch.linspace(0.5, 2.0, 32, dtype=F64) ** 2) @ basis.mT
    world, zeta, a = orn.exact.Gaussian(torch.zeros(32, dtype=F64), cov=cov), 0.3, torch.eye(32, dtype=F64)
    for std in (0.05, 0.4):
        y = world.sample(8, seed=3).to(F64) + std * normal(8, 32, seed=4)
        out = restore(
            world.denoiser(VP),
            linops.Matrix(a),
            y,
            method=DPS(zeta),
            noise=std,
            samples=2,
            steps=200,
            seed=1,
            dtype=F64,
        )
        length = float(out.residual.mean()) * math.sqrt(32)
        assert length == pytest.approx(zeta / 2, rel=0.1)
    exact = float(world.posterior(y[0], a, noise_std=0.4).moments()[1].trace())
    assert float(out.std.square().sum(1).mean()) < exact / 5
