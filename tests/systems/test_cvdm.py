"""A learned schedule: monotone whatever its parameters, and where the bound of few steps is least."""

import math

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.processes import LearnedSchedule
from ornstein.training import ScheduleBound
from worlds import F64, normal


def loss_of_steps(log_snr, std):
    """What the chain of these falling log-SNRs (N + 1, ...) loses on N(0, std^2), in nats per entry: closed form.

    1/2 sum (u_s - u_t) mmse(u_t) - 1/2 int mmse du with mmse(u) = std^2/(1 + std^2 u): 0 for infinitely many steps.
    """
    u = std**2 * log_snr.exp()
    return ((u[:-1] - u[1:]) / (1 + u[1:])).sum(0) / 2 - torch.log((1 + u[0]) / (1 + u[-1])) / 2


def least(std, steps, low, high):
    """The least of it: every step multiplies 1 + std^2 u by the same number r, and loses (r - 1 - log r)/2."""
    first, last = (math.log1p(std**2 * math.exp(end)) for end in (high, low))
    return steps * (math.expm1((first - last) / steps) - (first - last) / steps) / 2


def descend(process, loss, steps=400, lr=5e-2):
    optimizer = torch.optim.Adam(process.parameters(), lr=lr)
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - k / steps)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    return float(loss().detach())


class Shrink(nn.Module):
    """x0 = alpha s^2 x/(alpha^2 s^2 + sigma^2), with s to be learned: the network of a Gaussian."""

    def __init__(self, process):
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(()))
        self.low, self.high = process.low, process.high

    def forward(self, x, told):
        log_snr = (self.high - told * (self.high - self.low))[:, None]
        alpha2 = torch.sigmoid(log_snr)
        return x * alpha2.sqrt() / (alpha2 + (1 - alpha2) * torch.exp(-2 * self.log_std))


@pytest.mark.system("cvdm", rival="fixed schedules: the log-SNR linear in t, linear beta, cosine")
def test_cvdm():
    low, high, steps, std = -7.0, 7.0, 6, 0.7
    t = torch.linspace(0.0, 1.0, steps + 1, dtype=F64)
    best = least(std, steps, low, high)

    # the closed forms themselves: equal ratios of 1 + std^2 u, and no better by a step moved either way
    first, last = (math.log1p(std**2 * math.exp(end)) for end in (high, low))
    ideal = torch.log(torch.expm1(first + (last - first) * t) / std**2)
    assert float(loss_of_steps(ideal, std)) == pytest.approx(best, rel=1e-12)
    for i in range(1, steps):
        for side in (-0.1, 0.1):
            moved = ideal.clone()
            moved[i] += side
            assert float(loss_of_steps(moved, std)) > best

    # the objective is that bound: its mean and its gradient are those of the closed form, for any clock
    world, process = orn.exact.Gaussian(torch.zeros(4, dtype=F64), std=std), LearnedSchedule(low, high)
    with torch.no_grad():
        process.curve.add_(0.3 * normal(len(process.curve), seed=1).float())
    data = world.sample(20_000, seed=2)
    losses, times = ScheduleBound(steps=steps).losses(world.denoiser(process), data, seed=3)
    assert set(times.mul(steps).round().long().tolist()) == set(range(1, steps + 1))
    # the chain's entropy term: 1/2 int mmse du, and the ends' own
    ends = (first - last) / 2 + math.exp(low) * std**2 / 2 + (1 + math.log(2 * math.pi) - high) / 2
    exact = loss_of_steps(process.at(t).log_snr, std) + ends
    error = float(losses.detach().std()) / math.sqrt(len(losses))
    assert float(losses.detach().mean()) == pytest.approx(float(exact.detach()), abs=4 * error)
    found, truth = (torch.autograd.grad(loss, process.curve)[0] for loss in (losses.mean(), exact))
    # each entry's relative error is about that of the loss, a few hundredths
    assert float((found - truth).norm()) < 0.1 * float(truth.norm())

    # learned by it, the schedule is the best there is, and so no worse than the best of a search over 900
    process = LearnedSchedule(low, high)
    learned = descend(process, lambda: loss_of_steps(process.at(t).log_snr, std))
    assert best <= learned < 1.001 * best
    powers = torch.logspace(-1, 1, 30, dtype=F64)
    clocks = 1 - (1 - t[:, None, None] ** powers[:, None]) ** powers
    searched = float(loss_of_steps(high - (high - low) * clocks, std).min())
    assert learned < 1.001 * searched
    for name, rival in {"linear": LearnedSchedule(low, high), "vp": orn.VP(), "cosine": orn.Cosine()}.items():
        ends = rival.time(torch.tensor([high, low], dtype=F64))
        fixed = loss_of_steps(rival.log_snr(ends[0] + t * (ends[1] - ends[0])), std)
        assert float(fixed) > 2 * learned, name


