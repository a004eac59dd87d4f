"""RF++: pairs from a model's own flow, where straight paths hardly cross, so that one reflow makes one step enough."""

import math

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.guidance import ChangeOfProcess
from ornstein.random import Share
from ornstein.training import Coupled, Objective, PseudoHuber, UShapedTime, invert_pairs, reflow_pairs
from worlds import F64, at, name, normal, ring

FLOW = orn.Flow()
PROCESSES = [orn.VP(), orn.SubVP(), orn.Cosine(), orn.EDM(), orn.VE()]


@pytest.fixture(autouse=True)
def doubles():
    """Worlds have no parameters to take a dtype from."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


class Paired(orn.BaseDenoiser):
    """E[noise - x0 | x_t] of pairs in one dimension whose straight paths do not cross: read off between them."""

    process, predicts = FLOW, "velocity"

    def __init__(self, pairs):
        super().__init__()
        order = pairs.noise.squeeze(1).argsort()
        self.noise, self.x0 = pairs.noise.squeeze(1)[order], pairs.x0.squeeze(1)[order]

    def bind(self, levels, x, cond):
        def answer(t, x):
            out = torch.empty_like(x)
            for value in t.unique():
                rows = (t == value).expand(len(x))
                place = (1 - value) * self.x0 + value * self.noise
                out[rows, 0] = torch.from_numpy(np.interp(x[rows, 0], place, self.noise - self.x0))
            return out

        return [lambda x, t=t: answer(t.reshape(-1), x) for t in levels.t]


def two_lumps():
    return orn.exact.GaussianMixture(torch.tensor([[-1.5], [1.0]]), torch.tensor([0.3, 0.5]), torch.tensor([0.4, 0.6]))


@pytest.mark.system("rectified-flow-pp", rival="the first rectified flow: noise drawn anew for every sample")
def test_rectified_flow_pp():
    """On a line the flow map is monotone, so straight paths between its pairs do not cross: the velocity given x_t is
    certain and one reflow is all. With pairs of the library from a diffusion model (VP), and the velocity that is
    their conditional mean: the loss is 0, the paths are straight, and one step lands where the teacher's flow does.
    The rival, the exact first rectified flow, has a loss that no model can lower, curved paths, and one step to the
    mean of the data.

    Errors are those of reading between 2,000 pairs and of 40 steps, both below 1e-2 in the median.
    """
    world = two_lumps()
    teacher, first = world.denoiser(orn.VP()), world.denoiser(FLOW, "velocity")
    pairs = reflow_pairs(teacher, (2000, 1), seed=1)
    second = Paired(pairs)
    held = reflow_pairs(teacher, (200, 1), seed=2)
    law = UShapedTime()
    certain = Coupled(time=law, penalty=PseudoHuber())(second, held.x0, held.cond, seed=0)
    drawn_anew = Objective(time=law, penalty=PseudoHuber())(first, held.x0, seed=0)
    assert float(certain) < 0.02
    assert float(drawn_anew) > 0.3
    # the pair is what makes the difference: the same exact first flow cannot follow the pairs either
    assert float(Coupled(time=law)(first, held.x0, held.cond, seed=0)) > 0.05

    times = torch.linspace(1, 0, 31)
    curved = {}
    for model in (first, second):
        one = orn.sample(model, x_init=held.noise, solver=orn.Euler(), grid=[1.0, 0.0]).x
        path = orn.sample(model, x_init=held.noise, solver=orn.Heun(), grid=times, trajectory=True).trajectory
        curved[model] = (float((one - held.x0).abs().median()), orn.metrics.straightness(path, times), one)
    assert curved[second][0] < 0.01
    assert curved[second][1] < 0.01
    mean = float(world.moments()[0])
    torch.testing.assert_close(curved[first][2], torch.full_like(curved[first][2], mean))  # the rival's one step
    assert curved[first][1] > 0.3


def test_u_shaped_time():
    """A density, symmetric, with most at both ends; its quantile function. The formula as printed has none of it."""
    law, a = UShapedTime(), 4.0
    t = (torch.arange(20_000) + 0.5) / 20_000
    density = law.density(FLOW.level(t))
    assert float(density.mean()) == pytest.approx(1, rel=1e-6)
    torch.testing.assert_close(density, density.flip(0))
    torch.testing.assert_close(density, (torch.exp(a * t) + torch.exp(a * (1 - t))) * a / (2 * math.expm1(a)))
    assert float(density[0] / density[10_000]) == pytest.approx(math.cosh(a / 2), rel=1e-3)
    below = density.cumsum(0) / 20_000
    torch.testing.assert_close(law.quantile(below, FLOW), t + 0.5 / 20_000, rtol=0, atol=1e-6)
    printed = torch.exp(a * t) + torch.exp(-a * t)
    assert bool((printed.diff() > 0).all())  # it rises from t = 0 on: no U
    with pytest.raises(ValueError, match="a must be positive"):
        UShapedTime(a=0.0)


def test_pseudo_huber():
    """The norm for large errors, half the square over c for small ones; never a gradient above 1."""
    e, d = normal(50, 3, 4), 12
    norm = e.flatten(1).norm(dim=1)
    torch.testing.assert_close(PseudoHuber(scale=1e-9)(e), norm, rtol=1e-7, atol=0)
    big = 1e5
    torch.testing.assert_close(PseudoHuber(scale=big)(e), norm**2 / (2 * big * math.sqrt(d)), rtol=1e-8, atol=0)
    c = 0.7 * math.sqrt(d)
    torch.testing.assert_close(PseudoHuber(scale=0.7)(e), (norm**2 + c**2).sqrt() - c)
    e.requires_grad_(True)
    (gradient,) = torch.autograd.grad(PseudoHuber()(e).sum(), e)
    assert float(gradient.flatten(1).norm(dim=1).max()) <= 1
    assert float(PseudoHuber()(torch.zeros(1, 2)).sum()) == 0
    with pytest.raises(ValueError, match="scale"):
        PseudoHuber(scale=0.0)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_change_of_process(process):
    """A diffusion model read as a flow is the flow of the same data, exactly, from any view; read as another and back
    it is itself. Without the scaling of the state it is not."""
    world, t = ring(), torch.linspace(0.02, 0.97, 24)
    x = at(FLOW, FLOW.level(t), world, 24)
    exact = world.denoiser(FLOW, "velocity")(x, t).velocity
    for view in ("x0", "noise", "velocity", "v", "score"):
        own = ChangeOfProcess(world.denoiser(process, view), FLOW)
        torch.testing.assert_close(own(x, t).velocity, exact, rtol=0, atol=1e-10)
        back = ChangeOfProcess(own, process, "x0")
        s = process.time(FLOW.level(t).log_snr)
        y = at(process, process.level(s), world, 24)
        torch.testing.assert_close(back(y, s).x0, world.denoiser(process)(y, s).x0, rtol=0, atol=1e-9)
    unscaled = world.denoiser(process)(x, process.time(FLOW.level(t).log_snr)).x0
    assert float((unscaled - world.denoiser(FLOW)(x, t).x0).abs().max()) > 0.1
    # at t = 1, beyond the ends of most, the velocity is noise - E[x0] but for the data left at the other's end
    z = normal(24, 2)
    end = process.level(1.0)
    left = float(end.alpha / torch.hypot(end.alpha, end.sigma)) * float(world.moments()[1].trace()) * 3
    gap = (
        ChangeOfProcess(world.denoiser(process), FLOW)(z, 1.0).velocity
        - world.denoiser(FLOW, "velocity")(z, 1.0).velocity
    )
    assert float(gap.abs().max()) < left + 1e-12


def test_change_of_process_trains_and_refuses():
    """Its weights are those of the model inside, and it samples with any grid of the new process."""
    world = ring()
    inner = orn.Denoiser(orn.nets.MLP(2, width=16, depth=1), orn.VP(), "v")
    model = ChangeOfProcess(inner, FLOW)
    pairs = reflow_pairs(inner, (32, 2), steps=4)
    orn.fit(model, pairs.x0, cond=pairs.cond, objective=Coupled(), steps=2, batch_size=8)
    assert bool((inner.net.last[1].weight != 0).any())
    assert orn.sample(model, (4, 2), grid=orn.Uniform(), steps=3, solver=orn.Euler(), seed=0).nfe == 3
    for bad in (orn.MeanReverting(), "flow"):
        with pytest.raises(Exception, match=r"mean|Process"):
            ChangeOfProcess(world.denoiser(orn.VP()), bad)
    with pytest.raises(orn.ViewError, match="cannot be formed"):
        ChangeOfProcess(world.denoiser(orn.Cosine(), "noise"), FLOW)(normal(3, 2), 1.0)


@pytest.mark.parametrize("process", [orn.VP(), FLOW, orn.EDM()], ids=name)
def test_pairs_are_the_two_ends_of_the_flow(process):
    """Against the exact flow map of a world, made and inverted. 40 steps of order 2; a few samples lie on the borders
    between modes, where the map is steep, so medians are judged."""
    world = ring(0.3)
    model = world.denoiser(process)
    pairs = reflow_pairs(model, (32, 2), seed=3)
    sigma = float(process.level(1.0).sigma)
    truth = world.flow(process, sigma * pairs.noise, 1.0, 0.0, rtol=1e-6, atol=1e-7)
    assert float((pairs.x0 - truth).norm(dim=1).median()) < 2e-3
    inverted = invert_pairs(model, truth)
    assert float((inverted.noise - pairs.noise).norm(dim=1).median()) < 1e-2
    assert torch.equal(inverted.x0, truth)
    # noise i is a function of (seed, i): not of the batch
    again = reflow_pairs(model, (32, 2), seed=3, batch_size=12)
    assert torch.equal(again.noise, pairs.noise)
    torch.testing.assert_close(again.x0, pairs.x0)
    assert float(pairs.noise.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / 64))


def test_pairs_in_training():
    """The given noise makes x_t, the network does not see it, conditions stay, units are the user's."""
    world, n = ring(), 6
    x0, noise = normal(n, 2), normal(n, 2, seed=1)
    t = torch.linspace(0.1, 0.9, n)
    label = torch.arange(n)
    drawn, seen = Coupled().draw(world.denoiser(FLOW), x0, t, {"noise": noise, "label": label}, 0, Share(0, n, n))
    torch.testing.assert_close(drawn.x, (1 - t)[:, None] * x0 + t[:, None] * noise)
    torch.testing.assert_close(drawn.target("velocity"), noise - x0)
    assert list(seen) == ["label"]
    given, left = Coupled().pair(world.denoiser(FLOW), x0, {"noise": noise}, 0, Share(0, n, n))
    assert left is None
    assert given["noise"] is noise

    model = orn.Denoiser(orn.nets.MLP(2, labels=6, width=8, depth=1), orn.VP(), "v", scaling=orn.Scaling(5.0, 3.0))
    made = reflow_pairs(model, (n, 2), cond={"label": label}, steps=3, seed=0)
    assert torch.equal(made.cond["label"], label)
    start = float(orn.VP().level(1.0).sigma) * made.noise
    expected = orn.sample(model, x_init=start, cond={"label": label}, grid=orn.LogSNR(), steps=3).x
    torch.testing.assert_close(made.x0, expected)
    real = invert_pairs(model, 5 + 3 * x0, cond={"label": label}, steps=3)
    both = made + real
    assert len(both) == 2 * n
    assert torch.equal(both.cond["label"], torch.cat([label, label]))
    assert torch.equal(both.noise[n:], real.noise)

    with pytest.raises(ValueError, match="belongs to each sample"):
        Coupled()(model, x0, {"label": label}, seed=0)
    with pytest.raises(ValueError, match="draws noise"):
        reflow_pairs(model, (n, 2), cond={"label": label}, steps=3, solver=orn.DDIM(eta=1.0))
    with pytest.raises(ValueError, match="different conditions"):
        made + invert_pairs(world.denoiser(FLOW), x0, steps=3)
    with pytest.raises(ValueError, match="mapping"):
        reflow_pairs(model, (n, 2), cond=label)


def test_straightness():
    """The closed form for Gaussian data: x_t = c(t) x_1 with c^2 = (1 - t)^2 s^2 + t^2, and
    S = |x_1|^2 (int c'^2 - (1 - s)^2). Pieces of length h miss int c''^2 h^2/12 of it."""
    s, n = 0.4, 200
    x = normal(5, 2)
    times = torch.linspace(1, 0, n + 1)
    path = torch.stack([((1 - t) ** 2 * s**2 + t**2).sqrt() * x for t in times])
    t = (torch.arange(100_000) + 0.5) / 100_000
    slope = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2).sqrt()
    exact = float(x.square().sum(1).mean()) * (float(slope.square().mean()) - (1 - s) ** 2)
    assert orn.metrics.straightness(path, times) == pytest.approx(exact, rel=1e-3)
    assert orn.metrics.straightness(path.flip(0), times.flip(0)) == pytest.approx(exact, rel=1e-3)
    straight = torch.stack([x * (1 + 3 * t) for t in times])
    assert orn.metrics.straightness(straight, times) < 1e-20
    for bad in (times[:-1], torch.ones(n + 1), times**2 * (1 - times)):
        with pytest.raises(ValueError, match="times"):
            orn.metrics.straightness(path, bad)
