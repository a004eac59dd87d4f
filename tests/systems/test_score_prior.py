"""Score priors: the likelihood of the flow, its gradient, and posteriors fitted under it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.density import FlowLikelihood
from ornstein.inverse import Family, Normal, ScorePrior
from worlds import F64, normal, ring

A, STD, FLOW = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, -1.0]], dtype=F64), 0.4, orn.Flow()


def gaussian() -> orn.exact.Gaussian:
    """Standard deviations from 0.4 to 2, in a basis of its own."""
    basis = torch.linalg.qr(normal(3, 3, seed=5)).Q
    cov = basis @ torch.diag(torch.linspace(0.4, 2.0, 3, dtype=F64) ** 2) @ basis.mT
    return orn.exact.Gaussian(0.5 * normal(3, seed=6), cov=cov)


def moments(law: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the normal law x = mean + B z."""
    with torch.no_grad():
        ends = law(torch.cat([torch.zeros(1, law.noise, dtype=F64), torch.eye(law.noise, dtype=F64)])[None])[0]
    rows = ends[1:] - ends[0]
    return ends[0], rows.mT @ rows


@pytest.mark.system("score-prior", rival="mean field")
def test_score_prior() -> None:
    """log p of a Gaussian and of a mixture by the flow to 1e-3, its gradient the score to 5e-3 (the structure of the
    mixture is 0.3 wide, and the score up to 10; data are seen with noise of e^-6, which is 1e-4 of that). The
    divergence is needed: without it the mixture's gradient misses by 1.

    The posterior of a correlated Gaussian, 3 numbers of which 2 sums are measured: the fit tends to it with a variance
    that vanishes there, so that mean and covariance agree to 1e-2 posterior standard deviations, and every sample
    weighs log p(y) to 1e-2. The rival, as well fitted, tells its own limit: variances 1/diag(C^-1), to four standard
    errors of 100 steps of 32 samples, 4 sqrt(2/3200), and a bound lower by KL = (sum log diag(C^-1) + log |C|)/2.
    Here the gradient of log p is the exact score; by the flow, and of networks, where it is not, see tests/proofs.
    """
    start = float(FLOW.time(torch.tensor(12.0, dtype=F64)))
    world = gaussian()
    for prior, steps in ((world, 16), (ring(0.3), 24)):
        x = prior.sample(4, seed=1).to(F64).requires_grad_()
        truth = prior.log_prob(x)
        (score,) = torch.autograd.grad(truth.sum(), x)
        x = x.detach()
        likelihood = FlowLikelihood(prior.denoiser(FLOW), x, start=start, steps=steps)
        log_prob, gradient = likelihood(x)
        torch.testing.assert_close(log_prob, truth.detach(), rtol=0, atol=1e-3)
        torch.testing.assert_close(gradient, score, rtol=0, atol=5e-3)
    without = likelihood(x, torch.zeros(1, *x.shape, dtype=F64))[1]
    assert float((without - score).abs().max()) > 1

    y = world.sample(1, seed=3).to(F64) @ A.mT + STD * normal(1, 2, seed=4)
    mean, cov = world.posterior(y[0], A, noise_std=STD).moments()
    prior_mean, prior_cov = world.moments()
    marginal = A @ prior_cov @ A.mT + STD**2 * torch.eye(2, dtype=F64)
    evidence = torch.distributions.MultivariateNormal(A @ prior_mean, marginal).log_prob(y[0])
    precision = torch.linalg.inv(cov)

    def fit(family: Family, particles: int) -> tuple[orn.inverse.Fitted, Tensor, Tensor]:
        method = ScorePrior(family, particles, gradient="score", lr=0.1)
        found = method.posterior(world.denoiser(FLOW), linops.Matrix(A), y, noise=STD, seed=0, steps=320)
        return found, *moments(found.law)

    found, m, c = fit(Normal(), 16)
    assert float((m - mean) @ precision @ (m - mean)) ** 0.5 < 1e-2
    torch.testing.assert_close(precision @ c, torch.eye(3, dtype=F64), rtol=0, atol=1e-2)
    torch.testing.assert_close(found.log_weight, evidence.expand(1, 16), rtol=0, atol=1e-2)
    assert float((found.bound - evidence).abs()) < 2e-3

    rival, m, c = fit(Normal(rank=0), 32)
    torch.testing.assert_close(c.diagonal(), 1 / precision.diagonal(), rtol=0.1, atol=0)
    assert bool((c.diagonal() < cov.diagonal() / 2).all())
    kl = (precision.diagonal().log().sum() + torch.logdet(cov)) / 2
    assert float((rival.bound - (evidence - kl)).abs()) < 4 * float(rival.error)
    assert float(rival.bound) < float(found.bound) - 0.5
