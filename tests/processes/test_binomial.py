"""Binomial diffusion: kernel, levels, losses and refusals; what it is for is in systems/test_nonequilibrium.py."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.density import binomial_bound
from ornstein.exact import Enumerable
from ornstein.processes import Binomial
from ornstein.solvers import BinomialAncestral
from ornstein.training import BinomialVLB, CrossEntropy
from worlds import F64

PROCESS = Binomial()
WORLD = Enumerable(torch.tensor([[0.0, 0, 0], [0, 1, 1], [1, 0, 1]], dtype=F64), torch.tensor([1.0, 2, 3], dtype=F64))


class Fast(Binomial):
    """Another schedule, in one line."""

    def alpha(self, t):
        return (1 - t) ** 3


def test_the_chain_has_the_kernel():
    """Published rates beta_k = 1/(N - k + 1), step by step from x0: after half of them the frequencies of ones are the
    kernel's to 4 standard errors, with 10 % less signal they are not."""
    n, steps = 200_000, 10
    g = torch.Generator().manual_seed(0)
    x = x0 = (torch.rand(n, generator=g) < 0.8).double()
    for k in range(1, 6):
        redrawn = torch.rand(n, generator=g) < 1 / (steps - k + 1)
        x = torch.where(redrawn, (torch.rand(n, generator=g) < 0.5).double(), x)
    draw = PROCESS.corrupt(x0[:, None], 0.5, seed=1).x[:, 0]
    error = 4 * 0.5 / math.sqrt(0.2 * n)
    for value in (0.0, 1.0):
        p = 0.5 * value + 0.25
        for sample in (x, draw):
            assert float(sample[x0 == value].mean()) == pytest.approx(p, abs=error)
        assert abs(float(draw[x0 == value].mean()) - (0.45 * value + 0.275)) > error
    # a law of x_t is that of the world
    data = WORLD.sample(n, seed=2, dtype=F64)
    states = PROCESS.corrupt(data, 0.3, seed=3).x
    cube = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=F64)] * 3)
    law = WORLD.log_prob(cube, PROCESS, 0.3).exp()
    counts = (states[:, None] == cube).all(2).sum(0)
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert float(((counts - n * law) ** 2 / (n * law)).sum()) < 18.5  # chi-square, 7 degrees: one in a hundred
    coins = PROCESS.prior((n, 1), seed=0)
    assert float(coins.mean()) == pytest.approx(0.5, abs=2 / math.sqrt(n))


@pytest.mark.parametrize("objective", [orn.training.Objective(), CrossEntropy(), BinomialVLB(steps=20)], ids=repr)
def test_losses_are_least_at_the_exact_model(objective):
    """A model that scales the log-odds of the exact one has its least loss where the scale is 1: the derivative there
    is 0 to 4 standard errors, over 200 batches of seeds, and not at 0.8 or 1.25."""
    exact = WORLD.denoiser(PROCESS)

    class Scaled(orn.BaseDenoiser):
        process, predicts = PROCESS, "x0"

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones((), dtype=F64))

        def bind(self, levels, x, cond):
            def answer(call, x):
                return torch.sigmoid(self.scale * torch.logit(call(x).clamp(1e-12, 1 - 1e-12)))

            return [lambda x, call=call: answer(call, x) for call in exact.bind(levels, x, cond)]

    model = Scaled()

    def slopes(scale):
        model.scale.data.fill_(scale)
        found = []
        for seed in range(40):
            (slope,) = torch.autograd.grad(objective(model, WORLD.sample(300, seed, F64), seed=seed), model.scale)
            found.append(slope)
        return torch.stack(found)

    at_one = slopes(1.0)
    assert abs(float(at_one.mean())) < 4 * float(at_one.std()) / math.sqrt(40)
    for scale in (0.8, 1.25):
        away = slopes(scale)
        assert float(away.mean()) * (scale - 1) > 4 * float(away.std()) / math.sqrt(40) * abs(scale - 1)


def test_the_loss_is_the_bound():
    """The mean of BinomialVLB, times the entries, is that of `binomial_bound`, to 4 standard errors of both."""
    model, x = WORLD.denoiser(Fast()), WORLD.sample(20_000, seed=0, dtype=F64)
    bound = binomial_bound(model, x, steps=10, seed=1)
    loss = 3 * BinomialVLB(steps=10).losses(model, x, seed=2)[0]
    error = math.hypot(float(bound.total.std()), float(loss.std())) / math.sqrt(len(x))
    assert float(loss.mean()) == pytest.approx(float(bound.total.mean()), abs=4 * error)
    assert float(bound.prior.abs().max()) == 0  # alpha(1) = 0
    half = binomial_bound(model, x[:2], grid=orn.Uniform(start=0.5), steps=5, seed=1).prior
    p = (1 + 0.125) / 2
    assert float(half[0]) == pytest.approx(3 * (math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)), rel=1e-12)


