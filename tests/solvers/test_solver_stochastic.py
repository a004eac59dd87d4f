"""Reverse SDEs, churn, restarts and correctors: weak orders exactly, strong orders on shared paths, exact ends."""

import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

import ornstein as orn
from ornstein.errors import TableError
from ornstein.solvers import Churn, EulerMaruyama, PredictorCorrector, Restart, StochasticHeun
from worlds import F64, normal, ring

PROCESSES = [orn.VP(), orn.EDM(), orn.Flow(), orn.MeanReverting()]
GRID = orn.LogSNR(start=-3.0, end=3.0, to_data=False)


def sigma2_over_alpha(level):
    """A diffusion of one's own: epsilon^2 = sigma |alpha'| + sigma sigma', finite at alpha = 0."""
    return level.sigma * (level.d_sigma - level.d_alpha)


DIFFUSIONS = [0.0, 0.3, 1.0, 2.0, sigma2_over_alpha]


def law(process, solver, grid, mean, variance):
    """Mean and variance at the end of a table started from the exact law at its first level."""
    out = orn.response(solver.compile(process, grid), mean, variance)
    start = float(grid.alpha[0] ** 2 * variance + grid.sigma[0] ** 2)
    return float(out.mean(float(grid.alpha[0]) * mean)), float(out.variance(start))


def slopes(found):
    return [math.log2(a / b) for a, b in itertools.pairwise(found)]


C = torch.tensor([0.1, 0.7, 5.0], dtype=F64)


def variance_defect(process, solver, grid, noise=1.0):
    """Distance of the variance at the end from alpha^2 c + sigma^2, for three c at once (one alone may cross 0)."""
    out = orn.response(solver.compile(process, grid), 0.3, C)
    start, end = (level.alpha**2 * C + level.sigma**2 for level in (grid[0], grid[-1]))
    return float((out.gain**2 * start + noise**2 * (out.gains**2).sum(0) - end).norm())


def variance_defects(process, solver, steps):
    return [variance_defect(process, solver, GRID(process, steps=n)) for n in steps]


@pytest.mark.parametrize(
    ("process", "diffusion"),
    [(p, d) for p in PROCESSES for d in (0.3, 1.0, sigma2_over_alpha)] + [(orn.VP(), 0.0), (orn.Flow(), 2.0)],
    ids=lambda v: getattr(v, "__name__", repr(v)),
)
def test_every_diffusion_has_the_marginals_of_the_process(process, diffusion):
    """The variance at the end converges to alpha^2 c + sigma^2 whatever epsilon, at order 1 for Euler-Maruyama and 2
    for stochastic Heun, computed without sampling. With another multiple of the score, or half the noise, the defect
    stays at a constant."""
    one = variance_defects(process, EulerMaruyama(diffusion), (50, 100))
    two = variance_defects(process, StochasticHeun(diffusion), (40, 80))
    assert slopes(one)[-1] == pytest.approx(1, abs=0.2)
    assert slopes(two)[-1] == pytest.approx(2, abs=0.2)
    if diffusion:
        assert variance_defect(process, StochasticHeun(diffusion), GRID(process, steps=80), noise=0.5) > 20 * two[-1]


@dataclass(frozen=True)
class LeftNoise(orn.Solver):
    """Stochastic Heun with the noise of a step taken at its first time alone."""

    def write(self, table, grid):
        x = table.state
        for t, s in itertools.pairwise(grid):
            h, e_t, e_s = t.t - s.t, *(orn.VP().diffusion2(v.t) for v in (t, s))
            p, n = table.evaluate(x, t), (h * e_t).sqrt() * table.noise(t, s)
            first = (h * e_t / 2) * p.score - h * p.velocity
            q = table.evaluate(table.register(x + n + first, s), s)
            x = table.step(x + n + 0.5 * first + (h * e_s / 4) * q.score - (h / 2) * q.velocity, s)


