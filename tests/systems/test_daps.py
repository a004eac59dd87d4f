"""DAPS: on a mixture, through a linear and a phaseless measurement, nearer to the exact posterior than DPS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import DAPS, DPS, restore
from ornstein.metrics import sliced_wasserstein
from worlds import F64, normal

A = torch.tensor([[1.0, 0.5]], dtype=F64)
STD, MEASUREMENTS, SAMPLES = 0.5, 4, 500
WORLD = orn.exact.GaussianMixture(
    torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.8]], dtype=F64),
    torch.tensor([0.5, 0.4, 0.4], dtype=F64),
    torch.tensor([0.5, 0.3, 0.2], dtype=F64),
)


def by_grid(log_likelihood: Callable[[Tensor], Tensor], n: int, seed: int) -> Tensor:
    """n samples of the posterior from its values on 200^2 cells of side 0.04, uniform within each."""
    axis = torch.linspace(-4, 4, 200, dtype=F64)
    x = torch.cartesian_prod(axis, axis)
    rng = torch.Generator().manual_seed(seed)
    log_prob = WORLD.log_prob(x) + log_likelihood(x)
    cell = torch.multinomial((log_prob - log_prob.max()).exp(), n, replacement=True, generator=rng)
    return x[cell] + (torch.rand(n, 2, dtype=F64, generator=rng) - 0.5) * 8 / 199


@pytest.mark.system("daps", rival="DPS, at the better of two step lengths of 120 evaluations")
@pytest.mark.parametrize("kind", ["linear", "phaseless"])
def test_daps(kind: str) -> None:
    """Sliced W1 to the exact posterior, the mean of four measurements y = Ax or |Ax|, plus noise 0.5.

    500 samples of the posterior itself are `floor` away from 8000 others. What a method has above the floor is its
    bias: that of DPS, at the better of two lengths about its best, is 0.15 (linear) and 0.07 (phaseless) with 2000
    samples, that of DAPS below 0.02, with 100 evaluations for 120. Two floors of 500 samples differ by 0.02 at most, so
    that two thirds of DPS's, and of what is left of it here, lie between.
    """
    operator: Any = linops.Matrix(A)
    if kind == "phaseless":
        operator = linops.Function(lambda x: (x @ A.mT).abs(), (2,), (1,))
    y = operator(WORLD.sample(MEASUREMENTS, seed=5).to(F64)) + STD * normal(MEASUREMENTS, 1, seed=6)

    def exact(i: int, n: int, seed: int) -> Tensor:
        return by_grid(lambda x: -(operator(x) - y[i]).square().sum(1) / (2 * STD**2), n, seed)

    truth = [exact(i, 8000, 1) for i in range(MEASUREMENTS)]

    def distance(drawn: Any) -> float:
        each = [sliced_wasserstein(x, z, 32, 0, 1.0) for x, z in zip(drawn, truth, strict=True)]
        return sum(each) / len(each)

    def error(method: Any, steps: int) -> float:
        options: dict[str, Any] = {"noise": STD, "samples": SAMPLES, "steps": steps, "seed": 3}
        out = restore(WORLD.denoiser(orn.VP()), operator, y, method=method, **options)
        assert out.nfe == steps * (2 if isinstance(method, DPS) else 1)
        return distance(out.samples)

    floor = distance([exact(i, SAMPLES, 2) for i in range(MEASUREMENTS)])
    rival = min(error(DPS(zeta), 60) for zeta in (0.05, 0.1)) - floor
    assert rival > 0.03
    assert error(DAPS(prior=1.4, langevin=8), 100) - floor < 2 / 3 * rival
