"""Error bars: the estimate covers the distance to the exact flow, is not useless, and a budget is chosen by it."""

import functools
import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import BrownianPath, Doubled, Embedded, Heun, UniPC, choose_steps
from worlds import F64, normal, ring


def high_dimensional():
    """Eight modes of standard deviation 0.3 in 64 dimensions."""
    return orn.exact.GaussianMixture(normal(8, 64, seed=1), torch.full((8,), 0.3, dtype=F64))


def low_rank():
    """Four modes in 16 dimensions, each spread in three directions and 0.05 beside them."""
    factors = normal(4, 16, 3, seed=6) * torch.tensor([0.5, 0.3, 0.15], dtype=F64)
    return orn.exact.GaussianMixture(normal(4, 16, seed=5), 0.05, factors=factors)


def gaussian():
    """Normal data, standard deviations from 1.5 to 0.03."""
    turn = torch.linalg.qr(normal(6, 6, seed=8))[0]
    std = torch.tensor([1.5, 1.0, 0.6, 0.3, 0.1, 0.03], dtype=F64)
    return orn.exact.Gaussian(normal(6, seed=9), cov=turn @ torch.diag(std**2) @ turn.T)


WORLDS = {"ring": ring(), "64": high_dimensional(), "low-rank": low_rank(), "gaussian": gaussian()}
PROCESSES = [orn.VP(), orn.EDM(), orn.Flow()]
OFFERED = [
    orn.DDIM(),
    Heun(),
    orn.DPMSolverPP(order=2),
    orn.DPMSolverPP(order=3),
    orn.solvers.DPMSolver(order=2),
    UniPC(),
    UniPC(order=3),
    orn.solvers.DEIS(),
    orn.solvers.DEIS(order=2),
    orn.solvers.DEIS(method="rhoAB"),
]


@functools.cache
def start_and_truth(name, process):
    world = WORLDS[name]
    x = process.prior((128, *world.event), seed=0, dtype=F64)
    return x, world.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)


def ratios(name, process, solver, steps, grid=None):
    """Estimate over distance to the exact flow, a sample each."""
    x, truth = start_and_truth(name, process)
    out = orn.sample(WORLDS[name].denoiser(process), x_init=x, solver=solver, grid=grid, steps=steps)
    return out.error / (out.x - truth).square().mean(1).sqrt()


def covered(ratio):
    return float((ratio >= 1).double().mean())


# The stated level, less one standard deviation of a share of 0.9 among 128 samples. Every cell of the full table (24
# solvers, these worlds and processes, 8 to 50 steps) is at 0.9 or above without it.
LEVEL = 0.9 - (0.9 * 0.1 / 128) ** 0.5
# The bar is at most 2 sqrt(2) times the carried defects. A bar carries them as data of standard deviation 1 would, the
# flow into a mode shrinks them to the mode's, at least 0.15 where most dimensions are: 2 sqrt(2)/0.15 = 19. A judge of
# one order less sees a defect larger than the solver's own, by 5 for the line against the parabola (Adams' constants
# 5/12 and 1/12): so up to 95 from order 2 on, and 19 for order 1.
SHARP = {1: 19.0, 2: 95.0}


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", WORLDS)
def test_embedded_covers_the_truth_for_nothing(name, process):
    """Nine samples in ten, from the fewest steps that are allowed, and bars that say something."""
    for solver in OFFERED:
        for steps in (8, 25) if solver in (orn.DDIM(), UniPC()) else (8 + 2 * len(name),):  # 12 to 24
            ratio = ratios(name, process, Embedded(solver), steps)
            assert covered(ratio) >= LEVEL, (solver, steps)
            assert 1 < float(ratio.median()) < SHARP[1 if solver == orn.DDIM() else 2], (solver, steps)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", WORLDS)
def test_doubled_covers_the_truth(name, process):
    for solver in (orn.DDIM(), orn.DPMSolverPP(order=2), UniPC(), orn.DPMSolverPP(order=3)):
        for steps in (8, 20):
            ratio = ratios(name, process, Doubled(solver), steps)
            assert covered(ratio) >= LEVEL, (solver, steps)
            assert 1 < float(ratio.median()) < SHARP[1 if solver == orn.DDIM() else 2], (solver, steps)


