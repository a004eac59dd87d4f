"""Every method on the same measurement said twice, at times of each sample, and the options and noises they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import inverse, linops
from ornstein.inverse import (
    AFDPS,
    CDIM,
    DAPS,
    DDNM,
    DDRM,
    DDS,
    DPS,
    MCG,
    MMPS,
    TDS,
    CoPaint,
    DiffPIR,
    EnKG,
    Langevin,
    Measurement,
    PiGDM,
    REDDiff,
    RePaint,
    restore,
)
from ornstein.processes import ancestral
from ornstein.solvers.table import Gaussian
from worlds import F64, normal

VP = orn.VP()
COV = torch.tensor([[1.0, 0.6, 0.2, 0.0], [0.6, 1.2, 0.3, 0.1], [0.2, 0.3, 0.8, -0.4], [0.0, 0.1, -0.4, 1.5]])
WORLD = orn.exact.Gaussian(torch.tensor([0.4, -0.2, 0.1, 0.6], dtype=F64), cov=COV.double())
SEEN = torch.tensor([True, False, True, False])
ROWS = linops.Matrix(torch.eye(4, dtype=F64)[SEEN])
Y = torch.tensor([[0.7, -0.4], [1.1, 0.3], [-0.2, 0.9]], dtype=F64)
MOST: list[Any] = [
    CDIM(), DAPS(), DDRM(), DDS(), DPS(), MCG(), MMPS(), AFDPS(particles=4), TDS(particles=4), CoPaint(), DiffPIR(),
    PiGDM(), REDDiff(), RePaint(), EnKG(particles=4, corrections=2), Langevin(DAPS(), moves=5),
]  # fmt: skip
EXACT = (MCG, RePaint, CoPaint)


def whole(y: Tensor, fill: float = 0.0) -> Tensor:
    """What the mask measures of what its rows measure."""
    return torch.full((len(y), 4), fill, dtype=F64).masked_scatter(SEEN.expand(len(y), 4), y)


@pytest.mark.parametrize("method", MOST, ids=lambda m: type(m).__name__)
def test_a_mask_is_its_rows(method: Any) -> None:
    """Entries that a mask hides count for nothing: not in a residual, not in a mean over what is measured."""
    noise = 0.0 if isinstance(method, EXACT) else 0.3
    options: dict[str, Any] = {"noise": noise, "steps": 6, "seed": 0, "samples": 2, "method": method, "dtype": F64}
    masked = restore(WORLD.denoiser(VP), linops.Mask(SEEN), whole(Y, 7.0), **options)
    rows = restore(WORLD.denoiser(VP), ROWS, Y, **options)
    torch.testing.assert_close(masked.samples, rows.samples)
    torch.testing.assert_close(masked.residual, rows.residual)


@pytest.mark.parametrize("method", [DPS(zeta=0.1), REDDiff(), DAPS(), TDS(particles=4)], ids=lambda m: type(m).__name__)
def test_a_mask_of_counts_is_its_rows(method: Any) -> None:
    """Where 0 is no whole number of counts (20 * 2.53), what is hidden is none either; in a model's units too."""
    noise = linops.PoissonNoise(20.0, offset=2.53)
    y = noise.sample(Y, seed=1)
    options: dict[str, Any] = {"noise": noise, "steps": 6, "seed": 0, "method": method, "dtype": F64}
    unit = orn.exact.Gaussian(torch.zeros(4, dtype=F64), std=1.0).denoiser(VP)
    scaled = orn.Denoiser(lambda x, t: unit(x, t).x0, VP, "x0", scaling=orn.Scaling(0.2, 0.7))
    for model in (WORLD.denoiser(VP), scaled):
        masked = restore(model, linops.Mask(SEEN), whole(y), **options)
        rows = restore(model, ROWS, y, **options)
        torch.testing.assert_close(masked.samples, rows.samples)
        torch.testing.assert_close(masked.residual, rows.residual)


