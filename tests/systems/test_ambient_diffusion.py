"""Ambient diffusion: noisy data, each sample with its own level, teach the posterior mean of clean data nobody saw."""

import math

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.random import Share
from ornstein.training import Ambient, LogitNormal, LogNormalSigma, Objective, UniformLogSNR, UniformTime, UShapedTime
from ornstein.training.ambient import above
from worlds import F64, name, normal, ring

PROCESSES = [orn.EDM(sigma_max=5.0), orn.VP(), orn.Flow(), orn.SubVP(), orn.Cosine()]
LAWS = [UniformTime(), LogitNormal(0.5, 0.8), LogNormalSigma(0.0, 1.0), UniformLogSNR(-5.0, 6.0), UShapedTime(3.0)]


class Bent(orn.BaseDenoiser):
    """The exact denoiser of a world plus theta times fixed functions of x_t: at the minimiser no theta helps."""

    def __init__(self, world, process, predicts):
        super().__init__()
        self.oracle, self.process, self.predicts = world.denoiser(process, predicts), process, predicts
        self.theta = nn.Parameter(torch.zeros(4, dtype=F64))

    def bind(self, levels, x, cond):
        assert cond is None  # the noise level is not for the network
        features = torch.stack([torch.ones_like(x), x, torch.tanh(2 * x), x.flip(1)])
        return [
            lambda x, call=call: call(x) + torch.einsum("k,k...", self.theta, features)
            for call in self.oracle.bind(levels, x, None)
        ]


def slope(world, process, objective, y, std, predicts="x0", batches=30, part=1500):
    """The gradient of the loss with respect to theta at the exact posterior mean, in standard errors; the largest."""
    model = Bent(world, process, predicts)
    rows = []
    for b in range(batches):
        rows_of = slice(b * part, (b + 1) * part)
        cond = {"noise_std": std[rows_of]} if isinstance(objective, Ambient) else None
        loss = objective(model, y[rows_of], cond, seed=b)
        rows.append(torch.autograd.grad(loss, model.theta)[0])
    rows = torch.stack(rows)
    return float((rows.mean(0).abs() / (rows.std(0) / math.sqrt(batches))).max())


