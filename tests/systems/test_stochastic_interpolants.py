"""Stochastic interpolants: between two mixtures with one velocity and one score, any diffusion chosen afterwards."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.exact import GaussianMixture, TwoSidedMixture
from ornstein.processes import Interpolant
from ornstein.random import Noise
from ornstein.solvers import EulerMaruyama, StochasticHeun
from worlds import F64, normal

PROCESS = Interpolant(noise_level=0.6)
DIFFUSIONS = {
    "flow": 0.0,
    "default": 1.0,  # epsilon^2 = 2 gamma
    "constant": lambda level: torch.full_like(level.t, 1.5),
    "decreasing": lambda level: 2 * (1 - level.t) ** 2,
    "middle": lambda level: 3 * torch.sin(math.pi * level.t) ** 2,
}


class Units(Noise):
    """Sample 0 has no noise, sample 2 + l has 1 for its l-th: what a linear sampler answers is all that it is."""

    def __init__(self, batch):
        super().__init__(0, batch=batch, dtype=F64)
        self.drawn = 0

    def rewind(self):
        super().rewind()
        self.drawn = 0

    def normal(self, shape):
        z = torch.zeros(shape, dtype=F64)
        z[2 + self.drawn] = 1
        self.drawn += 1
        return z


def law_after(model, solver, grid, mean, variance):
    """Mean and variance of what a sampler makes of N(mean, variance) in one dimension, with an affine model: exact."""
    n = len(grid) + 1
    x = torch.zeros(n, 1, dtype=F64)
    x[1] = 1
    out = orn.sample(model, x_init=x, solver=solver, grid=grid, seed=Units(n)).x[:, 0]
    gains = (out[1:] - out[0]) ** 2
    return float(out[0] + (out[1] - out[0]) * mean), float(gains[0] * variance + gains[1:].sum())


def gaussian(mean, std):
    return GaussianMixture(torch.tensor([[mean]], dtype=F64), std)


class Unpaid(orn.Solver):
    """The rival: the same noise added to the flow, without the score that pays for it."""

    def write(self, table, grid):
        x = table.state
        for i in range(len(grid) - 1):
            t, h = grid[i], grid.t[i] - grid.t[i + 1]
            noise = torch.sqrt(h.abs() * 1.5) * table.noise(t, grid[i + 1])
            x = table.step(x - h * table.evaluate(x, t).velocity + noise, grid[i + 1])


@pytest.mark.system("stochastic-interpolants", rival="the same noise without its share of the score")
def test_stochastic_interpolants():
    """Every epsilon(t) has the marginals of the process, in both directions of time: between Gaussians that depend on
    each other the error of the last mean and variance, computed without sampling, falls as an order 1 does for
    `EulerMaruyama` and as an order 2 for `StochasticHeun`; the rival stays a constant away. Between mixtures, means and
    covariances are those of the end within 5 standard errors and 3 % for 30 steps of order 2."""
    world = TwoSidedMixture(gaussian(1.0, 0.4), gaussian(-0.5, 0.9), cross=torch.full((1, 1, 1, 1), 0.2, dtype=F64))
    for first, last in ((0.95, 0.05), (0.05, 0.95)):
        start, end = (
            tuple(float(part) for part in world.at(PROCESS, t).moments()) for t in (first, last)
        )  # (mean, variance)

        def defect(solver, steps, start=start, end=end, times=(first, last)):
            grid = torch.linspace(*times, steps + 1, dtype=F64)
            mean, variance = law_after(world.denoiser(PROCESS), solver, grid, *start)
            return math.hypot(mean - end[0], variance - end[1])

        rival, first_order, second_order = defect(Unpaid(), 24), torch.zeros(2), torch.zeros(2)
        for key, diffusion in DIFFUSIONS.items():
            errors = torch.tensor([defect(EulerMaruyama(diffusion), steps) for steps in (12, 24)])
            assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.25), (key, errors)
            assert rival > 10 * errors[1], (key, rival, errors)
            first_order += errors
            second_order += torch.tensor([defect(StochasticHeun(diffusion), steps) for steps in (12, 24)])
        # all diffusions together: mean and variance may cross in one of them
        assert math.log2(second_order[0] / second_order[1]) == pytest.approx(2, abs=0.3)
        assert second_order[1] < first_order[1] / 5

    n = 600
    data = GaussianMixture(2 * normal(3, 2, seed=2), 0.5, torch.tensor([1.0, 2, 3]))
    world = TwoSidedMixture(data, GaussianMixture(2 * normal(2, 2, seed=3), torch.tensor([0.4, 0.7], dtype=F64)))
    x0, x1 = world.sample(n, seed=0, dtype=F64)
    for begin, times, end in ((x1, (1.0, 0.0), data), (x0, (0.0, 1.0), world.other)):
        mean, cov = end.moments()
        for key in ("default", "constant", "middle"):
            solver, grid = StochasticHeun(DIFFUSIONS[key]), torch.linspace(*times, 31, dtype=F64)
            out = orn.sample(world.denoiser(PROCESS), x_init=begin, solver=solver, grid=grid, seed=1).x
            apart = out - mean
            for value, truth in ((out, mean), (apart[:, :, None] * apart[:, None], cov)):
                gap, error = (value.mean(0) - truth).abs(), value.std(0) / math.sqrt(n)
                assert bool((gap < 5 * error + 0.03 * float(cov.trace())).all()), (key, times, gap, error)


def test_bound_on_the_divergence():
    """KL(p || p') <= int E |b' - b - (e/2)(s' - s)|^2/(2 e) dt for samples p' of a wrong velocity b' and score s' with
    e = epsilon^2 (Girsanov; the paper's 1/(4 eps) with e = 2 eps). In the library's time the drift is
    velocity - (e/2) score.

    Between points with e = d gamma^2/d(1 - t) nothing is forgotten, and an error in proportion to e makes it an
    equality: both sides are c^2 gamma^2/2. Between Gaussians the bound holds for every e, with room; the flow under the
    same error is not bounded by it."""
    # equality, from t = 1 to 1/2
    level, c, kappa = 0.8, 0.7, 0.4
    process = Interpolant(noise_level=level)
    points = TwoSidedMixture(gaussian(1.0, 0.0), gaussian(-1.0, 0.0)).denoiser(process)

    def e_of(t):
        return level * (2 * t - 1)

    velocity = orn.Denoiser(
        lambda x, t: points(x, t[0]).velocity + ((c + kappa / 2) * e_of(t))[:, None], process, predicts="velocity"
    )
    score = orn.Denoiser(lambda x, t: points(x, t[0]).score + kappa, process, predicts="score")
    grid = torch.linspace(1 - 1e-5, 0.5, 121, dtype=F64)
    solver = EulerMaruyama(lambda at: e_of(at.t).clamp_min(0))
    start = -1 + 2 * 1e-5, level * 1e-5
    wrong = law_after(orn.Heads(velocity, latent=score), solver, grid, *start)
    right = law_after(points, solver, grid, *start)
    variance = level / 4
    assert right[1] == pytest.approx(variance, rel=0.02)
    assert right[0] == pytest.approx(0, abs=0.01)
    divergence = (wrong[0] - right[0]) ** 2 / (2 * variance)
    assert wrong[1] == pytest.approx(right[1], rel=1e-6)
    assert divergence == pytest.approx(c**2 * variance / 2, rel=0.03)

    # inequality, with errors that depend on x
    process, steps = Interpolant(), 60
    world = TwoSidedMixture(gaussian(1.0, 0.3), gaussian(-0.5, 0.9))
    exact = world.denoiser(process)
    velocity = orn.Denoiser(lambda x, t: exact(x, t[0]).velocity + 0.3 + 0.2 * x, process, predicts="velocity")
    score = orn.Denoiser(lambda x, t: exact(x, t[0]).score - 0.2 + 0.1 * x, process, predicts="score")
    model, grid = orn.Heads(velocity, latent=score), torch.linspace(1, 0, steps + 1, dtype=F64)

    def kl(law):
        m, v = law
        return 0.5 * (0.09 / v + (m - 1.0) ** 2 / v - 1 + math.log(v / 0.09))

    def bound(e):
        total = 0.0
        for t in (torch.arange(steps, dtype=F64) + 0.5) / steps:
            mean, variance = (float(part) for part in world.at(process, t).moments())
            shift, slope = 0.3 + e / 2 * 0.2, 0.2 - e / 2 * 0.1
            total += ((shift + slope * mean) ** 2 + slope**2 * variance) / (2 * e) / steps
        return total

    bounds, found = {}, {}
    for e in (0.3, 1.0, 3.0):
        bounds[e] = bound(e)
        found[e] = kl(law_after(model, StochasticHeun(lambda at, e=e: torch.full_like(at.t, e)), grid, -0.5, 0.81))
        assert 0.01 * bounds[e] < found[e] < bounds[e]
    flow = kl(law_after(model, orn.Heun(variable="t"), grid, -0.5, 0.81))
    assert flow > 2 * min(bounds.values())
