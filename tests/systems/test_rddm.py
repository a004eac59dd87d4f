"""RDDM: residual and noise with schedules of their own, taken away as two heads answer them; DDIM where y = 0."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.processes import Powers, Residual, SeparateSchedules
from ornstein.solvers import RDDM, EulerMaruyama
from worlds import F64, normal, ring

ONE_HEAD = RDDM(noise="main")
DDPM_TIMES = orn.DiscreteTime(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0))


class Two(orn.BaseDenoiser):
    """Two heads that need not agree: the x0 and the noise of an exact world, each with an error of its own."""

    def __init__(self, oracle, x0=0.0, noise=0.0):
        super().__init__()
        self.oracle, self.off = oracle, (x0, noise)
        self.process, self.predicts, self.heads = oracle.process, "x0", {"noise": "noise"}

    def bind(self, levels, x, cond):
        def answer(level, x):
            p = self.oracle(x, level, cond)
            return {"main": p.x0 + self.off[0], "noise": p.noise + self.off[1]}

        return [lambda x, level=level: answer(level, x) for level in levels]


def paper(model, x, y, levels, eta, seed=0):
    """I_s = I_t - (a_t - a_s) I_res - (b_t - sqrt(b_s^2 - std^2)) eps + std z, in I itself and by a = 1 - alpha, b."""
    draws = orn.Noise(seed, batch=len(x), dtype=F64)
    for t, s in itertools.pairwise(levels):
        heads = model(x, t.t, {"mean": y})
        residual, eps = y - heads.x0, heads.head("noise").noise
        (a_t, b_t), (a_s, b_s) = ((1 - float(level.alpha), float(level.sigma)) for level in (t, s))
        std = b_s * math.sqrt(eta * (b_t**2 - b_s**2)) / b_t
        x = x - (a_t - a_s) * residual - (b_t - math.sqrt(b_s**2 - std**2)) * eps
        x = x + std * draws.normal(x.shape) if std > 0 else x
    return x


@pytest.mark.system("rddm", rival="DDIM from the noise head alone, and from the x0 head alone")
def test_rddm():
    """The published update to rounding, also where the heads disagree; its limits; the error that each head leaves."""
    world, y = ring(), normal(16, 2, seed=5)
    cond, zero = {"mean": y}, {"mean": 0 * y}

    # two heads, y not 0: the paper's update, deterministic and with both of its variances; DDIM of either head is not
    process = Residual(Powers(noise_level=0.6))
    grid = process.level(torch.linspace(1, 0, 8, dtype=F64))
    model, x = Two(world.denoiser(process), 0.1, -0.2), process.prior((16, 2), seed=1, cond=cond, dtype=F64)
    for eta in (0.0, 0.5, 1.0):
        found = orn.sample(model, x_init=x, cond=cond, solver=RDDM(eta=eta), grid=grid, seed=0).x
        torch.testing.assert_close(found, paper(model, x, y, grid, eta), rtol=1e-11, atol=1e-11)
        wrong = paper(model, x, y, grid, 1.0 - eta) if eta != 0.5 else paper(model, x, 0 * y, grid, eta)
        assert float((wrong - found).abs().max()) > 0.05
    single = orn.sample(model, x_init=x, cond=cond, solver=orn.DDIM(), grid=grid).x
    assert float((single - paper(model, x, y, grid, 0.0)).abs().max()) > 0.05

    # y = 0: the coefficients of a diffusion carried over are DDIM of that diffusion, step by step and from one head
    for base in (orn.VP(), orn.Cosine(), DDPM_TIMES):
        start = normal(16, 2, seed=2)
        levels = base.level(torch.linspace(0.95, 0.05, 12, dtype=F64))
        ddim = orn.sample(world.denoiser(base), x_init=start, solver=orn.DDIM(), grid=levels).x
        residual = Residual(base)
        found = orn.sample(world.denoiser(residual), x_init=start, cond=zero, solver=ONE_HEAD, grid=levels).x
        torch.testing.assert_close(found, ddim, rtol=1e-11, atol=1e-11)
        there = orn.sample(world.denoiser(residual), x_init=start, cond=cond, solver=ONE_HEAD, grid=levels).x
        assert float((there - ddim).abs().max()) > 0.1

    # an error e of the x0 head and d of the noise head at a point mass: the exact noise sees what the steps before did
    # wrong, so the last step's are left, (1 - alpha_t) e - sigma_t d from its level t. DDIM of the x0 head ends in e
    # whole; that of the noise head has -(sigma_t/alpha_t) d, and no x0 at all at alpha = 0
    point, e, d = orn.exact.Gaussian(torch.tensor([0.7, -1.2], dtype=F64), std=0.0), 0.1, -0.2
    for steps in (1, 6, 30):
        levels = process.level(torch.linspace(1, 0, steps + 1, dtype=F64))
        last, two = levels[steps - 1], Two(point.denoiser(process), e, d)
        out = orn.sample(two, x_init=x, cond=cond, solver=RDDM(), grid=levels).x - point.means
        expected = (1 - last.alpha) * e - last.sigma * d
        torch.testing.assert_close(out, expected.expand(16, 2), rtol=1e-10, atol=1e-11)
        out = orn.sample(two, x_init=x, cond=cond, solver=orn.DDIM(), grid=levels).x - point.means
        torch.testing.assert_close(out, torch.full_like(out, e), rtol=1e-10, atol=1e-11)
    assert float(expected) < e / 5  # in 30 steps

    class NoiseAlone(Two):
        def __init__(self, oracle):
            super().__init__(oracle, 0.0, d)
            self.predicts, self.heads = "noise", {}

        def bind(self, levels, x, cond):
            return [lambda x, call=call: call(x)["noise"] for call in super().bind(levels, x, cond)]

    with pytest.raises(orn.ViewError, match="x0 cannot be formed from noise"):
        orn.sample(NoiseAlone(point.denoiser(process)), x_init=x, cond=cond, solver=orn.DDIM(), grid=grid)
    out = orn.sample(NoiseAlone(point.denoiser(process)), x_init=x, cond=cond, solver=orn.DDIM(), grid=grid[1:]).x
    last = grid[-2]
    torch.testing.assert_close(out - point.means, (-last.sigma / last.alpha * d).expand(16, 2), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_eta_keeps_the_law(eta):
    """Variance of Gaussian data, exactly: slope 1 within 0.2 of the last halving, on two schedules. In small steps eta
    is the reverse SDE of diffusion eta d sigma^2/dt; the rival 2 eta d sigma^2/dt is another one."""
    for process in (Residual(Powers(noise_level=0.6)), Residual(SeparateSchedules(orn.VP(), orn.EDM(sigma_max=0.3)))):
        levels, c, defects = orn.LogSNR(start=-3.0, end=5.0, to_data=False), 0.3, []
        for steps in (60, 120):
            table = RDDM(eta=eta, noise="main").compile(process, levels(process, steps=steps))
            first, last = table.start, table.end
            out = orn.response(table, 0.7, c).variance(first.alpha**2 * c + first.sigma**2)
            defects.append(abs(float(out - last.alpha**2 * c - last.sigma**2)))
        assert min(defects) > 1e-7
        assert math.log2(defects[0] / defects[1]) == pytest.approx(1, abs=0.2)
        if eta == 0 or process.base != Powers(noise_level=0.6):
            continue
        fine = levels(process, steps=100)

        def gain(solver, fine=fine, process=process):
            return float(orn.response(solver.compile(process, fine), 0.7, c).gain)  # how much of the start is left

        once, twice = (
            EulerMaruyama(diffusion=lambda level, k=k: k * eta * 2 * level.sigma * level.d_sigma) for k in (1, 2)
        )
        own = gain(RDDM(eta=eta, noise="main"))
        assert own == pytest.approx(gain(once), rel=0.1)
        assert abs(own / gain(twice) - 1) > 0.2


def test_the_order_to_the_exact_flow():
    """Slope 1 on six modes, at both ends of two schedules that go through other levels; and no defect at a point."""
    world, y = ring(), normal(8, 2, seed=5)
    levels, cond = orn.LogSNR(start=-1.0, end=4.0, to_data=False), {"mean": y}
    for process in (Residual(Powers(noise_level=0.6)), Residual(Powers(residual=1.0, noise=0.5))):
        ends = levels(process, steps=1)
        x = process.corrupt(world.sample(8, seed=0).to(F64), ends[0], cond=cond, noise=normal(8, 2, seed=1)).x
        truth = world.flow(process, x, ends[0], ends[1], cond=cond, rtol=1e-9, atol=1e-10)
        coarse, fine = (
            float(
                (
                    orn.sample(Two(world.denoiser(process)), x_init=x, cond=cond, solver=RDDM(), grid=levels, steps=n).x
                    - truth
                ).norm()
            )
            for n in (40, 80)
        )
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.2)
        for eta in (0.0, 1.0):
            table = RDDM(eta=eta, noise="main").compile(process, process.level([1.0, 0.6, 0.2, 0.0]))
            out = orn.response(table, 1.7, 0.0)
            assert float(out.mean(0.0)) == pytest.approx(1.7, rel=1e-12)
            assert float(out.variance(float(table.start.sigma) ** 2)) < 1e-20


def test_refusals():
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        RDDM(eta=1.5)
    with pytest.raises(ValueError, match="rises"):
        RDDM(eta=1.0).compile(Residual(), Residual().level([0.2, 0.5]))
    bridge = orn.processes.BrownianBridge()
    with pytest.raises(ValueError, match="eta=0"):
        RDDM(eta=1.0).compile(bridge, bridge.level([1.0, 0.5, 0.1]))
    x, process = normal(3, 2), Residual()
    with pytest.raises(orn.TableError, match="'noise'"):
        orn.sample(ring().denoiser(process), x_init=x, cond={"mean": x}, solver=RDDM(), steps=3)


def test_two_networks_are_the_two_heads():
    """`orn.Heads` of an x0-network and a noise-network is what RDDM reads; each is asked once a step."""
    process, world = Residual(Powers(noise_level=0.6)), ring()
    both = orn.Heads(world.denoiser(process, predicts="x0"), noise=world.denoiser(process, predicts="noise"))
    y, levels = normal(4, 2), process.level([1.0, 0.7, 0.3, 0.1])
    x = process.prior((4, 2), seed=0, cond={"mean": y}, dtype=F64)
    found = orn.sample(both, x_init=x, cond={"mean": y}, solver=RDDM(), grid=levels)
    torch.testing.assert_close(found.x, paper(Two(world.denoiser(process)), x, y, levels, 0.0), rtol=1e-11, atol=1e-11)
    assert found.nfe == 6


def test_an_erased_digit():
    """A digit whose middle is erased, ten Gaussians fitted to the classes of others: 10 steps with two heads, of small
    noise as published for restoration. Each sample is closer to the truth than what was given (PSNR above input), and
    the mean of 16 within 1 dB of the exact posterior mean, of which their spread takes a quarter to a half."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, label = torch.from_numpy(data.data).to(F64) / 16, torch.from_numpy(data.target)
    train, truth = x[:1500], x[1501]
    parts = [train[label[:1500] == k] for k in range(10)]
    world = orn.exact.GaussianMixture(
        torch.stack([part.mean(0) for part in parts]),
        covs=torch.stack([torch.cov(part.T) + 0.05**2 * torch.eye(64, dtype=F64) for part in parts]),
    )
    seen = torch.ones(8, 8, dtype=F64)
    seen[2:6, 2:6] = 0
    y = seen.flatten() * truth + 0.05 * normal(64)
    posterior = world.posterior(y, torch.diag(seen.flatten()), 0.05)
    process, cond = Residual(Powers(noise_level=0.3)), {"mean": y.expand(16, 64)}
    model = Two(posterior.denoiser(process))
    out = orn.sample(model, (16, 64), cond=cond, solver=RDDM(), steps=10, seed=0, dtype=F64).x

    def psnr(a):
        return float(-10 * (a - truth).square().mean().log10())

    assert psnr(out) > psnr(y) + 3
    assert psnr(out.mean(0)) > psnr(posterior.moments()[0]) - 1