def test_with_the_network():
    """By `fit`, network and schedule at once: the std to a few percent, as 200 batches of 128 tell it, and a loss of
    steps within 5 % of the least, which is flat about it."""
    low, high, steps, std = -7.0, 7.0, 6, 0.7
    data, t = std * normal(4_000, 4, seed=2), torch.linspace(0.0, 1.0, steps + 1, dtype=F64)
    process = LearnedSchedule(low, high)
    model = orn.Denoiser(Shrink(process), process, predicts="x0", timestep=process.timestep)
    assert {name for name, _ in model.named_parameters()} == {"net.log_std", "process.curve"}
    settings = {"steps": 200, "batch_size": 128, "lr": 5e-2, "ema": 0.95, "seed": 0, "progress": False}
    orn.fit(model, data.float(), objective=ScheduleBound(steps=steps), **settings)
    assert float(model.net.log_std.detach().exp()) == pytest.approx(std, rel=0.05)
    together = loss_of_steps(process.level(t).log_snr, std)
    assert float(together) < 1.05 * least(std, steps, low, high)


def test_monotone():
    """F rises strictly, with its ends pinned, whatever the parameters; levels with and without a gradient agree."""
    t = torch.linspace(0.0, 1.0, 301, dtype=F64)
    for seed in range(20):
        process = LearnedSchedule(-8.0, 6.0, units=6, learn_ends=seed % 2 == 1)
        with torch.no_grad():
            process.curve.add_(3 * normal(len(process.curve), seed=seed).float())
        level, live = process.level(t), process.at(t)
        assert bool((level.log_snr.diff() < 0).all())
        assert level.log_snr[[0, -1]].tolist() == pytest.approx([6, -8], abs=1e-5)
        torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(t))
        torch.testing.assert_close(2 * torch.log(level.alpha / level.sigma), level.log_snr)
        for name in ("t", "alpha", "sigma", "log_snr", "d_alpha", "d_sigma"):
            torch.testing.assert_close(getattr(level, name), getattr(live, name).detach(), rtol=1e-12, atol=1e-12)
            assert not getattr(level, name).requires_grad
        assert live.alpha.requires_grad
        for f, slope in ((process.alpha, level.d_alpha), (process.sigma, level.d_sigma)):
            tangent = torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]
            torch.testing.assert_close(slope, tangent, rtol=1e-9, atol=1e-12)
        curve, f = process.curve.detach(), process._rise
        bend = torch.func.jvp(lambda s, f=f, curve=curve: f(s, curve)[1], (t,), (torch.ones_like(t),))[1]
        torch.testing.assert_close(process.bend(t).detach(), bend, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(process.time(level.log_snr), t, rtol=0, atol=1e-9)
        torch.testing.assert_close(process.timestep(level), (6 - level.log_snr) / 14, rtol=0, atol=1e-5)


def test_only_the_bound_trains_it():
    """A regression would be least where the schedule makes it trivial: its gradient does not reach the schedule."""
    process = LearnedSchedule()
    model = orn.Denoiser(Shrink(process), process, predicts="x0", timestep=process.timestep)
    x = normal(64, 2).float()
    orn.Objective()(model, x, seed=0).backward()
    assert process.curve.grad is None
    assert model.net.log_std.grad is not None
    ScheduleBound(steps=4)(model, x, seed=0).backward()
    assert float(process.curve.grad.abs().max()) > 0
    # the penalty alone: E_t F''^2, by one step's middle each
    with_penalty, without = (ScheduleBound(steps=4, smooth=s).losses(model, x, seed=0) for s in (0.1, 0.0))
    middle = with_penalty[1] - 0.125
    expected = 0.1 * process.bend(middle).square()
    torch.testing.assert_close((with_penalty[0] - without[0]).double(), expected, rtol=1e-3, atol=1e-3)


def test_little_range():
    """The bound where its ends count: between log-SNR 0 and 3 all of prior, recon and three steps are of size one."""
    std, t = 0.7, torch.linspace(0.0, 1.0, 4, dtype=F64)
    world, process = orn.exact.Gaussian(torch.zeros(4, dtype=F64), std=std), LearnedSchedule(0.0, 3.0)
    losses = ScheduleBound(steps=3).losses(world.denoiser(process), world.sample(4_000, seed=2), seed=3)[0].detach()
    whole = torch.log((1 + std**2 * math.exp(3)) / torch.tensor(1 + std**2, dtype=F64)) / 2
    exact = loss_of_steps(process.log_snr(t), std) + whole + std**2 / 2 + (math.log(2 * math.pi) - 2) / 2
    assert float(losses.mean()) == pytest.approx(float(exact), abs=4 * float(losses.std()) / math.sqrt(4_000))


def test_ends():
    """Learned ends go where the whole bound is least: e^low E x^2/2 and what the steps lose against log-density."""
    std, steps = 0.7, 16
    t = torch.linspace(0.0, 1.0, steps + 1, dtype=F64)

    def around(low, high):
        """All of the bound but what the steps lose."""
        whole = torch.log((1 + std**2 * high.exp()) / (1 + std**2 * low.exp())) / 2
        return whole + low.exp() * std**2 / 2 + (1 + math.log(2 * math.pi) - high) / 2

    process = LearnedSchedule(-3.0, 3.0, learn_ends=True)

    def bound():
        log_snr = process.at(t).log_snr
        return loss_of_steps(log_snr, std) + around(log_snr[-1], log_snr[0])

    found = descend(process, bound, steps=300)
    ends = torch.linspace(-8, 8, 161, dtype=F64)
    best = min(
        least(std, steps, float(low), float(high)) + float(around(low, high)) for low in ends[:81] for high in ends[81:]
    )
    entropy = math.log(std) + (1 + math.log(2 * math.pi)) / 2
    assert entropy < best < found + 1e-3 < best + 3e-3  # the grid's own error is of its spacing's square


def test_one_for_each_condition():
    """Data of scale 0.05, 0.5 or 5 by the condition: each has its own best clock, and none serves all three."""
    low, high, steps = -9.0, 9.0, 8
    stds, t = torch.tensor([0.05, 0.5, 5.0], dtype=F64), torch.linspace(0.0, 1.0, steps + 1, dtype=F64)
    best = [least(float(std), steps, low, high) for std in stds]
    cond = {"scale": torch.log(stds)[:, None].float()}

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(1, 16), nn.Tanh())

        def forward(self, cond):
            return self.layers(cond["scale"])

    torch.manual_seed(0)
    each = LearnedSchedule(low, high, condition=Scale(), features=16)
    one = LearnedSchedule(low, high)
    descend(each, lambda: loss_of_steps(each.at(t[:, None], cond).log_snr, stds).sum(), lr=2e-2)
    descend(one, lambda: loss_of_steps(one.at(t).log_snr[:, None], stds).sum())
    found = loss_of_steps(each.at(t[:, None], cond).log_snr.detach(), stds)
    shared = loss_of_steps(one.at(t).log_snr.detach()[:, None], stds)
    assert float((found / torch.tensor(best, dtype=F64)).max()) < 1.02
    assert float(shared.sum()) > 1.1 * sum(best)

    # a sampler takes it as times of its own for each sample: as if each scale were sampled alone
    grid = each.grid(steps, cond)
    assert grid.shape == (steps + 1, 3)
    assert bool((grid.log_snr.diff(dim=0) > 0).all())
    torch.testing.assert_close(grid.log_snr.flip(0), each.at(t[:, None], cond).log_snr.detach(), rtol=0, atol=1e-9)
    world, start = orn.exact.Gaussian(torch.zeros(2, dtype=F64), std=0.5), normal(3, 2, seed=5)
    together = orn.sample(world.denoiser(each), x_init=start, grid=grid, solver=orn.DDIM()).x
    for i in range(3):
        own = each.level(grid.t[:, i])
        alone = orn.sample(world.denoiser(each), x_init=start[i : i + 1], grid=own, solver=orn.DDIM()).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


