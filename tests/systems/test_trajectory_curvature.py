"""Minimum trajectory curvature: the coupling of data and noise is learned with the flow, and paths straighten."""

import math

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.processes import LearnedCoupling
from ornstein.training import EMA, MinimumCurvature, Objective
from worlds import F64, normal

S = 0.5
"""Standard deviation of the 1-D Gaussian data, x ~ N(0, S^2)."""


@pytest.fixture(autouse=True)
def doubles():
    """So that levels and networks meet in one dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


class Linear(nn.Module):
    """q(. | x) = N(a x, b^2)."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.log_b = nn.Parameter(torch.tensor(float(a))), nn.Parameter(torch.tensor(math.log(b)))

    def forward(self, x, t):
        assert float(t.abs().max()) == 0
        return {"main": self.a * x, "log_std": self.log_b.expand_as(x)}


class Exact(orn.BaseDenoiser):
    """E[noise - x0 | x_t] of the coupling as its encoder has it now: with z = a x + b e, a line in x_t."""

    predicts = "velocity"

    def __init__(self, a=0.0, b=1.0):
        super().__init__()
        self.process = LearnedCoupling(Linear(a, b))

    def bind(self, levels, x, cond):
        encoder = self.process.encoder
        a, b = encoder.a.detach(), encoder.log_b.detach().exp()
        zz, xz = a**2 * S**2 + b**2, a * S**2
        calls = []
        for t in levels.t:
            var = (1 - t) ** 2 * S**2 + t**2 * zz + 2 * t * (1 - t) * xz
            slope = ((1 - t) * (xz - S**2) + t * (zz - xz)) / var
            calls.append(lambda x, slope=slope: slope.reshape(-1, 1) * x)
        return calls


def total(a, b, beta):
    """J(a, b) = S b theta + beta/2 (a^2 S^2 + b^2 - 1 - log b^2), theta the angle of (a S, b).

    For z = a x + b e and straight paths, Var(z - x | x_t) = det/Var(x_t), det = S^2 b^2 that of Cov(x, z), and the
    integral over t of 1/|(1 - t) p + t q|^2 is the angle between p and q over |p| |q| sin(angle) = sqrt(det)."""
    return S * b * math.atan2(b, a * S) + beta / 2 * (a**2 * S**2 + b**2 - 1 - 2 * math.log(b))


def optimum(beta):
    """(a, b) of the least J: with a S = q cos(theta), b = q sin(theta), J_a = 0 says q = S sin^2/(beta cos), and
    J_b = 0, S (theta + sin cos) + beta (b - 1/b) = 0, rises with theta."""
    low, high = 1e-9, math.pi / 2 - 1e-12
    for _ in range(100):
        theta = (low + high) / 2
        q = S * math.sin(theta) ** 2 / (beta * math.cos(theta))
        b = q * math.sin(theta)
        rising = S * (theta + math.sin(theta) * math.cos(theta)) + beta * (b - 1 / b) > 0
        low, high = (low, theta) if rising else (theta, high)
    return q * math.cos(theta) / S, b


def plain(level, view, process):
    """w = 1."""
    return torch.ones_like(level.t)


def straightness_of(model, z):
    times = torch.linspace(1, 0, 41)
    path = orn.sample(model, x_init=z, solver=orn.Heun(variable="t"), grid=times, trajectory=True).trajectory
    return orn.metrics.straightness(path, times)


