"""Alpha-blending: the mean of both ends, blended anew at every step, follows a deterministic map."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.exact import GaussianMixture, TwoSidedMixture
from ornstein.processes import TwoSided
from worlds import F64, normal, ring

PROCESS = TwoSided()


def deblended(world, x, steps, seed=None):
    """The paper's iteration, written out: blend the ends of x_alpha with the next alpha. The ends are their means given
    x_alpha, or with a seed a random draw of them, from which the paper derives it."""
    rng = None if seed is None else torch.Generator().manual_seed(seed)
    for i in range(steps, 0, -1):
        t, s = i / steps, (i - 1) / steps
        if rng is None:
            x0, x1 = world.posterior_mean(x, PROCESS, t)
        else:
            x0, x1 = world.posterior_sample(x, PROCESS, t, rng)
        x = (1 - s) * x0 + s * x1
    return x


@pytest.mark.system("alpha-blending", rival="the same iteration with random ends in place of their means")
def test_alpha_blending():
    """From a Gaussian that is no standard normal, and from two lumps, to a ring of mixtures.

    With means the iteration is Euler's method in t, to rounding, and tends to the flow at order 1. With random ends it
    tends to the same flow, as the paper's derivation says, but at order 1/2: N steps each leave a random error of
    order h, their sum is of order sqrt(h). In exchange its law is right whatever the number of steps: the blend of
    ends drawn given x_t is a draw of x_s. With two steps the covariance of the data is missed by the means, and met by
    the draws within 5 standard errors."""
    data = ring(0.4)
    ends = {
        "gaussian": GaussianMixture(torch.tensor([[1.0, -0.5]], dtype=F64), torch.tensor([0.8], dtype=F64)),
        "lumps": GaussianMixture(normal(2, 2, seed=3), torch.tensor([0.5, 0.8], dtype=F64)),
    }
    for key, other in ends.items():
        world = TwoSidedMixture(data, other)
        x1 = world.sample(200, seed=0, dtype=F64)[1]
        truth = world.flow(PROCESS, x1, 1.0, 0.0, rtol=1e-7, atol=1e-8)

        def error(x, truth=truth):
            return float((x - truth).norm(dim=1).median())

        out = orn.sample(world.denoiser(PROCESS), x_init=x1, solver=orn.Euler(), grid=orn.Uniform(), steps=10).x
        torch.testing.assert_close(deblended(world, x1, 10), out)
        orders = {}
        for seed, low, high in ((None, 32, 128), (0, 16, 256)):
            errors = [error(deblended(world, x1, steps, seed)) for steps in (low, high)]
            orders[seed] = math.log(errors[0] / errors[1]) / math.log(high / low)
        assert orders[None] == pytest.approx(1, abs=0.15), (key, orders)
        assert orders[0] == pytest.approx(0.5, abs=0.15), (key, orders)

        n = 4000
        x1 = world.sample(n, seed=1, dtype=F64)[1]
        mean, cov = data.moments()
        for seed in (None, 0):
            apart = deblended(world, x1, 2, seed) - mean
            products = (apart[:, :, None] * apart[:, None]).flatten(1)
            z = (products.mean(0) - cov.flatten()) / (products.std(0) / math.sqrt(n))
            assert (float(z.abs().max()) < 5) == (seed is not None), (key, seed, z)


def test_ddim_of_straight_paths_is_deblending():
    """The paper sets its sampler against DDIM. In the linear schedule they are one step: DDIM of alpha = 1 - t is the
    deblending, to rounding; what differs is the schedule, where it is another."""
    world = TwoSidedMixture(ring(0.4), GaussianMixture(torch.zeros(1, 2, dtype=F64), 1.0))
    x1 = world.sample(50, seed=0, dtype=F64)[1]
    mine = deblended(world, x1, 8)
    same = orn.sample(world.denoiser(PROCESS), x_init=x1, solver=orn.DDIM(), grid=orn.Uniform(), steps=8).x
    torch.testing.assert_close(mine, same)
    cosine = TwoSided(orn.Cosine())
    other = orn.sample(world.denoiser(cosine), x_init=x1, solver=orn.DDIM(), grid=orn.Uniform(), steps=8).x
    assert float((mine - other).norm(dim=1).median()) > 1e-3