class Bare(orn.Solver):
    """The rival: DDIM, and the plain sum of what Heun's step differs by."""

    def write(self, table, grid):
        x, p, total = table.state, table.evaluate(table.state, grid[0]), None
        for t, s in itertools.pairwise(grid):
            left = s.sigma / t.sigma
            y = table.step(left * x + (s.alpha - left * t.alpha) * p.x0, s)
            if float(s.sigma) > 0:
                e = table.evaluate(y, s)
                difference = (s.alpha - left * t.alpha) / 2 * (e.x0 - p.x0)
                total = table.register(difference if total is None else total + difference)
                x, p = y, e
        table.error(table.register(1.0 * total))


@pytest.mark.parametrize("solver", [orn.DDIM(), Heun()], ids=repr)
def test_what_is_left_out_is_missed(solver):
    """Without the factor of 2 fewer than nine in ten are covered, and by the plain sum of differences too."""
    name, process, steps = "low-rank", orn.VP(), 30
    assert covered(ratios(name, process, Embedded(solver), steps)) >= LEVEL
    assert covered(ratios(name, process, Embedded(solver, safety=1.0), steps)) < LEVEL
    assert covered(ratios(name, process, Bare(), steps)) < LEVEL


def test_a_corrector_is_not_judged_by_itself():
    """By the parabola that UniPC of order 2 corrects with, 85 % are covered here."""
    assert covered(ratios("64", orn.VP(), Embedded(UniPC()), 60, orn.Quadratic())) >= 0.9


@pytest.mark.parametrize("wrap", [Embedded, Doubled])
def test_steps_too_long_have_no_bar(wrap):
    """Where it would not cover, it says so: long steps, and a long jump to data. A first step that is all noise may be
    long."""
    oracle, x = WORLDS["ring"].denoiser(orn.VP()), normal(3, 2)
    for grid, steps in ((orn.LogSNR(), 5), (orn.Karras(), 12)):
        with pytest.raises(ValueError, match=r"no error bar that covers: .* more than 0.85"):
            orn.sample(oracle, x_init=x, solver=wrap(UniPC()), grid=grid, steps=steps)
    with pytest.raises(ValueError, match="jumps to data"):
        orn.sample(oracle, x_init=x, solver=wrap(UniPC()), grid=orn.Uniform(), steps=8)
    assert orn.sample(oracle, x_init=x, solver=wrap(UniPC()), steps=8).error.shape == (3,)


def test_a_table_with_a_bar_is_kept_in_a_file(tmp_path):
    process = orn.VP()
    oracle, x = WORLDS["ring"].denoiser(process), normal(3, 2)
    table = Embedded(UniPC()).compile(process, orn.LogSNR()(process, steps=9))
    table.save(tmp_path / "table.json")
    kept = orn.Table.load(tmp_path / "table.json")
    assert torch.equal(*(orn.sample(oracle, x_init=x, table=own).error for own in (table, kept)))


