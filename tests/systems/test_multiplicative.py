"""Multiplicative diffusion: positive data as additive diffusion of their logarithms, which is the published update."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.density import log_likelihood, variational_bound
from ornstein.exact import LogMixture
from ornstein.processes import GeometricBrownian, Multiplicative
from worlds import F64, normal

PROCESS = Multiplicative()
STD, MEAN = 0.8, 0.3
LOGS = orn.exact.GaussianMixture(torch.full((1, 1), MEAN, dtype=F64), torch.tensor([STD], dtype=F64))
PAIR = LogMixture(
    orn.exact.GaussianMixture(torch.tensor([[1.0, 0.0], [-1.0, 0.5]], dtype=F64), torch.tensor([0.3, 0.6], dtype=F64))
)


def published(model, x, levels, volatility, mu, noise):
    """The update of x itself, of the paper, with x score_x read from the exact law of x_t."""
    for i in range(len(levels) - 1):
        t, h = levels.t[i], levels.t[i] - levels.t[i + 1]
        moved = (mu - volatility**2 / 2) * t  # of all logarithms, by the drift
        x_score = model(x.log() - moved, levels[i]).score - 1
        drift = -(mu - volatility**2 / 2) + volatility**2 * (1 + x_score)
        x = x * torch.exp(drift * h + volatility * torch.sqrt(h) * noise.normal(x.shape))
    return x


@pytest.mark.system("multiplicative", rival="VE diffusion of x itself, with the same network")
def test_multiplicative():
    # the published update is Euler-Maruyama in the logarithm, to rounding, whatever the drift of x
    volatility, grid = 3.0, torch.linspace(1, 0.05, 20, dtype=F64)
    process = Multiplicative(GeometricBrownian(volatility))
    model, y = PAIR.denoiser(process), 3 * normal(50, 2)
    ours = orn.sample(model, x_init=y, solver=orn.EulerMaruyama(), grid=grid, seed=1).x
    for mu in (0.0, 2.0, volatility**2 / 2):
        ahead = (mu - volatility**2 / 2) * torch.tensor([1.0, 0.05], dtype=F64)
        stream = orn.Noise(1, batch=50, dtype=F64)
        x = published(model, (y + ahead[0]).exp(), process.level(grid), volatility, mu, stream)
        torch.testing.assert_close(x, (ours.log() + ahead[1]).exp(), rtol=1e-11, atol=0)

    # log-normal data: the reversal recovers the variance of the logarithm at order 1, Heun's at order 2, computed
    # exactly from the tables of 100 to 400 steps
    for solver, order in ((orn.EulerMaruyama(), 1), (orn.solvers.Heun(variable="t"), 2)):
        errors = []
        for steps in (100, 200, 400):
            levels = PROCESS.level(torch.linspace(1, 0.5, steps + 1, dtype=F64))
            response = orn.response(solver.compile(PROCESS, levels), MEAN, STD**2)
            start, end = (STD**2 + levels[i].sigma ** 2 for i in (0, -1))
            errors.append(abs(float(response.variance(start) / end) - 1))
            assert float(response.mean(MEAN)) == pytest.approx(MEAN, rel=1e-12)
        assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.2), solver

    # a linear network is all that log-normal data need here, and the samples are right and positive; on x itself the
    # best linear network makes a Gaussian of the data's moments, of which Phi(-mean/std) = 14 % is negative
    world, n = LogMixture(LOGS), 10_000
    mean, var = (float(moment) for moment in world.moments())
    samples = orn.sample(world.denoiser(PROCESS), (n, 1), steps=30, seed=0, dtype=F64).x
    assert float(samples.min()) > 0
    logs = samples.log()
    assert float(logs.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(n) + 0.01)
    assert float(logs.std()) == pytest.approx(STD, abs=4 * STD / math.sqrt(2 * n) + 0.01)
    linear = orn.exact.GaussianMixture(torch.full((1, 1), mean, dtype=F64), torch.tensor([math.sqrt(var)], dtype=F64))
    rival = orn.sample(linear.denoiser(PROCESS.base), (n, 1), steps=30, seed=0, dtype=F64).x
    below = float(torch.special.ndtr(torch.tensor(-mean / math.sqrt(var))))
    assert float((rival < 0).double().mean()) > below - 4 * math.sqrt(below / n)
    assert below > 0.1

    # what is learned is VE diffusion of the logarithms, to the last bit
    x = PAIR.sample(64, seed=0).float()
    weights = []
    for process, data in ((PROCESS, x), (PROCESS.base, x.log())):
        torch.manual_seed(0)
        model = orn.Denoiser(orn.nets.MLP(2, width=16, depth=1), process, predicts="noise")
        # whole batches in order, since a logarithm's last bit may depend on the place in a tensor
        loader = [(data, None)]
        objective, optimizer = orn.training.Objective(), torch.optim.SGD(model.parameters(), 0.1)
        for step in range(5):
            optimizer.zero_grad()
            objective(model, loader[0][0], seed=step).backward()
            optimizer.step()
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_scores():
    """x score_x + 1 = score_y, by differentiating the law of x_t; and Hyvarinen's loss for non-negative data, of x, is
    his loss of y less 1/2, so that both are least at the true score."""
    level = PROCESS.level(0.6)
    x = PAIR.sample(40, seed=0).double().requires_grad_()

    def log_law(x):  # of x_t, whose logarithm has the law of the logs at the level
        return PAIR.logs.log_prob(x.log(), PROCESS, level) - x.log().sum(1)

    (score,) = torch.autograd.grad(log_law(x).sum(), x, create_graph=True)
    model = PAIR.denoiser(PROCESS)
    y = x.detach().log()
    torch.testing.assert_close(x * score + 1, model(y, level).score, rtol=1e-10, atol=1e-10)
    # published: 2 x s + x^2 s' + (x s)^2/2; of y: s_y' + s_y^2/2
    second = torch.stack([torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)], 1)
    theirs = (2 * x * score + x**2 * second + (x * score) ** 2 / 2).detach()
    y.requires_grad_()
    (own,) = torch.autograd.grad(PAIR.logs.log_prob(y, PROCESS, level).sum(), y, create_graph=True)
    slope = torch.stack([torch.autograd.grad(own[:, i].sum(), y, retain_graph=True)[0][:, i] for i in range(2)], 1)
    torch.testing.assert_close(theirs, (slope + own**2 / 2 - 0.5).detach(), rtol=1e-9, atol=1e-9)
    # its matching of x score_x given x0 is that of the noise
    draw = PROCESS.corrupt(x.detach(), level, noise=normal(40, 2))
    given = -(draw.x - x.detach().log()) / level.sigma**2 - 1  # x d/dx of log of the log-normal kernel
    torch.testing.assert_close(given + 1, draw.target("score"), rtol=1e-10, atol=1e-10)


def test_draws_follow_the_log_normal_kernel():
    """A fine Euler simulation of dx = (s^2/2) x dt + s x dw, in x itself, has the kernel's mean and variance of log x
    at t = 1/4 and 1, to 4 standard errors and its own bias; with a volatility 10 % larger it has not."""
    n, steps, volatility = 20_000, 400, 0.7
    process = Multiplicative(GeometricBrownian(volatility))
    noise, start = orn.Noise(0, batch=n, dtype=F64), torch.full((n, 1), 2.0, dtype=F64)
    x, error = start, 4 / math.sqrt(2 * n) + 1 / steps
    for i in range(1, steps + 1):
        x = x * (1 + volatility**2 / 2 / steps + volatility / math.sqrt(steps) * noise.normal((n, 1)))
        if i not in (steps // 4, steps):
            continue
        draw = process.corrupt(start, i / steps, seed=1)
        for logs in (x.log(), draw.x):
            assert float(logs.mean()) == pytest.approx(math.log(2), abs=4 * volatility / math.sqrt(n) + 1 / steps)
            assert float(logs.std()) / (volatility * math.sqrt(i / steps)) == pytest.approx(1, abs=error)
        assert abs(float(draw.x.std()) / (1.1 * volatility * math.sqrt(i / steps)) - 1) > error


def test_the_likelihood_counts_the_logarithm():
    x = PAIR.sample(2, seed=0).double()
    model = PAIR.denoiser(Multiplicative(orn.Cosine()))
    torch.testing.assert_close(log_likelihood(model, x).log_prob, PAIR.log_prob(x), rtol=0, atol=1e-3)
    model = PAIR.denoiser(Multiplicative(orn.Flow()))
    model.scaling = orn.Scaling(mean=0.0, std=4.0)
    torch.testing.assert_close(
        log_likelihood(model, 4 * x).log_prob, PAIR.log_prob(x) - 2 * math.log(4), atol=1e-3, rtol=0
    )
    with pytest.raises(ValueError, match="logarithms"):
        variational_bound(PAIR.denoiser(PROCESS), x)
    assert "ELBO" not in PROCESS.supports


def test_the_world():
    """The density integrates to one, moments are the samples' to 5 standard errors, and nothing is below zero."""
    one = LogMixture(
        orn.exact.GaussianMixture(torch.tensor([[0.0], [1.0]], dtype=F64), torch.tensor([0.5, 0.2], dtype=F64))
    )
    x = torch.linspace(-1, 30, 400_001, dtype=F64)[:, None]
    assert float(torch.trapezoid(one.log_prob(x).exp(), x[:, 0])) == pytest.approx(1, abs=1e-6)
    assert float(one.log_prob(x[:1])) == -math.inf
    samples = PAIR.sample(200_000, seed=0).double()
    mean, cov = PAIR.moments()
    error = cov.diagonal().sqrt() / math.sqrt(len(samples))
    assert bool(((samples.mean(0) - mean).abs() < 5 * error).all())
    torch.testing.assert_close(torch.cov(samples.T), cov, rtol=0.05, atol=0.02)


def test_refusals():
    for bad, value in ((0.0, "0"), (-0.5, "-0.5"), (math.nan, "nan")):
        with pytest.raises(ValueError, match=f"positive: got {value}"):
            PROCESS.corrupt(torch.tensor([[1.0, bad]]), 0.5)
    with pytest.raises(ValueError, match=r"positive: got -2"):
        log_likelihood(PAIR.denoiser(PROCESS), torch.tensor([[-2.0, 1.0]], dtype=F64))
    with pytest.raises(ValueError, match="GaussianProcess"):
        Multiplicative(orn.processes.TwoSided())
    with pytest.raises(ValueError, match="volatility"):
        GeometricBrownian(0.0)
    with pytest.raises(ValueError, match="Multiplicative"):
        PAIR.denoiser(orn.VP())
