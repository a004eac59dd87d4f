"""Correlated noise is white noise in other coordinates; scores, samplers, densities and refusals follow."""

import copy
import math
import pickle

import pytest
import torch

import ornstein as orn
from ornstein.density import log_likelihood
from ornstein.processes import VP, Correlated
from worlds import F64, normal

_MIX = normal(3, 3, seed=5)
SIGMA = _MIX @ _MIX.T + 0.3 * torch.eye(3, dtype=F64)
FACTOR = torch.linalg.cholesky(SIGMA)
BASES = [orn.VP(), orn.Flow(), orn.EDM(8.0), orn.MeanReverting()]


def mixture(factor=None):
    """Three blobs in three dimensions, full covariances; or the same in the coordinates factor^-1 x."""
    inverse = torch.eye(3, dtype=F64) if factor is None else torch.linalg.inv(factor)
    halves = 0.5 * normal(3, 3, 3, seed=2)
    covs = inverse @ (halves @ halves.mT + 0.05 * torch.eye(3, dtype=F64)) @ inverse.T
    means, weights = normal(3, 3, seed=1) @ inverse.T, torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    return orn.exact.GaussianMixture(means, weights=weights, covs=covs)


def cond_of(base, factor=None):
    if not isinstance(base, orn.MeanReverting):
        return None
    mean = normal(6, 3, seed=8)
    return {"mean": mean if factor is None else torch.linalg.solve_triangular(factor, mean.T, upper=False).T}


def covariance_within(x, truth):
    """The largest error of the empirical covariance in standard errors sqrt((s_ii s_jj + s_ij^2)/n)."""
    spread = torch.sqrt((truth.diagonal()[:, None] * truth.diagonal() + truth**2) / len(x))
    return float(((torch.cov(x.T) - truth).abs() / spread).max())


def test_draws_have_the_covariance():
    """Within 4.5 standard errors at six entries (1 in 20,000); a covariance 5 % off is not. Seeds as ever."""
    process, n = Correlated(VP(), SIGMA), 20_000
    x0, t = torch.ones(n, 3, dtype=F64), 0.4
    level = process.level(t)
    x = process.corrupt(x0, t, seed=0).x - level.alpha
    assert covariance_within(x, level.sigma**2 * SIGMA) < 4.5
    assert covariance_within(x, 1.1 * level.sigma**2 * SIGMA) > 4.5
    assert covariance_within(x, level.sigma**2 * torch.diag(SIGMA.diagonal())) > 4.5
    assert covariance_within(process.prior((n, 3), seed=1, dtype=F64), level.sigma**0 * SIGMA) < 4.5
    whole = process.prior((4, 3), seed=[1, 2, 3, 4])
    torch.testing.assert_close(process.prior((2, 3), seed=[4, 2]), whole[[3, 1]])
    torch.testing.assert_close(process.prior((4, 3), seed=[1, 2, 3, 4], dtype=F64).float(), whole)
    torch.testing.assert_close(process.colour(normal(2, 3), None), normal(2, 3) @ FACTOR.T)
    law = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), process.level(1.0).sigma ** 2 * SIGMA)
    torch.testing.assert_close(process.log_prior(normal(5, 3)), law.log_prob(normal(5, 3)))


def test_the_sde_has_this_kernel():
    """dx = f x dt + g L dw by Euler-Maruyama, 300 steps, 20,000 paths from one point: mean and covariance of the kernel
    within 4.5 standard errors and the method's own error g^2 h/2 < 2 %; a sigma 10 % wrong is 20 of them off."""
    process, n, steps, end = Correlated(VP(1.0, 3.0), SIGMA), 20_000, 300, 0.7
    x, g = torch.ones(n, 3, dtype=F64), torch.Generator().manual_seed(0)
    for t in torch.linspace(0, end, steps + 1, dtype=F64)[:-1] + end / (2 * steps):
        dw = math.sqrt(end / steps) * torch.randn(n, 3, generator=g, dtype=F64)
        x = x + process.drift(t) * x * end / steps + process.diffusion2(t).sqrt() * process.colour(dw, None)
    level = process.level(end)
    truth = level.sigma**2 * SIGMA
    assert float(((x.mean(0) - level.alpha) / (truth.diagonal() / n).sqrt()).abs().max()) < 4.5
    assert covariance_within(x, truth) < 4.5
    assert covariance_within(x, 1.21 * truth) > 10


