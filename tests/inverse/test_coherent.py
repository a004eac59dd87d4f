"""CoPaint: its gradient steps, its travel in time, its evaluations, what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import CoPaint, Measurement, restore
from worlds import F64, normal, ring

VP = orn.VP()
SEEN = linops.Mask(torch.tensor([1.0, 0.0], dtype=F64))


def table(method: CoPaint, y: Tensor, grid: list[float]) -> Any:
    return method.solver(Measurement(SEEN, y, linops.GaussianNoise(0.0))).compile(VP, VP.level(grid))


def test_the_first_step_is_the_gradient_of_the_objective() -> None:
    """x - lr alpha grad [|y - A x0(x)|^2 + weight |x - before|^2], by automatic differentiation of the whole; at the
    second step of ten lr and weight have grown by 25 of the published 250."""
    world, n, method = ring(), 5, CoPaint(lr=1e-4, weight=0.3)
    y, model = normal(n, 2, seed=2), world.denoiser(VP)
    measurement = Measurement(SEEN, y, linops.GaussianNoise(0.0))
    grid = torch.linspace(1, 0, 11, dtype=F64)
    made: Any = method.solver(measurement).compile(VP, VP.level(grid))
    rows = [row for row in made.rows if row.function is not None]
    assert len(rows) == 20
    level = VP.level(grid[1])
    before = normal(n, 2, seed=1)
    x = (before + 0.1 * normal(n, 2, seed=3)).requires_grad_()
    x0 = model(x, level).x0
    misfit = (SEEN(y) - SEEN(x0)).square().sum()
    (slope,) = torch.autograd.grad(misfit + 0.3 * 1.01**25 * (x - before).square().sum(), x)
    pull = method.denoiser(model, measurement).bind(VP.level([0.9, 0.9]), x.detach(), None)[0](x.detach())
    found = rows[2].function(x.detach(), before, x0.detach(), pull["pull"])
    length = 1e-4 * 25 * 1.012**25 * float(level.alpha)
    torch.testing.assert_close(found, (x - length * slope).detach())


def test_no_step_is_longer_than_polyaks() -> None:
    """Of |y - x|^2, whose minimum is 0, it goes half the way however large lr is: misfit/|gradient|^2 = 1/4 of the
    gradient 2 (y - x)."""
    y, x = normal(4, 2, seed=1), normal(4, 2, seed=2)
    identity = Measurement(linops.Matrix(torch.eye(2, dtype=F64)), y, linops.GaussianNoise(0.0))
    solver: Any = CoPaint(lr=1e6).solver(identity)
    moved = solver.revise(torch.tensor(1e6, dtype=F64), 0.0, x, x, x, -2 * (y - x))
    torch.testing.assert_close(moved, (x + y) / 2)


def test_without_gradient_steps_it_is_ddim() -> None:
    world, start = ring(), VP.prior((4, 2), seed=0, dtype=F64)
    measurement = Measurement(SEEN, normal(4, 2, seed=2), linops.GaussianNoise(0.0))
    method, plain = CoPaint(lr=1e-15), world.denoiser(VP)
    options: dict[str, Any] = {"x_init": start, "grid": orn.LogSNR(), "steps": 8}
    found = orn.sample(method.denoiser(plain, measurement), solver=method.solver(measurement), **options).x
    torch.testing.assert_close(found, orn.sample(plain, solver=orn.DDIM(), **options).x, rtol=0, atol=1e-8)


def test_evaluations_and_travel() -> None:
    """Two gradient steps and DDIM's evaluation a level; stretches of three in seven steps are 3, 3 and 1, taken twice,
    and the way back up is the forward process's: its coefficients are those of x_t given x_s."""
    world, y = ring(), torch.tensor([[1.0, 0.0]], dtype=F64)
    for method, nfe in ((CoPaint(), 35), (CoPaint(iterations=1), 21), (CoPaint(travel=2, jump=3), 70)):
        assert restore(world.denoiser(VP), SEEN, y, method=method, steps=7).nfe == nfe
    grid = torch.linspace(1, 0, 8, dtype=F64).tolist()
    made = table(CoPaint(travel=2, jump=3), y, grid)
    assert made.steps == 7
    back = [
        row for row in made.rows[1:] if len(row.terms) == 2 and len(made.noises) and "z" in "".join(map(str, row.terms))
    ]
    assert len(back) == 3
    for row, (t, s) in zip(back, ((1.0, grid[3]), (grid[3], grid[6]), (grid[6], 0.0)), strict=True):
        upper, lower = VP.level(t), VP.level(s)
        ratio = float(upper.alpha / lower.alpha)
        noise = math.sqrt(float(upper.sigma) ** 2 - (ratio * float(lower.sigma)) ** 2)
        assert [float(c) for c in row.terms.values()] == pytest.approx([ratio, noise])


