"""Improved DDPM: variances learned by a hybrid loss, a bound that they close, and steps drawn by their losses."""

import functools
import math

import pytest
import torch

import ornstein as orn
from ornstein.density import variational_bound
from ornstein.processes import ancestral
from ornstein.training import VLB, HybridLoss, LossSecondMoment
from worlds import F64

PROCESS = orn.Cosine(offset=0.008)
STD, DIM, STEPS = 0.5, 8, 6
WORLD = orn.exact.GaussianMixture(torch.zeros(1, DIM, dtype=F64), torch.tensor([STD], dtype=F64))
ENTROPY = DIM * (math.log(STD) + math.log(2 * math.pi * math.e) / 2)


class Learned(orn.BaseDenoiser):
    """The exact denoiser with a head "variance": one number for each time of a chain, to be learned."""

    def __init__(self, steps, predicts="x0"):
        super().__init__()
        self.oracle, self.steps = WORLD.denoiser(PROCESS, predicts), steps
        self.process, self.predicts = PROCESS, predicts
        self.v = torch.nn.Parameter(torch.zeros(steps, dtype=F64))
        self.scale = torch.nn.Parameter(torch.ones((), dtype=F64))  # of the mean: right at 1

    def bind(self, levels, x, cond):
        def answer(call, level, x):
            row = self.v[(level.t * self.steps).round().long() - 1].reshape(-1, 1)
            return {"main": self.scale * call(x), "variance": row.expand_as(x)}

        calls = self.oracle.bind(levels, x, cond)
        return [functools.partial(answer, call, level) for call, level in zip(calls, levels, strict=True)]


def best(steps):
    """v of the variance of x_s given x_t, in closed form, for each step of the chain from data to noise."""
    chain = orn.Uniform()(PROCESS, steps)
    t, s = chain[:-1], chain[1:]
    step = ancestral(t, s)
    left = STD**2 * t.sigma**2 / (t.alpha**2 * STD**2 + t.sigma**2)  # Var[x0 | x_t]
    variance = step.posterior**2 + step.c_x0**2 * left
    low = torch.cat([step.posterior[:-1], step.posterior[-2:-1]])  # at data the posterior of the step before stands in
    return ((variance.log() / 2 - low.log()) / (step.forward.log() - low.log()) * 2 - 1).flip(0)


