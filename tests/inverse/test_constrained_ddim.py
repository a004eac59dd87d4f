"""CDIM: the law of its residual, its moves, its evaluations, what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import linops
from ornstein.inverse import CDIM, Measurement, restore
from ornstein.inverse.cdim import Constrained, _Traces
from ornstein.inverse.repeated import Repeated
from worlds import F64, normal

VP, STD = orn.VP(), 0.4
A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, -1.0]], dtype=F64)


def gaussian() -> orn.exact.Gaussian:
    basis = torch.linalg.qr(normal(3, 3, seed=5)).Q
    return orn.exact.Gaussian(
        0.5 * normal(3, seed=6), cov=basis @ torch.diag(torch.tensor([0.2, 1, 4], dtype=F64)) @ basis.mT
    )


def solver(y: Tensor, a: Tensor = A, std: float = STD, **options: Any) -> Constrained:
    found = CDIM(**options).solver(Measurement(linops.Matrix(a), y, linops.GaussianNoise(std)))
    assert isinstance(found, Constrained)
    return found


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_the_bound_is_the_mean_and_the_deviation_of_the_residual(scale: float) -> None:
    """Against 400,000 draws of e and z, with an operator that sees 2 of the 3 numbers of y: mean within five standard
    errors, deviation within 0.5 % (theirs is 0.2 %, and |A x0|^2 is taken from y). Of a large and a small x0: what the
    mean of x_s does to the deviation, and what the noise does."""
    a = torch.cat([A, A.sum(0, keepdim=True)])
    x0, level, n = scale * torch.tensor([20.0, -30.0, 25.0], dtype=F64), VP.level(0.3), 400_000
    assert int(torch.linalg.matrix_rank(a)) == 2
    e, z = STD * normal(n, 3, seed=1), normal(n, 3, seed=2)
    seen = a @ torch.linalg.pinv(a)
    y = x0 @ a.mT + e
    miss = ((y @ seen - (level.alpha * x0 + level.sigma * z) @ a.mT) ** 2).sum(1)
    own = [solver(y[:100_000], a, excess=excess) for excess in (0.0, 1.0)]
    mean, above = (s.bound(level) for s in own)
    assert abs(float(mean.mean() - miss.mean())) < 5 * float(miss.std()) / math.sqrt(n) + 5 * float(mean.std()) / 300
    assert float((above - mean).mean()) == pytest.approx(float(miss.std()), rel=0.005)


def test_a_move_ends_at_the_bound_or_as_near_as_the_direction_leads() -> None:
    y, x, along = normal(50, 2, seed=1), 3 * normal(50, 3, seed=2), normal(50, 3, seed=3)
    own = solver(y)
    miss = (y - x @ A.mT).square().sum(1)
    for share in (2.0, 0.9, 0.0):
        bound = share * miss
        moved = own.move(bound, x, along)
        after = (y - moved @ A.mT).square().sum(1)
        step = ((moved - x) * along).sum(1) / along.square().sum(1)
        slope = ((y - x @ A.mT) * (along @ A.mT)).sum(1)
        best = slope / (along @ A.mT).square().sum(1)
        if share > 1:
            assert torch.equal(moved, x)
        reached = torch.isclose(after, bound, rtol=1e-9)
        assert bool((step[slope <= 0] == 0).all())
        assert bool(
            torch.where(reached, step <= best * (1 + 1e-9), torch.isclose(step, best.clamp_min(0))).all() or share > 1
        )
        if share == 0.9:
            assert 10 < int(reached.sum()) < 50


def test_an_exact_measurement_is_met_whatever_the_operator() -> None:
    world = orn.exact.GaussianMixture(normal(4, 1, 8, 8, seed=1), 0.3)
    for operator in (
        linops.Blur.gaussian(0.8, (1, 8, 8)),
        linops.Downsample(2, (1, 8, 8)),
        linops.Mask(normal(8, 8, seed=2) > 0, event=(1, 8, 8)),
    ):
        y = operator(world.sample(3, seed=3).to(F64))
        out = restore(world.denoiser(VP), operator, y, method=CDIM(), steps=8, seed=1, dtype=F64)
        assert float(out.residual.max()) < 1e-9


def test_noise_on_what_is_not_measured_is_left_alone() -> None:
    """A mask's y may hold noise where nothing is seen: only the 32 seen numbers count, and each sample stays within
    their bound, (32 + 0.2 sqrt(64)) std^2."""
    world, seen = orn.exact.GaussianMixture(normal(4, 64, seed=1), 0.3), torch.arange(64) % 2 == 0
    operator = linops.Mask(seen)
    y = operator(world.sample(20, seed=3).to(F64)) + 0.1 * normal(20, 64, seed=4)
    out = restore(world.denoiser(VP), operator, y, method=CDIM(), noise=0.1, steps=25, seed=1, dtype=F64)
    miss = ((y - out.samples[:, 0])[:, seen] / 0.1).square().sum(1)
    assert float(miss.max()) < (32 + 0.2 * 8) * (1 + 1e-9)
    assert float(miss.mean()) > 32 - 5 * math.sqrt(64 / 20)


def test_within_its_bound_it_is_ddim() -> None:
    world, start = gaussian(), VP.prior((4, 3), seed=0, dtype=F64)
    measurement = Measurement(linops.Matrix(A), normal(4, 2), linops.GaussianNoise(STD))
    method, plain = CDIM(2, excess=1e9), world.denoiser(VP)
    options: dict[str, Any] = {"x_init": start, "grid": orn.LogSNR(), "steps": 8}
    found = orn.sample(method.denoiser(plain, measurement), solver=method.solver(measurement), **options).x
    torch.testing.assert_close(found, orn.sample(plain, solver=orn.DDIM(), **options).x)


class Bare(linops.LinearOperator):
    """One without a known SVD, too large for that of its matrix."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x[:, ::2]


