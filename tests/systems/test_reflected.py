"""Reflected diffusion: a box that no state leaves, the exact heat kernel in it, and the score learned from it."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.density import log_likelihood
from ornstein.exact import FoldedMixture
from ornstein.processes import Reflected, heat_kernel
from ornstein.solvers import Euler, Heun, StochasticHeun
from worlds import F64, normal

PROCESS = Reflected()
PLANE = FoldedMixture(
    torch.tensor([[0.2, 0.95], [0.7, 0.1], [0.5, 0.5]], dtype=F64),
    torch.tensor([0.15, 0.1, 3.0], dtype=F64),  # a corner, an edge, and the uniform law
    torch.tensor([2.0, 3.0, 1.0], dtype=F64),
)
ROD = FoldedMixture(torch.tensor([[0.1], [0.8]], dtype=F64), torch.tensor([0.2, 0.1], dtype=F64))


def cdf(x, sigma=0.0):
    """P(x_t <= x) in the rod by images, with the normal distribution function: (n,)."""
    shifts = 2 * torch.arange(-12, 13, dtype=F64)
    total = torch.zeros_like(x)
    for mean, std, weight in zip(ROD.means[:, 0], ROD.stds, ROD.weights, strict=True):
        spread = math.hypot(float(std), sigma)
        for sign in (1.0, -1.0):
            ends = [torch.special.ndtr((end[:, None] - shifts - sign * mean) / spread) for end in (x, 0 * x)]
            total += weight * (ends[0] - ends[1]).sum(1)
    return total


@pytest.mark.system("reflected", rival="the unreflected kernel's score -noise/sigma, and steps without reflection")
def test_reflected():
    model, n = PLANE.denoiser(PROCESS), 3000
    # denoising score matching with the kernel of the box: E[(target - score) f(x_t)] = 0 for every f, and not with
    # that of the line. Within 4 standard errors for 5 functions at 3 levels: by chance 1 in 1,000
    x0 = PLANE.sample(n, seed=0, dtype=F64)[0]
    for t in (0.5, 0.6, 0.7):
        draw = PROCESS.corrupt(x0, t, seed=1)
        functions = torch.stack([torch.ones_like(draw.x), draw.x, draw.x**2, (7 * draw.x).sin(), draw.x.flip(1)])

        def furthest(target, draw=draw, functions=functions):
            products = ((target - model(draw.x, draw.level).score) * functions).flatten(2)
            return float((products.mean(1) / products.std(1) * math.sqrt(n)).abs().max())

        assert furthest(draw.target("score")) < 4
        assert furthest(-draw.noise / draw.level.sigma) > 15

    # the law of the samples: every half of the box cut at a quarter, within 4 standard errors of the world's own
    out = orn.sample(model, (n, 2), solver=orn.EulerMaruyama(), grid=orn.Uniform(), steps=60, seed=2, dtype=F64).x
    truth = PLANE.sample(40_000, seed=3, dtype=F64)[0]
    for i in range(2):
        for j in (0.25, 0.5, 0.75):
            p = float((truth[:, i] < j).double().mean())
            assert float((out[:, i] < j).double().mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n) + 0.01)
    corners = [float(((x > 0.8) == torch.tensor([False, True])).all(1).double().mean()) for x in (out, truth)]
    assert corners[0] == pytest.approx(corners[1], abs=4 * math.sqrt(corners[1] / n) + 0.01)

    # no state leaves, at any scale of guidance; the same steps without reflection leave
    guided = orn.CFG(model, scale=20.0)
    some = {"cond": {"label": torch.zeros(200, dtype=torch.long)}, "grid": orn.Uniform(), "steps": 10, "seed": 0}
    for solver in (orn.EulerMaruyama(), Heun(variable="t"), StochasticHeun()):
        run = orn.sample(guided, (200, 2), solver=solver, trajectory=True, **some)
        assert bool(((run.trajectory >= 0) & (run.trajectory <= 1)).all())
    free = orn.sample(Free(guided), (200, 2), solver=orn.EulerMaruyama(), **some)
    assert float(((free.x < 0) | (free.x > 1)).any(1).double().mean()) > 0.2


class Line(Reflected):
    """The box without its walls."""

    def reflect(self, x):
        return x


class Free(orn.BaseDenoiser):
    """A model of the box whose states are not reflected; it is asked at the reflection of each."""

    def __init__(self, model):
        super().__init__()
        self.model, self.process, self.predicts = model, Line(), model.predicts

    def bind(self, levels, x, cond):
        calls = self.model.bind(levels, x, cond)
        return [lambda x, call=call: call(PROCESS.reflect(x))["main"] for call in calls]


def test_the_kernel_is_the_sum():
    """Against 60 images and 200 cosines in float64, on both sides of the crossing: the density to 1e-13 of itself,
    the score to 1e-12 of 1/sigma."""
    x, y, width = torch.linspace(0, 1, 23, dtype=F64)[:, None], torch.linspace(0, 1, 9, dtype=F64), 1.7
    x, y = width * x, width * y
    for s in (0.02, 0.2, 0.44, 0.4499999, 0.4500001, 0.47, 0.7, 1.5):
        sigma = torch.tensor(s * width, dtype=F64)
        log_q, score = heat_kernel(x, y, sigma.expand(23, 9), width)
        k = 2 * width * torch.arange(-60, 61, dtype=F64)
        z = torch.cat([(x - y)[..., None] - k, (x + y)[..., None] - k], -1)
        terms = -(z**2) / (2 * sigma**2) - torch.log(sigma * math.sqrt(2 * math.pi))
        torch.testing.assert_close(log_q, terms.logsumexp(-1), rtol=0, atol=1e-12)
        slope = -(terms.softmax(-1) * z).sum(-1) / sigma**2
        torch.testing.assert_close(score * sigma, slope * sigma, rtol=1e-12, atol=1e-12)
        n = math.pi * torch.arange(1, 201, dtype=F64) / width
        cosines = 1 + 2 * (
            torch.exp(-((n * sigma) ** 2) / 2) * torch.cos(n * x[..., None]) * torch.cos(n * y[:, None])
        ).sum(-1)
        torch.testing.assert_close(log_q.exp(), cosines / width, rtol=1e-12, atol=1e-12)
    # no heat crosses the walls
    walls = torch.tensor([0.0, width], dtype=F64)[:, None]
    for s in (0.1, 0.6):
        sigma = torch.full((2, 9), s, dtype=F64)
        assert float(heat_kernel(walls, y, sigma, width)[1].abs().max()) < 1e-9 / s


def test_the_kernel_is_the_solution_of_the_heat_equation():
    """Heat between two levels by a matrix exponential on cells of width h, with walls that let nothing through: what it
    makes of the law at the first is the law at the second, to order 2 in h."""
    early, late = PROCESS.level(0.5), PROCESS.level(0.8)
    errors = []
    for cells in (50, 100, 200):
        x = ((torch.arange(cells, dtype=F64) + 0.5) / cells)[:, None]
        heat = torch.zeros(cells, cells, dtype=F64)
        index = torch.arange(cells - 1)
        heat[index, index + 1] = heat[index + 1, index] = cells**2
        heat -= torch.diag(heat.sum(1))
        step = torch.linalg.matrix_exp(heat * (late.sigma**2 - early.sigma**2) / 2)
        found = step @ ROD.log_prob(x, PROCESS, early).exp()
        errors.append(float((found - ROD.log_prob(x, PROCESS, late).exp()).abs().max()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)
    assert errors[2] < 1e-3
    # the score is the gradient of the density, and velocity -(g^2/2) score
    x = ROD.sample(50, seed=0, dtype=F64)[0].requires_grad_()
    (slope,) = torch.autograd.grad(ROD.log_prob(x, PROCESS, late).sum(), x)
    p = ROD.denoiser(PROCESS)(x.detach(), late)
    torch.testing.assert_close(p.score, slope, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(p.velocity, -(PROCESS.base.diffusion2(late.t) / 2) * slope, rtol=1e-10, atol=1e-10)
    (moved,) = torch.func.jvp(lambda s: PROCESS.base.sigma(s) ** 2, (late.t,), (torch.ones_like(late.t),))[1:]
    torch.testing.assert_close(late.spread, moved)


def test_draws_follow_the_kernel():
    """Kolmogorov-Smirnov of 20,000 draws (1.63/sqrt(n): one in a hundred) against the law at the level; with sigma
    10 % larger they are rejected."""
    n = 20_000
    x0 = ROD.sample(n, seed=0, dtype=F64)[0]
    sigma = float(PROCESS.level(0.55).sigma)

    def distance(x):
        ordered = cdf(x[:, 0].sort().values, sigma)
        return float((ordered - (torch.arange(n) + 0.5) / n).abs().max())

    assert distance(PROCESS.corrupt(x0, 0.55, seed=1).x) < 1.63 / math.sqrt(n)
    assert distance(PROCESS.reflect(x0 + 1.1 * sigma * normal(n, 1))) > 1.63 / math.sqrt(n)
    assert float(cdf(torch.ones(1, dtype=F64))) == pytest.approx(1, abs=1e-12)
    log_mass = ROD.log_prob((torch.arange(2000, dtype=F64)[:, None] + 0.5) / 2000)
    assert float(log_mass.exp().mean()) == pytest.approx(1, abs=1e-9)


def test_the_flow_in_a_rod_is_monotone_rearrangement():
    """In one dimension the flow keeps P(x_t <= x): the end law is uniform, so P(x_0 <= sample) is where it began.
    Euler reaches that at order 1, Heun in t at order 2; the walls cost nothing."""
    start = (torch.arange(30, dtype=F64)[:, None] + 0.5) / 30
    for solver, order in ((Euler(), 1), (Heun(variable="t"), 2)):
        errors = []
        for steps in (40, 80, 160):
            x = orn.sample(ROD.denoiser(PROCESS), x_init=start, solver=solver, grid=orn.Uniform(), steps=steps).x
            errors.append(float((cdf(x[:, 0]) - start[:, 0]).abs().max()))
        assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.2), solver


def test_the_likelihood():
    """That of the world, for the exact score; it integrates to one over the box, and the units of the data count."""
    x = (torch.arange(40, dtype=F64)[:, None] + 0.5) / 40  # the midpoint rule is exact for cosines up to the 79th
    found = log_likelihood(ROD.denoiser(PROCESS), x, rtol=1e-6, atol=1e-6)
    assert float(found.log_prob.exp().mean()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found.log_prob, ROD.log_prob(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.latent[:, 0], cdf(x[:, 0]), rtol=0, atol=1e-5)
    x = PLANE.sample(3, seed=0, dtype=F64)[0]
    model = PLANE.denoiser(PROCESS)
    probed = log_likelihood(model, x, probes=10, seed=0)
    assert bool(((probed.log_prob - PLANE.log_prob(x)).abs() < 4.5 * probed.error + 1e-3).all())
    model.scaling = orn.Scaling(mean=-1.0, std=2.0)
    scaled = log_likelihood(model, 2 * x - 1).log_prob
    torch.testing.assert_close(scaled, PLANE.log_prob(x) - 2 * math.log(2), rtol=0, atol=1e-3)


def test_a_box_far_away_is_no_box():
    """Walls at 100 standard deviations: targets, and a run of the reverse SDE, are those of VE to rounding."""
    base = orn.VE(0.01, 2.0)
    box = Reflected(-200.0, 200.0, base)
    x0, noise = normal(20, 2), normal(20, 2, seed=1)
    ours, plain = box.corrupt(x0, 0.7, noise=noise), base.corrupt(x0, 0.7, noise=noise)
    torch.testing.assert_close(ours.x, plain.x, rtol=0, atol=0)
    torch.testing.assert_close(ours.target("score"), plain.target("score"), rtol=1e-10, atol=1e-10)
    narrow = FoldedMixture(normal(3, 2), torch.tensor([0.3, 0.5, 0.4]), low=-200.0, high=200.0)
    wide = orn.exact.GaussianMixture(narrow.means, narrow.stds)
    x, grid = 2 * normal(20, 2, seed=2), torch.linspace(1, 0.1, 31, dtype=F64)
    runs = [
        orn.sample(world.denoiser(process), x_init=x, solver=orn.EulerMaruyama(), grid=grid, seed=0).x
        for world, process in ((narrow, box), (wide, base))
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-9)


def test_a_network_learns_the_score_in_float32():
    """A few steps of training run, in the default objective, and samples of the default solver are in the box."""
    x = PLANE.sample(500, seed=0)[0]
    t = torch.linspace(0.3, 0.99, 500, dtype=F64)
    single, double = PROCESS.corrupt(x, t, seed=0), PROCESS.corrupt(x.double(), t, seed=0)
    assert single.target("score").dtype == torch.float32
    assert PROCESS.corrupt(x, 0.7, seed=0).target("score").dtype == torch.float32
    error = (single.target("score") - double.target("score")) * double.level.sigma[:, None]
    assert float(error.abs().max()) < 1e-4  # a rounding of x, by 1/sigma twice
    for view in ("score", "velocity"):
        model = orn.Denoiser(orn.nets.MLP(2, width=16, depth=1), PROCESS, predicts=view)
        result = orn.fit(model, x, steps=8, batch_size=64, seed=0, progress=False)
        assert bool(result.history["loss"].isfinite().all())
        out = orn.sample(model, (50, 2), seed=0)
        assert out.x.dtype == torch.float32
        assert bool(((out.x >= 0) & (out.x <= 1)).all())


def test_refusals():
    with pytest.raises(ValueError, match=r"1\.5 lies outside the box \[0, 1\]"):
        PROCESS.corrupt(torch.tensor([[0.2, 1.5]]), 0.5)
    with pytest.raises(ValueError, match=r"-0\.25 lies outside"):
        log_likelihood(PLANE.denoiser(PROCESS), torch.tensor([[-0.25, 0.5]], dtype=F64))
    with pytest.raises(ValueError, match="low < high"):
        Reflected(1.0, 1.0)
    with pytest.raises(ValueError, match="not shrunk"):
        Reflected(base=orn.VP())
    with pytest.raises(ValueError, match="x1"):
        PROCESS.corrupt(torch.zeros(1, 2), 0.5, torch.zeros(1, 2))
    for view in ("x0", "noise", "v"):
        with pytest.raises(orn.ViewError, match=view):
            orn.Denoiser(orn.nets.MLP(2), PROCESS, predicts=view)
        with pytest.raises(orn.ViewError, match=view):
            PLANE.denoiser(PROCESS)(torch.zeros(1, 2, dtype=F64), 0.5).view(view)
    with pytest.raises(orn.ViewError, match="x0"):
        orn.sample(PLANE.denoiser(PROCESS), (4, 2), solver=orn.DPMSolverPP())
    with pytest.raises(ValueError, match="lives in the box"):
        PLANE.denoiser(Reflected(0.0, 2.0))
    x = torch.tensor([0.0, 0.3, 1.0, 1.2, -0.3, 2.5, -1.0, 7.0], dtype=F64)
    torch.testing.assert_close(PROCESS.reflect(x), torch.tensor([0.0, 0.3, 1, 0.8, 0.3, 0.5, 1, 1], dtype=F64))
    assert PROCESS.supports == ("score", "velocity", "ODE", "reverse SDE", "likelihood")
