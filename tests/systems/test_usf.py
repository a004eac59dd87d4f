"""USF: schedules of strategies are the named solvers where all steps are alike, and the searched ones are closer."""

import itertools

import pytest
import torch

import ornstein as orn
from orders import GRID, WORLDS, slopes, start_and_truth
from ornstein.solvers import DEIS, Solver
from ornstein.solvers.exponential import combine, weights
from ornstein.solvers.multistep import multistep
from ornstein.tuning.evolution import evolve, surrogate
from ornstein.tuning.found import compiled
from ornstein.tuning.lessons import teach
from ornstein.tuning.usf import NAMED, USF, SolverSchedule, Strategy
from worlds import F64, normal, ring

PROCESS = orn.VP()


class Longer(Solver):
    """DDIM's prediction, corrected by a parabola: a corrector that looks back further than its predictor."""

    def write(self, table, grid):
        def advance(x, t, s, nodes):
            return combine(x, t, s, weights(t, s, [node.level for node in nodes]), nodes, "x0")

        multistep(table, grid, advance, past=1, corrector=2)


SAME = [
    (Strategy(1, corrector=2), Longer()),
    (Strategy(1), orn.DDIM()),
    (Strategy(2, "x0", "bh2"), orn.DPMSolverPP(order=2)),
    (Strategy(3, "x0"), orn.DPMSolverPP(order=3, start="published")),
    (Strategy(2, "noise", "bh2"), orn.DPMSolver(order=2)),
    (Strategy(2, "x0", "bh2", corrector=2), orn.UniPC(order=2)),
    (Strategy(3, "x0", "bh1", corrector=3), orn.UniPC(order=3, variant="bh1", start="published")),
    (Strategy(2, "noise", "exact", corrector=2), orn.UniPC(order=2, variant="vary_coeff", predicts="noise")),
    (Strategy(3, "noise"), DEIS(order=2, method="lambdaAB", start="published")),
]


@pytest.mark.parametrize("process", [orn.VP(), orn.Flow(), orn.EDM(), orn.MeanReverting()], ids=repr)
def test_one_strategy_for_all_steps_is_a_named_solver(process):
    """To rounding: 1e-10 of states up to 80. DEIS takes its integrals by quadrature, the rest is the same formula."""
    model, levels = ring().denoiser(process), orn.LogSNR()(process, 7)
    cond = {"mean": normal(6, 2, seed=4)} if isinstance(process, orn.MeanReverting) else None
    x = process.prior((6, 2), seed=1, cond=cond, dtype=F64)

    def end(solver):
        return orn.sample(model, x_init=x, table=solver.compile(process, levels), cond=cond).x

    ends = [end(solver) for _, solver in SAME]
    for (how, _), wanted in zip(SAME, ends, strict=True):
        torch.testing.assert_close(end(SolverSchedule((how,) * 7)), wanted, rtol=1e-10, atol=1e-10)
    for a, b in itertools.combinations(ends, 2):  # and the solvers are nine, not one
        assert float((a - b).abs().max()) > 1e-4


def test_a_schedule_that_changes_its_view_each_step_keeps_order_2():
    """Steps of order 2 and 3 by turns in x0 and noise, with and without correctors: order 2, for the first step of the
    predictor is DDIM's; all of order 1 is of order 1."""
    model, (x, truth) = WORLDS["ring"].denoiser(PROCESS), start_and_truth("ring", PROCESS)

    def error(turns, steps):
        solver = SolverSchedule(tuple(itertools.islice(itertools.cycle(turns), steps)))
        table = solver.compile(PROCESS, GRID(PROCESS, steps))
        return float((orn.sample(model, x_init=x, table=table).x - truth).norm(dim=1).median())

    mixed = (Strategy(2, "x0"), Strategy(2, "noise", "bh1"), Strategy(2, "x0", "bh2"))
    assert slopes([error(mixed, n) for n in (80, 160)])[-1] == pytest.approx(2, abs=0.2)
    plain = (Strategy(1, "x0"), Strategy(1, "noise", "bh2"))
    assert slopes([error(plain, n) for n in (40, 80)])[-1] == pytest.approx(1, abs=0.2)


def test_a_constant_is_followed_exactly():
    """x0 = c everywhere: the end is c, whatever the strategies."""
    c = torch.tensor([0.7, -0.3], dtype=F64)
    model = orn.Denoiser(lambda x, t: c.expand_as(x), PROCESS, "x0")
    found = SolverSchedule(
        (Strategy(3, "noise"), Strategy(2, "noise", "bh1", 2), Strategy(3), Strategy(1, corrector=3))
    )
    out = orn.sample(model, x_init=PROCESS.prior((4, 2), seed=0, dtype=F64), solver=found, grid=orn.LogSNR(), steps=4)
    torch.testing.assert_close(out.x, c.expand(4, 2), rtol=0, atol=1e-12)


