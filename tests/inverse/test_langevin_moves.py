"""Moves in the posterior itself: they end at its law from anywhere within a mode, in known time and with known bias."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import DPS, MMPS, TDS, Langevin, Measurement, Method, restore
from worlds import F64, ring

VP = orn.VP()
LINE = linops.Matrix(torch.tensor([[1.0, 0.5]], dtype=F64))
WORLD = orn.exact.Gaussian(torch.tensor([0.5, -0.3]), cov=torch.tensor([[1.0, 0.7], [0.7, 0.8]]))
Y, STD = torch.tensor([[1.2]], dtype=F64), 0.3


@dataclass(frozen=True)
class Given(Method):
    """Samples that are there."""

    draw: Callable[[int], Tensor]

    def solver(self, measurement: Measurement) -> orn.Solver:
        return orn.Euler()

    def run(self, model: Any, measurement: Measurement, cond: Any, **options: Any) -> orn.Samples:
        return orn.Samples(self.draw(len(measurement)), 7, options["seed"], None)


def far(n: int) -> Tensor:
    """All at one place, some deviations from the posterior's mean."""
    return torch.tensor([[-1.0, 2.0]], dtype=F64).repeat(n, 1)


def errors(x: Tensor, mean: Tensor, cov: Tensor) -> tuple[float, float]:
    """Of mean and covariance of n samples, in standard errors of whitened coordinates: the largest of each."""
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (x - mean).mT, upper=False)
    n, d = x.shape
    off = (white @ white.mT / n - torch.eye(d, dtype=F64)).abs() * math.sqrt(n)
    off = torch.where(torch.eye(d, dtype=torch.bool), off / math.sqrt(2), off)
    return float(white.mean(1).abs().max() * math.sqrt(n)), float(off.max())