@pytest.mark.system("trajectory-curvature", rival="the independent coupling of the same flow")
def test_trajectory_curvature():
    """Gaussian data and a linear encoder, where the least of the objective is known. From the independent coupling,
    the flow's own loss S pi/2, `fit` brings the encoder to it: to 0.03, for gradients of noise 1/sqrt(512) a step whose
    rate falls to 0. The curvature of the exact flow falls as beta does, and is less than the loss.

    Four Euler steps: the flow is a line in the noise, so one sample of it says the standard deviation. At beta = 3 it
    is nearer S than that of the rival, whose paths are curved. What it costs is also known: Var(z) < 1, so the flow
    without error (40 steps of order 4, the last of order 1: 1e-3) has the standard deviation S/sqrt(Var z), and
    Var z -> 1/2 as beta -> 0.
    """
    model, beta = Exact(), 3.0
    objective = MinimumCurvature(weighting=plain, beta=beta)
    options = {"steps": 250, "batch_size": 512, "lr": 0.03, "ema": 0.95, "seed": 0, "progress": False}
    result = orn.fit(model, S * normal(20_000, 1), objective=objective, **options)
    a, b = optimum(beta)
    encoder = model.process.encoder
    assert encoder.a.item() == pytest.approx(a, abs=0.03)
    assert encoder.log_b.exp().item() == pytest.approx(b, abs=0.03)
    assert float(result.history["loss"][0]) == pytest.approx(S * math.pi / 2, abs=5 * S * math.pi / math.sqrt(512))
    assert set(result.averages["ema"]) == {"process.encoder.a", "process.encoder.log_b"}

    z = torch.ones(1, 1)
    curvature, four, fine, variance = [], {}, {}, []
    for beta in (math.inf, 10.0, 3.0, 1.0, 0.3):
        a, b = (0.0, 1.0) if math.isinf(beta) else optimum(beta)
        model = Exact(a, b)
        curvature.append(straightness_of(model, z))
        assert curvature[-1] < S * b * math.atan2(b, a * S)
        four[beta] = float(orn.sample(model, x_init=z, solver=orn.Euler(), grid=torch.linspace(1, 0, 5)).x)
        fine[beta] = float(orn.sample(model, x_init=z, solver=orn.RK4(variable="t"), grid=torch.linspace(1, 0, 41)).x)
        variance.append(a**2 * S**2 + b**2)
        assert fine[beta] == pytest.approx(S / math.sqrt(variance[-1]), abs=2e-3)
    assert curvature == sorted(curvature, reverse=True)
    assert abs(four[3.0] - S) < 0.6 * abs(four[math.inf] - S)  # 0.077 and 0.159
    assert fine[math.inf] == pytest.approx(S, abs=2e-3)  # the rival has no such error
    assert variance == sorted(variance, reverse=True)
    a, b = optimum(1e-6)
    assert a**2 * S**2 + b**2 == pytest.approx(0.5, abs=1e-3)


def test_value_and_gradient():
    """The objective is J, and its gradient that of J: the velocity is the best for the coupling, so what it would gain
    by following the coupling is 0 to first order. To 5 standard errors over 16 batches; J with half the KL, the KL of
    the inverse, or the noise's own part in the other order, is further away."""
    beta, a, b, n = 0.8, 0.7, 0.6, 10_000
    model, objective = Exact(a, b), MinimumCurvature(weighting=plain, beta=beta)
    rows = []
    for seed in range(16):
        loss = objective(model, S * normal(n, 1, seed=seed), seed=seed)
        grads = torch.autograd.grad(loss, list(model.process.encoder.parameters()))
        rows.append(torch.stack([loss.detach(), *grads]))
    rows = torch.stack(rows)
    mean, error = rows.mean(0), rows.std(0) / 4
    step = 1e-5
    truth = torch.tensor(
        [
            total(a, b, beta),
            (total(a + step, b, beta) - total(a - step, b, beta)) / (2 * step),
            (total(a, b * math.exp(step), beta) - total(a, b * math.exp(-step), beta)) / (2 * step),
        ]
    )
    assert bool(((mean - truth).abs() < 5 * error).all())
    assert bool((error < 0.02).all())