def test_a_constrained_chain_ends_at_its_noise_without_an_svd() -> None:
    """A quarter of 4,608 frequencies of two coils: the misfit is that of what was measured, 1.0 to 1.05 of the noise,
    not the bound of four times as many numbers (2)."""
    mask = torch.rand(48, 48, generator=torch.Generator().manual_seed(0)) < 0.25
    operator = linops.Fourier(
        mask, (2, 48, 48), coils=torch.complex(normal(2, 48, 48, seed=1), normal(2, 48, 48, seed=4))
    )
    assert operator.svd is None
    world = orn.exact.Gaussian(torch.zeros(2, 48, 48, dtype=F64), std=1.0)
    y = operator(world.sample(1, seed=2).to(F64))
    y = y + 0.2 * normal(*y.shape, seed=3)
    out = restore(world.denoiser(VP), operator, y, method=CDIM(), noise=0.2, steps=20, seed=0, dtype=F64)
    assert 0.95 < float(out.residual) / 0.2 < 1.1


@pytest.mark.parametrize("method", [*MOST, DDNM()], ids=lambda m: type(m).__name__)
def test_times_of_each_sample_are_its_own(method: Any) -> None:
    """Other times for the second measurement change nothing for the first and the third."""
    operator, y = linops.Matrix(torch.eye(3, 4, dtype=F64)), normal(3, 3, seed=4)  # three, as the batch
    noise = 0.0 if isinstance(method, (*EXACT, DDNM)) else 0.3
    repeat = method.particles
    times = torch.linspace(1, 0, 8, dtype=F64)[:, None].expand(8, 3).clone()
    options: dict[str, Any] = {"noise": noise, "seed": 0, "samples": repeat, "method": method, "dtype": F64}
    found = []
    for power in (1.0, 1.5):
        times[:, 1] = torch.linspace(1, 0, 8, dtype=F64) ** power
        own = times.repeat_interleave(repeat, 1)
        found.append(restore(WORLD.denoiser(VP), operator, y, grid=own, **options).samples)
    torch.testing.assert_close(found[0][[0, 2]], found[1][[0, 2]])
    assert float((found[0][1] - found[1][1]).abs().max()) > 1e-4


def test_the_pull_of_a_manifold_is_the_gradient() -> None:
    """-grad |y - A x0(x)|^2, by automatic differentiation of the whole."""
    x, model = normal(3, 4, seed=1).requires_grad_(), WORLD.denoiser(VP)
    found = MCG().denoiser(model, Measurement(ROWS, Y, linops.GaussianNoise(0.0)))(x.detach(), 0.4)
    (slope,) = torch.autograd.grad((Y - ROWS(model(x, 0.4).x0)).square().sum(), x)
    torch.testing.assert_close(found.output["pull"], -slope)


def test_fresh_noise_and_the_way_back() -> None:
    """RePaint goes back by the forward process, x_t = (alpha_t/alpha_s) x_s + sigma_ts z; DiffPIR draws the share zeta
    of the level's variance anew; eta is DDIM's."""
    grid = VP.level([0.8, 0.5])
    t, s = grid[0], grid[1]
    step, ddim = ancestral(t, s), s.sigma * torch.sqrt(1 - torch.exp(t.log_snr - s.log_snr))
    cases: list[tuple[Any, float, list[Tensor]]] = [
        (RePaint(resamples=2), 0.0, [step.posterior, torch.tensor(1.0), step.forward, step.posterior]),
        (DiffPIR(zeta=0.25), 0.3, [s.sigma / 2]),
        (PiGDM(eta=0.5), 0.3, [ddim / 2]),
        (MMPS(eta=0.5), 0.3, [ddim / 2]),
    ]
    for method, std, wanted in cases:
        table = method.solver(Measurement(ROWS, Y, linops.GaussianNoise(std))).compile(VP, grid)
        drawn = [float(c) for row in table.rows for atom, c in row.terms.items() if isinstance(atom, Gaussian)]
        assert drawn[: len(wanted)] == pytest.approx([float(one) for one in wanted], rel=1e-12), method


OPTIONS = [
    (lambda: PiGDM(prior=0.0), "prior=0.0: positive"),
    (lambda: PiGDM(prior=-1.0), "prior=-1.0: positive"),
    (lambda: PiGDM(eta=7.0), "eta=7.0: from 0 to 1"),
    (lambda: MMPS(eta=-0.1), "eta=-0.1: from 0 to 1"),
    (lambda: DDNM(eta=1.1), "eta=1.1: from 0 to 1"),
    (lambda: DDS(eta=2.0), "eta=2.0: from 0 to 1"),
    (lambda: DiffPIR(zeta=1.5), "zeta=1.5: from 0 to 1"),
    (lambda: DDRM(eta_b=3.0), "eta_b=3.0: from 0 to 1"),
]