def test_travel_spreads_what_is_hidden() -> None:
    """A Gaussian of correlation 0.9, 1.5 seen: the hidden law is N(1.35, 0.19). Without fresh noise the method is too
    narrow and too far out; with it, it is nearer in both by more than three standard errors, of 400 samples."""
    pair = orn.exact.Gaussian(torch.zeros(2, dtype=F64), cov=torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64))
    y, n = torch.tensor([[1.5, 0.0]], dtype=F64), 400
    options: dict[str, Any] = {"samples": n, "steps": 50, "seed": 1}
    once, twice = (
        restore(pair.denoiser(VP), SEEN, y, method=method, **options).samples[0, :, 1]
        for method in (CoPaint(), CoPaint(travel=3, jump=5))
    )
    assert float(once.mean() - twice.mean()) > 3 * float(once.std()) / math.sqrt(n)
    assert abs(float(twice.var()) - 0.19) < abs(float(once.var()) - 0.19)
    assert float(twice.mean()) > 1.35


def test_batches_units_and_operators() -> None:
    world = ring()
    y = world.sample(3, seed=3).to(F64)
    options: dict[str, Any] = {"method": CoPaint(travel=2, jump=2), "steps": 6, "seed": 5, "dtype": F64}
    whole = restore(world.denoiser(VP), SEEN, y, samples=2, **options)
    first = restore(world.denoiser(VP), SEEN, y[:1], samples=4, **options)
    torch.testing.assert_close(first.samples[:, :2], whole.samples[:1])
    junk = y + torch.tensor([0.0, 50.0], dtype=F64)  # where nothing is seen
    torch.testing.assert_close(restore(world.denoiser(VP), SEEN, junk, samples=2, **options).samples, whole.samples)
    large = linops.Matrix(10 * torch.tensor([[1.0, 0.0]], dtype=F64))  # Polyak's bound keeps steps of any scale stable
    out = restore(world.denoiser(VP), large, 10 * y[:, :1], method=CoPaint(), steps=40, seed=5, dtype=F64)
    assert float(out.residual.max()) < 10


def test_what_no_state_explains_is_no_misfit() -> None:
    """Of x measured twice, differently, the mean counts: the distance of the two does not stay in Polyak's bound."""
    world, twice = ring(), linops.Matrix(torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=F64))
    once = linops.Matrix(2**0.5 * torch.tensor([[1.0, 0.0]], dtype=F64))
    y, apart = world.sample(3, seed=3).to(F64)[:, :1], torch.tensor([[2.0, -2.0]], dtype=F64)
    options: dict[str, Any] = {"method": CoPaint(lr=10.0), "steps": 20, "seed": 5, "dtype": F64}
    found = restore(world.denoiser(VP), twice, y + apart, **options).samples
    torch.testing.assert_close(found, restore(world.denoiser(VP), once, 2**0.5 * y, **options).samples)


def test_refusals() -> None:
    for options, match in (
        ({"iterations": 0}, "iterations=0"),
        ({"travel": 0}, "travel=0"),
        ({"jump": 0}, "jump=0"),
        ({"lr": -1.0}, "lr=-1"),
        ({"weight": math.inf}, "weight=inf"),
    ):
        with pytest.raises(ValueError, match=match):
            CoPaint(**options)
    cubic = linops.Function(lambda u: u**3, (2,), (2,))
    with pytest.raises(ValueError, match="linear operators"):
        restore(ring().denoiser(VP), cubic, normal(1, 2), method=CoPaint(), steps=2)