@pytest.mark.parametrize("wrap", [Embedded, Doubled])
def test_the_samples_are_those_of_the_solver(wrap):
    """The wrapper only watches: the same samples and trajectory; what it costs is counted."""
    x = normal(5, 2)
    for solver in (orn.DDIM(), Heun(), UniPC(), orn.DPMSolverPP(order=3), orn.solvers.DEIS()):
        for process, grid in ((orn.Flow(), orn.LogSNR()), (orn.VP(), orn.LogSNR(end=4.0, to_data=False))):
            options = {"x_init": x, "grid": grid, "steps": 9, "trajectory": True}
            plain = orn.sample(WORLDS["ring"].denoiser(process), solver=solver, **options)
            out = orn.sample(WORLDS["ring"].denoiser(process), solver=wrap(solver), **options)
            torch.testing.assert_close(out.x, plain.x, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(out.trajectory, plain.trajectory, rtol=1e-12, atol=1e-12)
            assert plain.error is None
            assert out.error.shape == (5,)
            more = out.nfe - plain.nfe
            if wrap is Doubled:
                assert 0.4 * plain.nfe <= more <= 0.65 * plain.nfe
            else:
                evaluated = float(grid(process, steps=9)[-1].sigma) == 0 or solver == Heun()
                assert more == (0 if evaluated else 1)


def test_the_estimates_are_what_their_equations_say():
    """One Gaussian, two steps of DDIM, by hand."""
    process, c = orn.VP(), 0.4
    world = orn.exact.Gaussian(torch.zeros(1, dtype=F64), cov=torch.full((1, 1), c, dtype=F64))
    grid = process.level([0.6, 0.5, 0.4])
    x = torch.tensor([[1.3]], dtype=F64)

    def x0(x, level):
        return level.alpha * c / (level.alpha**2 * c + level.sigma**2) * x

    def ddim(x, t, s):
        return s.sigma / t.sigma * x + (s.alpha - t.alpha * s.sigma / t.sigma) * x0(x, t)

    y = ddim(x, grid[0], grid[1])
    z, jump = ddim(y, grid[1], grid[2]), ddim(x, grid[0], grid[2])
    out = orn.sample(world.denoiser(process), x_init=x, solver=Doubled(orn.DDIM()), grid=grid)
    torch.testing.assert_close(out.error, 2 * (z - jump).abs().flatten())

    def rule(x, t, s, values):
        # sigma_s (x/sigma_t + int x0 dq), x0 a polynomial in lambda = log q through the values, q = alpha/sigma
        where = [(level.alpha / level.sigma).log() for level in grid]
        u = torch.linspace(float((t.alpha / t.sigma).log()), float((s.alpha / s.sigma).log()), 20_001, dtype=F64)
        total = torch.zeros_like(u)
        for i in range(len(values)):
            others = [j for j in range(len(values)) if j != i]
            total += values[i] * math.prod((u - where[j]) / (where[i] - where[j]) for j in others)
        return s.sigma * (x / t.sigma + torch.trapezoid(total, u.exp()))

    answers = [float(x0(x, grid[0])), float(x0(y, grid[1])), float(x0(z, grid[2]))]
    first = rule(x, grid[0], grid[1], answers[:2]) - y
    second = rule(y, grid[1], grid[2], answers) - z
    v = 0.7**2
    carried = torch.sqrt((grid[2].alpha ** 2 * v + grid[2].sigma ** 2) / (grid[1].alpha ** 2 * v + grid[1].sigma ** 2))
    expected = 3 * torch.sqrt((carried * first + second) ** 2 + (carried * first) ** 2 + second**2)
    out = orn.sample(world.denoiser(process), x_init=x, solver=Embedded(orn.DDIM(), 0.7, 3.0), grid=grid)
    torch.testing.assert_close(out.error, expected.flatten(), rtol=1e-6, atol=1e-9)


def test_the_first_and_the_last_step_have_estimates_too():
    """From alpha = 0 and to sigma = 0, one step each: the estimate is the true error to leading order; for a Gaussian
    x0 is linear in alpha/sigma at one end and in (sigma/alpha)^2 at the other. The step before the last is short; one
    defect counts twice, in the sum and in the spread: sqrt(2)."""
    process, c = orn.Flow(), 0.5
    world = orn.exact.Gaussian(torch.zeros(1, dtype=F64), cov=torch.full((1, 1), c, dtype=F64))
    x = torch.tensor([[1.3]], dtype=F64)
    for times in ([1.0, 0.97], [0.0305, 0.03, 0.0]):
        out = orn.sample(world.denoiser(process), x_init=x, solver=Embedded(orn.DDIM(), safety=1.0), grid=times)
        truth = world.flow(process, x, times[0], times[-1])
        assert float(out.error) == pytest.approx(2**0.5 * float((out.x - truth).abs()), rel=0.1)


def test_choose_steps():
    """The tolerance is met by the truth for the quantile asked for; a looser one takes fewer; nfe is that of all runs;
    where it cannot be reached the reason says what would."""
    process, world = orn.VP(), WORLDS["ring"]
    x, truth = start_and_truth("ring", process)
    steps = []
    for tol in (0.1, 0.02, 0.004):
        found = choose_steps(world.denoiser(process), x_init=x, tol=tol, solver=orn.DPMSolverPP())
        distance = (found.samples.x - truth).square().mean(1).sqrt()
        assert found.reason is None
        assert found.error <= tol
        assert float(torch.quantile(distance, 0.9)) <= tol
        assert float(torch.quantile(found.samples.error, 0.9)) == pytest.approx(found.error)
        steps.append(found.steps)
        assert found.samples.nfe == sum(5 * 2**k for k in range(10) if 5 * 2**k <= found.steps)
    assert steps == sorted(set(steps))
    short = choose_steps(world.denoiser(process), x_init=x, tol=1e-7, max_nfe=200, solver=orn.DPMSolverPP())
    assert short.samples.nfe <= 200
    assert short.steps == 80
    assert "about" in short.reason
    assert short.error > 1e-7
    none = orn.Denoiser(lambda x, t: torch.sin(1e6 * x), process, predicts="x0")
    assert "does not fall" in choose_steps(none, x_init=x, tol=1e-3, max_nfe=200).reason


def test_choose_steps_on_a_path():
    oracle, x = WORLDS["ring"].denoiser(orn.VP()), normal(16, 2)
    with pytest.raises(ValueError, match="one path for all runs"):
        choose_steps(oracle, x_init=x, tol=0.3, solver=orn.DDIM(eta=1.0), seed=3)
    path = BrownianPath(3, batch=16, dtype=F64)
    found = choose_steps(oracle, x_init=x, tol=0.3, quantile=0.6, solver=orn.DDIM(eta=1.0), seed=path)
    assert found.reason is None


def test_what_they_refuse():
    oracle, x = WORLDS["ring"].denoiser(orn.VP()), normal(3, 2)
    for solver, match in (
        (Embedded(orn.DDIM(eta=1.0)), "adds noise"),
        (Doubled(orn.DDIM(eta=1.0)), "adds noise"),
    ):
        with pytest.raises(ValueError, match=match):
            orn.sample(oracle, x_init=x, solver=solver, steps=9)
    with pytest.raises(ValueError, match="at least 2 steps"):
        orn.sample(oracle, x_init=x, solver=Doubled(orn.DDIM()), steps=1)
    for other in (orn.solvers.RK4(), orn.solvers.SASolver(), UniPC(order=4), UniPC(predicts="noise")):
        with pytest.raises(ValueError, match="take Doubled"):
            Embedded(other)
    with pytest.raises(ValueError, match="data_std must be positive"):
        Embedded(orn.DDIM(), data_std=0.0)
    for bad, match in (
        ({"tol": 0.0}, "tol > 0"),
        ({"tol": 0.1, "steps": 3}, "chooses steps"),
        ({"tol": 0.1, "max_nfe": 12}, "no two runs"),
    ):
        with pytest.raises(ValueError, match=match):
            choose_steps(oracle, x_init=x, **bad)


def test_sample_to_a_tolerance():
    """Nine in ten of the true distances are within it; where the budget ends first, a reason and a warning."""
    process = orn.VP()
    oracle, x = ring().denoiser(process), process.prior((64, 2), seed=0, dtype=F64)
    truth = ring().flow(process, x, 1.0, 0.0, rtol=1e-9, atol=1e-10)
    for tol in (0.1, 0.01):
        out = orn.sample(oracle, x_init=x, tol=tol)
        distance = (out.x - truth).square().mean(1).sqrt()
        assert float(distance.quantile(0.9)) <= tol
        assert out.reason is None
        assert float(out.error.quantile(0.9)) <= tol
    rough = orn.sample(oracle, x_init=x, steps=out.table.steps // 8)
    assert float((rough.x - truth).square().mean(1).sqrt().quantile(0.9)) > tol  # an eighth of the steps would not do
    assert out.nfe > out.table.nfe
    with pytest.warns(UserWarning, match="not 1e-06"):
        poor = orn.sample(oracle, x_init=x, tol=1e-6, nfe=60)
    assert poor.nfe <= 60
    assert "not 1e-06" in poor.reason
    with pytest.raises(ValueError, match="tol chooses the steps"):
        orn.sample(oracle, x_init=x, tol=0.1, steps=5)
