"""Methods whose samples are populations: independent of the batch, in the user's units, and what they refuse."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import AFDPS, TDS, EnKG, Measurement, Population, restore
from ornstein.inverse.enkg import descent, kalman
from ornstein.solvers import ParticleFilter, particle_filter, resample
from worlds import F64, normal, ring

VP = orn.VP()
A = torch.tensor([[1.0, 0.5]], dtype=F64)
OPERATOR, WORLD = linops.Matrix(A), ring()
Y = torch.tensor([[0.7], [-1.5], [2.1]], dtype=F64)
OPTIONS: dict[str, Any] = {"noise": 0.5, "steps": 8, "seed": 5, "dtype": F64}
METHODS = (
    TDS(8, prior=1.45),
    TDS(8, twist="moments"),
    AFDPS(8, prior=1.45),
    AFDPS(8, pull=1.0),
    EnKG(8, corrections=3),
)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_populations_depend_on_nothing_else_in_the_batch(method: Any) -> None:
    """Not on other measurements, nor on how many samples are asked; two populations of one measurement differ."""
    whole = restore(WORLD.denoiser(VP), OPERATOR, Y, method=method, samples=5, **OPTIONS)
    first = restore(WORLD.denoiser(VP), OPERATOR, Y[:1], method=method, samples=16, **OPTIONS)
    assert whole.samples.shape == (3, 5, 2)
    torch.testing.assert_close(first.samples[:, :5], whole.samples[:1])
    assert float((first.samples[:, :8].mean(1) - first.samples[:, 8:].mean(1)).abs().max()) > 1e-3
    if isinstance(method, EnKG):
        assert whole.ess is None
    else:
        assert whole.ess is not None
        assert first.ess is not None
        assert whole.ess.shape == (3, 1)
        assert first.ess.shape == (1, 2)
        torch.testing.assert_close(first.ess[:, 0], whole.ess[0])
        assert 1 <= float(first.ess.min()) <= float(first.ess.max()) <= 8


@pytest.mark.parametrize("method", METHODS[:4], ids=repr)
def test_resampling_is_a_function_of_the_populations_own_seeds(method: Any) -> None:
    """The second population of two is the same alone, with its seeds."""
    y, seeds = Y[[0] * 8 + [2] * 8], list(range(16))

    def run(y: Tensor, seeds: list[int]) -> Any:
        measurement = Measurement(OPERATOR, y, linops.GaussianNoise(0.1))
        return method.run(WORLD.denoiser(VP), measurement, None, seed=seeds, steps=12, dtype=F64)

    whole, alone = run(y, seeds), run(y[8:], seeds[8:])
    assert float(whole.ess.max()) < 6
    torch.testing.assert_close(whole.x[8:], alone.x)
    torch.testing.assert_close(whole.ess[1:], alone.ess)
    torch.testing.assert_close(whole.log_evidence[1:], alone.log_evidence)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_units_are_the_users(method: Any) -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            answer: Tensor = WORLD.denoiser(VP)(x, t).x0
            return answer

    model = orn.Denoiser(Scaled(), VP, "x0", scaling=orn.Scaling(2.0, 3.0))
    y = 3 * Y + torch.full((2,), 2.0, dtype=F64) @ A.mT
    found = restore(model, OPERATOR, y, method=method, samples=8, **{**OPTIONS, "noise": 1.5})
    wanted = restore(WORLD.denoiser(VP), OPERATOR, Y, method=method, samples=8, **OPTIONS)
    torch.testing.assert_close(found.samples, 3 * wanted.samples + 2)


def test_other_processes_and_their_ends() -> None:
    """Flow has no data in its first state, EDM no end to its noise: a Gaussian's posterior mean within 4.5 deviations
    over sqrt(4 * 64/2), half of the particles being lost at worst, and the error 0.05 of 24 steps."""
    world = orn.exact.Gaussian(torch.tensor([0.3, -0.2], dtype=F64), std=0.8)
    posterior = world.posterior(Y[0], A, noise_std=0.5)
    mean, cov = posterior.moments()
    cond = {"mean": torch.tensor([[1.0, 0.0]], dtype=F64)}
    every = (TDS(64), TDS(64, twist="moments"), AFDPS(64, pull=1.0), EnKG(64))
    for process, given, methods in (
        (orn.Flow(), None, every),
        (orn.EDM(), None, every[2:]),
        (orn.MeanReverting(), cond, every[1:]),
    ):
        for method in methods:
            options = {**OPTIONS, "steps": 24, "cond": given}
            out = restore(world.denoiser(process), OPERATOR, Y[:1], method=method, samples=256, **options)
            slack = 4.5 * cov.diagonal().sqrt() / math.sqrt(128) + 0.05
            assert bool(((out.mean[0] - mean).abs() < slack).all()), (process, method, out.mean[0] - mean)


def test_evaluations_are_counted_with_their_gradients() -> None:
    for method, cost in ((TDS(8), 16), (TDS(8, twist="moments"), 16), (TDS(8, twist="point"), 16), (AFDPS(8), 8)):
        assert restore(WORLD.denoiser(VP), OPERATOR, Y, method=method, **OPTIONS).nfe == cost
    # the flow, and what was ahead at three corrections: 8 + 8 + 6 + 3
    assert restore(WORLD.denoiser(VP), OPERATOR, Y, method=EnKG(8, corrections=3), **OPTIONS).nfe == 25
    two = linops.Matrix(torch.eye(2, dtype=F64))
    y = torch.zeros(1, 2, dtype=F64)
    assert restore(WORLD.denoiser(VP), two, y, method=TDS(8, twist="moments"), **OPTIONS).nfe == 24


def test_no_measurement_gives_the_prior() -> None:
    """Weights are then equal, guidance nothing: the model's steps, resampled by nobody, in another order."""
    nothing = linops.Mask(torch.zeros(2, dtype=F64))
    measurement = Measurement(nothing, torch.zeros(16, *nothing.measured, dtype=F64), linops.GaussianNoise(0.5))
    model = WORLD.denoiser(VP)
    ancestral, second = orn.DDIM(eta=1.0), orn.SDEDPMSolverPP(2)
    for method, solver in (
        (TDS(16, order=1), ancestral),
        (TDS(16), second),
        (TDS(16, twist="moments"), second),
        (AFDPS(16), ancestral),
        (AFDPS(16, pull=1.0), ancestral),
    ):
        plain = orn.sample(model, (16, 2), solver=solver, steps=8, seed=5, dtype=F64).x
        out: Any = method.run(model, measurement, None, steps=8, seed=5, dtype=F64)
        assert isinstance(out, Population)
        assert out.ess is not None
        torch.testing.assert_close(out.ess, torch.full((1,), 16.0, dtype=F64))
        torch.testing.assert_close(out.x.sort(0).values, torch.as_tensor(plain).sort(0).values)
        assert not torch.allclose(out.x, plain)
    flow = EnKG(16, corrections=2).run(model, measurement, None, steps=8, seed=5, dtype=F64).x
    plain = orn.sample(model, (16, 2), solver=orn.DPMSolverPP(), steps=8, seed=5, dtype=F64).x
    torch.testing.assert_close(flow, plain, rtol=0, atol=0.2)  # but for where the multistep method begins anew


