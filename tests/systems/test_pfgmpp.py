"""PFGM++: data are sampled along the lines of an electric field, from heavy-tailed noise, by EDM's own sampler."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.density import log_likelihood
from ornstein.processes import PFGMPP
from worlds import F64, normal, ring


def points():
    """A point in the middle, of weight 1/3, and six on a circle of radius 2."""
    angles = torch.arange(6, dtype=F64) * math.pi / 3
    y = torch.cat([torch.zeros(1, 2, dtype=F64), 2 * torch.stack([angles.cos(), angles.sin()], 1)])
    return orn.exact.Empirical(y, weights=torch.tensor([3.0, 1, 1, 1, 1, 1, 1], dtype=F64))


@pytest.mark.system("pfgmpp", rival="EDM's Gaussian prior, with the heavy-tailed denoiser")
@pytest.mark.parametrize("d", [1, 2])
def test_pfgmpp(d):
    """The drift is the direction of the field of charges in N + D dimensions, whose potential is taken by autograd; and
    30 steps of Heun on Karras's grid from the heavy-tailed prior meet each point as often as its weight says: chi2
    with 6 degrees is below 28 in 9,999 of 10,000. From normal noise of the same sigma too many meet the middle."""
    world, process = points(), PFGMPP(aux_dim=d)
    model = world.denoiser(process)

    # potential sum_y w |(x, r) - (y, 0)|^(2-N-D), or -log in two dimensions, which N + D = 3 and 4 are not; E = -grad
    x, sigma = (2 * normal(20, 2, seed=1)).requires_grad_(), 10 ** torch.linspace(-1, 1.5, 20, dtype=F64)
    r = (sigma * math.sqrt(d)).requires_grad_()
    apart = (x[:, None] - world.data).square().sum(2) + r[:, None] ** 2
    potential = (world.weights * apart ** ((2 - 2 - d) / 2)).sum(1)
    e_x, e_r = torch.autograd.grad(-potential.sum(), (x, r))
    dx_dsigma = math.sqrt(d) * e_x / e_r[:, None]
    p = model(x.detach(), sigma / 80)
    torch.testing.assert_close(p.velocity / 80, dx_dsigma, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((x.detach() - p.x0) / sigma[:, None], dx_dsigma, rtol=1e-9, atol=1e-9)

    n, own = 4000, {"solver": orn.Heun(), "grid": orn.Karras(), "steps": 30}

    def chi2(x):
        count = torch.bincount(torch.cdist(x, world.data).argmin(1), minlength=7)
        return float(((count - n * world.weights) ** 2 / (n * world.weights)).sum())

    assert chi2(orn.sample(model, (n, 2), **own, seed=0, dtype=F64).x) < 28
    assert chi2(orn.sample(model, x_init=80 * normal(n, 2, seed=1), **own).x) > 56


def test_large_d_is_edm():
    """Draws, the exact denoiser and its flow tend to EDM's, the laws as 1/D: tenfold D, a tenth of the difference."""
    world, base = ring(), orn.EDM(20.0)
    x, t = 2 * normal(30, 2), torch.full((30,), 0.05, dtype=F64)
    edm = world.denoiser(base)(x, t).x0
    gap = [float((world.denoiser(PFGMPP(base, d))(x, t).x0 - edm).abs().max()) for d in (1e3, 1e4, 1e5)]
    assert gap[0] / gap[1] == pytest.approx(10, rel=0.05)
    assert gap[1] / gap[2] == pytest.approx(10, rel=0.01)
    heavy = PFGMPP(base, 1e8)
    torch.testing.assert_close(heavy.prior((9, 2), seed=3), base.prior((9, 2), seed=3), rtol=5e-4, atol=0)
    torch.testing.assert_close(heavy.log_prior(x), base.log_prior(x), rtol=0, atol=1e-6)
    ends = [
        orn.sample(world.denoiser(p), x_init=20 * normal(9, 2), solver=orn.Heun(), grid=orn.Karras(), steps=8).x
        for p in (PFGMPP(base, 1e6), base)
    ]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-3)


def test_the_flow_is_followed_at_order_2_and_has_a_likelihood():
    """Heun halves its steps, and the error falls fourfold. The change of variables gives the density of what is
    sampled: on a line it integrates to 1, and is the data's but for the prior, which is not quite p_1: at the end of
    each path both are known, p_1 by an integral over x0."""
    world, process = ring(0.3), PFGMPP(orn.EDM(20.0), 12)
    model = world.denoiser(process, "noise")
    x_init = process.prior((12, 2), seed=0, dtype=F64)
    start = process.level(torch.exp(torch.linspace(math.log(20), math.log(0.05), 129, dtype=F64)) / 20)
    ends = {k: orn.sample(model, x_init=x_init, solver=orn.Heun(), grid=start[::k]).x for k in (1, 4, 8)}
    one, two = (float((ends[k] - ends[1]).norm(dim=1).median()) for k in (8, 4))
    assert math.log2(one / two) == pytest.approx(2, abs=0.3)

    world, process = orn.exact.GaussianMixture(torch.tensor([[-0.6], [0.4]], dtype=F64), 0.2), PFGMPP(orn.EDM(5.0), 12)
    x = torch.arange(-1.6, 1.5, 0.1, dtype=F64)[:, None]
    found = log_likelihood(world.denoiser(process, "noise"), x, start=1e-5, rtol=1e-6, atol=1e-7)
    assert float(found.log_prob.exp().sum() * 0.1) == pytest.approx(1, abs=1e-5)  # steps of half a width are enough
    x0 = torch.linspace(-2, 2, 401, dtype=F64)[:, None]
    p_1 = torch.stack(
        [(world.log_prob(x0) + process.log_prior(z - x0)).logsumexp(0) + math.log(0.01) for z in found.latent]
    )
    truth = world.log_prob(x) + process.log_prior(found.latent) - p_1
    torch.testing.assert_close(found.log_prob, truth, rtol=0, atol=1e-4)
    assert float((process.log_prior(found.latent) - p_1).abs().max()) > 1e-2  # which the test would see