@pytest.mark.system("ambient-diffusion", rival="taking noisy data for clean")
def test_ambient_diffusion():
    """The exact posterior mean of the clean data is the minimiser: the gradient there, in four directions, is within 5
    of its standard errors (30 batches: Student, 2 in 10^5 for one), for processes with alpha of their own, any view,
    and levels of noise that differ from sample to sample, a tenth of them clean. The rival's gradient is far outside.

    And the rival's bias is the one computed: taken for clean, data of variance v with noise s teach for Gaussian data
    D = alpha (v + s^2) x/(alpha^2 (v + s^2) + sigma^2), where alpha v x/(alpha^2 v + sigma^2) is right.
    """
    world, n = ring(0.3), 45_000
    x0 = world.sample(n, seed=0).to(F64)
    std = torch.tensor([0.0, *[0.4] * 6, *[0.8] * 3], dtype=F64).repeat(n // 10)
    y = x0 + std[:, None] * normal(n, 2, seed=1)
    for process, predicts in ((orn.EDM(sigma_max=5.0), "x0"), (orn.VP(), "v"), (orn.Flow(), "velocity")):
        assert slope(world, process, Ambient(), y, std, predicts) < 5, (process, predicts)
    assert slope(world, orn.VP(), Objective(), y, std, "v") > 15

    process, v, s = orn.VP(), 0.6, 0.7
    g = math.sqrt(v) * normal(n, 1, seed=2)
    noisy, given = g + s * normal(n, 1, seed=3), torch.full((n,), s, dtype=F64)
    t = torch.full((n,), 0.6, dtype=F64)
    level = process.level(0.6)
    a, b = float(level.alpha), float(level.sigma)
    model, whole = orn.exact.Gaussian(torch.zeros(1), std=1.0).denoiser(process), Share(0, n, n)
    for objective, cond, variance in ((Ambient(), {"noise_std": given}, v), (Objective(), None, v + s**2)):
        drawn, _ = objective.draw(model, noisy, t, cond, 7, whole)
        learned = float((drawn.x * drawn.x0).mean() / drawn.x.square().mean())  # the linear answer of least squares
        exact = a * variance / (a**2 * variance + b**2)
        # the error of a regression: residual / sqrt(n) / std of x_t, five times
        residual = float((drawn.x0 - exact * drawn.x).std() / drawn.x.std()) / math.sqrt(n)
        assert abs(learned - exact) < 5 * residual
        assert residual < 0.01  # so that the two answers, 0.17 apart, are told from each other


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_a_draw_has_the_law_of_the_process(process):
    """x_t has the law of clean data, the pair makes it; the loss is that of (1 - rho) D + rho x_t/alpha."""
    n, v, s = 40_000, 0.49, 0.5
    y = 0.7 * normal(n, 1) + s * normal(n, 1, seed=1)
    model = orn.exact.Gaussian(torch.zeros(1), std=0.7).denoiser(process)
    std = torch.full((n,), s, dtype=F64)
    t = above(UniformTime(), torch.full((n,), 0.4, dtype=F64), std, process)
    drawn, cond = Ambient().draw(model, y, t, {"noise_std": std, "label": t}, 3, Share(0, n, n))
    assert set(cond) == {"label"}
    level = process.level(t)
    a, b = float(level.alpha[0]), float(level.sigma[0])
    assert float(drawn.x.var()) == pytest.approx(a**2 * v + b**2, rel=5 * math.sqrt(2 / n))
    torch.testing.assert_close(a * drawn.x0 + b * drawn.noise, drawn.x, rtol=1e-9, atol=1e-9)
    rho = (a * s / b) ** 2
    answer = model(drawn.x, level)
    published = ((1 - rho) * answer.x0 + rho * drawn.x / a - y).square().squeeze(1)
    ours = Ambient(weighting=lambda level, view, process: torch.ones_like(level.t)).compare(model, answer, drawn, None)
    torch.testing.assert_close(ours, published, rtol=1e-7, atol=1e-9)


def test_clean_samples_are_trained_as_ever():
    """s = 0 is `Objective` bit for bit, in a batch of noisy ones too."""
    model = ring().denoiser(orn.VP(), "v")
    x, std = normal(12, 2), torch.tensor([0.0, 0.5, 1.0] * 4, dtype=F64)
    plain, t = Objective().losses(model, x, seed=3)
    loss, times = Ambient().losses(model, x, {"noise_std": std}, seed=3)
    clean = std == 0
    assert torch.equal(loss[clean], plain[clean])
    assert torch.equal(times[clean], t[clean])
    ratio = (orn.VP().level(times).sigma / orn.VP().level(times).alpha)[~clean]
    assert bool((ratio > std[~clean]).all())
    # rows of a larger batch are those of that batch
    part, own = Ambient().losses(model, x[4:9], {"noise_std": std[4:9]}, seed=3, share=Share(4, 9, 12))
    assert torch.equal(part, loss[4:9])
    assert torch.equal(own, times[4:9])


@pytest.mark.parametrize("law", LAWS, ids=name)
def test_times_above_the_data(law):
    """The restricted law: among its draws the share below any t is (F(t) - F(t_n))/(1 - F(t_n)), and `mass` is the
    inverse of `quantile` in closed form as by bisection."""
    process, n = orn.VP(), 4000
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    plain = law.quantile(u, process)
    torch.testing.assert_close(law.mass(plain, process), u, rtol=0, atol=1e-9)
    torch.testing.assert_close(super(type(law), law).mass(plain, process), u, rtol=0, atol=1e-9)
    least = process.time(torch.tensor(-2 * math.log(0.6), dtype=F64))
    t = above(law, plain, torch.full((n,), 0.6, dtype=F64), process)
    assert float(t.min()) >= float(least)
    for q in (0.2, 0.5, 0.9):
        point = least + q * (plain.max() - least)
        f, fn = law.mass(point, process), law.mass(least, process)
        assert float((t <= point).double().mean()) == pytest.approx(float((f - fn) / (1 - fn)), abs=2 / n)


def test_sampling_without_clean_data():
    """`LogSNR(end=-2 log s)` asks the model nothing below s. Its last step gives E[x0 | x_t], whose spread is that of
    the posterior means; without it the samples are alpha times data as noisy as those seen."""
    process, v, s, n = orn.VP(), 0.5, 0.6, 4000
    oracle = orn.exact.Gaussian(torch.zeros(2), std=math.sqrt(v)).denoiser(process)
    end = -2 * math.log(s)
    for to_data, variance in ((True, v**2 / (v + s**2)), (False, v + s**2)):
        grid = orn.LogSNR(end=end, to_data=to_data)
        out = orn.sample(oracle, (n, 2), grid=grid, steps=40, seed=1, dtype=F64)
        alpha = 1.0 if to_data else float(process.level(process.time(torch.tensor(end, dtype=F64))).alpha)
        assert float((out.x / alpha).var()) == pytest.approx(variance, rel=5 * math.sqrt(1 / n))


def test_units_and_refusals():
    """The noise is given in the user's units; what cannot be right is refused."""
    model = orn.Denoiser(orn.nets.MLP(1, width=8), orn.VP(), scaling=orn.Scaling(3.0, 2.0))
    y, std = torch.zeros(4, 1), torch.full((4,), 0.5)
    t = torch.full((4,), 0.9, dtype=F64)
    drawn, _ = Ambient().draw(model, y, t, {"noise_std": std}, 0, Share(0, 4, 4))
    snr = float(orn.VP().level(0.9).log_snr.exp())
    assert float(drawn.rest[0]) == pytest.approx(1 - snr * 0.25**2, rel=1e-12)
    with pytest.raises(ValueError, match="penalty"):
        Ambient(penalty=lambda e: e.abs().mean(1))
    with pytest.raises(ValueError, match="noise_std"):
        Ambient()(model, y, seed=0)
    with pytest.raises(ValueError, match="one number a sample"):
        Ambient()(model, y, {"noise_std": torch.zeros(4, 1)}, seed=0)
    for wrong in (-0.1, 1e6):
        with pytest.raises(ValueError, match="lies in"):
            Ambient()(model, y, {"noise_std": torch.full((4,), wrong)}, seed=0)
    with pytest.raises(ValueError, match="one std"):
        Ambient()(
            orn.Denoiser(orn.nets.MLP(2, width=8), orn.VP(), scaling=orn.Scaling(0.0, torch.ones(2))),
            torch.zeros(4, 2),
            {"noise_std": std},
            seed=0,
        )
    with pytest.raises(ValueError, match="no time above"):
        Ambient(time=UniformLogSNR(2.0, 5.0))(model, y, {"noise_std": torch.full((4,), 4.0)}, seed=0)
