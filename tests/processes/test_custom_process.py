"""A process of two functions, as CONTRIBUTING.md teaches: it trains, and every solver that suits it samples it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import ornstein as orn
from phases import ALONE
from worlds import F64


@dataclass(frozen=True)
class Quadratic(orn.GaussianProcess):
    """x_t = (1 - t^2) x0 + t noise."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**2

    def sigma(self, t: Tensor) -> Tensor:
        return t


MEANS, STD = torch.tensor([[-1.5], [1.5]]), 0.4
WEIGHTS = torch.tensor([0.3, 0.7])
N = 1_000
STEPS = 600
GRID = orn.LogSNR(end=7.0)


def world() -> orn.exact.GaussianMixture:
    return orn.exact.GaussianMixture(MEANS, torch.full((2,), STD), WEIGHTS)


@cache
def trained(steps: int) -> orn.Denoiser:
    """A small network of the process, trained on the world's samples as anyone would."""
    model = orn.Denoiser(orn.nets.MLP(1, width=64, depth=2), Quadratic())
    if steps:
        x = world().sample(20_000, seed=0)
        orn.fit(model, x, steps=steps, batch_size=512, lr=4e-3, ema=0.99, seed=0, progress=False)
    return model


@cache
def start() -> Tensor:
    return Quadratic().prior((N, 1), seed=1)


@cache
def fine(steps: int) -> Tensor:
    """The model's own flow from the starts, by a fine solution."""
    return orn.sample(trained(steps), x_init=start(), solver=orn.DPMSolverPP(order=3), steps=200, grid=GRID).x


def suited() -> dict[str, orn.Solver]:
    """Every solver of the library, with its defaults; those that ask for more are given it."""
    kinds = {name: getattr(orn.solvers, name) for name in orn.solvers.__all__}
    data = world().sample(256, seed=2)
    own: dict[str, Callable[[], orn.Solver]] = {
        "DPMSolverV3": lambda: orn.solvers.DPMSolverV3().calibrate(trained(STEPS), data, points=32),
        "Doubled": lambda: orn.solvers.Doubled(orn.DPMSolverPP(order=2)),
        "Embedded": lambda: orn.solvers.Embedded(orn.DPMSolverPP(order=2)),
    }
    return {
        name: own.get(name, kind)()
        for name, kind in kinds.items()
        if inspect.isclass(kind) and issubclass(kind, orn.Solver) and not inspect.isabstract(kind) and name not in ALONE
    }


def law(x: Tensor) -> Tensor:
    """What of a law is compared: the weight of the right mode, and the first two moments."""
    return torch.stack([(x > 0).to(x).mean(), x.mean(), x.square().mean()]).double()


# Standard errors of `law` for N samples: 0.21 = 0.7 (1 - 0.7); Var x <= E x^2 = 2.41; Var x^2 <= E x^4 < 7.4, which is
# 1.5^4 + 6 (1.5 0.4)^2 + 3 0.4^4
ERRORS = torch.tensor([0.21, 2.41, 7.4], dtype=F64).div(N).sqrt()


def test_it_trains() -> None:
    """The flow of the trained network makes the world: within five standard errors, twice that for the network's own
    part (which the untrained rival misses by far)."""
    gap = (law(fine(STEPS)) - law(world().sample(200_000, seed=5))).abs()
    assert bool((gap < 10 * ERRORS).all()), gap / ERRORS
    rival = (law(fine(0)) - law(world().sample(200_000, seed=5))).abs()
    assert bool((rival > 10 * ERRORS).any()), rival / ERRORS


def test_every_solver_that_suits_it_samples_it() -> None:
    """In 24 evaluations every solver makes the law of the fine solution, within five standard errors. The rival, Heun's
    method in 4 evaluations, does not."""
    wanted = law(fine(STEPS))
    for name, solver in suited().items():
        found = law(orn.sample(trained(STEPS), x_init=start(), solver=solver, grid=GRID, nfe=24, seed=3).x)
        assert bool(((found - wanted).abs() < 5 * ERRORS).all()), (name, (found - wanted) / ERRORS)
    rival = law(orn.sample(trained(STEPS), x_init=start(), solver=orn.Heun(), grid=GRID, nfe=4).x)
    assert bool(((rival - wanted).abs() > 5 * ERRORS).any())
