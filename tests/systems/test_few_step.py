"""Few-step recipes: solver and times searched against the fine flow, with no training."""

import pytest
import torch

import ornstein as orn
from ornstein.solvers.few_step import FewStep
from worlds import F64, ring

PROCESS = orn.VP()


@pytest.mark.system("few-step", rival="DPM-Solver++ 2M on equal steps of log-SNR, default ends and wide ones")
def test_few_step():
    """5 and 6 evaluations, held-out starts: the searched recipe's mean endpoint error is lower in pairs by 3 standard
    errors of the mean difference."""
    world = ring()
    model = world.denoiser(PROCESS)
    x = PROCESS.prior((400, 2), seed=7, dtype=F64)
    fine = orn.LogSNR(end=14.0, deepest=-12.0)
    truth = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(), grid=fine, steps=150).x

    def error(solver, grid, n):
        out = orn.sample(model, x_init=x, solver=solver, grid=grid, steps=n)
        assert out.nfe == n
        return (out.x - truth).norm(dim=1)

    for n in (5, 6):
        search = FewStep(nfe=n, solvers=(orn.DPMSolverPP(order=2),), fine_steps=60, sweeps=8)
        recipe = search.calibrate(model, x_init=PROCESS.prior((64, 2), seed=1, dtype=F64))
        assert recipe.steps == n
        own = error(recipe.solver, recipe.grid, n)
        for rival in (orn.LogSNR(), orn.LogSNR(end=7.0, deepest=-7.0)):
            gain = error(orn.DPMSolverPP(order=2), rival, n) - own
            assert float(gain.mean()) > 3 * float(gain.std()) / 400**0.5, (n, rival)


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