@pytest.mark.parametrize(("make", "message"), OPTIONS, ids=[message for _, message in OPTIONS])
def test_options_are_refused_when_they_are_given(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_of_one_size_and_of_each_measurement() -> None:
    model, operator, options = WORLD.denoiser(VP), linops.Mask(SEEN), {"steps": 4, "seed": 0, "dtype": F64}
    y = whole(Y)

    def run(method: Any, noise: Any, samples: int = 1) -> Tensor:
        found: Any = restore(model, operator, y, method=method, noise=noise, samples=samples, **options)
        return found.samples

    plain = run(MMPS(), 0.3)
    for one in (torch.tensor(0.3, dtype=F64), linops.GaussianNoise(torch.tensor(0.3, dtype=F64)), np.float64(0.3)):
        torch.testing.assert_close(run(MMPS(), one), plain)
    each = run(DAPS(), torch.tensor([0.3, 0.2, 0.3], dtype=F64), samples=2)
    torch.testing.assert_close(each[[0, 2]], run(DAPS(), 0.3, samples=2)[[0, 2]])
    assert float((each[1] - run(DAPS(), 0.3, samples=2)[1]).abs().max()) > 1e-3
    for samples, wrong in ((1, 5), (2, 5), (2, 2)):
        with pytest.raises(ValueError, match=rf"one a sample, \(3,\): got shape \({wrong},\)"):
            run(DAPS(), linops.GaussianNoise(torch.full((wrong,), 0.3, dtype=F64)), samples)


def test_no_measurement_and_an_ensemble_of_one_point_are_refused() -> None:
    model = WORLD.denoiser(VP)
    with pytest.raises(ValueError, match=r"y has the shape \(0, 2\): there is no measurement in it"):
        restore(model, ROWS, Y[:0], method=DPS(), noise=0.3)
    with pytest.raises(ValueError, match="begins with a spread of states, and x_init is one a measurement"):
        restore(model, ROWS, Y, method=EnKG(particles=4), noise=0.3, samples=4, x_init=normal(3, 4))


@pytest.mark.parametrize("nfe", [40, 60, 101])
def test_moves_stay_within_the_budget(nfe: int) -> None:
    method = Langevin(DAPS(), moves=20)
    out = restore(WORLD.denoiser(VP), ROWS, Y, method=method, noise=0.3, nfe=nfe, seed=0)
    assert 0.7 * nfe < out.nfe <= nfe


def test_a_density_above_one_is_no_misfit_below_zero() -> None:
    """Narrow noise of one's own, whose log p is positive near y: the step is down the deviance, as ever."""

    class Laplace(linops.NoiseModel):
        scale = 0.05

        def sample(self, clean: Tensor, seed: Any) -> Tensor:
            raise NotImplementedError

        def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
            each: Tensor = -(y - clean).abs() / self.scale - np.log(2 * self.scale)
            return each.flatten(1).sum(1)

    x, model = normal(3, 4, seed=1).requires_grad_(), WORLD.denoiser(VP)
    found = DPS().denoiser(model, Measurement(ROWS, Y, Laplace()))(x.detach(), 0.4)
    misfit = (2 * (Y - ROWS(model(x, 0.4).x0)).abs().sum(1) / 0.05).sqrt().sum()
    torch.testing.assert_close(found.output["pull"], -torch.autograd.grad(misfit, x)[0])
    met = Measurement(ROWS, ROWS(model(x.detach(), 0.4).x0), Laplace())
    assert float(DPS().denoiser(model, met)(x.detach(), 0.4).output["pull"].abs().max()) == 0  # nothing is left to do


def test_coverage_of_half_precision() -> None:
    samples = normal(2, 9, 5, seed=1)
    truth = normal(2, 5, seed=2)
    found = [
        inverse.Restored(samples.to(kind), 1, torch.zeros(2, 9), 0).coverage(truth.to(kind))
        for kind in (torch.float16, F64)
    ]
    assert torch.equal(*found)