def test_a_new_encoder_is_the_independent_coupling():
    """A network answers 0 before training: the KL is 0, draws and losses are those of the base, to the bit."""
    encoder = orn.nets.MLP(2, width=16, depth=1, outputs=("main", "log_std"))
    net, x0 = orn.nets.MLP(2, width=16, depth=1), normal(32, 2)
    for base in (orn.Flow(), orn.VP()):
        process = LearnedCoupling(encoder, base)
        learned, fixed = (orn.Denoiser(net, p, "velocity") for p in (process, base))
        assert torch.equal(MinimumCurvature()(learned, x0, seed=1), Objective()(fixed, x0, seed=1))
        draw = process.corrupt(x0, 0.3, seed=2)
        assert torch.equal(draw.x, base.corrupt(x0, 0.3, seed=2).x)
        assert torch.equal(draw.kl, torch.zeros(32))
        z = process.prior((8, 2), seed=3, dtype=F64)
        assert torch.equal(z, base.prior((8, 2), seed=3, dtype=F64))
        torch.testing.assert_close(process.log_prior(z), base.log_prior(z))
        one, two = (orn.sample(m, x_init=z, steps=5).x for m in (learned, fixed))
        torch.testing.assert_close(one, two)
        assert process.corrupt(x0, 0.3, noise=x0).kl is None


def test_kl():
    """Entry by entry against torch.distributions, added over the event."""

    class Encoder(nn.Module):
        def forward(self, x, t):
            return {"main": 0.3 * x + 1, "log_std": x.sin()}

    x0 = normal(6, 3, 2)
    draw = LearnedCoupling(Encoder()).corrupt(x0, 0.4, seed=0)
    own = torch.distributions.Normal(0.3 * x0 + 1, x0.sin().exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(draw.kl, expected)
    # beta times its mean over the entries is what the objective adds
    model = orn.Denoiser(lambda x, t: 0 * x, LearnedCoupling(Encoder()), "velocity")
    one, three = (MinimumCurvature(beta=beta)(model, x0, seed=0) for beta in (1.0, 3.0))
    torch.testing.assert_close(three - one, 2 * expected.mean() / 6)


def test_the_encoder_is_part_of_the_model(tmp_path):
    """It is trained, averaged and resumed with the network; a run that is cut in two ends with the same weights."""

    def fresh():
        torch.manual_seed(0)
        encoder = orn.nets.MLP(2, width=8, depth=1, outputs=("main", "log_std"))
        return orn.Denoiser(orn.nets.MLP(2, width=8, depth=1), LearnedCoupling(encoder), "velocity")

    x, options = normal(64, 2), {"batch_size": 16, "schedule": "constant", "warmup": 2, "progress": False}
    options["objective"] = MinimumCurvature(beta=0.5)
    whole, cut = fresh(), fresh()
    orn.fit(whole, x, steps=8, **options)
    orn.fit(cut, x, steps=4, checkpoint=tmp_path / "run", **options)
    again = fresh()
    orn.fit(again, x, steps=8, checkpoint=tmp_path / "run", **options)
    moved = 0.0
    for (name, own), other, start in zip(
        whole.state_dict().items(), again.state_dict().values(), fresh().state_dict().values(), strict=True
    ):
        assert torch.equal(own, other), name
        moved += float((own - start).abs().sum()) if name.startswith("process.encoder") else 0.0
    assert moved > 0
    assert any(name.startswith("process.encoder") for name in EMA(whole).state_dict())


def test_what_is_refused():
    flow = orn.Denoiser(orn.nets.MLP(2, width=8, depth=1), orn.Flow(), "velocity")
    with pytest.raises(ValueError, match="LearnedCoupling"):
        MinimumCurvature()(flow, normal(4, 2), seed=0)
    for beta in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match=f"beta={beta}"):
            MinimumCurvature(beta=beta)
    with pytest.raises(ValueError, match=r"'main', 'log_std'.*Tensor"):
        LearnedCoupling(orn.nets.MLP(2, width=8, depth=1)).corrupt(normal(4, 2), 0.5)
    with pytest.raises(Exception, match=r"[Gg]aussian"):
        LearnedCoupling(Linear(0, 1), base=LearnedCoupling(Linear(0, 1)))
    process = LearnedCoupling(Linear(0.5, 0.5))
    with pytest.raises(orn.ViewError, match="score"):
        orn.Denoiser(orn.nets.MLP(1), process, "score")
    with pytest.raises(ValueError, match="draws noise"):
        orn.sample(Exact(), x_init=normal(2, 1), solver=orn.DDIM(eta=1.0), steps=3)
    assert process != LearnedCoupling(Linear(0.5, 0.5))