def test_traces_by_probes() -> None:
    """|A z|^2 = 4 chi^2 of 600: the mean of 32 has deviation 4 sqrt(1200/32) = 24.5 about 2400; |A^T A z|^2 four times
    those."""
    traces = _Traces.of(Bare((1200,), (600,)))
    assert float(traces.rank) == 600
    assert abs(float(traces.square) - 2400) < 5 * 24.5
    assert abs(float(traces.fourth) - 9600) < 20 * 24.5
    exact = _Traces.of(linops.Matrix(A))
    gram = A @ A.mT
    assert [float(part) for part in exact] == pytest.approx([2, float(gram.trace()), float((gram @ gram).trace())])


def test_a_gradient_only_where_the_level_is_asked_again() -> None:
    world = gaussian()
    measurement = Measurement(linops.Matrix(A), normal(2, 2), linops.GaussianNoise(STD))
    model = Repeated(world.denoiser(VP), measurement, lambda x0, level: x0, 2)
    assert model.cost(VP.level([0.3] * 6)) == [2, 2, 1, 2, 2, 1]
    levels = VP.level([0.5, 0.3, 0.3, 0.3, 0.1])
    assert model.cost(levels) == [1, 2, 2, 1, 1]
    x = normal(2, 3, seed=1)
    calls = model.bind(levels, x, None)
    assert ["pull" in call(x) if isinstance(call(x), dict) else False for call in calls] == [0, 1, 1, 0, 0]
    plain = restore(world.denoiser(VP), linops.Matrix(A), normal(2, 2), method=CDIM(3), noise=STD, nfe=100, seed=0)
    assert plain.nfe == 100 - (100 - 1) % 7 + 0  # 1 for the first step, 1 + 2 * 3 for each other


class Scaled(nn.Module):
    """The exact x0 of the world in units (x - 2)/3, from the world's own units."""

    def __init__(self, world: Any) -> None:
        super().__init__()
        self.inner = world.denoiser(VP)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        answer: Tensor = self.inner(x, t).x0
        return answer


def test_units_and_batches() -> None:
    own = gaussian()
    y_own = own.sample(3, seed=3).to(F64) @ A.mT + STD * normal(3, 2, seed=4)
    model = orn.Denoiser(Scaled(own), VP, "x0", scaling=orn.Scaling(2.0, 3.0))
    y = 3 * y_own + torch.full((3,), 2.0, dtype=F64) @ A.mT
    options: dict[str, Any] = {"method": CDIM(2), "steps": 6, "seed": 5, "dtype": F64}
    found = restore(model, linops.Matrix(A), y, noise=3 * STD, samples=2, **options)
    wanted = restore(own.denoiser(VP), linops.Matrix(A), y_own, noise=STD, samples=2, **options)
    torch.testing.assert_close(found.samples, 3 * wanted.samples + 2)
    alone = restore(own.denoiser(VP), linops.Matrix(A), y_own[:1], noise=STD, samples=4, **options)
    torch.testing.assert_close(alone.samples[:, :2], wanted.samples[:1])
    each = linops.Matrix(torch.stack([A, 2 * A, A.flip(0)]))
    several = restore(own.denoiser(VP), each, y_own, noise=STD, **options)
    for i in range(3):
        part = each.rows(torch.tensor([i]))
        single = restore(own.denoiser(VP), part, y_own[i : i + 1], noise=STD, **{**options, "seed": 5})
        if i == 0:
            torch.testing.assert_close(several.samples[:1], single.samples)
        assert float(single.residual.max()) < 1.2 * STD * math.sqrt(1 + 0.2)


@pytest.mark.parametrize("process", [orn.EDM(), orn.Flow(), orn.processes.MeanReverting()], ids=repr)
def test_other_processes(process: Any) -> None:
    world = gaussian()
    x = world.sample(4, seed=3).to(F64)
    y, cond = x @ A.mT, None
    if "MeanReverting" in repr(process):
        cond = {"mean": normal(4, 3, seed=8)}
    out = restore(world.denoiser(process), linops.Matrix(A), y, method=CDIM(), steps=10, seed=1, dtype=F64, cond=cond)
    assert float(out.residual.max()) < 1e-9
    assert float((out.samples[:, 0] - x).abs().max()) < 20


def test_refusals() -> None:
    world, y = gaussian(), normal(1, 2)
    for options, match in (
        ({"projections": 0}, "projections=0"),
        ({"excess": -1.0}, "excess=-1"),
        ({"excess": math.nan}, "nan"),
    ):
        with pytest.raises(ValueError, match=match):
            CDIM(**options)
    cubic = linops.Function(lambda u: u**3, (3,), (3,))
    with pytest.raises(ValueError, match="linear operators"):
        restore(world.denoiser(VP), cubic, normal(1, 3), method=CDIM(), steps=2)
    counts = linops.PoissonNoise(10.0, offset=10.0)
    with pytest.raises(ValueError, match="normal noise of one size"):
        restore(world.denoiser(VP), linops.Matrix(A), (y * 10).round() / 10, noise=counts, method=CDIM(), steps=2)
