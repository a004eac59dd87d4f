"""CDIM: exact measurements met to rounding, noisy ones to their noise and no further."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import CDIM, DPS, restore
from worlds import F64, normal

VP = orn.VP()


@pytest.mark.system("cdim", rival="DPS")
def test_cdim() -> None:
    """A Gaussian of 12 dimensions, deviations 0.4 to 2, 8 of their sums measured; 60 measurements, 4 samples of each.

    Of an exact measurement the residual is rounding. With noise every |y - A x|^2 ends within its bound,
    8 + 0.2 sqrt(16) = 8.8 times std^2, and on average no lower than the noise: chi-square of 8 degrees has deviation
    4, so the mean of 60 is 8 within 5 * 4/sqrt(60) = 2.6. DPS, which knows no noise, ends below that (see test_dps),
    and so does CDIM itself if it is told of none; the means of its samples are then at least twice as far from the
    posterior's, squared. CDIM has 73 passes, DPS 300 at each of its published lengths.
    """
    basis = torch.linalg.qr(normal(12, 12, seed=5)).Q
    cov = basis @ torch.diag(torch.linspace(0.4, 2.0, 12, dtype=F64) ** 2) @ basis.mT
    world, a, std = orn.exact.Gaussian(torch.zeros(12, dtype=F64), cov=cov), normal(8, 12, seed=2) / math.sqrt(12), 0.5
    model, operator = world.denoiser(VP), linops.Matrix(a)
    x = world.sample(60, seed=3).to(F64)
    y = x @ a.mT + std * normal(60, 8, seed=4)
    laws = [world.posterior(row, a, noise_std=std).moments() for row in y]
    truth, trace = torch.stack([mean for mean, _ in laws]), float(laws[0][1].trace())

    def run(method: Any, steps: int, noise: float = std) -> tuple[Tensor, float, int]:
        """|y - A x|^2/std^2 of each sample, the squared bias of the mean relative to the posterior's variance, nfe."""
        out = restore(model, operator, y, method=method, noise=noise, samples=4, steps=steps, seed=1, dtype=F64)
        bias = (out.mean - truth).square().sum(1).mean() - out.std.square().sum(1).mean() / 4
        return 8 * out.residual.square() / std**2, float(bias) / trace, out.nfe

    exact = restore(model, operator, x @ a.mT, method=CDIM(), steps=25, seed=1, dtype=F64)
    assert float(exact.residual.max()) < 1e-12

    left, bias, nfe = run(CDIM(), 25)
    assert nfe == 73
    assert float(left.max()) < 8.8 * (1 + 1e-9)
    assert float(left.mean()) > 8 - 2.6

    unstopped, worse, _ = run(CDIM(), 25, noise=0.0)
    assert float(unstopped.max()) < 1e-12
    assert bias < worse / 2
    rivals = [run(DPS(zeta), 150) for zeta in (0.3, 1.0)]
    assert all(float(left.mean()) < 8 - 2.6 for left, _, _ in rivals)
    assert bias < min(worse for _, worse, _ in rivals) / 2
