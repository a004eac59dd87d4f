"""What users give `restore`: units, masks, operators and grids of their own, budgets, starts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import AFDPS, CDIM, DAPS, DDNM, DPS, MMPS, PMRF, TDS, EnKG, REDDiff, ScorePrior, restore
from worlds import F64, normal

VP = orn.VP()
WORLD = orn.exact.Gaussian(torch.zeros(3, dtype=F64), std=1.0)


def scaled(std: Any, mean: Any = 0.0) -> orn.BaseDenoiser:
    model = orn.Denoiser(lambda x, t: WORLD.denoiser(VP)(x, t).x0, VP, "x0", scaling=orn.Scaling(mean, std))
    return model.double()


@pytest.mark.parametrize("method", [DPS(), DAPS(), REDDiff(), TDS(4), AFDPS(4), ScorePrior(particles=4)], ids=repr)
def test_a_black_box_is_refused_in_any_units(method: Any) -> None:
    """What has no gradient has none in the model's units either; EnKG, which needs none, runs."""
    blind = linops.BlackBox(lambda u: u[:, :2], (3,), (2,))
    y = torch.zeros(1, 2, dtype=F64)
    with pytest.raises(ValueError, match=r"has no gradient, which .* follows: choose EnKG"):
        restore(scaled(2.0), blind, y, method=method, noise=0.3, steps=8)
    assert restore(scaled(2.0), blind, y, method=EnKG(8), noise=0.3, steps=8).samples.isfinite().all()


def test_operators_and_masks_of_each_measurement_under_a_scaling() -> None:
    """Under one deviation an entry the operator is asked of decoded states, and still goes with its measurement."""
    model, masks = scaled(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=F64)
    operator = linops.Mask(masks, event=(3,))
    y = operator(normal(2, 3, seed=1))
    options: dict[str, Any] = {"method": DPS(), "noise": 0.1, "samples": 2, "steps": 20, "seed": 0}
    both = restore(model, operator, y, **options)
    alone = restore(model, linops.Mask(masks[0]), y[:1], **options)
    torch.testing.assert_close(both.samples[0], alone.samples[0])
    with pytest.raises(ValueError, match=r"of what this model's scaling decodes is none: train with one mean and one"):
        restore(model, operator, y, method=MMPS(), noise=0.1, steps=2)


def test_residuals_are_of_what_was_measured() -> None:
    """Half of the entries hidden: the root mean square is over the other half."""
    operator = linops.Mask(torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=F64))
    world = orn.exact.Gaussian(torch.zeros(4, dtype=F64), std=1.0)
    y = torch.tensor([[0.5, 9.0, 9.0, -1.0]], dtype=F64)
    out = restore(world.denoiser(VP), operator, y, method=MMPS(iterations=2), noise=0.5, samples=3, steps=5, seed=0)
    miss = (y - out.samples[0])[:, [0, 3]].square().mean(1).sqrt()
    torch.testing.assert_close(out.residual[0], miss)


def test_a_fitted_posterior_weighs_what_was_measured() -> None:
    operator, world = linops.Mask(torch.tensor([1.0, 0.0])), orn.exact.Gaussian(torch.zeros(2, dtype=F64), std=1.0)
    method = ScorePrior(particles=8, gradient="score")
    bounds = []
    for hidden in (0.0, 99.0):
        y = torch.tensor([[0.7, hidden]], dtype=F64)
        bounds.append(method.posterior(world.denoiser(VP), operator, y, noise=0.3, steps=5, seed=0).bound)
    assert torch.equal(*bounds)
    bridge = orn.Denoiser(lambda x, t, cond: x, orn.processes.indi(0.1), "x0")
    cond = {"end": torch.ones(1, 2)}
    with pytest.raises(ValueError, match="without a shift"):
        restore(bridge, operator, torch.zeros(1, 2), method=method, noise=0.3, samples=8, steps=2, cond=cond)


def test_times_budgets_and_nones() -> None:
    operator, y = linops.Matrix(torch.eye(3, dtype=F64)), torch.zeros(1, 3, dtype=F64)
    model = WORLD.denoiser(VP)
    times = torch.linspace(1, 0, 7, dtype=F64)
    assert restore(model, operator, y, method=DPS(), noise=0.1, grid=times).nfe == 12
    assert restore(model, operator, y, method=DPS(), noise=0.1, nfe=None, steps=None).nfe == 2_000
    each = VP.level(times[:, None].expand(7, 3))
    many = restore(model, operator, y.expand(3, -1), method=CDIM(), noise=0.1, grid=each, seed=0)
    one = restore(model, operator, y.expand(3, -1), method=CDIM(), noise=0.1, grid=times, seed=0)
    torch.testing.assert_close(many.samples, one.samples)
    with pytest.raises(ValueError, match=r"one level a sample: got a grid of shape \(7, 1, 3\)"):
        restore(model, operator, y, method=MMPS(), noise=0.1, grid=VP.level(times[:, None, None].expand(7, 1, 3)))
    for method in (TDS(4), AFDPS(4), CDIM()):
        with pytest.raises(ValueError, match=r"ends at data, sigma = 0: these times end at sigma = 0\.3"):
            restore(model, operator, y, method=method, noise=0.1, grid=torch.linspace(1, 0.1, 5))
    with pytest.raises(ValueError, match="give it a std > 0"):
        restore(model, operator, y, method=DPS(), noise=linops.QuantisationNoise(0.1), steps=2)


def test_starts_go_with_their_measurements() -> None:
    """x_init is one a measurement, and of every sample of it."""
    operator, start = linops.Matrix(torch.eye(3, dtype=F64)), normal(2, 3, seed=4)
    out = restore(
        WORLD.denoiser(VP),
        operator,
        torch.zeros(2, 3, dtype=F64),
        method=DDNM(eta=0.0),
        samples=2,
        steps=4,
        solver=orn.DDIM(),
        x_init=start,
    )
    assert torch.equal(out.samples[:, 0], out.samples[:, 1])
    blind = linops.Mask(torch.zeros(3, dtype=F64))
    free = restore(
        WORLD.denoiser(VP), blind, torch.zeros(2, 3, dtype=F64), method=DDNM(), samples=2, steps=4,
        solver=orn.DDIM(), x_init=start,
    )  # fmt: skip
    plain = orn.sample(WORLD.denoiser(VP), x_init=start, solver=orn.DDIM(), steps=4).x
    torch.testing.assert_close(free.samples[:, 1], plain)


def test_an_estimate_is_asked_in_evaluation_mode() -> None:
    """f with Dropout answers the same each time, and is left training as it was."""
    f = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5)).double()
    bridge = orn.Denoiser(lambda x, t, cond: x, orn.processes.indi(0.1), "velocity")
    operator, y = linops.Matrix(torch.eye(3, dtype=F64)), normal(2, 3, seed=1)
    first, second = (restore(bridge, operator, y, method=PMRF(f), noise=0.1, steps=2, seed=0) for _ in range(2))
    assert torch.equal(first.samples, second.samples)
    assert f.training
    with pytest.raises(ValueError, match="nfe=1: the mean takes one"):
        restore(bridge, operator, y, method=PMRF(f), noise=0.1, nfe=1)


def test_impossible_guesses_stay_behind_possible_ones() -> None:
    """However unlikely a guess is, one that cannot be is worse."""
    from ornstein.inverse.population import at_least

    log_p = torch.tensor([-8.4e6, -math.inf])
    found: Tensor = at_least(log_p)
    assert float(found[0]) > float(found[1]) > -math.inf
