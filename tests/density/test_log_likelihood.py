"""The likelihood by the probability flow, against densities in closed form."""

import math
from typing import NamedTuple

import pytest
import torch

import ornstein as orn
from ornstein.density import log_likelihood
from ornstein.processes import ConditionalOT
from worlds import F64, normal, ring

WORLD = ring(0.3)
X = WORLD.sample(4, seed=1).to(F64)
PROCESSES = [
    orn.Flow(),
    ConditionalOT(1e-2),
    orn.VP(),
    orn.SubVP(),
    orn.VE(),
    orn.EDM(),
    orn.Cosine(0.008),
    orn.MeanReverting(),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_density_of_what_is_sampled(process):
    """log p of the flow from the prior: the world's own, corrected for p_1 of the world that is not the prior."""
    cond = {"mean": normal(4, 2, seed=3)} if isinstance(process, orn.MeanReverting) else None
    found = log_likelihood(WORLD.denoiser(process), X, cond=cond, rtol=1e-7, atol=1e-7)
    blur, end = process.level(0.0).sigma, process.level(1.0)
    shift = process.shift(end.t, cond)
    centred = found.latent if shift is None else found.latent - shift
    prior = torch.distributions.Normal(torch.zeros((), dtype=F64), end.sigma).log_prob(centred).sum(1)
    truth = ring(math.hypot(0.3, float(blur))).log_prob(X) + prior - WORLD.log_prob(found.latent, process, 1.0, cond)
    torch.testing.assert_close(found.log_prob, truth, rtol=0, atol=1e-6)
    assert found.error is None
    torch.testing.assert_close(found.bits_per_dim, -found.log_prob / (2 * math.log(2)))
    if float(blur) == 0:
        torch.testing.assert_close(found.latent, WORLD.flow(process, X, 0.0, 1.0, cond=cond), rtol=1e-5, atol=1e-5)


def test_units_views_and_start():
    """A scaling's Jacobian counts; any view answers alike; a start above 0 is the density of blurred data."""
    model = WORLD.denoiser(orn.Flow())
    plain = log_likelihood(model, X).log_prob
    model.scaling = orn.Scaling(mean=torch.tensor([1.0, -1.0]), std=torch.tensor([2.0, 0.5]))
    user = model.scaling.decode(X)
    torch.testing.assert_close(log_likelihood(model, user).log_prob, plain, rtol=0, atol=1e-4)  # log(2 * 0.5) = 0
    model.scaling = orn.Scaling(std=3.0)
    shifted = log_likelihood(model, 3 * X).log_prob
    torch.testing.assert_close(shifted, plain - 2 * math.log(3), rtol=0, atol=1e-4)

    for view in ("x0", "velocity"):
        process, start = orn.VP(), 0.03
        exact = WORLD.denoiser(process, predicts=view)
        net = orn.Denoiser(lambda x, t, exact=exact: exact.forward(x, t.to(F64)), process, predicts=view)
        with pytest.raises(orn.ViewError):
            log_likelihood(net, X)
        found = log_likelihood(net, X, start=start)
        level = process.level(start)
        truth = ring(math.hypot(0.3, float(level.sigma / level.alpha))).log_prob(X)
        torch.testing.assert_close(found.log_prob, truth, rtol=0, atol=2e-3)  # alpha(1) is not 0: 4e-4


def test_probes_are_unbiased_with_an_error_bar():
    """In 6 dimensions of unequal scale: within 4 error bars of the exact trace, which shrink as 1/sqrt(probes)."""
    mix = normal(6, 6, seed=2)
    cov = (mix @ mix.T / 6 + 0.1 * torch.eye(6, dtype=F64))[None]
    world = orn.exact.GaussianMixture(torch.zeros(1, 6, dtype=F64), covs=cov)
    x, model = world.sample(3, seed=0).to(F64), world.denoiser(orn.Flow())
    few, many = (log_likelihood(model, x, probes=n, seed=0) for n in (8, 128))
    truth = world.log_prob(x)
    torch.testing.assert_close(log_likelihood(model, x).log_prob, truth, rtol=0, atol=1e-4)
    for found in (few, many):
        assert float(((found.log_prob - truth) / found.error).abs().max()) < 4
    assert float((few.error / many.error).mean()) == pytest.approx(4, rel=0.5)
    assert few.nfe < many.nfe
    again = log_likelihood(model, x, probes=8, seed=0)
    assert torch.equal(again.log_prob, few.log_prob)


def test_a_network_in_float32():
    """A network, on images: its own dtype inside, float64 outside; a linear one has a likelihood in closed form."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(-1.0))

        def forward(self, x, t):
            assert x.dtype == torch.float32
            return self.gain * x

    x = normal(3, 1, 4, 4).float()
    found = log_likelihood(orn.Denoiser(Linear(), orn.Flow(), predicts="velocity"), x)
    # dx/dt = -x: x_1 = x/e, log p(x) = log N(x/e; 0, 1) - d
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(x.double() / math.e).flatten(1).sum(1) - 16
    torch.testing.assert_close(found.log_prob, truth.double(), rtol=0, atol=1e-3)
    assert found.latent.shape == x.shape
    assert found.latent.dtype == torch.float32


def test_likelihood_refusals():
    model = WORLD.denoiser(orn.Flow())
    with pytest.raises(ValueError, match="probes=0"):
        log_likelihood(model, X, probes=0)
    with pytest.raises(ValueError, match="start=1"):
        log_likelihood(model, X, start=1.0)

    class Odd(orn.Codec):
        def encode(self, x):
            return x

        decode = encode

    model.scaling = Odd()
    with pytest.raises(ValueError, match="no Jacobian"):
        log_likelihood(model, X)

    class Pair(NamedTuple):
        one: object
        other: object

    both = orn.Denoiser(orn.nets.MLP(2, width=8, depth=1), orn.Product(Pair(orn.VP(), orn.Flow())))
    with pytest.raises(ValueError, match="a likelihood is of a process of one component"):
        log_likelihood(both, X)
