"""Constant acceleration flow: an initial velocity tells apart paths that cross."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.metrics import coupling_error
from ornstein.processes import ConstantAcceleration, GivenVelocity
from ornstein.random import Share
from ornstein.solvers import ConstantAccelerationFlow, initial_velocity
from ornstein.training import Coupled
from worlds import F64, normal, ring

FLOW = orn.Flow()


@pytest.fixture(autouse=True)
def doubles():
    """Oracles have no parameters to take a dtype from."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


def far(noise):
    """A pair's data: a falling map of its noise, so that all paths between pairs cross each other."""
    return -noise - 2 * torch.tanh(noise)


class Meeting(orn.BaseDenoiser):
    """E[x0 - noise | x_t] of the pairs (far(n), n), n ~ N(0, 1), on the straight or accelerated path of a process.

    The paths through x are those of the n with x = alpha far(n) + sigma n: roots in a fine grid of n, each with the
    weight p(n)/|dx/dn|. At t = 1 and t = 0 there is one.
    """

    predicts = "v"

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.n = torch.linspace(-6, 6, 2401)

    def bind(self, levels, x, cond):
        return [lambda x, level=level: self.answer(level, x) for level in levels]

    def answer(self, level, x):
        alpha, sigma = level.alpha.reshape(-1)[0], level.sigma.reshape(-1)[0]
        place = alpha * far(self.n) + sigma * self.n
        gap = place[None] - x
        hit = (gap[:, :-1] * gap[:, 1:]) <= 0
        share = (gap[:, :-1] / (gap[:, :-1] - gap[:, 1:])).nan_to_num()
        n = self.n[:-1] + share * (self.n[1:] - self.n[:-1])
        weight = hit * torch.exp(-(n**2) / 2) / (place[1:] - place[:-1]).abs().clamp_min(1e-9)
        weight = weight / weight.sum(1, keepdim=True)
        noise = (weight * n).sum(1, keepdim=True)
        x0 = (weight * far(n)).sum(1, keepdim=True)
        return alpha * noise - sigma * x0


class Told(orn.BaseDenoiser):
    """The exact second model of the same pairs: noise and x0 follow from x_t and the true initial velocity.

    v0 = h (x0 - noise), so a = 2 (1/h - 1) v0, noise = x_t - v0 u - a u^2/2 and x0 = noise + v0 + a/2.
    """

    predicts = "v"

    def __init__(self, h):
        super().__init__()
        self.process, self.h = GivenVelocity(), h

    def bind(self, levels, x, cond):
        v0 = cond["velocity"]
        a = 2 * (1 / self.h - 1) * v0

        def answer(level, x):
            u = 1 - level.t.reshape(-1, 1)
            noise = x - v0 * u - a * u**2 / 2
            x0 = noise + v0 + a / 2
            return level.alpha.reshape(-1, 1) * noise - level.sigma.reshape(-1, 1) * x0

        return [lambda x, level=level: answer(level, x) for level in levels]


@pytest.mark.system("constant-acceleration-flow", rival="rectified flow of the same pairs")
@pytest.mark.parametrize("h", [0.5, 1.5])
def test_constant_acceleration_flow(h):
    """All paths between the pairs cross. Where they do, the exact rectified flow has the mean of their velocities: the
    finer its steps, the nearer it comes to the map of the same two laws that crosses nothing, far(-noise), whose
    coupling error is E |2 far|^2/(2 Var far) = 2. Told the initial velocity, the exact second model has one path, and
    every number of steps, and the way back, ends at the pair: to the error of the roots, 1e-5 of a grid of 0.005.
    """
    noise = normal(100, 1)
    x0 = far(noise)
    first, second = Meeting(ConstantAcceleration(h)), Told(h)
    flow = ConstantAccelerationFlow(first, second)
    torch.testing.assert_close(flow(noise, 1.0, 0.0), x0, rtol=0, atol=1e-4)
    torch.testing.assert_close(flow(x0, 0.0, 1.0), noise, rtol=0, atol=1e-4)
    v0 = initial_velocity(first, noise)
    torch.testing.assert_close(v0, h * (x0 - noise), rtol=0, atol=1e-4)
    kept, lost = [], []
    for steps in (1, 8, 32):
        options = {"x_init": noise, "grid": orn.Uniform(), "steps": steps}
        made = orn.sample(second, cond={"velocity": v0}, solver=orn.DDIM(), **options).x
        kept.append(coupling_error(made, x0))
        rival = orn.sample(Meeting(FLOW), solver=orn.Euler(), **options).x
        lost.append(coupling_error(rival, x0))
    assert max(kept) < 1e-8
    assert lost[0] < 1e-8  # in one step nothing crosses yet: the noise alone tells its pair, for the rival too
    assert lost == sorted(lost)
    assert 0.01 < lost[1] < lost[2] < 2
    assert coupling_error(far(-noise), x0) == pytest.approx(2, rel=0.1)