def lower(own, other):
    """By how many standard errors the mean difference, in pairs, is below 0."""
    gain = other - own
    return float(gain.mean() / gain.std()) * len(gain) ** 0.5


@pytest.mark.system("usf", rival="the best homogeneous schedule on log-SNR, Karras and cosine grids")
def test_usf():
    """5 evaluations, the 64-D mixture, three searches of 192 starts each: on 1000 fresh ones the schedules' mean square
    endpoint error, which is what is searched for, is below that of the homogeneous ones, of six on four grids, that are
    best on the same starts, in pairs by 2.33 standard errors, which chance gives one time in a hundred.

    The numbers of starts and stages were chosen on other starts than any here. One search of 64 starts is ruled by the
    few near a border of modes: in two of five it was no better on fresh ones.
    """
    world, steps = WORLDS["mixture"], 5
    model = world.denoiser(PROCESS)
    fresh = teach(model, (1000, 64), seed=5001, dtype=F64, steps=60)
    search = USF(stages=6)
    own, plain = list[torch.Tensor](), list[torch.Tensor]()
    for seed in (501, 502, 503):
        lessons = teach(model, (192, 64), seed=seed, dtype=F64, steps=40)
        found = search.search(lessons, steps)
        assert found.judged == 24 + 6 * 16
        assert found.evaluations == found.judged * 192 * steps
        assert found.value == pytest.approx(lessons.endpoint_error(found.table), rel=1e-9)
        named = {}
        for grid in search.grids:
            for how in NAMED.values():
                table = compiled(SolverSchedule((how,) * steps), PROCESS, grid(PROCESS, steps).t.tolist())
                named[how, grid] = lessons.endpoint_error(table), table
        _, table = min(named.values(), key=lambda pair: pair[0])
        own.append(fresh.errors(found.table).square())
        plain.append(fresh.errors(table).square())
    assert lower(torch.stack(own).mean(0), torch.stack(plain).mean(0)) > 2.33


def test_the_surrogate_ranks_what_it_has_not_seen():
    """log y = |x - c|^2/2 on 60 points of [0, 1]^4 puts 200 others in order: rank correlation above 0.9; infinite
    values, of schedules that diverge, count as bad."""
    x, asked = normal(60, 4, seed=1), normal(200, 4, seed=2)

    def truth(points):
        return ((points - 0.3).square().sum(1) / 2).exp()

    def ranks(v):
        return v.argsort().argsort().double()

    guess = surrogate(x, truth(x), asked)
    assert float(torch.corrcoef(torch.stack([ranks(guess), ranks(truth(asked))]))[0, 1]) > 0.9
    values = torch.tensor([1.0, 2.0, torch.inf], dtype=F64)
    points = torch.tensor([[0.0], [1.0], [2.0]], dtype=F64)
    assert surrogate(points, values, points).argsort().tolist() == [0, 1, 2]


def test_evolution_with_a_surrogate_needs_fewer_trials():
    """min |g - c|^2 over integer points of [-20, 20]^4: in 6 generations of 8, median of 9 seeds."""
    centre = (7, -3, 11, -14)

    def judge(genome):
        return 1.0 + sum((a - b) ** 2 for a, b in zip(genome, centre, strict=True))

    def child(best, rng):
        return tuple(max(-20, min(20, g + rng.randint(-3, 3))) for g in rng.choice(best))

    def value(seed, **how):
        options = {"population": 8, "parents": 4, "generations": 6, "seed": seed}
        found = evolve(judge, [(0, 0, 0, 0)], child, **options, **how)
        assert found.value == judge(found.best) == min(found.judged.values())
        assert len(found.judged) <= 1 + 6 * 8
        return found.value

    plain = sorted(value(seed) for seed in range(9))[4]
    screened = sorted(value(seed, features=lambda g: [v / 10 for v in g], screen=8) for seed in range(9))[4]
    assert screened < plain


def test_refusals():
    with pytest.raises(ValueError, match="order=5: choose 1, 2, 3, 4"):
        Strategy(5)
    with pytest.raises(ValueError, match="view='v': choose x0, noise"):
        Strategy(view="v")
    with pytest.raises(ValueError, match="2 strategies for a grid of 3 steps"):
        SolverSchedule((Strategy(),) * 2).compile(PROCESS, orn.LogSNR()(PROCESS, 3))
    lessons = teach(ring().denoiser(PROCESS), (4, 2), dtype=F64, steps=10)
    with pytest.raises(ValueError, match="steps=1"):
        USF().search(lessons, 1)
    with pytest.raises(ValueError, match="population=0"):
        evolve(lambda g: 1.0, [0], lambda best, rng: 0, population=0, parents=1, generations=1, seed=0)