@pytest.mark.parametrize(
    ("solver", "order"),
    [(LeftNoise(), 1), (Churn(20.0), 2), (Churn(8.0, 0.3, 2.0), 2), (Restart(orn.Heun(), ((0.3, 1.5, 2),)), 2)],
    ids=repr,
)
@pytest.mark.parametrize("process", [orn.VP(), orn.EDM(), orn.Flow(), orn.MeanReverting()], ids=repr)
def test_weak_order_of_the_others(process, solver, order):
    """Churn and Restart keep Heun's order 2, as they add the noise of the forward process itself. `LeftNoise` shows
    that stochastic Heun owes its order to the trapezoidal variance of its noise."""
    if solver != LeftNoise() or process == orn.VP():
        found = variance_defects(process, solver, (64, 128))
        assert slopes(found)[-1] == pytest.approx(order, abs=0.2)


WORLD_1D = orn.exact.GaussianMixture(
    torch.tensor([[-1.0], [0.8]], dtype=F64), torch.tensor([0.3, 0.6], dtype=F64), torch.tensor([0.4, 0.6], dtype=F64)
)


class Nodes(orn.Noise):
    """Noise that is the nodes of a quadrature."""

    def __init__(self, nodes):
        super().__init__(0, batch=len(nodes), dtype=F64)
        self.nodes = nodes

    def increment(self, shape, interval):
        return self.nodes


@pytest.mark.parametrize(("solver", "order"), [(EulerMaruyama(), 1), (EulerMaruyama(2.0), 1), (StochasticHeun(), 2)])
def test_weak_order_on_a_mixture_by_quadrature(solver, order):
    """E f(x) after N steps, f = cos(2x), without sampling: the backward equation u_i(x) = E u_(i+1)(step(x, z)), by
    Gauss-Hermite in z and a spline in x, against the exact expectation at the last level."""
    process = orn.VP()
    grid_of = orn.LogSNR(start=-2.0, end=3.0, to_data=False)
    x = torch.linspace(-9, 9, 241, dtype=F64)
    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(16))
    w = w / w.sum()
    nodes = z.repeat(len(x))[:, None]
    start = x.repeat_interleave(len(z))[:, None]
    fine = torch.linspace(-9, 9, 4001, dtype=F64)[:, None]
    oracle = WORLD_1D.denoiser(process)

    def density(level):
        p = WORLD_1D.log_prob(fine, process, level).exp()
        return p / p.sum()

    found = []
    for steps in (20, 40, 80):
        grid = grid_of(process, steps=steps)
        u = torch.cos(2 * x)
        for i in reversed(range(steps)):
            out = orn.sample(oracle, x_init=start, solver=solver, grid=grid[i : i + 2], seed=Nodes(nodes))
            ahead = torch.from_numpy(CubicSpline(x.numpy(), u.numpy())(out.x.clamp(-9, 9).numpy()))
            u = ahead.reshape(len(x), len(z)) @ w
        exact = float(density(grid[-1]) @ torch.cos(2 * fine[:, 0]))
        mine = float(density(grid[0]) @ torch.from_numpy(CubicSpline(x.numpy(), u.numpy())(fine[:, 0].numpy())))
        found.append(abs(mine - exact))
    assert slopes(found)[-1] == pytest.approx(order, abs=0.2)


class Shared(orn.Noise):
    """One Brownian path on the clock SNR, kept as increments over the levels of the finest grid."""

    def __init__(self, fine, batch, event, seed=0):
        super().__init__(seed, batch=batch, dtype=F64)
        self.snr = fine.log_snr.exp()
        self.steps = normal(len(fine) - 1, batch, *event, seed=seed) * self.snr.diff().sqrt()[:, None, None]

    def increment(self, shape, interval):
        i, j = (int((self.snr - v).abs().argmin()) for v in (interval.start, interval.end))
        return self.steps[i:j].sum(0) / (self.snr[j] - self.snr[i]).sqrt()


def wide_mixture(dim=64):
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(4, dim, generator=generator, dtype=F64)
    return orn.exact.GaussianMixture(means, torch.tensor([0.4, 0.5, 0.6, 0.7], dtype=F64))


RANGE = orn.LogSNR(start=-3.0, end=3.0, to_data=False)


@functools.cache
def states(process, dim, n):
    world = ring(0.3) if dim == 2 else wide_mixture(dim)
    level = RANGE(process, steps=1)[0]
    cond = {"mean": normal(n, dim, seed=8)} if isinstance(process, orn.MeanReverting) else None
    x0 = world.sample(n, seed=0).to(F64)
    return world, cond, process.corrupt(x0, level, noise=normal(n, dim, seed=1), cond=cond).x


