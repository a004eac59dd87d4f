"""RED-diff: on a Gaussian prior it converges to the point that its weights say, and to another without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import REDDiff, restore
from worlds import F64, normal

VP, STD, STEPS, SAMPLES = orn.VP(), 0.4, 300, 64
A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, -1.0]], dtype=F64)
BASIS = torch.linalg.qr(normal(3, 3, seed=5)).Q
VARIANCES = torch.tensor([0.2, 1.0, 3.0], dtype=F64)
MEAN = 0.5 * normal(3, seed=6)
WORLD = orn.exact.Gaussian(MEAN, cov=BASIS @ torch.diag(VARIANCES) @ BASIS.mT)


def minimum(y: Tensor, method: REDDiff) -> Tensor:
    """(A^T A/m + weight W/d) mu = A^T y/m + weight W mean/d,    W = mean over levels of s^(power + 1) (C + s^2 I)^-1"""
    s = torch.exp(-orn.Uniform()(VP, STEPS).log_snr[:-1] / 2)[:, None]
    spectrum = (s ** (method.power + 1) / (VARIANCES + s**2)).mean(0)
    w = method.weight / 3 * BASIS @ torch.diag(spectrum) @ BASIS.mT
    return torch.linalg.solve(A.mT @ A / 2 + w, (y @ A / 2 + MEAN @ w).mT).mT


@pytest.mark.system("red-diff", rival="no weight by the signal-to-noise ratio")
def test_red_diff() -> None:
    """The mean of 64 runs is within 5 of its own standard errors of the minimum, for the published weight s of
    noise - z and for none; and more than 10 from the other's minimum, so that chance does not decide."""
    y = WORLD.sample(2, seed=3).to(F64) @ A.mT + STD * normal(2, 2, seed=4)
    weighted, plain = REDDiff(order="spread"), REDDiff(order="spread", power=0.0)
    for method, rival in ((weighted, plain), (plain, weighted)):
        options = {"noise": STD, "samples": SAMPLES, "steps": STEPS, "seed": 1}
        out = restore(WORLD.denoiser(VP), linops.Matrix(A), y, method=method, **options)
        assert out.nfe == STEPS

        def off(point: Tensor, found: Tensor = out.mean, std: Tensor = out.std) -> float:
            return float(((found - point).abs() / std).max()) * SAMPLES**0.5

        assert off(minimum(y, method)) < 5
        assert off(minimum(y, rival)) > 10