class Entries(nn.Module):
    """Features of each entry's own condition, (batch, entries) to (batch, entries, 16)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 16), nn.Tanh())

    def forward(self, cond):
        return self.layers(cond["scale"][..., None])


def test_one_for_each_entry():
    """Entries of scale 0.05, 0.5 and 5 in one sample, in an order of its own: each entry has its own best clock.

    With the exact denoiser, told a time for each entry, the objective's mean and gradient are those of the closed form;
    learned by it, every entry is within 2 % of its own least loss, which one clock for all misses by a tenth. Samplers
    take it as times of each entry: as if each were sampled alone.
    """
    low, high, steps = -9.0, 9.0, 8
    t = torch.linspace(0.0, 1.0, steps + 1, dtype=F64)
    order = torch.tensor([[0, 1, 2], [2, 0, 1]])
    stds = torch.tensor([0.05, 0.5, 5.0], dtype=F64)[order]
    cond = {"scale": torch.log(stds).float()}
    torch.manual_seed(0)
    each = LearnedSchedule(low, high, condition=Entries(), features=16)
    with torch.no_grad():
        each.head.weight.add_(0.1 * normal(*each.head.weight.shape, seed=1).float())

    def shrink(x, told, cond):
        log_snr = high - told * (high - low)
        variance = torch.exp(2 * cond["scale"].to(x))
        return x * torch.sigmoid(log_snr).sqrt() * variance / (torch.sigmoid(log_snr) * (variance - 1) + 1)

    model = orn.Denoiser(shrink, each, predicts="x0", timestep=each.timestep)
    many = {"scale": cond["scale"].repeat(10_000, 1)}
    data = many["scale"].exp() * normal(20_000, 3, seed=2)
    losses = ScheduleBound(steps=steps).losses(model, data, many, seed=3)[0]
    first, last = (torch.log1p(stds**2 * math.exp(end)) for end in (high, low))
    ends = (first - last) / 2 + math.exp(low) * stds**2 / 2 + (1 + math.log(2 * math.pi) - high) / 2
    exact = (loss_of_steps(each.at(t[:, None], cond).log_snr, stds) + ends).mean()
    error = float(losses.detach().std()) / math.sqrt(len(losses))
    assert float(losses.detach().mean()) == pytest.approx(float(exact.detach()), abs=4 * error)
    found, truth = (torch.autograd.grad(loss, each.head.weight)[0] for loss in (losses.mean(), exact))
    assert float((found - truth).norm()) < 0.1 * float(truth.norm())

    descend(each, lambda: loss_of_steps(each.at(t[:, None], cond).log_snr, stds).sum(), lr=2e-2)
    best = torch.tensor([[least(float(std), steps, low, high) for std in row] for row in stds], dtype=F64)
    learned = loss_of_steps(each.at(t[:, None], cond).log_snr.detach(), stds)
    assert float((learned / best).max()) < 1.02
    one = LearnedSchedule(low, high)
    descend(one, lambda: loss_of_steps(one.at(t).log_snr[:, None, None], stds).sum())
    assert float(loss_of_steps(one.at(t).log_snr.detach()[:, None, None], stds).sum()) > 1.1 * float(best.sum())

    grid, start = each.grid(steps, cond), normal(2, 3, seed=5)
    assert grid.shape == (steps + 1, 2, 3)
    together = orn.sample(model, x_init=start, cond=cond, grid=grid, solver=orn.DDIM()).x
    world = orn.exact.Gaussian
    for i, j in ((0, 0), (0, 2), (1, 1), (1, 2)):
        alone = world(torch.zeros(1, dtype=F64), std=float(stds[i, j])).denoiser(each)
        own = orn.sample(alone, x_init=start[i : i + 1, j : j + 1], grid=each.level(grid.t[:, i, j]), solver=orn.DDIM())
        torch.testing.assert_close(together[i : i + 1, j : j + 1], own.x, rtol=1e-5, atol=1e-7)  # told in float32

    # a chain of ancestral steps leaves each entry the variance that its own clock's steps do, within 4 errors
    wide = {"scale": cond["scale"][:1].repeat(20_000, 1)}
    chain = orn.sample(model, (20_000, 3), cond=wide, grid=each.grid(steps, wide), solver=orn.DDPM(), seed=6).x
    for j in range(3):
        alone = world(torch.zeros(1, dtype=F64), std=float(stds[0, j])).denoiser(each)
        own = orn.sample(alone, (20_000, 1), grid=each.level(grid.t[:, 0, j]), solver=orn.DDPM(), seed=7).x
        assert float(chain[:, j].std() / own.std()) == pytest.approx(1, abs=4 / math.sqrt(20_000))


def test_networks_told_by_entry():
    """TimeMap hands a network the mean time and every entry's; trained by `fit`, network and clocks both learn."""
    net = orn.nets.TimeMap(orn.nets.MLP(3, conditions={"scale": 3, "time": 3}, width=16, depth=1))
    x, t = normal(4, 3).float(), torch.rand(4, 3)
    inner = net.net
    with torch.no_grad():
        for p in inner.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        scale = normal(4, 3, seed=2).float()
        torch.testing.assert_close(net(x, t, {"scale": scale}), inner(x, t.mean(1), {"scale": scale, "time": t}))
        same = t[:, 0]
        told = {"scale": scale, "time": same[:, None].expand(4, 3)}
        torch.testing.assert_close(net(x, same, {"scale": scale}), inner(x, same, told))
    process = LearnedSchedule(-5.0, 5.0, condition=Entries(), features=16)
    model = orn.Denoiser(net, process, predicts="v", timestep=process.timestep)
    scale = torch.log(torch.tensor([0.1, 1.0, 3.0])).expand(256, 3)
    before = process.head.weight.clone()
    data = scale.exp() * normal(256, 3, seed=3).float()
    objective = ScheduleBound(steps=6)
    first = float(objective(model, data, {"scale": scale}, seed=4))
    settings = {"steps": 60, "batch_size": 64, "lr": 1e-2, "seed": 0, "progress": False}
    orn.fit(model, data, cond={"scale": scale}, objective=objective, **settings)
    assert float(objective(model, data, {"scale": scale}, seed=4)) < 0.8 * first
    assert not torch.equal(process.head.weight, before)
    grid = process.grid(6, {"scale": scale})
    out = orn.sample(model, (256, 3), cond={"scale": scale}, grid=grid, solver=orn.DDPM(), seed=1).x
    spread = out.std(0)
    assert float(spread[2]) > 4 * float(spread[0])
    with pytest.raises(ValueError, match="times for 256 samples, the batch is 7"):
        orn.sample(model, (7, 3), cond={"scale": scale[:7]}, grid=grid, solver=orn.DDPM())
    with pytest.raises(ValueError, match=r"got \(256, 3\) for a batch of 256"):
        orn.sample(model, (256, 2), cond={"scale": scale}, grid=grid, solver=orn.DDPM())
    path = orn.BrownianPath(0, batch=256)
    with pytest.raises(ValueError, match=r"one time a sample: got \(256, 3\)"):
        orn.sample(model, (256, 3), cond={"scale": scale}, grid=grid, solver=orn.DDPM(), seed=path)
    each = orn.VP().level(torch.linspace(1, 0, 4, dtype=F64)[:, None, None].expand(4, 1, 3))  # as many as samples
    plain = orn.Denoiser(lambda x, t: x, orn.VP(), "x0")
    with pytest.raises(ValueError, match=r"one time a sample: got \(1, 3\)"):
        orn.sample(plain, (3, 3), grid=each, solver=orn.DDPM(), seed=orn.BrownianPath(0, batch=3))
    with pytest.raises(ValueError, match="exact at one level a sample"):
        orn.exact.Gaussian(torch.zeros(3), std=1.0).denoiser(process)(out, grid[0].t, {"scale": scale})


def test_refusals():
    with pytest.raises(ValueError, match="falls from high to low"):
        LearnedSchedule(3.0, 3.0)
    with pytest.raises(ValueError, match="units=0"):
        LearnedSchedule(units=0)
    with pytest.raises(ValueError, match="needs both"):
        LearnedSchedule(features=3)
    with pytest.raises(ValueError, match="give cond"):
        LearnedSchedule(condition=nn.Identity(), features=1).at(torch.tensor(0.5))
    with pytest.raises(ValueError, match="steps=0"):
        ScheduleBound(steps=0)
    with pytest.raises(ValueError, match="no weighting"):
        ScheduleBound(weighting=orn.training.UnitTarget())
    with pytest.raises(ValueError, match="no time law"):
        ScheduleBound(time=orn.training.LogitNormal())
    process = orn.Flow()
    model = orn.Denoiser(lambda x, t: x, process)
    with pytest.raises(ValueError, match="LearnedSchedule: got Flow"):
        ScheduleBound()(model, normal(4, 2))