CASES = [(process, 2) for process in PROCESSES] + [(orn.VP(), 64), (orn.MeanReverting(), 64)]


@pytest.mark.parametrize(("process", "dim"), CASES, ids=repr)
@pytest.mark.parametrize("solver", [EulerMaruyama(), StochasticHeun(0.5)], ids=repr)
def test_strong_order_on_shared_paths(process, dim, solver):
    """The median distance between N and 2N steps on one Brownian path halves with each doubling: order 1, as Milstein's
    method has. On fresh noise it does not fall at all. (Medians, since paths between two modes part late.)"""
    world, cond, x = states(process, dim, 64)
    fine = RANGE(process, steps=128)
    path = Shared(fine, *x.shape[:1], x.shape[1:])

    def run(steps, seed):
        grid = RANGE(process, steps=steps)
        return orn.sample(world.denoiser(process), x_init=x, solver=solver, grid=grid, seed=seed, cond=cond).x

    steps = (32, 64, 128)
    apart = [float((a - b).norm(dim=1).median()) for a, b in itertools.pairwise(run(n, path) for n in steps)]
    assert slopes(apart)[-1] == pytest.approx(1, abs=0.25)
    fresh = float((run(64, 5) - run(128, 6)).norm(dim=1).median())
    assert fresh > 5 * apart[-1]


@pytest.mark.parametrize(("process", "dim"), CASES, ids=repr)
def test_without_diffusion_they_follow_the_flow(process, dim):
    """Against the worlds' own integrator: Euler-Maruyama is Euler, of order 1, stochastic Heun is of order 2."""
    world, cond, x = states(process, dim, 8)
    ends = RANGE(process, steps=1)
    exact = world.flow(process, x, ends[0], ends[1], rtol=1e-9, atol=1e-10, cond=cond)

    def errors(solver, steps):
        oracle = world.denoiser(process)
        outs = (orn.sample(oracle, x_init=x, solver=solver, grid=RANGE, steps=n, cond=cond).x for n in steps)
        return [float((out - exact).norm(dim=1).median()) for out in outs]

    one, two = errors(EulerMaruyama(0.0), (80, 160)), errors(StochasticHeun(0.0), (40, 80))
    assert min(two) > 1e-6  # far above the integrator's own error
    assert slopes(one) == pytest.approx([1], abs=0.2)
    assert slopes(two) == pytest.approx([2], abs=0.2)
    grid = RANGE(process, steps=5)
    mine, euler = EulerMaruyama(0.0).compile(process, grid), orn.Euler().compile(process, grid)
    for own, other in zip(mine.rows[1:], euler.rows[1:], strict=True):
        assert own.terms == pytest.approx(other.terms, rel=1e-14)


@pytest.mark.parametrize("solver", [EulerMaruyama, StochasticHeun])
@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=lambda d: getattr(d, "__name__", repr(d)))
@pytest.mark.parametrize("process", [orn.Flow(), orn.Cosine()], ids=repr)
def test_the_first_step_from_zero_snr_and_the_last_to_data_are_exact(solver, diffusion, process):
    """For a point mass, whatever the step: at level s the law is N(alpha_s m, sigma_s^2), and at data m itself."""
    first = process.level([1.0, 0.4])
    mean, variance = law(process, solver(diffusion), first, 1.7, 0.0)
    assert (mean, variance) == pytest.approx((float(first.alpha[1]) * 1.7, float(first.sigma[1] ** 2)), rel=1e-12)
    last = process.level([1.0, 0.4, 0.2, 0.0])
    table = solver(diffusion).compile(process, last)
    out = orn.response(table, 1.7, 0.0)
    assert float(out.mean(0.0)) == pytest.approx(1.7, rel=1e-12)
    assert float(out.variance(1.0)) == pytest.approx(0.0, abs=1e-20)
    fresh = [str(a) for a in table.rows[1].terms if str(a).startswith("z")]
    assert bool(fresh) == (diffusion in (0.3, 1.0, 2.0))  # beside g^2, infinite there, another is nothing