class Doubled(orn.BaseDenoiser):
    """Twice the probability."""

    def __init__(self, model):
        super().__init__()
        self.model, self.process, self.predicts = model, model.process, model.predicts

    def bind(self, levels, x, cond):
        return [lambda x, call=call: 2 * call(x) for call in self.model.bind(levels, x, cond)]


def test_a_network_trains_and_samples():
    torch.manual_seed(0)
    model = orn.Denoiser(orn.nets.Probability(orn.nets.MLP(3, width=16, depth=1)), PROCESS, predicts="x0")
    x = WORLD.sample(400, seed=0)
    result = orn.fit(model, x, steps=30, batch_size=64, lr=1e-2, objective=CrossEntropy(), seed=0, progress=False)
    assert result.history["loss"][-5:].mean() < result.history["loss"][:5].mean()
    out = orn.sample(model, (50, 3), steps=8, seed=0)  # its own solver, on equal steps of t
    assert out.x.dtype == torch.float32
    assert bool(((out.x == 0) | (out.x == 1)).all())
    again = orn.sample(model, (50, 3), solver=BinomialAncestral(), grid=orn.Uniform(), steps=8, seed=0)
    assert torch.equal(out.x, again.x)
    # guidance in probabilities may leave [0, 1]: the steps do not
    sure = Enumerable(torch.ones(1, 3, dtype=F64)).denoiser(PROCESS)
    assert float(orn.sample(Doubled(sure), (20, 3), steps=4, seed=0, dtype=F64).x.min()) == 1
    level = PROCESS.level([1.0, 0.4])
    torch.testing.assert_close(level.log_snr, 2 * (level.alpha.log() - level.sigma.log()))
    torch.testing.assert_close(level.d_sigma[1], torch.tensor(0.6 / 0.8, dtype=F64))


def test_posterior_of_a_world():
    seen = WORLD.posterior(lambda states: torch.where(states[:, 2] == 1, 0.0, -math.inf))
    torch.testing.assert_close(seen.weights, torch.tensor([0.4, 0.6], dtype=F64))
    assert WORLD.entropy == pytest.approx(-sum(p * math.log(p) for p in (1 / 6, 1 / 3, 1 / 2)))
    with pytest.raises(ValueError, match="impossible"):
        WORLD.posterior(lambda states: torch.full((3,), -math.inf))


def test_refusals():
    with pytest.raises(ValueError, match=r"are 0 and 1: got 0\.5"):
        PROCESS.corrupt(torch.tensor([[0.0, 0.5]]), 0.5)
    with pytest.raises(ValueError, match="x1"):
        PROCESS.corrupt(torch.zeros(1, 1), 0.5, torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"got 2"):
        Enumerable(torch.tensor([[0.0, 2.0]]))
    with pytest.raises(ValueError, match="same"):
        Enumerable(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="one a state"):
        Enumerable(torch.eye(2), torch.tensor([1.0, -1.0]))
    model = WORLD.denoiser(PROCESS)
    with pytest.raises(orn.ViewError, match="score"):
        model(torch.zeros(1, 3, dtype=F64), 0.5).view("score")
    with pytest.raises(orn.ViewError, match="noise"):
        orn.Denoiser(orn.nets.MLP(3), PROCESS, predicts="noise")
    with pytest.raises(orn.ViewError, match="above"):
        model(torch.zeros(1, 3, dtype=F64), 0.0)
    with pytest.raises(orn.ViewError):
        orn.sample(model, (2, 3), solver=orn.DDIM(), grid=orn.Uniform(), steps=3)
    with pytest.raises(ValueError, match="no Binomial"):
        BinomialAncestral().compile(orn.VP(), orn.VP().level([1.0, 0.5]))
    with pytest.raises(ValueError, match="rises"):
        BinomialAncestral().compile(PROCESS, PROCESS.level([0.5, 1.0]))
    with pytest.raises(ValueError, match="Binomial process"):
        binomial_bound(orn.Denoiser(orn.nets.MLP(3), orn.VP()), torch.zeros(2, 3))
    model.scaling = orn.Scaling(std=2.0)
    with pytest.raises(ValueError, match="no scaling"):
        binomial_bound(model, torch.zeros(2, 3, dtype=F64))
    plain = orn.Denoiser(orn.nets.MLP(3), orn.VP(), predicts="x0")
    for loss in (CrossEntropy(), BinomialVLB(steps=3)):
        with pytest.raises(ValueError, match="no Binomial"):
            loss(plain, torch.zeros(2, 3), seed=0)
    with pytest.raises(ValueError, match="neither"):
        BinomialVLB(variance="forward")
    with pytest.raises(ValueError, match="weights of its own"):
        CrossEntropy(observed="mask")
    with pytest.raises(ValueError, match="0, 1"):
        orn.processes.LearnedRates([0.1, 0.2, 1.0])
