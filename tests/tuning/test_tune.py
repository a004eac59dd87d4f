"""Tuning: consistent tables by construction, gains on fresh starts of a world with an exact flow, and none by luck."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.tuning import (
    Distribution,
    Endpoint,
    Features,
    Lessons,
    Parameters,
    reduce,
    teach,
    tune,
)
from ornstein.tuning.named import named, named_table
from ornstein.tuning.tune import Descent, Work
from worlds import F64, normal, ring

VP, FLOW = orn.VP(), orn.Flow()
S = orn.solvers
SDE = S.SDEDPMSolverPP()


def exact(process: orn.GaussianProcess, starts: int, seed: int) -> Lessons:
    """Lessons whose ends are the exact flow's."""
    world = ring()
    x = process.prior((starts, 2), seed=seed, dtype=F64)
    ends = world.flow(process, x, 1.0, 0.0, rtol=1e-7, atol=1e-8)
    return Lessons(world.denoiser(process), x, ends, process.level(1.0), process.level(0.0))


@pytest.fixture(scope="module")
def lessons() -> Lessons:
    return exact(VP, 256, 1)


@pytest.fixture(scope="module")
def fresh() -> Lessons:
    return exact(VP, 512, 2)


def rms(errors: torch.Tensor) -> float:
    return float(errors.square().mean().sqrt())


