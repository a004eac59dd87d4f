"""CDDB: direct bridges by their published formulas; a gradient step on x0 that keeps them to the measurement."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import CDDB, DirectBridge, restore
from ornstein.metrics import frechet_from_moments
from ornstein.processes import I2SB, BrownianBridge, Interpolant, TwoSided, indi
from worlds import F64, normal

DIM, STD = 6, 0.05
Q, U, V = (torch.linalg.qr(normal(DIM, DIM, seed=k)).Q for k in (1, 2, 3))
COV = Q @ torch.diag(torch.linspace(0.3, 1.5, DIM, dtype=F64) ** 2) @ Q.mT
A = U @ torch.diag(torch.tensor([1.0, 0.9, 0.6, 0.3, 0.1, 0.05], dtype=F64)) @ V.mT
ZERO, EYE = torch.zeros(DIM, dtype=F64), torch.eye(DIM, dtype=F64)


def pairs(extra: float = 0.0) -> orn.exact.TwoSidedMixture:
    """Gaussian x0 and y = A x0 + noise, with `extra` noise in it."""
    end = A @ COV @ A.mT + (STD**2 + extra**2) * EYE
    ends = (orn.exact.Gaussian(ZERO, cov=c) for c in (COV, end))
    return orn.exact.TwoSidedMixture(*ends, cross=(COV @ A.mT)[None, None])


def bridge(process: Any) -> orn.Denoiser:
    """E[x0 | x_t] of a bridge, exactly, as a network that sees x_t and t."""
    if isinstance(process, (BrownianBridge, I2SB)):
        world, path = pairs(), Interpolant(noise_level=process.std**2)
        return orn.Denoiser(
            lambda x, t, cond=None: world.posterior_mean(x, path, process.reverted(t[0].double()))[0], process, "x0"
        )
    own = pairs(0.0 if isinstance(process, TwoSided) else 0.1)
    return orn.Denoiser(lambda x, t, cond=None: own.posterior_mean(x, TwoSided(), t[0].double())[0], process, "x0")


def step(process: Any, t: float, s: float, solver: orn.Solver | None = None) -> tuple[float, float, float]:
    """(of x_t, of x0, of fresh noise): what a step from t to s is made of."""
    table = (solver or DirectBridge()).compile(process, process.level([t, s]))
    found = orn.response(table, torch.ones(1, dtype=F64), 0.0)
    return float(found.gain), float(found.constant), float(found.variance(0.0).sqrt())


def test_presets() -> None:
    """With B = int beta before t and C after it, a = B/(B + C) and sigma^2 = B C/(B + C): I2SB's table 1; InDI's
    a = t and sigma = t eps_t. Their steps are x_t/x0 in the shares a_s/a_t and 1 - a_s/a_t with the variances
    B_s (B_t - B_s)/B_t and s^2 (eps_s^2 - eps_t^2), which from sigma_s^2 - (a_s/a_t)^2 sigma_t^2 is seen to be."""
    t, s = 0.7, 0.35
    process = I2SB(delta=1e-9)
    times = torch.linspace(0, 1, 200_001, dtype=F64)
    root = [math.sqrt(b) for b in (process.beta_min, process.beta_max)]
    beta = (root[0] + 2 * torch.minimum(times, 1 - times) * (root[1] - root[0])) ** 2
    until = {u: float(torch.trapezoid(beta[times <= u + 1e-9], times[times <= u + 1e-9])) for u in (t, s, 1.0)}
    b, after = until[t], until[1.0] - until[t]
    level = process.level(t)
    torch.testing.assert_close(1 - level.alpha, torch.tensor(b / (b + after), dtype=F64), rtol=1e-6, atol=0)
    torch.testing.assert_close(level.sigma**2, torch.tensor(b * after / (b + after), dtype=F64), rtol=1e-6, atol=0)
    share, std = until[s] / b, math.sqrt(until[s] * (b - until[s]) / b)
    assert step(process, t, s) == pytest.approx((share, 1 - share, std), rel=1e-6)
    assert step(process, t, s, orn.DDPM()) == pytest.approx((share, 1 - share, std), rel=1e-6)

    straight, brownian = indi(0.2), indi(0.2, brownian=True)
    for u in (t, s):
        assert float(straight.level(u).sigma) == pytest.approx(u * 0.2)
        assert float(brownian.level(u).sigma) == pytest.approx(u * 0.2 / math.sqrt(u))
        assert float(straight.level(u).alpha) == float(brownian.level(u).alpha) == pytest.approx(1 - u)
    assert step(straight, t, s) == pytest.approx((s / t, 1 - s / t, 0.0), abs=1e-9)
    assert step(straight, t, s, orn.DDIM()) == pytest.approx((s / t, 1 - s / t, 0.0), abs=1e-9)
    std = s * math.sqrt(0.2**2 / s - 0.2**2 / t)
    assert step(brownian, t, s) == pytest.approx((s / t, 1 - s / t, std))
    assert step(brownian, t, s, orn.DDPM())[2] != pytest.approx(std, rel=0.05)  # which knows y


@pytest.mark.system("cddb", rival="the direct bridge itself: the same steps from x0 as the network has it")
def test_cddb() -> None:
    """Gaussian pairs of x0 and its blurred version y, bridges between them with the exact E[x0 | x_t].

    In 20 evaluations each, the samples are nearer to the truth, and to the measurement, than the rival's with the same
    seeds, by more than 5 standard errors of the differences of 1,000 pairs; and through the network too, in twice the
    evaluations. The rival has lost the measurement (a residual of 3 of its standard deviations or more) and CDDB
    has not (2 or less). The paper's other claim, that the law of the samples is better too, is true of few steps (5),
    where the rival's law is wrong; but not of many (50): a bridge has the law of the data, and what pulls its samples
    to y takes it away.
    """
    world = pairs()
    x, y = world.sample(1000, seed=0)
    operator = linops.Matrix(A)

    def run(process: Any, method: CDDB | None, steps: int) -> tuple[Tensor, Tensor]:
        """Samples, and the residual of each."""
        model = bridge(process)
        given: dict[str, Any] = {"x_init": y} if isinstance(process, TwoSided) else {"cond": {"end": y}}
        if method is None:
            if not isinstance(process, TwoSided):
                given["shape"] = y.shape
            out = orn.sample(model, solver=DirectBridge(), grid=orn.Uniform(), steps=steps, seed=1, dtype=F64, **given)
            assert out.nfe == steps
            return out.x, (y - out.x @ A.mT).square().mean(1)
        found = restore(model, operator, y, method=method, noise=STD, steps=steps, seed=1, dtype=F64, **given)
        assert found.nfe == steps * (2 if method.deep else 1)
        return found.samples[:, 0], found.residual[:, 0] ** 2

    def worse(a: Tensor, b: Tensor) -> float:
        """By how many standard errors the mean of a lies above that of b."""
        return float((a - b).mean() / ((a - b).std() / math.sqrt(len(a))))

    for process in (I2SB(), indi(0.1), TwoSided()):
        plain, missed = run(process, None, 20)
        assert float(missed.mean().sqrt()) > 3 * STD
        for method in (CDDB(), CDDB(deep=True)):
            found, residual = run(process, method, 20)
            assert float(residual.mean().sqrt()) < 2 * STD, (process, method)
            assert worse((plain - x).square().sum(1), (found - x).square().sum(1)) > 5
            assert worse(missed, residual) > 5

    def off(samples: Tensor) -> float:
        return frechet_from_moments(samples.mean(0), torch.cov(samples.mT), ZERO, COV)

    few, many = ([off(run(BrownianBridge(0.3), method, steps)[0]) for method in (None, CDDB())] for steps in (5, 50))
    assert few[1] < few[0]
    assert many[0] < many[1] / 3
