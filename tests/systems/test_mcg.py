"""MCG: its gradient is tangent to the data's manifold, and restores what a projection alone cannot."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import MCG, Measurement, RePaint, restore
from worlds import F64, normal

VP = orn.VP()


def subspace(dim: int, rank: int) -> tuple[orn.exact.Gaussian, Tensor]:
    """Data in a subspace, and its orthonormal basis (dim, rank)."""
    basis = torch.linalg.qr(normal(dim, rank, seed=1)).Q
    return orn.exact.Gaussian(torch.zeros(dim, dtype=F64), std=0.0, factor=1.5 * basis), basis


def share_outside(v: Tensor, basis: Tensor) -> float:
    """How much of v lies outside the subspace, relative to its length."""
    return float(((v - v @ basis @ basis.mT).norm(dim=1) / v.norm(dim=1)).max())


@pytest.mark.system("mcg", rival="projection")
def test_mcg() -> None:
    """Data in 3 of 12 dimensions, 4 of their sums measured exactly.

    The gradient of |y - A x0(x)|^2 goes through the network, whose derivative is symmetric with its range in the
    subspace: it is tangent to rounding. The rival's correction, A^+ (y - A x), is not: of the 12 dimensions it keeps to
    4 that know nothing of the subspace. In 200 steps each the samples of both meet the measurement, and since 4 sums
    say all about 3 coordinates they should be the truth: the rival misses it ten times as far.
    """
    world, basis = subspace(12, 3)
    a, truth = normal(4, 12, seed=2), world.sample(64, seed=3).to(F64)
    operator, model = linops.Matrix(a), world.denoiser(VP)
    y = truth @ a.mT
    x = VP.corrupt(truth, 0.5, noise=normal(64, 12, seed=4)).x
    found = MCG().denoiser(model, Measurement(operator, y, linops.GaussianNoise(0.0)))(x, 0.5)
    pull: Any = found.output["pull"]
    assert share_outside(pull, basis) < 1e-12
    assert share_outside(operator.pinv(y - x @ a.mT), basis) > 0.5
    residual = (y - found.x0 @ a.mT).detach()
    moved = (y - model(x + 1e-6 * pull, 0.5).x0 @ a.mT).norm(dim=1)
    assert bool((moved < residual.norm(dim=1)).all())  # downhill

    def error(method: Any, steps: int) -> float:
        out = restore(model, operator, y, method=method, steps=steps, seed=5)
        assert float(out.residual.max()) < 1e-10
        return float((out.samples[:, 0] - truth).square().mean().sqrt())

    assert error(MCG(step=0.1), 200) < error(RePaint(resamples=1), 400) / 10
    assert math.isfinite(error(MCG(step=0.01), 50))