@pytest.mark.parametrize(
    "solver",
    [
        orn.DPMSolverPP(order=2),
        S.UniPC(order=3, variant="bh1", start="published"),
        S.UniPC(order=2, predicts="noise"),
        S.PNDM(order=3, start="rising"),
        orn.DPMSolverPP(order=2, mode="singlestep"),
        S.AdamsBashforth(3, start="published"),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("process", [VP, FLOW, orn.EDM()], ids=lambda p: type(p).__name__)
def test_every_consistent_solver_is_one_point_of_the_form(solver: orn.Solver, process: orn.GaussianProcess) -> None:
    """theta = 0 is the named table: the same endpoints to rounding (64 starts, errors of 2e-9 at most)."""
    table = solver.compile(process, orn.LogSNR()(process, 6))
    x = process.prior((64, 2), seed=0, dtype=F64)
    parameters = Parameters(process, reduce(table))
    made = parameters.coefficients(parameters.begin).table(process, "again")
    denoiser = ring().denoiser(process)
    own, again = (orn.sample(denoiser, x_init=x, table=t).x for t in (made, table))
    # 1e-16 over alpha = 0.007, with which x0 is formed from noise at t = 1 of VP, and the stretch of the flow
    assert float((own - again).abs().max()) < 1e-8


@pytest.mark.parametrize("process", [VP, FLOW, orn.EDM(), orn.MeanReverting()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("options", [{}, {"window": 2}, {"rank": 2}], ids=str)
def test_any_numbers_make_a_consistent_table_whose_times_fall(process: orn.GaussianProcess, options: dict) -> None:
    """A constant x0 is followed exactly whatever theta: no solver's order is assumed, only its consistency."""
    table = orn.DPMSolverPP(order=2).compile(process, orn.LogSNR()(process, 5))
    parameters = Parameters(process, reduce(table), **options)
    for seed in range(3):
        theta = parameters.begin + normal(len(parameters), seed=seed)
        c = parameters.coefficients(theta)
        assert bool((c.levels.t.diff() < 0).all())
        assert bool((c.asked.t <= c.levels.t[0]).all())
        assert bool((c.asked.t > c.levels.t[-1]).all())
        made = c.table(process, "any")
        cond = {"mean": normal(4, 3, seed=9)} if isinstance(process, orn.MeanReverting) else None
        constant = normal(1, 3, seed=7)
        denoiser = orn.Denoiser(lambda x, t, *_: constant.expand_as(x), process, "x0")
        end = process.level(0.0)
        x0, noise = constant.expand(4, 3), normal(4, 3, seed=8)
        start = process.corrupt(x0, 1.0, noise=noise, cond=cond).x
        out = orn.sample(denoiser, x_init=start, table=made, cond=cond).x
        wanted = process.corrupt(x0, end, noise=noise, cond=cond).x
        assert float((out - wanted).abs().max()) < 1e-9 * float(start.abs().max())


def test_a_window_is_how_far_rows_look_back() -> None:
    table = S.AdamsBashforth(4, start="published").compile(VP, orn.LogSNR()(VP, 6))
    for window in (1, 2, 3):
        parameters = Parameters(VP, reduce(table), window=window)
        weights = parameters.coefficients(parameters.begin + 0.1).weights
        rows, columns = weights.nonzero().T
        assert int((rows - columns).max()) == window - 1


def test_a_window_is_kept_to_where_the_named_table_is_better() -> None:
    """No table of 6 evaluations with one answer a row comes near those with three: it is returned nevertheless."""
    lessons = teach(ring().denoiser(VP), (32, 2), steps=40, dtype=F64)
    tuned = tune(lessons.denoiser, nfe=6, lessons=lessons, window=1, iterations=1)
    rows, columns = reduce(tuned.table).weights.nonzero().T
    assert torch.equal(rows, columns)
    assert tuned.gain > 1


def test_a_named_table_that_is_lucky_does_not_hide_a_descent(lessons: Lessons, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three descents one finds a better table, and one does not but has a named table better still on the few
    validation starts: what was found is returned."""

    def go(self: Descent, iterations: int, evaluations: float) -> None:
        self.made += 1
        if made and made[0] is not self:
            self.best = 0.0
        elif not made:
            made.append(self)
            self.theta, self.best = self.parameters.begin + 0.01, 0.9 * self.best

    made: list[Descent] = []
    monkeypatch.setattr(Descent, "go", go)
    tuned = tune(lessons.denoiser, nfe=3, lessons=lessons.take(torch.arange(32)))
    assert "tuned, 3 evaluations" in tuned.table.solver


def test_a_named_table_is_found_by_its_name() -> None:
    found = named(VP, 4)
    for name in list(found)[::9]:
        assert str(named_table(VP, 4, name)) == str(found[name])
    pndm = next(name for name in found if name.startswith("PNDM"))
    with pytest.raises(ValueError, match="has no table of 0 evaluations"):
        named_table(VP, 0, pndm)


def test_a_low_rank_has_fewer_numbers_and_the_same_start() -> None:
    named = reduce(orn.DPMSolverPP(order=2).compile(VP, orn.LogSNR()(VP, 12)))
    full, low = Parameters(VP, named), Parameters(VP, named, rank=2)
    weights = [p.coefficients(p.begin).weights for p in (full, low)]
    assert torch.equal(*weights)
    assert len(full) == 11 + 12 + 66
    assert len(low) == 11 + 12 + 2 * (11 + 11)


def test_noise_keeps_the_law_whatever_the_numbers() -> None:
    """keep^2 sigma^2 + fresh^2 = sigma'^2: the table's law of a constant x0 is that of the process, by `response`."""
    table = SDE.compile(VP, orn.LogSNR()(VP, 6))
    parameters = Parameters(VP, reduce(table))
    assert any(kind == "noise" for kind, _, _ in parameters.slots)
    c = parameters.coefficients(parameters.begin + 0.3 * normal(len(parameters)))
    sigma = c.levels.sigma
    assert torch.allclose((c.keep * sigma[:-1]) ** 2 + c.fresh**2, sigma[1:] ** 2, rtol=1e-12, atol=0)
    assert not torch.allclose(c.fresh, parameters.named.fresh)
    made = c.table(VP, "noisy")
    denoiser = orn.Denoiser(lambda x, t: torch.ones_like(x), VP, "x0")
    one = made.rows[3].level
    assert one is not None
    states: list[torch.Tensor] = []
    x = VP.corrupt(torch.ones(4000, 1, dtype=F64), 1.0, seed=0).x
    orn.sample(denoiser, x_init=x, table=made, seed=1, hooks=[lambda m: states.append(m.x)])
    # 4000 draws: a standard deviation is known to 1/sqrt(8000) = 1.1 %, five of which are 5.6 %
    assert float(states[2].std() / one.sigma) == pytest.approx(1, abs=0.056)
    assert float(states[2].mean()) == pytest.approx(float(one.alpha), abs=5 * float(one.sigma) / 63)


def test_the_descent_follows_the_table_it_returns(lessons: Lessons) -> None:
    """The recursion that is tuned and the table in the loop are one sampler, noise included."""
    for solver in (orn.DPMSolverPP(order=3, start="published"), SDE):
        table = solver.compile(VP, orn.LogSNR()(VP, 5))
        work = Work([lessons], Endpoint(), seed=3)
        own = work.follow(reduce(table))[0].states[-1]
        assert float((own - lessons.run(table, seed=3)).abs().max()) < 1e-9


def test_the_descent_follows_the_table_of_a_process_with_a_shift() -> None:
    """Of a network that answers the velocity, whose part from the shift's slope is its own."""
    process, world = orn.MeanReverting(), ring()
    cond = {"mean": normal(32, 2, seed=4)}
    model = world.denoiser(process, "velocity")
    x = process.corrupt(world.sample(32), 1.0, noise=normal(32, 2), cond=cond).x
    scene = Lessons(model, x, x, process.level(1.0), process.level(0.0), cond)
    table = orn.DPMSolverPP(order=2).compile(process, orn.LogSNR()(process, 5))
    work = Work([scene], Endpoint(), seed=0)
    runs = work.follow(reduce(table))
    shift = process.shift(process.level(0.0).t, cond)
    end = runs[0].states[-1] if shift is None else runs[0].states[-1] + shift
    assert float((end - scene.run(table)).abs().max()) < 1e-9
    assert work.value(reduce(table)) == pytest.approx(scene.endpoint_error(table), rel=1e-9)


def test_columns_of_the_jacobian_are_derivatives(lessons: Lessons) -> None:
    """A difference that begins at the changed row equals one of whole runs, with a central step a hundred times wider
    (whose error is of order 1e-8 here, beside 1e-5 of the columns')."""
    few = lessons.take(torch.arange(16))
    parameters = Parameters(VP, reduce(orn.DPMSolverPP(order=2).compile(VP, orn.LogSNR()(VP, 4))))
    work = Work([few], Endpoint(), 0)
    theta = parameters.begin + 0.05
    runs = work.follow(parameters.coefficients(theta))
    jacobian = work.jacobian(parameters, theta, runs, work.residuals(runs))
    assert len(parameters) == 3 + 4 + 6
    for k in range(len(parameters)):
        h = 1e-5 * torch.eye(len(parameters), dtype=F64)[k]
        ends = [work.residuals(work.follow(parameters.coefficients(theta + sign * h))) for sign in (1, -1)]
        slope = (ends[0] - ends[1]) / 2e-5
        if parameters.slots[k] == ("asked", 0, 0):  # one-sided: there is no level above the first
            continue
        assert float((jacobian[:, k] - slope).norm()) <= 1e-4 * float(slope.norm()) + 1e-9, parameters.slots[k]


def test_the_first_level_stays_at_the_top_and_its_number_alive(lessons: Lessons) -> None:
    """No level is above t = 1: past that bound b_0 would change nothing, and never come back. It is held at the bound,
    where a difference downwards sees its slope, and any step from there is felt."""
    parameters = Parameters(VP, reduce(orn.DPMSolverPP(order=2).compile(VP, orn.LogSNR()(VP, 4))))
    place = parameters.slots.index(("asked", 0, 0))
    theta = parameters.begin.clone()
    theta[place] = 0.7
    held = parameters.inside(theta)
    assert torch.equal(held, parameters.begin)
    work = Work([lessons.take(torch.arange(16))], Endpoint(), 0)
    runs = work.follow(parameters.coefficients(held))
    column = work.jacobian(parameters, held, runs, work.residuals(runs))[:, place]
    assert float(column.abs().max()) > 0
    theta[place] = -0.7
    assert torch.equal(parameters.inside(theta), theta)
    descent = Descent(parameters, work, work)
    descent.go(6, math.inf)
    assert descent.theta is not None
    assert float(descent.theta[place]) <= 0


@pytest.mark.parametrize("nfe", [4])
def test_a_tuned_table_halves_the_error_of_the_best_named(lessons: Lessons, fresh: Lessons, nfe: int) -> None:
    """On starts it has never seen: RMSE at most half, and the median start at most a third, of the named table's."""
    model = lessons.denoiser
    tuned = tune(model, nfe=nfe, lessons=lessons, iterations=10)
    assert tuned.nfe == nfe
    before, after = (fresh.errors(table) for table in (named(VP, nfe)[tuned.tuned_on["named"]], tuned.table))
    assert rms(after) < 0.5 * rms(before)
    assert float(after.median()) < 0.33 * float(before.median())
    assert tuned.gain < 0.5
    assert tuned.error == pytest.approx(rms(tuned.errors))


def test_shuffled_endpoints_give_no_gain(lessons: Lessons, fresh: Lessons) -> None:
    """The guard: what is learnt is the flow. With each start given another's endpoint the best answer is their mean,
    and the table is no better than the named one on true endpoints."""
    rows = torch.randperm(len(lessons), generator=torch.Generator().manual_seed(5))
    wrong = Lessons(lessons.denoiser, lessons.starts, lessons.ends[rows], lessons.start, lessons.end)
    tuned = tune(lessons.denoiser, nfe=4, lessons=wrong, iterations=6)
    best = min(fresh.endpoint_error(table) for table in list(named(VP, 4).values())[::6])
    assert fresh.endpoint_error(tuned.table) > best


def test_a_tuned_table_repeats(lessons: Lessons) -> None:
    few = lessons.take(torch.arange(64))
    one, two = (tune(few.denoiser, nfe=3, lessons=few, iterations=3, seed=4) for _ in range(2))
    assert str(one.table) == str(two.table)
    assert dict(one.tuned_on) == dict(two.tuned_on)
    assert one.tuned_on["starts"] == 48
    assert one.tuned_on["validation"] == 16


def test_what_was_spent_is_counted(lessons: Lessons) -> None:
    """Counted by a network that counts: every run of it is in the figure, and a budget is kept."""
    calls = 0

    class Counted(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += len(x)
            # x0 of a broad Gaussian with a bend, exact for nobody
            return torch.tanh(x)

    model = orn.Denoiser(Counted(), VP, "x0")
    taught = teach(model, (32, 2), seed=0, dtype=F64, steps=30)
    assert calls == taught.evaluations
    calls = 0
    tuned = tune(model, nfe=3, lessons=taught, iterations=2)
    spent = tuned.tuned_on["evaluations"]
    assert spent["lessons"] == taught.evaluations
    # the two tables' figures on the 8 validation starts are runs too, of 3 evaluations each
    assert calls == spent["tuning"] + 2 * 3 * 8
    less = tune(model, nfe=3, lessons=taught, evaluations=spent["tuning"] // 2)
    assert less.tuned_on["evaluations"]["tuning"] <= spent["tuning"]
    assert less.tuned_on["iterations"] <= tuned.tuned_on["iterations"]


def test_guidance_and_conditions_are_part_of_the_lessons() -> None:
    """Tuned on scales 1 and 3 of one model, ahead of the named table at 2, which it has not seen."""
    modes = ring(std=0.3)
    world = orn.exact.GaussianMixture(modes.means, torch.full((6,), 0.3, dtype=F64), labels=torch.arange(6) // 2)
    oracle = world.denoiser(VP)
    label = torch.arange(72) % 3

    def at(scale: float, seed: int) -> Lessons:
        return teach(orn.CFG(oracle, scale), (72, 2), cond={"label": label}, seed=seed, dtype=F64, steps=60)

    tuned = tune(oracle, nfe=4, lessons=[at(1.0, 0), at(3.0, 1)], iterations=6)
    assert [g["scale"] for g in tuned.tuned_on["guidance"]] == [1.0, 3.0]
    between = at(2.0, 2)
    assert between.endpoint_error(tuned.table) < 0.7 * between.endpoint_error(named(VP, 4)[tuned.tuned_on["named"]])


def test_a_stochastic_table_is_tuned_by_distribution() -> None:
    """Sliced W2 of 512 samples to the flow's ends falls; on fresh noise and starts too."""
    lessons, fresh = exact(VP, 512, 1), exact(VP, 1024, 2)
    start = SDE.compile(VP, orn.LogSNR()(VP, 5))
    objective = Distribution(directions=16)
    tuned = tune(lessons.denoiser, nfe=5, lessons=lessons, start=start, objective=objective, iterations=6)
    assert len(tuned.table.noises) == len(start.noises)
    before, after = (objective.value(fresh.run(t, seed=11), fresh.ends) for t in (start, tuned.table))
    least = objective.value(ring().sample(1024, seed=12), fresh.ends)
    assert after - least < 0.5 * (before - least)


def test_objectives_are_what_they_say() -> None:
    x, ends = normal(64, 3), normal(64, 3, seed=1)
    assert Endpoint().value(x, ends) == pytest.approx(float((x - ends).square().mean().sqrt()))
    # a shift of every sample by c moves each projection by <u, c>; E <u, c>^2 = |c|^2/d over directions
    moved = ends + torch.tensor([3.0, 4.0, 0.0], dtype=F64)
    assert Distribution(4000).value(moved, ends) == pytest.approx(5 / 3**0.5, rel=0.05)
    assert Distribution().value(ends.flip(0), ends) == 0.0
    assert Endpoint().value(ends.flip(0), ends) > 0.5
    assert Features(lambda v: 2 * v[:, :1]).value(x, ends) == pytest.approx(2 * Endpoint().value(x[:, :1], ends[:, :1]))
    both = Endpoint() + 0.25 * Distribution()
    assert both.value(x, ends) ** 2 == pytest.approx(
        Endpoint().value(x, ends) ** 2 + 0.25 * Distribution().value(x, ends) ** 2
    )
    assert both.pathwise
    assert not (2 * Distribution()).pathwise


class Pair(NamedTuple):
    a: Any
    b: Any


def test_what_cannot_be_tuned_is_refused(lessons: Lessons) -> None:
    model = lessons.denoiser
    with pytest.raises(ValueError, match="nfe=1: one evaluation leaves nothing to tune"):
        tune(model, nfe=1, lessons=lessons)
    with pytest.raises(ValueError, match="give the shape"):
        tune(model, nfe=4)
    with pytest.raises(ValueError, match="too few to tune on"):
        tune(model, nfe=4, lessons=lessons.take(torch.arange(3)))
    with pytest.raises(ValueError, match="leaves one side empty"):
        tune(model, nfe=4, lessons=lessons, validation=1.0)
    with pytest.raises(ValueError, match="has noise, so no start has an endpoint"):
        tune(model, nfe=4, lessons=lessons, start=SDE.compile(VP, orn.LogSNR()(VP, 4)))
    with pytest.raises(ValueError, match="takes 5 evaluations, nfe=4"):
        tune(model, nfe=4, lessons=lessons, start=orn.DDIM().compile(VP, orn.LogSNR()(VP, 5)))
    with pytest.raises(ValueError, match="teach again"):
        tune(ring().denoiser(FLOW), nfe=4, lessons=lessons)
    with pytest.raises(ValueError, match="scale for each start"):
        teach(orn.CFG(model, torch.ones(8)), (8, 2), cond={"label": torch.arange(8) % 6}, steps=5).split()
    with pytest.raises(ValueError, match="rank=0: at least 1"):
        tune(model, nfe=4, lessons=lessons, rank=0)
    with pytest.raises(orn.TableError, match="do not fall one by one"):
        tune(model, nfe=5, lessons=lessons, start=orn.Heun().compile(VP, orn.LogSNR()(VP, 3)))
    with pytest.raises(orn.TableError, match="constant x0"):
        tune(model, nfe=4, lessons=lessons, start=orn.Euler().compile(VP, orn.Uniform()(VP, 4)))
    with pytest.raises(ValueError, match="positive"):
        Endpoint() * 0.0
    product = orn.Product(Pair(VP, FLOW))
    two = orn.Denoiser(lambda x, t: x, product, "x0")
    with pytest.raises(ValueError, match="tuned for one GaussianProcess"):
        tune(two, nfe=4, shape=(8, 2))


def test_lessons_are_refused_where_they_are_not_true() -> None:
    wild = orn.Denoiser(lambda x, t: x * float("nan"), VP, "x0")
    with pytest.raises(orn.NonFiniteError):
        teach(wild, (8, 2))
    good = exact(VP, 8, 0)
    with pytest.raises(ValueError, match="not finite"):
        Lessons(good.denoiser, good.starts, good.ends / 0, good.start, good.end)
    with pytest.raises(ValueError, match="one of each"):
        Lessons(good.denoiser, good.starts, good.ends[:4], good.start, good.end)
    with pytest.raises(ValueError, match="must be the batch of 8"):
        Lessons(good.denoiser, good.starts, good.ends, good.start, good.end, {"label": torch.arange(9)})
    with pytest.raises(ValueError, match="give the shape"):
        teach(good.denoiser)
    short = orn.DDIM().compile(VP, orn.LogSNR(to_data=False, end=4.0)(VP, 4))
    with pytest.raises(ValueError, match="has its end at t"):
        good.errors(short)


def test_the_teacher_is_as_good_as_it_should_be() -> None:
    """Against the exact flow: 1e-4 of the state at 100 steps (measured), beside errors of 0.1 that are tuned away."""
    for process in (VP, FLOW):
        truth = exact(process, 64, 3)
        taught = teach(truth.denoiser, x_init=truth.starts)
        assert taught.evaluations >= 100 * 64
        assert rms((taught.ends - truth.ends).flatten(1).norm(dim=1) / 2**0.5) < 1e-3
        assert torch.equal(taught.start.t, truth.start.t)
    kept = teach(truth.denoiser, x_init=truth.starts, steps=20, path=True)
    assert kept.path is not None
    assert len(kept.path.states) == 21
    assert len(kept.take(torch.arange(5)).path.x0[0]) == 5