def test_the_filter_of_kalman() -> None:
    """The ensemble's mean and covariance after a correction are those of its own Gaussian given y to the power w; the
    published step is a combination of the deviations, of length `guidance`."""
    count, w = 12, 0.3
    x, clean, y = normal(count, 4, seed=1), normal(count, 3, seed=2), normal(1, 3, seed=3)
    joint = torch.cat([x, clean], 1)
    mean, cov = joint.mean(0), torch.cov(joint.mT)
    gain = cov[:, 4:] @ torch.linalg.inv(cov[4:, 4:] + torch.eye(3, dtype=F64) / w)
    wanted_mean, wanted = mean + gain @ (y[0] - mean[4:]), cov - gain @ cov[4:]
    found = mean + kalman(clean, y.expand(count, -1), w) @ (joint - mean)
    torch.testing.assert_close(found.mean(0), wanted_mean)
    torch.testing.assert_close(torch.cov(found.mT), wanted)
    step = descent(clean, y.expand(count, -1), 0.7) - torch.eye(count, dtype=F64)
    assert float(step.norm()) == pytest.approx(0.7)
    slopes = torch.stack([torch.stack([(a - y[0]) @ (b - clean.mean(0)) for b in clean]) for a in clean])
    torch.testing.assert_close(step, -0.7 * slopes / slopes.norm())


def test_every_group_may_have_a_seed_of_its_own() -> None:
    """Then what is drawn for it is the same alone; one seed for all is one stream."""
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=F64)
    streams = [torch.Generator().manual_seed(s) for s in (4, 5, 6)]
    whole = resample(weights, "multinomial", streams)
    alone = resample(weights[1:2], "multinomial", [torch.Generator().manual_seed(5)])
    assert torch.equal(whole[1:2], alone)
    world = orn.exact.Gaussian(torch.tensor([0.3], dtype=F64), std=0.8)
    rule = ParticleFilter(lambda moment: moment.x[:, 0], 4, seed=[1, 2])
    with pytest.raises(ValueError, match="2 seeds for 3 groups"):
        particle_filter(world.denoiser(VP), (12, 1), particles=rule, solver=orn.DDIM(eta=1.0), steps=3, seed=0)


def test_refusals() -> None:
    model = WORLD.denoiser(VP)
    blind = linops.BlackBox(lambda u: u[:, :1], (2,), (1,))
    cubic = linops.Function(lambda u: u[:, :1] ** 3, (2,), (1,))

    def refused(match: str, method: Any, *, operator: Any = OPERATOR, **options: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(match)):
            restore(model, operator, Y, method=method, **{**OPTIONS, **options})

    for method in (TDS(8), AFDPS(8)):
        refused("has no gradient", method, operator=blind)
        refused("choose DDNM() or DDRM()", method, noise=0.0)
    refused("choose DDNM() or DDRM()", EnKG(8, corrections=2), noise=0.0)
    refused("linear operators", TDS(8, twist="moments"), operator=cubic)
    refused("take pull=0.5", AFDPS(8, pull=1.0), operator=cubic)
    refused("as many steps or more, not 8", EnKG(8, corrections=9))
    refused("normal noise of one size", EnKG(8), noise=linops.PoissonNoise(10.0, offset=5.0))
    rounded = linops.QuantisationNoise(0.1)
    refused("give it a std > 0", TDS(8, twist="point"), noise=rounded)
    for match, make in (
        ("twist='best'", lambda: TDS(twist="best")),
        ("particles=1", lambda: TDS(1)),
        ("threshold=2", lambda: AFDPS(threshold=2.0)),
        ("resampling='best'", lambda: AFDPS(resampling="best")),
        ("prior=0", lambda: TDS(prior=0.0)),
        ("prior=-1", lambda: AFDPS(prior=-1.0)),
        ("pull=-1", lambda: AFDPS(pull=-1.0)),
        ("correction='best'", lambda: EnKG(correction="best")),
        ("particles=1", lambda: EnKG(1)),
        ("guidance=0", lambda: EnKG(guidance=0.0)),
    ):
        with pytest.raises(ValueError, match=re.escape(match)):
            make()
