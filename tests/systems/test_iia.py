"""IIA: refitted coefficients solve their normal equations and bring a solver's steps to the fine flow."""

import pytest
import torch

import ornstein as orn
from orders import WORLDS
from ornstein.tuning.fine import fine_step
from ornstein.tuning.iia import IIA
from ornstein.tuning.lessons import teach
from worlds import F64, normal, ring

PROCESS = orn.VP()


@pytest.mark.parametrize("process", [orn.Flow(), orn.MeanReverting()], ids=repr)
def test_the_normal_equations_hold(process):
    """For every step, found anew from the states of the finished table: what the step and the fine flow differ by is at
    right angles to each difference of outputs that the step may add; DDIM's own residual is not."""
    cond = {"mean": normal(12, 2, seed=3)} if isinstance(process, orn.MeanReverting) else None
    model, grid = ring().denoiser(process), orn.LogSNR()
    x = process.prior((12, 2), seed=1, cond=cond, dtype=F64)
    lessons = teach(model, x_init=x, cond=cond, steps=10)
    table = IIA(window=2, fine=6).fit(lessons, 6, grid).table
    path = orn.sample(model, x_init=x, table=table, cond=cond, trajectory=True).trajectory
    base = orn.DDIM().compile(process, grid(process, 6))
    levels = [e.level for e in base.evaluations] + [base.end]
    x0 = [model(path[i], levels[i], cond).x0 for i in range(6)]
    for i in range(1, 6):
        truth = fine_step(model, path[i], levels[i], levels[i + 1], 6, orn.DPMSolverPP(), cond)[0]
        one = process.level(torch.stack([levels[i].t, levels[i + 1].t]))
        plain = orn.sample(model, x_init=path[i], solver=orn.DDIM(), grid=one, cond=cond).x
        for past in x0[max(i - 2, 0) : i]:
            column = (past - x0[i]).flatten()
            left, before = ((end - truth).flatten() for end in (path[i + 1], plain))
            size = column.norm() * before.norm()
            assert float((column @ left).abs()) < 1e-9 * float(size)
            assert float((column @ before).abs()) > 1e-4 * float(size)


def test_one_gaussian_is_followed_by_one_coefficient():
    """Data N(0, c^2) on a line: all is proportional to the start, so that one past output is enough for each step but
    the first, and the refitted table has there the flow's own factor sqrt((a_s^2 c^2 + s_s^2)/(a_t^2 c^2 + s_t^2))."""
    c2, process = 0.49, orn.EDM()
    model = orn.exact.Gaussian(torch.zeros(1, dtype=F64), std=0.7).denoiser(process)
    lessons = teach(model, (3, 1), seed=2, dtype=F64, steps=10)
    grid = orn.Karras(sigma_min=0.1, sigma_max=None)
    fit = IIA(window=1, fine=40, teacher=orn.DPMSolverPP(order=2)).fit(lessons, 6, grid)
    path = orn.sample(model, x_init=lessons.starts, table=fit.table, trajectory=True).trajectory
    level = grid(process, 6)
    std = torch.sqrt(level.alpha**2 * c2 + level.sigma**2)
    plain = orn.sample(model, x_init=lessons.starts, solver=orn.DDIM(), grid=grid, steps=6, trajectory=True).trajectory
    for i in range(1, 6):
        wanted = path[i] * std[i + 1] / std[i]
        assert float((path[i + 1] / wanted - 1).abs().max()) < 5e-3, i  # the fine solver's own, of order 2
    assert float((plain[5] / plain[4] / (std[5] / std[4]) - 1).abs().max()) > 0.01
    assert all(after < 1e-9 * before for before, after in fit.residuals[1:])
    assert fit.residuals[0][0] == fit.residuals[0][1]  # which has no past


def lower(own, other):
    """By how many standard errors the mean difference, in pairs, is below 0."""
    gain = other - own
    return float(gain.mean() / gain.std()) * len(gain) ** 0.5


@pytest.mark.system(
    "iia", rival="the base solver with its own coefficients on the same grid: DDIM, Heun, DPM-Solver++ 2M"
)
@pytest.mark.parametrize(
    ("solver", "steps"), [(orn.DDIM(), 6), (orn.DDIM(), 10), (orn.DPMSolverPP(order=2), 6), (orn.Heun(), 4)], ids=repr
)
def test_iia(solver, steps):
    """6 to 10 evaluations, 64-D mixture, fitted on 64 starts: the mean endpoint error on 400 fresh ones is below that
    of the base by 3 standard errors in pairs."""
    model = WORLDS["mixture"].denoiser(PROCESS)
    lessons = teach(model, (64, 64), seed=1, dtype=F64, steps=20)
    fresh = teach(model, (400, 64), seed=7, dtype=F64, steps=80)
    fit = IIA(solver).fit(lessons, steps)
    base = solver.compile(PROCESS, orn.LogSNR()(PROCESS, steps))
    assert fit.table.nfe == base.nfe
    assert fit.evaluations == 64 * (base.nfe + 10 * steps)
    assert lower(fresh.errors(fit.table), fresh.errors(base)) > 3


def test_what_a_step_can_reach_does_not_depend_on_its_base():
    """DDIM's and 2M's rows differ by a multiple of what is fitted: both refits are the same table, to rounding."""
    model = ring().denoiser(PROCESS)
    lessons = teach(model, (16, 2), seed=1, dtype=F64, steps=10)
    ends = [lessons.run(IIA(s, window=1, fine=4).fit(lessons, 5).table) for s in (orn.DDIM(), orn.DPMSolverPP(order=2))]
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


def test_a_constant_and_an_empty_window():
    """A denoiser of constant x0 is followed exactly still; window = 0 is the base; the one coefficient of the paper's
    guided form gives the constant up."""
    model = ring().denoiser(PROCESS)
    lessons = teach(model, (16, 2), seed=1, dtype=F64, steps=10)
    fit = IIA(orn.Heun(), window=2, fine=4).fit(lessons, 3).table
    c = torch.tensor([0.7, -0.3], dtype=F64)
    constant = orn.Denoiser(lambda x, t: c.expand_as(x), PROCESS, "x0")
    ends = orn.sample(constant, x_init=lessons.starts, table=fit).x
    torch.testing.assert_close(ends, c.expand(16, 2), rtol=0, atol=1e-9)
    alone = IIA(window=0, fine=4).fit(lessons, 5).table
    same = orn.sample(model, x_init=lessons.starts, solver=orn.DDIM(), grid=orn.LogSNR(), steps=5).x
    torch.testing.assert_close(lessons.run(alone), same, rtol=0, atol=1e-12)
    scaled = IIA(window=0, scale=True, fine=4).fit(lessons, 5)
    assert all(after < before for before, after in scaled.residuals)
    moved = orn.sample(constant, x_init=lessons.starts, table=scaled.table).x
    assert float((moved - c).abs().max()) > 1e-3


def test_refusals():
    lessons = teach(ring().denoiser(PROCESS), (4, 2), dtype=F64, steps=10)
    for solver in (orn.DDIM(eta=1.0), orn.solvers.EVODiff()):
        with pytest.raises(ValueError, match="IIA refits deterministic solvers"):
            IIA(solver).fit(lessons, 4)
    with pytest.raises(ValueError, match=r"has its start at t = 0\.6, the lessons at 1"):
        IIA().fit(lessons, 4, orn.Uniform(start=0.6))
    with pytest.raises(ValueError, match="window=-1"):
        IIA(window=-1)
