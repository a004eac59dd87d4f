"""Few-step recipes: solver and times searched against the fine flow, with no training."""

import functools

import pytest
import torch

import ornstein as orn
from orders import WORLDS
from ornstein.solvers import GITS, CosineGrid
from ornstein.solvers.few_step import FewStep
from worlds import F64, ring

PROCESS = orn.VP()
BASE, HIGHER = orn.DPMSolverPP(order=2), orn.DPMSolverPP(order=3, start="published")


@functools.cache
def held_out(name):
    """(warm-up starts, the error of 1000 other starts at the endpoint as a function of solver, grid and steps)."""
    world = WORLDS[name]
    model = world.denoiser(PROCESS)
    x = PROCESS.prior((1000, *world.event), seed=7, dtype=F64)
    fine = orn.LogSNR(end=14.0, deepest=-12.0)
    truth = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(), grid=fine, steps=150).x

    def error(solver, grid, n):
        out = orn.sample(model, x_init=x, solver=solver, grid=grid, steps=n)
        assert out.nfe == n
        return (out.x - truth).norm(dim=1)

    return PROCESS.prior((64, *world.event), seed=1, dtype=F64), error


def lower(own, other):
    """By how many standard errors the mean difference, in pairs, is below 0."""
    gain = other - own
    return float(gain.mean() / gain.std()) * len(gain) ** 0.5


@pytest.mark.system(
    "few-step",
    rival="DPM-Solver++ 2M on equal steps of log-SNR; 2M on Karras's and the cosine grid, and on that of GITS",
)
@pytest.mark.parametrize("n", [5, 6, 7, 8])
def test_few_step(n):
    """Held-out starts: the mean endpoint error of the searched recipe is below that of 2M on equal steps of log-SNR,
    default ends and wide ones, by 3 standard errors in pairs. The grids that are no search for the endpoint, closed
    forms and the cheapest path of single jumps, are not: 2M on them is above, or not 3 below. What is claimed of 8
    steps, to be ahead of 2M with 20, is not so here by the same measure."""
    warm, error = held_out("ring")
    model = WORLDS["ring"].denoiser(PROCESS)
    recipe = FewStep(nfe=n, solvers=(BASE,), fine_steps=40).calibrate(model, x_init=warm)
    assert recipe.steps == n
    own, equal = error(recipe.solver, recipe.grid, n), error(BASE, orn.LogSNR(), n)
    assert lower(own, equal) > 3
    assert lower(own, error(BASE, orn.LogSNR(end=7.0, deepest=-7.0), n)) > 3
    path = GITS(steps=n).calibrate(model, x_init=warm)
    for rival in (orn.Karras(), CosineGrid(), path):
        assert lower(error(BASE, rival, n), equal) < 3, rival
    assert lower(error(BASE, orn.LogSNR(), 20), own) > 3


def test_in_64_dimensions_and_the_solver_is_chosen_too():
    """By the same measure at 5 evaluations; there order 3 comes closer, is taken, and held-out starts agree."""
    warm, error = held_out("mixture")
    model = WORLDS["mixture"].denoiser(PROCESS)
    bound = FewStep(nfe=5, fine_steps=40, solvers=(BASE,)).calibrate(model, x_init=warm)
    own = error(bound.solver, bound.grid, 5)
    assert lower(own, error(BASE, orn.LogSNR(), 5)) > 3
    higher = FewStep(nfe=5, fine_steps=40, solvers=(BASE, HIGHER)).calibrate(model, x_init=warm)
    assert higher.solver == HIGHER
    assert lower(error(HIGHER, higher.grid, 5), own) > 3


def test_the_budget_counts_evaluations():
    """Heun takes 2N - 1, so 5 evaluations are 3 steps; a solver that cannot help is not chosen."""
    model = ring().denoiser(PROCESS)
    start = PROCESS.prior((16, 2), seed=1, dtype=F64)
    recipe = FewStep(nfe=5, solvers=(orn.Heun(),), fine_steps=30, sweeps=2).calibrate(model, x_init=start)
    assert recipe.steps == 3
    assert orn.sample(model, x_init=start, solver=recipe.solver, grid=recipe.grid, steps=3).nfe == 5
    alone = FewStep(nfe=5, solvers=(orn.DDIM(),), fine_steps=30, sweeps=2).calibrate(model, x_init=start)
    both = FewStep(nfe=5, solvers=(orn.Heun(), orn.DDIM()), fine_steps=30, sweeps=2).calibrate(model, x_init=start)
    assert both.error == min(recipe.error, alone.error)
    assert both.solver == (alone if alone.error < recipe.error else recipe).solver


def test_the_error_is_that_of_the_recipe():
    """In the user's units, scaled data too: the reported error is what the recipe reaches on its warm-up starts."""
    world = orn.exact.GaussianMixture(torch.tensor([[-1.0], [1.0]], dtype=F64), 0.2)
    process = orn.Flow()
    exact = world.denoiser(process)
    model = orn.Denoiser(lambda x, t: exact(x, t).x0, process, "x0", scaling=orn.Scaling(5.0, 3.0))
    start = process.prior((32, 1), seed=1, dtype=F64)
    recipe = FewStep(nfe=3, solvers=(orn.DDIM(),), fine_steps=40, sweeps=3).calibrate(model, x_init=start)
    fine = orn.sample(model, x_init=start, solver=orn.DPMSolverPP(), grid=orn.LogSNR(), steps=40).x
    out = orn.sample(model, x_init=start, solver=recipe.solver, grid=recipe.grid, steps=3).x
    assert recipe.error == pytest.approx(float((out - fine).abs().mean()), rel=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match="nfe=1"):
        FewStep(nfe=1)
    with pytest.raises(ValueError, match="solvers is empty"):
        FewStep(solvers=())