@pytest.mark.parametrize("step", [0.5, 1.9])
def test_a_normal_posterior_from_anywhere_whatever_the_step(step: float) -> None:
    """2,000 samples from one place: after 3 width/h moves and more, means and covariances are the posterior's within
    4.5 standard errors of theirs. At log-SNR 7 the bias, sigma^2/(2 w) of the pull, is far below them. Explicit steps
    of the same dynamics would have the variance 1/(1 - step^2/4) = 10 times too large in the sharpest direction."""
    posterior = WORLD.posterior(Y[0], LINE.matrix(), noise_std=STD)
    mean, cov = posterior.moments()
    length = step / math.sqrt(math.exp(7) + 1.25 / STD**2)
    moves = math.ceil(5 * 0.6 / length)
    method = Langevin(Given(far), moves=moves, width=0.6, log_snr=7.0, step=step)
    out = restore(WORLD.denoiser(VP), LINE, Y, method=method, noise=STD, samples=2_000, seed=0, dtype=F64)
    assert out.nfe == 7 + moves + 1
    assert max(errors(out.samples[0], mean, cov)) < 4.5
    few = Langevin(Given(far), moves=moves // 20, width=0.6, log_snr=7.0, step=step)
    early = restore(WORLD.denoiser(VP), LINE, Y, method=few, noise=STD, samples=2_000, seed=0, dtype=F64)
    assert min(errors(early.samples[0], mean, cov)) > 20


@pytest.mark.parametrize("process", [orn.VP(), orn.EDM(), orn.Flow()], ids=repr)
def test_the_bias_of_the_level_is_what_is_said(process: orn.GaussianProcess) -> None:
    """One coordinate N(0, w), y = 1.5 x0 + noise, at log-SNR 2, where the bias is large. The force is linear, so x
    rests at N(m, s) with 1/s = 1/(alpha^2 w + sigma^2) + 1.5^2 c/(alpha std^2), m/s = 1.5 y/(alpha std^2), f = c x and
    c = (1/alpha + k)/2, k = alpha w/(alpha^2 w + sigma^2). The found mean and variance of f are those within 4.5
    standard errors, and not the posterior's; the share by which 1/alpha exceeds c tends to sigma^2/(2 alpha^2 w)."""
    w, std, y, n = 0.3, 0.4, 0.9, 12_000
    world, operator = (
        orn.exact.Gaussian(torch.zeros(1), std=math.sqrt(w)),
        linops.Matrix(torch.tensor([[1.5]]).double()),
    )

    def rest(log_snr: float) -> tuple[float, float, float]:
        level = process.level(process.time(torch.tensor(log_snr, dtype=F64)))
        a, s2 = float(level.alpha), float(level.sigma) ** 2
        c = (1 / a + a * w / (a * a * w + s2)) / 2
        precision = 1 / (a * a * w + s2) + 1.5**2 * c / (a * std**2)
        return c * 1.5 * y / (a * std**2) / precision, c * c / precision, (1 - a * c) * 2 * a * a * w / s2

    exact = 1 / (1 / w + 1.5**2 / std**2)
    mean, variance, share = rest(2.0)
    method = Langevin(Given(lambda n: torch.zeros(n, 1, dtype=F64)), moves=60, width=0.3, log_snr=2.0)
    out = restore(
        world.denoiser(process), operator, torch.tensor([[y]]).double(), method=method, noise=std, samples=n, seed=0
    )
    x = out.samples[0, :, 0].to(F64)
    assert abs(float(x.mean()) - mean) < 4.5 * math.sqrt(variance / n)
    assert abs(float(x.var()) / variance - 1) < 4.5 * math.sqrt(2 / n)
    assert abs(variance / exact - 1) > 9 * math.sqrt(2 / n)
    assert rest(9.0)[1] == pytest.approx(exact, rel=2e-3)
    assert rest(9.0)[2] == pytest.approx(1, rel=2e-3)
    assert share < 0.9


@pytest.mark.parametrize("moves", [1, 4])
def test_every_move_is_the_one_that_is_written(moves: int) -> None:
    """One coordinate from far away, 40 deviations: the mean follows the five parts of a move, which are linear here,
    within 4.5 standard errors of a variance that never exceeds the one at rest plus that of the noised start."""
    w, std, y, n, width, step = 0.3, 0.4, 0.9, 2_000, 0.2, 0.5
    world = orn.exact.Gaussian(torch.zeros(1), std=math.sqrt(w))
    operator = linops.Matrix(torch.tensor([[1.5]], dtype=F64))
    process = orn.Flow()
    level = process.level(process.time(torch.tensor(3.0, dtype=F64)))
    a, s2 = float(level.alpha), float(level.sigma) ** 2
    c = (1 / a + a * w / (a * a * w + s2)) / 2
    h = step / math.sqrt(1 / s2 + 1.5**2 / std**2 / a**2)
    left = math.exp(-2 * h / width)

    def force(x: float) -> float:
        return -x / (a * a * w + s2) + 1.5 * (y - 1.5 * c * x) / (a * std**2)

    x, v = 20.0 * a, 0.0
    for _ in range(moves):
        v += h / 2 * force(x)
        x += h / 2 * v
        v *= left
        x += h / 2 * v
        v += h / 2 * force(x)
    method = Langevin(Given(lambda n: torch.full((n, 1), 20.0, dtype=F64)), moves, width, 3.0, step)
    asked = {"method": method, "noise": std, "samples": n, "seed": 0, "dtype": F64}
    out = restore(world.denoiser(process), operator, torch.tensor([[y]], dtype=F64), **asked)
    assert float(out.samples.mean()) == pytest.approx(c * x, abs=4.5 * math.sqrt((w + s2) / n))
    assert abs(x / a - 20) > 0.5


def test_any_operator_by_quadrature() -> None:
    """y = x_1 + x_2^2 + noise of N(0, I): a crescent. Six moments of 4,000 samples are those of the grid within 4.5
    standard errors, which at step 0.3 exceed the moves' own error; samples of the prior, where they began, are not."""
    world = orn.exact.Gaussian(torch.zeros(2), std=1.0)
    operator = linops.Function(lambda x: x[:, :1] + x[:, 1:] ** 2, (2,), (1,))
    axis = torch.linspace(-5, 5, 801, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    y, noise = torch.tensor([[1.0]], dtype=F64), linops.GaussianNoise(0.5)
    p = (world.log_prob(grid) + noise.log_prob(y.expand(len(grid), 1), operator(grid))).softmax(0)

    def told(x: Tensor) -> Tensor:
        a, b = x.unbind(1)
        return torch.stack([a, b, a * a, a * b, b * b, a * b * b], 1)

    truth = p @ told(grid)
    spread = (p @ told(grid) ** 2 - truth**2).sqrt()
    begin = Given(lambda n: world.sample(n, seed=3).to(F64))
    method = Langevin(begin, moves=250, width=1.0, log_snr=5.0, step=0.3)
    out = restore(world.denoiser(VP), operator, y, method=method, noise=noise, samples=4_000, seed=1, dtype=F64)
    off = (told(out.samples[0]).mean(0) - truth).abs() / spread * math.sqrt(4_000)
    assert float(off.max()) < 4.5
    assert float(((told(begin.draw(4_000)).mean(0) - truth).abs() / spread * math.sqrt(4_000)).max()) > 20


def test_it_mends_guidance() -> None:
    """DPS leaves a fraction of the posterior's variance in what is measured; moved, its samples have all of it."""
    posterior = WORLD.posterior(Y[0], LINE.matrix(), noise_std=STD)
    mean, cov = posterior.moments()
    options: dict[str, Any] = {"noise": STD, "samples": 1_000, "seed": 2, "dtype": F64}
    plain = restore(WORLD.denoiser(VP), LINE, Y, method=DPS(), steps=50, **options)
    assert errors(plain.samples[0], mean, cov)[1] > 9
    method = Langevin(DPS(), moves=200, width=0.6, log_snr=7.0)
    moved = restore(WORLD.denoiser(VP), LINE, Y, method=method, nfe=300, **options)
    assert moved.nfe == 299  # two evaluations a step of DPS do not fill 99
    assert max(errors(moved.samples[0], mean, cov)) < 4.5


def test_modes_keep_their_shares_and_populations_their_figures() -> None:
    """Between far modes nothing moves; within them the spread becomes the posterior's."""
    world = ring()
    means = world.means.reshape(6, 2)
    nothing = linops.Matrix(torch.tensor([[1.0, 0.0]], dtype=F64))

    def two(n: int) -> Tensor:
        return torch.cat([means[:1].repeat(n // 4, 1), means[3:4].repeat(n - n // 4, 1)])

    method = Langevin(Given(two), moves=120, width=0.15, log_snr=8.0)
    y = torch.zeros(1, 1, dtype=F64)
    out = restore(world.denoiser(VP), nothing, y, method=method, noise=50.0, samples=2_000, seed=0, dtype=F64)
    near = torch.cdist(out.samples[0], means).argmin(1)
    assert torch.equal(near, torch.tensor([0, 3]).repeat_interleave(torch.tensor([500, 1_500])))
    within = out.samples[0] - means[near]
    assert max(errors(within, torch.zeros(2, dtype=F64), 0.15**2 * torch.eye(2, dtype=F64))) < 4.5
    particles = restore(
        world.denoiser(VP), nothing, y, method=Langevin(TDS(8), moves=2), noise=1.0, samples=9, steps=4, seed=0
    )
    plain = restore(world.denoiser(VP), nothing, y, method=TDS(8), noise=1.0, samples=9, steps=4, seed=0)
    assert particles.samples.shape == (1, 9, 2)
    assert particles.ess is not None
    assert plain.ess is not None
    assert torch.equal(particles.ess, plain.ess)


def test_samples_are_their_own_in_any_units() -> None:
    """A sample is a function of the seed, its row and its number; twice the units is twice the samples."""
    model, y = WORLD.denoiser(VP), torch.cat([Y, -Y])
    method = Langevin(DPS(), moves=5, width=0.6)
    options: dict[str, Any] = {"method": method, "noise": STD, "steps": 4, "seed": 3, "dtype": F64}
    both = restore(model, LINE, y, samples=3, **options)
    torch.testing.assert_close(both.samples[:1, :2], restore(model, LINE, Y, samples=2, **options).samples)
    net = orn.Denoiser(lambda x, t: model(x, t).x0, VP, "x0", scaling=orn.Scaling(0.0, 2.0)).double()
    wide = restore(net, LINE, 2 * y, samples=3, **{**options, "noise": 2 * STD})
    torch.testing.assert_close(wide.samples, 2 * both.samples)


def test_no_closer_to_data_than_the_network_was_trained() -> None:
    """The level is that of timestep 0 where a closer one is asked."""
    betas = torch.linspace(1e-4, 0.02, 1_000, dtype=F64)
    process = orn.DiscreteTime((1 - betas).cumprod(0))
    asked: list[float] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t.max()))
        return x

    model = orn.Denoiser(net, process, "x0")
    measurement = Measurement(LINE, Y, linops.GaussianNoise(STD))
    method = Langevin(Given(far), moves=3, log_snr=60.0)
    method.run(model, measurement, None, seed=0, dtype=F64)
    assert asked == [float(process.finest)] * 4
    assert process.finest > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"begin": Langevin()}, "a method that goes from noise to data"),
        ({"moves": 0}, "moves=0: at least one"),
        ({"width": 0.0}, "width=0.0: positive"),
        ({"width": math.inf}, "width=inf: positive and finite"),
        ({"step": 2.0}, "step=2.0: between 0 and 2"),
        ({"log_snr": math.nan}, "log_snr=nan: of a level near data"),
    ],
)
def test_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Langevin(**options)


def test_measurements_are_refused_before_anything_runs() -> None:
    def never(n: int) -> Tensor:
        raise AssertionError("it ran")

    model, method = WORLD.denoiser(VP), Langevin(Given(never), moves=5)
    with pytest.raises(ValueError, match=r"weighs samples by p\(y \| x0\): give the noise of y"):
        restore(model, LINE, Y, method=method)
    blind = linops.BlackBox(lambda u: u[:, :1], (2,), (1,))
    with pytest.raises(ValueError, match="has no gradient, which"):
        restore(model, blind, Y, method=method, noise=0.1)
    bent = Measurement(linops.Function(lambda u: u[:, :1] ** 2, (2,), (1,)), Y, linops.GaussianNoise(0.1))
    with pytest.raises(ValueError, match=r"MMPS\(.*is for linear operators"):
        Langevin(MMPS()).check(model, bent)
    with pytest.raises(ValueError, match="nfe=5: the moves take 6, which leaves"):
        restore(model, LINE, Y, method=method, noise=0.1, nfe=5)
