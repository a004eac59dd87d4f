"""AFDPS: its weights solve the posterior's own equation, and carry samples to it that guidance alone does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import AFDPS, DPS, Measurement, restore
from worlds import F64, normal, ring

A = torch.tensor([[1.0, 0.5]], dtype=F64)
Y, STD = torch.tensor([0.7], dtype=F64), 0.5
OPERATOR, WORLD, VP = linops.Matrix(A), ring(), orn.VP()


def short(process: Any, t: float) -> float:
    """A step of 3e-5 in log-SNR."""
    level = process.level(t)
    return 3e-5 * float(level.sigma**2 / level.diffusion2)


def rate_by_the_equation(process: Any, method: AFDPS, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """(d log w/dr, grad U), r = -t, as what the Fokker-Planck equation with the guided drift leaves over for Q = p e^U:

    (dQ/dr + div(Q drift) - (g^2/2) div grad Q)/Q, all derivatives by differences in t and automatic ones in x.
    """
    measurement = Measurement(OPERATOR, Y.expand(len(x), 1), linops.GaussianNoise(STD))
    solver: Any = method.solver(measurement)
    model = WORLD.denoiser(process)

    def log_q(level: Any, x: Tensor) -> Tensor:
        return WORLD.log_prob(x, process, level) + solver.path.value(level, x)

    def grad(value: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(value.sum(), x, create_graph=True)[0]

    level, h = process.level(t), short(process, t)
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        slope = grad(log_q(level, x), x)
        curl = sum(grad(slope[:, i], x)[:, i] for i in range(2))
        answer = model(x, t)
        pulled = grad(solver.path.value(level, x), x)
        g2 = float(level.diffusion2)
        drift = -answer.velocity + g2 / 2 * answer.score + method.pull * g2 * pulled
        spread = sum(grad(drift[:, i], x)[:, i] for i in range(2))
    later = log_q(process.level(t + h), x) - log_q(process.level(t - h), x)
    rate = -later / (2 * h) + spread + (drift * slope).sum(1) - g2 / 2 * (curl + (slope**2).sum(1))
    return rate.detach(), pulled.detach()


def rate_of_the_steps(process: Any, method: AFDPS, t: float, x: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """What a step of length h adds to log w, over h, and the gradient that the steps follow."""
    measurement = Measurement(OPERATOR, Y.expand(len(x), 1), linops.GaussianNoise(STD))
    solver: Any = method.solver(measurement)
    levels = process.level([t + h, t, t - h, 0.0])
    table = solver.compile(process, levels)
    now = levels[1]
    x0 = WORLD.denoiser(process)(x, t).x0
    left = levels[2].sigma / now.sigma
    flow = left * x + (levels[2].alpha - left * now.alpha) * x0
    lift, weigh = [row.function for row in table.rows if row.function is not None][2:4]
    lifted = lift(x)
    return weigh(x, flow, x0, lifted).sum(1) / h, lifted * now.alpha / now.sigma**2


@pytest.mark.system("afdps", rival="the same guidance without weights, and DPS")
def test_afdps() -> None:
    """The rate of log w is what the equation of Q = p e^U leaves over, for three drifts and two processes:
    a step of length h has it to O(h), one of h/4 to a quarter of that.

    So weighed, 20 populations of 64 have the posterior's mean, second moments, shares of the modes and evidence within
    4.5 standard errors and 0.03, the error of 60 steps of order 1. The steps without their weights are off by more than
    0.1, and so is DPS at the better of two step lengths, with twice the evaluations.
    """
    x = 1.5 * normal(6, 2, seed=1)
    for process in (VP, orn.EDM()):
        for pull in (0.0, 0.5, 1.0):
            method = AFDPS(2, pull=pull, prior=1.45)
            t = 0.35 if process is VP else float(process.time(torch.tensor(-0.5, dtype=F64)))
            wanted, slope = rate_by_the_equation(process, method, t, x)
            found, followed = rate_of_the_steps(process, method, t, x, short(process, t))
            torch.testing.assert_close(followed, slope)
            coarse = rate_of_the_steps(process, method, t, x, 4 * short(process, t))[0]
            assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.abs().max())
            assert float((found - wanted).abs().max()) < 0.3 * float((coarse - wanted).abs().max())

    groups, count, steps = 20, 64, 60
    n, posterior = groups * count, WORLD.posterior(Y, A, noise_std=STD)
    truth = statistics(posterior.sample(100_000, seed=1).to(F64)[None])[0]
    method = AFDPS(count, prior=1.45)
    measurement = Measurement(OPERATOR, Y.expand(n, 1), linops.GaussianNoise(STD))
    model = WORLD.denoiser(VP)
    out: Any = method.run(model, measurement, None, seed=0, dtype=F64, steps=steps)
    each = statistics(out.x.reshape(groups, count, 2))
    error = each.std(0) / math.sqrt(groups)
    assert float(error.max()) < 0.08
    assert bool(((each.mean(0) - truth).abs() < 4.5 * error + 0.03).all())
    spread = (A @ A.mT)[0, 0] * 0.15**2 + STD**2
    exact = (WORLD.weights * (-((Y - WORLD.means @ A[0]) ** 2) / (2 * spread)).exp()).sum() / (
        2 * math.pi * spread
    ).sqrt()
    z = out.log_evidence.exp() / exact
    assert float(z.mean()) == pytest.approx(1, abs=4.5 * float(z.std()) / math.sqrt(groups) + 0.03)

    plain = orn.sample(model, (n, 2), solver=method.solver(measurement), steps=steps, seed=0, dtype=F64).x
    assert float((statistics(torch.as_tensor(plain)[None])[0] - truth).abs().max()) > 0.1
    for zeta in (0.1, 0.3):
        rough = restore(model, OPERATOR, Y[None], method=DPS(zeta), noise=STD, samples=300, steps=steps, seed=0)
        assert float((statistics(rough.samples)[0] - truth).abs().max()) > 0.1


def statistics(x: Tensor) -> Tensor:
    """Means, second moments and shares of the modes of populations (groups, K, 2), one row each."""
    near = torch.nn.functional.one_hot(torch.cdist(x, WORLD.means).argmin(-1), 6).to(x)
    return torch.cat([x.mean(1), (x**2).mean(1), (x[..., 0] * x[..., 1]).mean(1)[:, None], near.mean(1)], 1)
