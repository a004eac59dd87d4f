"""Every process, sampled back from its end by its own samplers with the exact denoiser, returns the world."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from every_process import EVERY, Case
from ornstein import processes
from ornstein.numerics.tree import tree_map
from ornstein.processes import Phase, mix
from worlds import F64

N, TRUTH = 1_000, 50_000
SAMPLED = [name for name, case in EVERY.items() if case.world is not None]
# of each process that draws noise anew at every step, on the grid in which its order is measured
SDE = [name for name in SAMPLED if "reverse SDE" in EVERY[name].process.supports]
DIFFUSIONS = [name for name in SDE if not isinstance(EVERY[name].process, orn.Interpolant)]


def features(x: Tensor) -> Tensor:
    """What of a law is compared: moments of degree one and two, and bounded waves that tell modes apart."""
    a, b = x.flatten(1).to(F64).unbind(1)
    waves = [f(k * c) for f in (torch.sin, torch.cos) for k in (1.5, 3.0) for c in (a, b)]
    return torch.stack([a, b, a * a, b * b, a * b, *waves], 1)


def deviations(x: Tensor, truth: Tensor) -> Tensor:
    """Differences of the means of the features, in standard errors of both samples."""
    f, g = features(x), features(truth)
    error = (f.var(0) / len(f) + g.var(0) / len(g)).sqrt()
    return (f.mean(0) - g.mean(0)) / error.clamp_min(1e-12)


def start(case: Case, n: int) -> Tensor:
    """States at t = 1 of the world itself, so that what is judged is the sampler and not the end law."""
    x1 = case.start(n)
    given = {} if x1 is None else {"x1": x1}
    return case.process.corrupt(case.data(n, seed=11), 1.0, cond=case.cond(n), seed=5, **given).x


def truth(case: Case) -> Tensor:
    return case.data(TRUTH if not isinstance(case.world, orn.exact.Functions) else N, seed=12)


def worst(case: Case, steps: int, **options: Any) -> float:
    """The largest deviation of samples in so many steps."""
    out = orn.sample(case.denoiser(), x_init=start(case, N), steps=steps, cond=case.cond(N), seed=6, **options)
    return float(deviations(out.x, truth(case)).abs().max())


@pytest.mark.parametrize("name", SAMPLED)
def test_the_default_sampler_returns_the_world(name: str) -> None:
    """Thirteen features within five standard errors in 40 steps; the rival, one step, is not."""
    assert worst(EVERY[name], 40) < 5
    assert worst(EVERY[name], 1) > 5


@pytest.mark.parametrize("name", SDE)
def test_the_reverse_sde_returns_the_world(name: str) -> None:
    """The same by Euler-Maruyama, of weak order 1, in 200 steps; the rival, 2 of them, is not."""
    options = {"solver": orn.EulerMaruyama(), "grid": orn.LogSNR()}
    assert worst(EVERY[name], 200, **options) < 5
    assert worst(EVERY[name], 2, **options) > 5


def forward(case: Case, n: int, steps: int, factor: float) -> tuple[Tensor, Tensor]:
    """(states at t = 0.5 by the forward SDE from states at t = 0.1, states at t = 0.5 by the kernel), all of one datum,
    centred and scaled by the kernel's: Euler-Maruyama with coefficients at the middle of each step, g^2 multiplied by
    `factor`."""
    process, h = case.process, 0.4 / steps
    x0 = case.data(1).expand(n, 2)
    cond = tree_map(lambda part: part.expand(n, 2), case.cond(1))
    kernel = process.corrupt(x0, 0.5, cond=cond, seed=22).x
    x = process.corrupt(x0, 0.1, cond=cond, seed=24).x
    noise = orn.Noise(25, batch=n, dtype=F64)
    for i in range(steps):
        level = process.level(0.1 + (i + 0.5) * h)
        z = noise.normal((n, 2))
        if isinstance(process, processes.PhaseSpace):
            root = torch.linalg.cholesky(factor * level.diffusion + 1e-12 * torch.eye(2, dtype=F64))
            pull, push = mix(level.drift, x), mix(root, Phase(z, noise.normal((n, 2))))
            x = Phase(*(a + h * b + math.sqrt(h) * c for a, b, c in zip(x, pull, push, strict=True)))
            continue
        shake = math.sqrt(h * factor * float(level.diffusion2.detach())) * z
        if isinstance(process, processes.Reflected):
            x = process.reflect(x + shake)
            continue
        shift, slope = process.shift(level.t, cond), process.d_shift(level.t, cond)
        drift = float(process.drift(level.t).detach()) * (x if shift is None else x - shift)
        x = x + h * (drift if slope is None else drift + slope) + process.colour(shake, cond)
    if isinstance(process, processes.PhaseSpace):
        x, kernel = x.momentum, kernel.momentum
    centre, scale = kernel.mean(0), kernel.std(0)
    return (x - centre) / scale, (kernel - centre) / scale


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_forward_sde_has_the_kernel_for_its_marginal(name: str) -> None:
    """Thirteen features of 4,000 states within five standard errors. The power: with a variance larger by a quarter
    (which moves a second moment by 0.25/sqrt(4/4000) = 8 of them, less what was there at t = 0.1) they are not."""
    assert float(deviations(*forward(EVERY[name], 4_000, 400, 1.0)).abs().max()) < 5
    assert float(deviations(*forward(EVERY[name], 4_000, 100, 1.25)).abs().max()) > 5
