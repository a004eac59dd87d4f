"""The complete recipe: phase-space diffusions with noise in position and momentum."""

import math
from dataclasses import replace

import pytest
import torch

import ornstein as orn
from ornstein.processes import CLD, PSLD, PhaseSpace
from ornstein.solvers import DEIS
from worlds import F64


@pytest.mark.system("complete-recipe", rival="VP, the recipe without a momentum, and CLD, that without damping")
def test_complete_recipe():
    """Any damping D >= 0 and any exchange Q keep the end law, and no other drift does; the kernel's moments are those
    of 20,000 simulated paths; without a coupling the recipe is VP, without damping it is CLD; and the exact score of
    correlated Gaussian data carries the end law back to it (five standard errors of 20,000 samples)."""
    general = PhaseSpace(damping=0.7, friction=2.0, coupling=1.3, cross=-0.3, mass=0.5, beta_max=12.0)
    for process in (general, PSLD(), CLD()):
        level = process.level(0.5)
        law = torch.diag(torch.tensor([1.0, process.mass], dtype=F64))
        torch.testing.assert_close(
            level.drift @ law + law @ level.drift.T + level.diffusion, torch.zeros(2, 2, dtype=F64)
        )
        wrong = level.drift.T @ law + law @ level.drift + level.diffusion  # the exchange turned round, with its mass
        assert float(wrong.abs().max()) > 0.1

    n, steps, t = 20_000, 500, 0.3
    g = torch.Generator().manual_seed(0)
    z = torch.zeros(n, 2, dtype=F64)
    z[:, 0] = 2.0
    z[:, 1] = math.sqrt(general.gamma * general.mass) * torch.randn(n, generator=g, dtype=F64)
    for i in range(steps):
        level = general.level((i + 0.5) / steps * t)
        h = t / steps
        noise = torch.randn(n, 2, generator=g, dtype=F64) @ torch.linalg.cholesky(level.diffusion).T
        z = z + h * z @ level.drift.T + math.sqrt(h) * noise
    level = general.level(t)
    covariance = level.root @ level.root.T
    std = covariance.diagonal().sqrt()
    # five standard errors, and the first order of the simulation: half a step of the drift
    slack = 0.5 * (t / steps) * float(level.drift.abs().max())
    assert bool(((z.mean(0) - 2 * level.mean[:, 0]).abs() < 5 * std / math.sqrt(n) + 2 * slack).all())
    assert bool(((z.T.cov() - covariance).abs() < (5 * math.sqrt(2 / n) + 2 * slack) * torch.outer(std, std)).all())

    times = torch.tensor([0.05, 0.4, 1.0], dtype=F64)
    apart, vp = PhaseSpace(damping=1.0, coupling=0.0, beta_min=0.1, beta_max=20.0).level(times), orn.VP().level(times)
    torch.testing.assert_close(apart.mean[:, 0, 0], vp.alpha, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(apart.root[:, 0, 0], vp.sigma, rtol=1e-10, atol=1e-12)
    assert torch.equal(replace(PSLD(), damping=0.0, friction=4.0).level(times).root, CLD().level(times).root)

    target = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)
    world = orn.exact.Gaussian(torch.tensor([1.0, -0.5], dtype=F64), target)
    out = orn.sample(world.denoiser(PSLD()), (20_000, 2), solver=DEIS(order=2), steps=60, seed=0, dtype=F64).x
    error = out.T.cov() - target
    spread = (torch.outer(target.diagonal(), target.diagonal()) + target**2).sqrt() / math.sqrt(20_000)
    assert bool((error.abs() < 5 * spread + 0.01).all())
    assert bool(
        ((out.mean(0) - torch.tensor([1.0, -0.5])).abs() < 5 * (target.diagonal() / 20_000).sqrt() + 0.005).all()
    )
