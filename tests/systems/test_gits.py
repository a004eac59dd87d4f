"""GITS: the cheapest path of Euler jumps through a fine grid, found from a few trajectories."""

import itertools

import pytest
import torch

import ornstein as orn
from ornstein.solvers.gits import GITS, trajectory_variance
from ornstein.solvers.schedule_search import cheapest_paths, fine_path, jump_costs
from worlds import F64, normal, ring

PROCESS = orn.VP()


def mixture():
    """Ten modes in 64 dimensions, of widths 0.1 to 0.4."""
    g = torch.Generator().manual_seed(0)
    means = torch.randn(10, 64, generator=g, dtype=F64)
    return orn.exact.GaussianMixture(means, 0.1 + 0.3 * torch.rand(10, generator=g, dtype=F64))


@pytest.mark.parametrize("growth", [1.0, 1.15, 0.7])
def test_the_cheapest_path_is_that_of_brute_force(growth):
    cost = normal(9, 9, seed=1).abs()
    paths = cheapest_paths(cost, 8, growth)
    for k in range(1, 9):

        def total(path):
            return sum(growth**n * float(cost[i, j]) for n, (i, j) in enumerate(itertools.pairwise(path)))

        every = [(0, *inner, 8) for inner in itertools.combinations(range(1, 8), k - 1)]
        assert paths[k] == min(every, key=total)


@pytest.mark.parametrize("process", [orn.VP(), orn.EDM(), orn.MeanReverting()], ids=repr)
def test_jump_costs_on_a_gaussian_in_closed_form(process):
    """Data N(0, c^2): with s = sigma/alpha the flow multiplies y = x/alpha by sqrt((c^2 + s_j^2)/(c^2 + s_i^2)), a jump
    by (c^2 + s_i s_j)/(c^2 + s_i^2). The teacher's own error (order 2, 400 steps) is below 2 % of every cost here."""
    c2 = 0.49
    world = orn.exact.Gaussian(torch.zeros(1, dtype=F64), std=0.7)
    grid = orn.LogSNR(start=-4.0, end=5.0, to_data=False)
    level = grid(process, 400)
    cond = {"mean": torch.ones(64, 1, dtype=F64)} if isinstance(process, orn.MeanReverting) else None
    shift = 0.0 if cond is None else process.shift(level.t[0], cond)
    x = torch.sqrt(level.alpha[0] ** 2 * c2 + level.sigma[0] ** 2) * normal(64, 1) + shift
    path = fine_path(world.denoiser(process), orn.DPMSolverPP(), grid, 400, x_init=x, cond=cond)
    cost = jump_costs(path)
    s = level.sigma / level.alpha
    y = ((x - shift) / level.alpha[0]).abs().mean() * torch.sqrt((c2 + s**2) / (c2 + s[0] ** 2))
    for i, j in ((0, 80), (0, 400), (120, 240), (300, 400)):
        jump = (c2 + s[i] * s[j]) / (c2 + s[i] ** 2)
        wanted = y[i] * (jump - torch.sqrt((c2 + s[j] ** 2) / (c2 + s[i] ** 2))).abs()
        assert float(cost[i, j]) == pytest.approx(float(wanted), rel=0.02)
    assert float(cost.tril().abs().max()) == 0


@pytest.mark.system("gits", rival="uniform, Karras and log-SNR grids under the same Euler (DDIM) steps")
def test_gits():
    """Mean endpoint error of 5 to 10 Euler steps on held-out starts, in pairs: better by 3 standard errors of the mean
    difference than every rival. 32 warm-up trajectories, 64 held out."""
    for world, steps in ((ring(), (5, 6, 8)), (mixture(), (5, 8, 10))):
        model, d = world.denoiser(PROCESS), world.dim
        found = GITS(steps=10).calibrate(model, x_init=PROCESS.prior((32, d), seed=1, dtype=F64))
        assert found.steps == tuple(range(1, 11))
        x = PROCESS.prior((400, d), seed=7, dtype=F64)
        fine = orn.LogSNR(end=14.0, deepest=-12.0)
        out = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(), grid=fine, steps=150, trajectory=True)

        def error(grid, n, model=model, x=x, truth=out.x):
            return (orn.sample(model, x_init=x, solver=orn.DDIM(), grid=grid, steps=n).x - truth).norm(dim=1)

        for n in steps:
            own = error(found, n)
            for rival in (orn.Uniform(), orn.Karras(), orn.LogSNR()):
                gain = error(rival, n) - own
                assert float(gain.mean()) > 3 * float(gain.std()) / 400**0.5, (world, n, rival)

    # what makes few warm-ups enough: a trajectory in 64 dimensions lies in three
    assert float(trajectory_variance(out.trajectory).min()) > 0.99
    assert float(trajectory_variance(normal(151, 4, 64)).max()) < 0.2  # a random walk of points does not
    again = GITS(steps=10).calibrate(model, x_init=PROCESS.prior((32, d), seed=2, dtype=F64))
    swapped = [float((error(grid, 8)).mean()) for grid in (found, again)]
    assert swapped[1] == pytest.approx(swapped[0], rel=0.2)


def test_the_share_of_variance_is_about_the_mean():
    """Points 100 + (3 cos, 2 sin, 1): the circle's axes hold 9 and 4 of 13, wherever it lies."""
    phi = torch.arange(12, dtype=F64) * (2 * torch.pi / 12)
    path = torch.stack([3 * phi.cos(), 2 * phi.sin(), torch.ones(12, dtype=F64)], 1)[:, None] + 100
    for components, share in ((1, 9 / 13), (2, 1.0)):
        assert float(trajectory_variance(path, components)) == pytest.approx(share, rel=1e-9)


def test_refusals():
    model = ring().denoiser(PROCESS)
    with pytest.raises(ValueError, match="steps=80 are chosen among fine_steps=60"):
        GITS(steps=80)
    with pytest.raises(ValueError, match=r"give the shape \(batch, \*event\) of the warm-up"):
        GITS().calibrate(model)
    with pytest.raises(ValueError, match="growth=0"):
        GITS(growth=0.0)
    shaped = GITS(steps=4, fine_steps=12).calibrate(model, (16, 2), seed=0)
    assert shaped == GITS(steps=4, fine_steps=12).calibrate(model, (16, 2), seed=0)