def test_no_acceleration_is_rectified_flow():
    """h = 1: the same levels and tables as `Flow`, to the bit."""
    t = torch.linspace(0, 1, 33, dtype=F64)
    one, flow = ConstantAcceleration(h=1.0), FLOW
    for name in ("alpha", "sigma", "d_alpha", "d_sigma"):
        assert torch.equal(getattr(one.level(t), name), getattr(flow.level(t), name)), name
    for solver in (orn.Euler(), orn.DDIM(), orn.UniPC()):
        tables = [solver.compile(p, orn.Uniform()(p, steps=4)) for p in (one, flow)]
        assert str(tables[0]) == str(tables[1])
    world = ring()
    z = normal(8, 2)
    out = [
        orn.sample(world.denoiser(p), x_init=z, solver=orn.DDIM(), grid=orn.Uniform(), steps=6).x for p in (one, flow)
    ]
    assert torch.equal(*out)


@pytest.mark.parametrize("h", [0.3, 1.5])
def test_with_noise_of_its_own_it_is_flow_by_another_clock(h):
    """alpha + sigma = 1, so levels of one log-SNR are those of `Flow`: the exact denoiser of a world answers alike, and
    samples back the same on a grid in log-SNR. Its SDE, dx = f x dt + g dw, has the kernel: alpha' = f alpha and
    (sigma^2)' = 2 f sigma^2 + g^2."""
    process, world, z = ConstantAcceleration(h), ring(), normal(8, 2)
    out = [orn.sample(world.denoiser(p), x_init=z, grid=orn.LogSNR(), steps=8).x for p in (process, FLOW)]
    torch.testing.assert_close(*out, rtol=0, atol=1e-9)
    t = torch.linspace(0.05, 0.95, 10, dtype=F64)
    f, g2, level = process.drift(t), process.diffusion2(t), process.level(t)
    step = 1e-5
    slope = (process.alpha(t + step) - process.alpha(t - step)) / (2 * step)
    torch.testing.assert_close(f * level.alpha, slope, rtol=1e-8, atol=1e-8)
    slope = (process.sigma(t + step) ** 2 - process.sigma(t - step) ** 2) / (2 * step)
    torch.testing.assert_close(2 * f * level.sigma**2 + g2, slope, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("h", [0.0, 0.3, 1.0, 1.5, 2.0])
def test_the_path(h):
    """Position, velocity and acceleration of the path between two points, against the equation of motion in u = 1 - t,
    by differences of the state; the inverse of the log-SNR; the velocity target is dx/dt = -dx/du."""
    process, x0, noise = ConstantAcceleration(h), normal(5, 3), normal(5, 3, seed=1)
    u = torch.tensor([0.2, 0.45, 0.8])
    v0, a = h * (x0 - noise), 2 * (1 - h) * (x0 - noise)
    for one in u:
        draw = process.corrupt(x0, float(1 - one), noise=noise)
        torch.testing.assert_close(draw.x, noise + v0 * one + a * one**2 / 2)
        torch.testing.assert_close(draw.target("velocity"), -(v0 + a * one))
    level = process.level(1 - u)
    torch.testing.assert_close(process.time(level.log_snr), level.t)
    torch.testing.assert_close(process.corrupt(x0, 0.0, noise=noise).x, x0)
    torch.testing.assert_close(process.corrupt(x0, 1.0, noise=noise).x, noise)
    # with the true velocity given the path is the same, with another it still ends at both points
    for v, same in ((v0, True), (normal(5, 3, seed=2), False)):
        told = GivenVelocity()
        for one in u:
            t = float(1 - one)
            draw = told.corrupt(x0, t, cond={"velocity": v}, noise=noise)
            torch.testing.assert_close(draw.x, noise + v * one + (x0 - noise - v) * one**2)
            torch.testing.assert_close(draw.target("velocity"), -(v + 2 * (x0 - noise - v) * one))
            assert torch.allclose(draw.x, process.corrupt(x0, t, noise=noise).x) == same
        torch.testing.assert_close(told.corrupt(x0, 0.0, cond={"velocity": v}, noise=noise).x, x0)
        torch.testing.assert_close(told.corrupt(x0, 1.0, cond={"velocity": v}, noise=noise).x, noise)
    level = GivenVelocity().level(1 - u)
    torch.testing.assert_close(GivenVelocity().time(level.log_snr), level.t)


class Any(orn.BaseDenoiser):
    """Some answer that depends on the state, the time and the velocity."""

    predicts = "v"

    def __init__(self):
        super().__init__()
        self.process = GivenVelocity()

    def bind(self, levels, x, cond):
        return [lambda x, t=t: torch.sin(2 * x + cond["velocity"]) + t.reshape(-1, 1) for t in levels.t]


def test_the_published_sampler_is_ddim():
    """z <- z + v0 du + (u + du/2) a(z, u, v0) du, written out, for any acceleration and 1, 3 and 7 steps; and the jumps
    of the flow map, there and back, from any time."""
    model, x, v0 = Any(), normal(20, 2), normal(20, 2, seed=1)
    cond = {"velocity": v0}

    def acceleration(z, u):
        answer = model(z, 1 - u, cond)
        return 2 * (answer.x0 - answer.noise - v0)

    for steps in (1, 3, 7):
        z, du = x, 1 / steps
        for i in range(steps):
            z = z + v0 * du + (i * du + du / 2) * acceleration(z, i * du) * du
        out = orn.sample(model, x_init=x, cond=cond, solver=orn.DDIM(), grid=orn.Uniform(), steps=steps)
        torch.testing.assert_close(out.x, z, rtol=0, atol=1e-12)
        assert out.nfe == steps
    first = Meeting(ConstantAcceleration(0.7))
    flow = ConstantAccelerationFlow(first, Any())
    for t, s in ((1.0, 0.0), (0.6, 0.1), (0.0, 1.0)):
        y = first.process.corrupt(far(normal(20, 1)), t, noise=normal(20, 1)).x
        v0 = initial_velocity(first, y, t)
        cond = {"velocity": v0}
        answer = flow.second(y, t, cond)
        a = 2 * (answer.x0 - answer.noise - v0)
        u, w = 1 - t, 1 - s
        torch.testing.assert_close(flow(y, t, s), y + v0 * (w - u) + a * (w**2 - u**2) / 2)
        torch.testing.assert_close(flow(y, t, t), y)


def test_two_trainings():
    """Both models train on pairs by `Coupled`; the second sees the velocity, and its path is made of it."""
    x0, noise = normal(12, 2), normal(12, 2, seed=1)
    net = orn.nets.MLP(2, width=8, depth=1, conditions={"velocity": 2})
    second = orn.Denoiser(net, GivenVelocity(), "v")
    v0 = normal(12, 2, seed=2)
    t = torch.linspace(0.1, 0.9, 12)
    draw, left = Coupled().draw(second, x0, t, {"noise": noise, "velocity": v0}, 0, Share(0, 12, 12))
    u = (1 - t)[:, None]
    torch.testing.assert_close(draw.x, noise + v0 * u + (x0 - noise - v0) * u**2)
    assert list(left) == ["velocity"]
    first = orn.Denoiser(orn.nets.MLP(2, width=8, depth=1), ConstantAcceleration(1.5), "v")
    options = {"objective": Coupled(), "steps": 3, "batch_size": 4, "progress": False}
    orn.fit(first, x0, cond={"noise": noise}, **options)
    v0 = initial_velocity(first, noise)
    assert not v0.requires_grad
    run = orn.fit(second, x0, cond={"noise": noise, "velocity": v0}, **options)
    assert bool(run.history["loss"].isfinite().all())
    flow = ConstantAccelerationFlow(first, second)
    assert flow(noise, 1.0, 0.0).shape == (12, 2)
    assert {name.split(".")[0] for name, _ in flow.named_parameters()} == {"first", "second"}


def test_coupling_error():
    """0 for the pairs themselves, 1 for the same samples in another order (to 5 standard errors of 4,000 pairs, about
    sqrt(2/4000)), 1/2 for the mean of all; a shift by one standard deviation in each entry is 1/2 too."""
    ends = normal(4000, 3) * 2 + 1
    assert coupling_error(ends, ends) == 0
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    assert coupling_error(ends[order], ends) == pytest.approx(1, abs=5 * math.sqrt(2 / 4000))
    assert coupling_error(ends.mean(0).expand_as(ends), ends) == pytest.approx(0.5, rel=1e-3)
    assert coupling_error(ends + 2, ends) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="one sample for each pair: 5 for 4"):
        coupling_error(ends[:5], ends[:4])
    with pytest.raises(ValueError, match="coincide"):
        coupling_error(ends[:4], torch.ones(4, 3))