@pytest.mark.parametrize("base", BASES, ids=lambda p: type(p).__name__)
def test_exact_denoisers_and_scores(base):
    """Against dense formulas: S_k = alpha^2 C_k + sigma^2 Sigma. The score is the gradient of log p_t, by autograd; the
    rival -noise/sigma, which the tables use, is Sigma times it. Point masses are a mixture's limit."""
    world, process, cond = mixture(), Correlated(base, SIGMA), cond_of(base)
    x, t = 2 * normal(6, 3), torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.9], dtype=F64)
    level = process.level(t)
    shift = process.shift(t, cond)
    centred = (x if shift is None else x - shift).requires_grad_()
    a, s = level.alpha[:, None, None, None], level.sigma[:, None, None, None]
    c = world.covariance.dense()
    total = a**2 * c + s**2 * SIGMA  # (batch, k, 3, 3)
    apart = centred[:, None] - a[..., 0] * world.means
    solved = torch.linalg.solve(total, apart[..., None])
    terms = world.log_weights - torch.logdet(total) / 2 - (apart[..., None, :] @ solved).flatten(1) / 2
    (score,) = torch.autograd.grad(terms.logsumexp(1).sum(), centred)
    terms, solved = terms.detach(), solved.detach()
    x0 = (terms.softmax(1)[..., None] * (world.means + (a * c @ solved)[..., 0])).sum(1)
    for view in process.views:
        p = world.denoiser(process, view)(x, t, cond)
        torch.testing.assert_close(p.x0, x0.detach(), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(p.score, score, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(-p.noise / level.sigma[:, None], score @ SIGMA, rtol=1e-8, atol=1e-8)
    assert float((score + p.noise.detach() / level.sigma[:, None]).abs().max()) > 0.1

    points = orn.exact.Empirical(world.means, weights=world.weights)
    blobs = orn.exact.GaussianMixture(world.means, 0.0, world.weights)
    ends = [w.denoiser(process, "velocity").forward(x, t, cond) for w in (points, blobs)]
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-8)
    labels = {**(cond or {}), "label": torch.tensor([0, 1, 2, -1, 0, 1])}
    ends = [w.denoiser(process).forward(x, t, labels) for w in (points, blobs)]
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("base", BASES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize(
    "solver",
    [
        orn.Heun(),
        orn.UniPC(),
        orn.DDIM(),
        orn.DDPM(),
        orn.EulerMaruyama(),
        orn.solvers.StochasticHeun(),
        orn.DDIM(eta=0.7),
    ],
    ids=repr,
)
def test_samplers_are_those_of_the_base_in_other_coordinates(base, solver):
    """L times the base's sampler on the world of L^-1 x with the same numbers, to rounding, noise and all. With the
    identity the process is its base."""
    process = Correlated(base, SIGMA)
    one = orn.sample(mixture().denoiser(process), (6, 3), solver=solver, steps=6, seed=3, dtype=F64, cond=cond_of(base))
    white = orn.sample(
        mixture(FACTOR).denoiser(base), (6, 3), solver=solver, steps=6, seed=3, dtype=F64, cond=cond_of(base, FACTOR)
    )
    torch.testing.assert_close(one.x, white.x @ FACTOR.T, rtol=1e-7, atol=1e-8)
    same = orn.sample(
        mixture().denoiser(Correlated(base, torch.eye(3))), (6, 3), solver=solver, steps=6, seed=3, dtype=F64,
        cond=cond_of(base),
    )  # fmt: skip
    plain = orn.sample(mixture().denoiser(base), (6, 3), solver=solver, steps=6, seed=3, dtype=F64, cond=cond_of(base))
    torch.testing.assert_close(same.x, plain.x, rtol=1e-8, atol=1e-9)


def test_likelihood():
    """The change of variables from N(0, Sigma) is the world's own density."""
    process, world = Correlated(orn.Flow(), SIGMA), mixture()
    x = world.sample(4, seed=3, dtype=F64)
    found = log_likelihood(world.denoiser(process, "velocity"), x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.log_prob, world.log_prob(x), rtol=0, atol=1e-5)


def test_the_identity_is_the_base():
    for base in (orn.VP(), orn.EDM()):
        process, x = Correlated(base, torch.eye(3)), normal(5, 3)
        torch.testing.assert_close(process.log_prior(x), base.log_prior(x))
        assert torch.equal(process.prior((5, 3), seed=1), base.prior((5, 3), seed=1))
        one, other = (mixture().denoiser(p)(x, 0.3) for p in (process, base))
        for view in ("x0", "noise", "score", "velocity", "v"):
            torch.testing.assert_close(one.view(view), other.view(view), rtol=1e-9, atol=1e-10)


def test_refusals():
    wrong = SIGMA.clone()
    wrong[0, 0] -= 5
    least = float(torch.linalg.eigvalsh(wrong)[0])
    with pytest.raises(ValueError, match=f"positive definite: it has the eigenvalue {least:.6g}"):
        Correlated(VP(), wrong)
    with pytest.raises(ValueError, match="eigenvalue"):
        Correlated(VP(), torch.ones(2, 2))
    with pytest.raises(ValueError, match="symmetric"):
        Correlated(VP(), [[1.0, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"\(d, d\)"):
        Correlated(VP(), torch.ones(3))
    with pytest.raises(ValueError, match="finite: got nan"):
        Correlated(VP(), [[math.nan]])
    with pytest.raises(ValueError, match="Gaussian process"):
        Correlated(orn.processes.PFGMPP(), torch.eye(2))
    process = Correlated(VP(), SIGMA)
    with pytest.raises(ValueError, match="of 2 entries"):
        process.prior((4, 2))
    with pytest.raises(orn.ViewError, match="no score"):
        orn.Denoiser(orn.nets.MLP(features=3), process, "score")
    with pytest.raises(orn.ViewError, match="no score"):
        mixture().denoiser(process, "score")
    assert pickle.loads(pickle.dumps(process)) == copy.deepcopy(process) == process
    assert process != Correlated(VP(), 2 * SIGMA)
    assert repr(process) == "Correlated(VP(beta_min=0.1, beta_max=20.0), 3 x 3)"