def fitted(steps):
    """v as the hybrid loss fits it: to its minimum on 16,000 samples, by L-BFGS."""
    model, loss, x = Learned(steps), HybridLoss(steps=steps), WORLD.sample(16_000, seed=1).to(F64)
    optimizer = torch.optim.LBFGS([model.v], max_iter=40, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(model, x, seed=2)
        value.backward()
        return value

    optimizer.step(closure)
    return model


@pytest.mark.system("improved-ddpm", rival="DDPM's two fixed variances, and steps drawn uniformly")
def test_improved_ddpm():
    """With the best variances the reverse steps of Gaussian data are exact, so the bound is the entropy in any number
    of steps; a fixed variance is off by the KL that it costs."""
    model = fitted(STEPS)
    # the fit is the closed form. The variance of each step is a mean of m = 16,000/6 times 8 squares, so its logarithm
    # has a standard deviation of at most sqrt(2/m): five of them; and no constant v comes near
    chain = orn.Uniform()(PROCESS, STEPS)
    step = ancestral(chain[:-1], chain[1:])
    low = torch.cat([step.posterior[:-1], step.posterior[-2:-1]])
    width = (step.forward / low).log().flip(0)  # log std^2 by v
    tolerance = 5 * math.sqrt(2 * STEPS / (16_000 * DIM))
    assert float(((model.v.detach() - best(STEPS)) * width).abs().max()) < tolerance
    for constant in (-1.0, 0.0, 1.0):
        assert float(((constant - best(STEPS)) * width).abs().max()) > 5 * tolerance

    # the mean has no gradient from the bound, and one from L_simple; v the reverse
    model.scale.data.fill_(0.9)
    x = WORLD.sample(1000, seed=3).to(F64)

    def slope(loss):
        return torch.autograd.grad(loss(model, x, seed=0), [model.scale, model.v])

    hybrid, huge, plain = HybridLoss(steps=STEPS), HybridLoss(steps=STEPS, factor=1.0), VLB(steps=STEPS)
    torch.testing.assert_close(slope(hybrid)[0], slope(huge)[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(slope(huge)[1], slope(plain)[1], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(1000 * slope(hybrid)[1], slope(plain)[1], rtol=1e-12, atol=1e-15)
    assert abs(float(slope(plain)[0])) > 0.1  # the bound itself would move it
    model.scale.data.fill_(1.0)

    # the bound of the learned chain is the entropy, to 4 standard errors; the rivals' are above it by more
    x = WORLD.sample(20_000, seed=4).to(F64)
    bounds = {
        variance: variational_bound(model, x, steps=STEPS, variance=variance, seed=5).total
        for variance in ("learned", "posterior", "forward")
    }
    error = {name: 4 * float(b.std()) / math.sqrt(len(x)) for name, b in bounds.items()}
    assert abs(float(bounds["learned"].mean()) - ENTROPY) < error["learned"]
    for rival in ("posterior", "forward"):
        assert float(bounds[rival].mean()) - ENTROPY > 10 * error[rival], rival


def test_steps_drawn_by_their_losses():
    """The mean of L_vlb is the same whatever the law of t, and the law that remembers has the least noise."""
    steps, n = 40, 40_000
    model, x = Learned(steps, "v"), WORLD.sample(n, seed=1).to(F64)
    model.scale.data.fill_(0.8)  # a mean that is not yet right
    law = LossSecondMoment(bins=steps)
    laws = {"uniform": orn.training.UniformTime(), "middle": orn.training.LogitNormal(std=3.0), "losses": law}
    assert VLB(time=law, steps=steps).losses(model, x[:4000], seed=9)[0].isfinite().all()  # told: now it knows
    assert float(law.masses.max()) > 3 / steps
    assert float(law.masses.sum()) == pytest.approx(1, abs=1e-12)
    # where nothing is random but t (data and answers of 0), the even cover of a batch sums the steps' costs exactly but
    # for the ends of steps that it cuts: one sample in n/steps
    still, nought = Learned(steps), torch.zeros(n, DIM, dtype=F64)
    still.scale.data.fill_(0.0)
    exact = float(variational_bound(still, nought[:1], steps=steps, variance="learned").terms.sum()) / DIM
    for name, each in laws.items():
        with torch.no_grad():  # so that the law learns nothing here
            mean = float(VLB(time=each, steps=steps).losses(still, nought, seed=0)[0].mean())
        assert mean == pytest.approx(exact, rel=steps / n), name
    found = {}
    for name, each in laws.items():
        given = torch.zeros(n, 1, dtype=F64, requires_grad=True)  # one v for each sample: its gradient by itself
        model.bind = functools.partial(with_variance, model, given)
        loss = VLB(time=each, steps=steps).losses(model, x, seed=2)[0]
        (slopes,) = torch.autograd.grad(loss.sum(), given)
        found[name] = loss.detach(), slopes.flatten()
    # the truth: the sum over all steps of the same model, from another room
    model.bind = functools.partial(with_variance, model, torch.zeros(n, 1, dtype=F64))
    bound = variational_bound(model, x, steps=steps, variance="learned", seed=3)
    truth = bound.terms.sum(0) / DIM
    for name, (loss, _) in found.items():
        error = math.hypot(float(loss.std()), float(truth.std())) / math.sqrt(n)
        assert abs(float(loss.mean()) - float(truth.mean())) < 4 * error, name
    # the gradients agree too, and by more than their noise: the second moments are n = 40,000 squares
    means = {name: float(slopes.mean()) for name, (_, slopes) in found.items()}
    noise = {name: float(slopes.std()) for name, (_, slopes) in found.items()}
    for name in laws:
        assert abs(means[name] - means["losses"]) < 4 * math.hypot(noise[name], noise["losses"]) / math.sqrt(n), name
    assert noise["losses"] < noise["uniform"] / 1.5
    assert float(found["losses"][0].std()) < float(found["uniform"][0].std()) / 2


def with_variance(model, given, levels, x, cond):
    def answer(call, x):
        return {"main": model.scale.detach() * call(x), "variance": given.expand_as(x)}

    return [functools.partial(answer, call) for call in model.oracle.bind(levels, x, cond)]