def test_what_is_refused():
    for h in (-0.1, 2.1, math.nan):
        with pytest.raises(ValueError, match=f"h={h}"):
            ConstantAcceleration(h)
    with pytest.raises(ValueError, match="h=0"):
        initial_velocity(Meeting(ConstantAcceleration(0.0)), normal(3, 1))
    with pytest.raises(ValueError, match="ConstantAcceleration"):
        initial_velocity(Meeting(FLOW), normal(3, 1))
    with pytest.raises(ValueError, match=r"the first is a denoiser of ConstantAcceleration.*Flow"):
        ConstantAccelerationFlow(Meeting(FLOW), Told(1.0))
    with pytest.raises(ValueError, match=r"the second is a denoiser of GivenVelocity.*Flow"):
        ConstantAccelerationFlow(Meeting(ConstantAcceleration(1.0)), Meeting(FLOW))
    with pytest.raises(ValueError, match=r"cond\['velocity'\]"):
        GivenVelocity().corrupt(normal(3, 1), 0.5, seed=0)
    with pytest.raises(orn.ViewError, match="score"):
        orn.Denoiser(orn.nets.MLP(1), GivenVelocity(), "score")
    with pytest.raises(ValueError, match="draws noise"):
        orn.sample(Told(1.0), x_init=normal(3, 1), cond={"velocity": normal(3, 1)}, solver=orn.DDPM(), steps=3)