def test_noise_forgets_itself_at_the_rate_of_the_diffusion():
    """A batch in which one sample starts at alpha = 0 steps exactly in all. With x0 held the noise decays at the rate
    epsilon^2/(2 sigma^2), to k = (SNR_t/SNR_s)^(epsilon^2/2g^2) of itself: at epsilon = g that is DDIM's, eta = 1."""
    levels = orn.Flow().level(torch.tensor([[1.0, 0.8], [0.5, 0.3]], dtype=F64))
    t, s = levels[0], levels[1]
    snr = (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2

    def stds(solver):
        return next(c for a, c in solver.compile(orn.Flow(), levels).rows[1].terms.items() if str(a) == "z0")

    for diffusion in (0.5, 1.0, 2.0):
        torch.testing.assert_close(stds(EulerMaruyama(diffusion)), s.sigma * torch.sqrt(1 - snr**diffusion))
    torch.testing.assert_close(stds(EulerMaruyama()), stds(orn.DDIM(eta=1.0)))
    # of a diffusion of one's own, its ratio to g^2 = 2t/(1 - t) at the start counts: 2(1 - t) here
    own = s.sigma[1] * torch.sqrt(1 - snr[1] ** (2 * (1 - 0.8)))
    torch.testing.assert_close(stds(EulerMaruyama(lambda level: 4 * level.sigma))[1], own)


def test_euler_ancestral_is_ddim_with_eta_one():
    """The sampler of that name on y = x0 + sigma n: to sigma_down by the flow, then up by sigma_up, with
    sigma_up^2 = s^2 (t^2 - s^2)/t^2 and sigma_down^2 = s^2 - sigma_up^2. Half as much noise is another method."""
    levels = orn.EDM().level([0.02, 0.012])
    t, s = levels.sigma.tolist()
    up = s * math.sqrt(t**2 - s**2) / t
    down = math.sqrt(s**2 - up**2)
    for eta, same in ((1.0, True), (0.5, False)):
        row = {str(a): c for a, c in orn.DDIM(eta=eta).compile(orn.EDM(), levels).rows[1].terms.items()}
        theirs = {"r0": down / t, "x0(e0)": 1 - down / t, "z0": up}
        assert (row == pytest.approx(theirs, rel=1e-12)) == same


@pytest.mark.parametrize("process", [orn.VP(), orn.Flow()], ids=repr)
def test_no_churn_and_no_restarts_are_heun(process):
    grid = orn.LogSNR()(process, steps=6)
    heun, plain = orn.Heun().compile(process, grid), orn.DPMSolverPP().compile(process, grid)
    for table, base in (
        (Churn(0.0).compile(process, grid), heun),
        (Churn(40.0, 1e6, 2e6).compile(process, grid), heun),  # nothing inside
        (Restart(intervals=()).compile(process, grid), heun),
        (Restart(orn.DPMSolverPP(), ()).compile(process, grid), plain),
    ):
        assert len(table.rows) == len(base.rows)
        assert not table.noises
        for own, other in zip(table.rows, base.rows, strict=True):
            assert own.terms == pytest.approx(other.terms, rel=1e-14)
    assert Churn(1.0).compile(process, grid).noises
    assert Restart().compile(process, grid).noises


def test_the_intervals_of_churn_and_restart():
    """gamma = min(churn/N, sqrt(2) - 1) on just the levels inside; restarts go from the point nearest to s_low to the
    one nearest to s_high, by `steps` steps of log-SNR if given; tables are not monotone."""
    process, grid = orn.EDM(), orn.Karras()(orn.EDM(), steps=18)
    for churn, gamma in ((3.6, 0.2), (40.0, math.sqrt(2) - 1)):
        table = Churn(churn, 0.05, 50.0).compile(process, grid)
        raised = [row.level for row in table.rows if any(str(a).startswith("z") for a in row.terms)]
        inside = grid.sigma[(grid.sigma >= 0.05) & (grid.sigma <= 50.0)]
        torch.testing.assert_close(torch.stack([level.sigma for level in raised]), (1 + gamma) * inside)
        assert (table._all_levels.t.diff() > 0).any()
    at_top = Churn(40.0).compile(process, grid)  # no level above t = 1
    assert max(float(row.level.t) for row in at_top.rows if row.level is not None) == 1.0

    table = Restart(orn.DDIM(), ((0.1, 2.0, 3),), steps=4).compile(process, grid)
    ups = [i for i, row in enumerate(table.rows) if any(str(a).startswith("z") for a in row.terms)]
    low, high = (int((grid.sigma.log() - math.log(v)).abs().argmin()) for v in (0.1, 2.0))
    assert len(ups) == 3
    assert ups[1] - ups[0] == 5
    for i in ups:
        assert float(table.rows[i].level.sigma) == float(grid.sigma[high])
        assert float(table.rows[i - 1].level.sigma) == float(grid.sigma[low])
    inner = torch.stack([row.level.log_snr for row in table.rows[ups[0] : ups[1]]])
    torch.testing.assert_close(inner.diff(), inner.diff()[0].expand(4))
    assert table.nfe == 18 + 3 * 4
    several = Restart(orn.DDIM(), ((0.1, 0.5, 1), (1.0, 5.0, 2))).compile(process, grid)
    raised = [float(row.level.sigma) for row in several.rows if any(str(a).startswith("z") for a in row.terms)]
    assert raised == pytest.approx([5.0, 5.0, 0.5], rel=0.2)  # the nearest of the grid, from above


@pytest.mark.parametrize("process", [orn.VP(), orn.Flow(), orn.EDM()], ids=repr)
def test_churn_and_restart_have_no_defect_on_a_point_mass(process):
    grid = GRID(process, steps=6)
    for solver in (Churn(20.0), Restart(orn.DDIM(), ((0.3, 1.0, 2),)), Restart(orn.DDIM(eta=1.0), ((0.3, 1.0, 2),), 3)):
        assert solver.exact_for_constant
        mean, variance = law(process, solver, grid, 1.7, 0.0)
        assert mean == pytest.approx(float(grid.alpha[-1]) * 1.7, rel=1e-12)
        assert variance == pytest.approx(float(grid.sigma[-1] ** 2), rel=1e-10)
    assert not Churn(20.0, noise=1.007).exact_for_constant
    assert not Restart(orn.Euler()).exact_for_constant


def test_noise_above_one_adds_its_square():
    """With S_noise = 1.01 the variance that a churn of one step adds grows by 1.01^2, and nothing else changes."""
    grid = orn.EDM().level([0.02, 0.01])
    one, more = (orn.response(Churn(1.0, noise=n).compile(orn.EDM(), grid), 0.0, 0.5) for n in (1.0, 1.01))
    assert float(more.gain) == float(one.gain)
    assert float(more.gains) == pytest.approx(1.01 * float(one.gains), rel=1e-12)


def test_the_corrector_moves_to_the_law_of_its_level():
    """Fixed steps h on N(0, v): the variance goes to v/(1 - h/2v), contracting by (1 - h/v)^2 each time, whatever the
    predictor left; h = 2 (snr sigma)^2. None at data."""
    process, grid = orn.VP(), orn.VP().level([0.6, 0.3])
    h = 2 * (0.16 * float(grid.sigma[1])) ** 2
    v = float(grid.alpha[1] ** 2 * 0.4 + grid.sigma[1] ** 2)
    limit = v / (1 - h / (2 * v))
    for start in (0.0, 5.0):
        left = {
            m: float(orn.response(PredictorCorrector(corrections=m).compile(process, grid), 0.0, 0.4).variance(start))
            for m in (0, 1, 7)
        }
        for m in (1, 7):
            assert left[m] - limit == pytest.approx((1 - h / v) ** (2 * m) * (left[0] - limit), rel=1e-10)
    plain = EulerMaruyama().compile(process, grid)
    assert PredictorCorrector(corrections=0).compile(process, grid).rows[1].terms == plain.rows[1].terms
    to_data = PredictorCorrector(orn.DDIM(eta=1.0), corrections=2).compile(process, process.level([0.6, 0.3, 0.0]))
    assert to_data.nfe == 1 + 2 + 1


def test_steps_by_norms_need_many_dimensions():
    """h = 2 (snr |z|/|score|)^2 depends on z. On N(0, v I) the chain has the variance v (1 + h/2v): at 256 dimensions
    within 4 % at snr = 0.16 (h/2v = 2.6 %), as with fixed steps; in 2 the law is wrong by far more, since small scores
    make huge steps."""
    process, snr, n = orn.VP(), 0.16, 8_000
    level = process.level([0.6, 0.5])
    for dim, wrong in ((256, False), (2, True)):
        count = n * 2 // dim
        world = orn.exact.Gaussian(torch.zeros(dim, dtype=F64), std=1.0)
        x = normal(count, dim, seed=2)
        solver = PredictorCorrector(orn.DDIM(), corrections=10, snr=snr, step="norm")
        out = orn.sample(world.denoiser(process), x_init=x, solver=solver, grid=level, seed=1).x
        assert (abs(float(out.square().mean()) - 1) > 0.1) == wrong
    fixed = orn.response(PredictorCorrector(orn.DDIM(), corrections=10, snr=snr).compile(process, level), 0.0, 1.0)
    assert float(fixed.variance(1.0)) == pytest.approx(1, abs=0.04)


def test_the_step_by_norms_is_the_papers_for_each_sample():
    process, world = orn.VP(), wide_mixture(16)
    level = process.level([0.6, 0.5])
    x, noise = normal(5, 16, seed=2), orn.Noise(3, batch=5, dtype=F64)
    solver = PredictorCorrector(orn.DDIM(), snr=0.2, step="norm")
    out = orn.sample(world.denoiser(process), x_init=x, solver=solver, grid=level, seed=3).x
    y = orn.sample(world.denoiser(process), x_init=x, solver=orn.DDIM(), grid=level).x
    score, z = world.score(y, process, level[1]), noise.normal((5, 16))
    h = 2 * (0.2 * z.norm(dim=1) / score.norm(dim=1)) ** 2
    torch.testing.assert_close(out, y + h[:, None] * score + (2 * h).sqrt()[:, None] * z)


def test_what_makes_no_sense_is_refused():
    rising = orn.VP().level([0.1, 0.5])
    for solver in (EulerMaruyama(), StochasticHeun(), Churn(), Restart(), PredictorCorrector()):
        with pytest.raises(ValueError, match="rises"):
            solver.compile(orn.VP(), rising)
    with pytest.raises(ValueError, match="diffusion=-1"):
        EulerMaruyama(-1.0)
    with pytest.raises(ValueError, match="epsilon\\^2 >= 0"):
        EulerMaruyama(lambda level: -level.sigma).compile(orn.VP(), orn.VP().level([0.5, 0.1]))
    with pytest.raises(ValueError, match="churn=-1"):
        Churn(-1.0)
    with pytest.raises(ValueError, match="sigma_min <= sigma_max"):
        Churn(1.0, 2.0, 1.0)
    with pytest.raises(ValueError, match="noise=-1"):
        Churn(1.0, noise=-1.0)
    with pytest.raises(ValueError, match="s_low < s_high"):
        Restart(orn.DDIM(), ((2.0, 1.0, 1),))
    with pytest.raises(ValueError, match="s_low < s_high"):
        Restart(orn.DDIM(), ((1.0, 2.0, 0),))
    with pytest.raises(ValueError, match="steps=0"):
        Restart(steps=0)
    with pytest.raises(TableError, match=r"no step from 0\.51 to 0\.5"):
        Restart(orn.DDIM(), ((0.5, 0.51, 1),)).compile(orn.VP(), GRID(orn.VP(), steps=4))
    with pytest.raises(ValueError, match="choose level or norm"):
        PredictorCorrector(step="snr")
    with pytest.raises(ValueError, match="snr=2"):
        PredictorCorrector(snr=2.0)
    with pytest.raises(ValueError, match="corrections=-1"):
        PredictorCorrector(corrections=-1)
    with pytest.raises(ValueError, match="step=0"):
        orn.solvers.langevin(WORLD_1D.denoiser(orn.VP()), torch.zeros(2, 1), step=0.0, steps=3)
    with pytest.raises(ValueError, match="steps=0"):
        orn.solvers.langevin(WORLD_1D.denoiser(orn.VP()), torch.zeros(2, 1), step=0.1, steps=0)
