"""Processes that end in a condition: kernels against their equations, refusals, ends, limits, orders of solvers."""

from __future__ import annotations

import math

import pytest
import torch

import ornstein as orn
from ornstein.processes import (
    I2SB,
    SGMSE,
    BrownianBridge,
    MeanReverting,
    Powers,
    Residual,
    Reverting,
    SeparateSchedules,
)
from worlds import F64, normal, ring

EPS = 2.0**-52
RDDM_OWN = Residual(Powers(residual=1.5, noise=0.7, noise_level=0.5))
OUVE, MR = SGMSE(), MeanReverting()
TWO = Residual(SeparateSchedules(orn.VP(), orn.EDM(sigma_max=0.3)))
BRIDGE, SCHROEDINGER = BrownianBridge(noise_level=0.8), I2SB(beta_min=0.1, beta_max=1.2)
PROCESSES = [MR, OUVE, RDDM_OWN, TWO, BRIDGE, SCHROEDINGER]
TIMES = torch.tensor([1e-9, 1e-3, 0.1, 0.3, 0.49, 0.51, 0.7, 0.9, 0.999, 1 - 1e-9], dtype=F64)


def forward(process: Reverting, t: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Drift and squared diffusion at t as the papers write them, in which no alpha and no sigma of ours appears."""
    now = float(t)
    match process:
        case MeanReverting():  # IR-SDE with theta = beta/2 and stationary std lambda: sigma^2 = 2 theta lambda^2
            theta = (0.1 + now * 19.9) / 2
            return theta * (y - x), 2 * theta * 0.3**2
        case SGMSE():
            ratio = 0.5 / 0.05
            return 1.5 * (y - x), (0.05 * ratio**now * math.sqrt(2 * math.log(ratio))) ** 2
        case BrownianBridge():  # pinned at y when u = 1
            rate = 1 - 1e-4
            return rate * (y - x) / (1 - rate * now), rate * 0.8**2
    # I2SB: the rest of the variance until the pin, by its own integral of beta
    assert isinstance(process, I2SB)
    root = math.sqrt(0.1) + 2 * min(now, 1 - now) * (math.sqrt(1.2) - math.sqrt(0.1))
    total, rate = schroedinger_variance(1.0), 1 - 1e-4
    share = rate * schroedinger_variance(now) / total
    speed = rate * root**2 / total
    return speed * (y - x) / (1 - share), total * speed


def schroedinger_variance(t: float) -> float:
    """The integral of beta up to t: Simpson's rule, exact for the quadratic pieces on either side of 1/2."""

    def beta(s: float) -> float:
        return (math.sqrt(0.1) + 2 * min(s, 1 - s) * (math.sqrt(1.2) - math.sqrt(0.1))) ** 2

    pieces = ((0.0, min(t, 0.5)), (0.5, max(t, 0.5)))
    return sum((b - a) / 6 * (beta(a) + 4 * beta((a + b) / 2) + beta(b)) for a, b in pieces)


@pytest.mark.parametrize("process", [MR, OUVE, BRIDGE, SCHROEDINGER], ids=repr)
def test_the_kernel_solves_the_equation(process: Reverting) -> None:
    """Mean and variance by RK4 on m' = drift(m), v' = 2 (d drift/dx) v + g^2 from data (v = 0) to t = 0.8, through the
    corner of I2SB's clock at 1/2, where a step ends. (rate h)^4/120 with rate at most 8 and 800 steps: below 1e-9."""
    x0, y, n = 1.7, torch.tensor(-0.6, dtype=F64), 800
    h, m, v = 0.8 / n, torch.tensor(x0, dtype=F64), 0.0

    def slopes(t: float, m: torch.Tensor, v: float) -> tuple[torch.Tensor, float]:
        now = torch.tensor(t, dtype=F64)
        drift, g2 = forward(process, now, m, y)
        slope = float(forward(process, now, m + 1, y)[0] - drift)  # the drift is linear in x
        return drift, 2 * slope * v + g2

    for k in range(n):
        t = k * h
        a = slopes(t, m, v)
        b = slopes(t + h / 2, m + h / 2 * a[0], v + h / 2 * a[1])
        c = slopes(t + h / 2, m + h / 2 * b[0], v + h / 2 * b[1])
        d = slopes(t + h, m + h * c[0], v + h * c[1])
        m, v = (s + h / 6 * (a[i] + 2 * b[i] + 2 * c[i] + d[i]) for i, s in enumerate((m, v)))
    level, cond = process.level(0.8), {process.mean: y.reshape(1, 1)}
    mean = level.alpha * x0 + process.shift(level.t, cond)[0, 0]
    assert float(m) == pytest.approx(float(mean), rel=1e-9)
    assert v == pytest.approx(float(level.sigma) ** 2, rel=1e-9)


@pytest.mark.parametrize("process", [OUVE, BRIDGE, SCHROEDINGER], ids=repr)
def test_a_simulation_has_the_marginal(process: Reverting) -> None:
    """20,000 paths of Euler-Maruyama in 250 steps: mean and variance within 5 standard errors, sd/sqrt(n) and
    v sqrt(2/n), and the method's own bias of at most 2 % (h times the largest rate, 5, twice for a variance).

    Power: a sigma wrong by a tenth moves the variance by 21 %, nine standard errors past the bound of 7 %; a weight of
    the mean wrong by a tenth moves it by more than twenty.
    """
    n, steps, t1, rng = 20_000, 250, 0.8, torch.Generator().manual_seed(4)
    h, x, y = t1 / steps, torch.full((n, 1), 1.7, dtype=F64), torch.full((n, 1), -0.6, dtype=F64)
    for k in range(steps):
        drift, g2 = forward(process, torch.tensor((k + 0.5) * h), x, y)
        x = x + h * drift + math.sqrt(g2 * h) * torch.randn(n, 1, generator=rng, dtype=F64)
    draw = process.corrupt(torch.full((n, 1), 1.7, dtype=F64), t1, cond={process.mean: y}, seed=1)
    level = process.level(t1)
    mean, v = float(level.alpha) * 1.7 + float(process.shift(level.t, {process.mean: y})[0]), float(level.sigma) ** 2
    for found in (x, draw.x):
        assert abs(float(found.mean()) - mean) < 5 * math.sqrt(v / n) + 0.02 * abs(1.7 + 0.6) * float(level.alpha)
        assert abs(float(found.var()) / v - 1) < 5 * math.sqrt(2 / n) + 0.02


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_what_is_given_agrees_with_what_follows(process: Reverting) -> None:
    """Derivatives by differentiation, wronskian, diffusion and log-SNR by their definitions; time inverts log-SNR."""
    level, derivative = process.level(TIMES), torch.func.jvp
    for f, given in ((process.alpha, level.d_alpha), (process.sigma, level.d_sigma)):
        torch.testing.assert_close(derivative(f, (TIMES,), (torch.ones_like(TIMES),))[1], given, rtol=1e-7, atol=1e-12)
    by_definition = 2 * (level.alpha.log() - level.sigma.log())
    torch.testing.assert_close(level.log_snr, by_definition, rtol=1e-7, atol=1e-10)
    assert bool((level.log_snr.diff() < 0).all())
    wronskian = level.alpha * level.d_sigma - level.sigma * level.d_alpha
    torch.testing.assert_close(process.wronskian(TIMES), wronskian, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(process.diffusion2(TIMES), 2 * level.sigma * wronskian / level.alpha, rtol=1e-7, atol=0)
    torch.testing.assert_close(process.drift(TIMES), level.d_alpha / level.alpha, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.time(level.log_snr), TIMES, rtol=1e-7, atol=0)
    assert float(process.time(torch.tensor(math.inf, dtype=F64))) == 0.0
    y = {process.mean: normal(len(TIMES), 2)}
    torch.testing.assert_close(
        process.shift(TIMES, y), (1 - level.alpha)[:, None] * y[process.mean], rtol=1e-7, atol=1e-15
    )
    torch.testing.assert_close(
        derivative(lambda t: process.shift(t, y), (TIMES,), (torch.ones_like(TIMES),))[1],
        process.d_shift(TIMES, y),
        rtol=1e-7,
        atol=1e-12,
    )


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_condition_is_needed_by_name(process: Reverting) -> None:
    x, name = normal(3, 2), type(process).__name__
    for cond, said in ((None, f"{name} needs its {process.mean}"), ({"other": x}, "holds only 'other'")):
        with pytest.raises(ValueError, match=said):
            process.corrupt(x, 0.5, cond=cond)
        with pytest.raises(ValueError, match=rf"cond={{'{process.mean}': tensor}}"):
            process.prior((3, 2), cond=cond)
    with pytest.raises(ValueError, match=f"'{process.mean}'.*float"):
        process.corrupt(x, 0.5, cond={process.mean: 1.0})
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        process.corrupt(x, 0.5, cond={process.mean: x[:1]})


@pytest.mark.parametrize("process", [OUVE, RDDM_OWN, TWO, BRIDGE, SCHROEDINGER], ids=repr)
def test_samples_begin_in_the_condition(process: Reverting) -> None:
    """The prior is N(mean, sigma(1)^2): 40,000 numbers, mean and variance within 5 standard errors; and log_prior is
    its density. Without the data's part alpha(1) mean SGMSE's would be off by 0.22."""
    y = torch.full((20_000, 2), 1.3, dtype=F64)
    x, s = process.prior((20_000, 2), seed=0, cond={process.mean: y}, dtype=F64), float(process.level(1.0).sigma)
    assert abs(float(x.mean()) - 1.3) < 5 * s / 200
    assert abs(float(x.var()) / s**2 - 1) < 5 * math.sqrt(2 / 40_000)
    density = torch.distributions.Normal(torch.tensor(1.3, dtype=F64), s).log_prob(x).sum(1)
    torch.testing.assert_close(process.log_prior(x, {process.mean: y}), density)


def test_limits() -> None:
    """Where the mean is 0 a residual process is its base; powers of one are the flow's; equal betas are Brownian; and
    the mean-reverting process is the residual one with VP's alpha and its own sigma."""
    x, z, zero, y = normal(8, 2), normal(8, 2, seed=1), torch.zeros(8, 2, dtype=F64), normal(8, 2, seed=2)
    t = torch.linspace(0.05, 0.95, 8, dtype=F64)
    for base in (
        orn.VP(),
        orn.Cosine(),
        orn.Flow(),
        orn.EDM(),
    ):
        assert torch.equal(Residual(base).corrupt(x, t, cond={"mean": zero}, noise=z).x, base.corrupt(x, t, noise=z).x)
    pairs = [
        (Residual(SeparateSchedules(orn.VP(), MR)), MR, "mean"),
        (I2SB(beta_min=0.64, beta_max=0.64, mean="mean"), BrownianBridge(noise_level=0.8, mean="mean"), "mean"),
        (Powers(residual=1.0, noise=1.0), orn.Flow(), None),
    ]
    for one, other, name in pairs:
        cond = None if name is None else {name: y}
        a, b = (process.corrupt(x, t, cond=cond, noise=z) for process in (one, other))
        torch.testing.assert_close(a.x, b.x, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(a.target("velocity"), b.target("velocity"), rtol=1e-12, atol=1e-12)
    # a bridge without noise is the straight line, whose velocity is x1 - x0 up to delta
    thin = BrownianBridge(noise_level=1e-6).corrupt(x, t, cond={"end": y}, noise=z)
    torch.testing.assert_close(thin.target("velocity"), y - x, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SGMSE(gamma=0.0), "gamma"),
        (lambda: SGMSE(sigma_min=0.6), "0.6"),
        (lambda: Powers(residual=-1.0), "residual"),
        (lambda: Powers(noise_level=math.inf), "noise_level"),
        (lambda: BrownianBridge(noise_level=0.0), "noise_level"),
        (lambda: BrownianBridge(delta=0.0), "delta"),
        (lambda: I2SB(beta_min=0.3, beta_max=0.1), "beta_min"),
        (lambda: I2SB(delta=1.5), "1.5"),
    ],
)
def test_refusals(make, said) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("process", [OUVE, TWO, SCHROEDINGER], ids=repr)
def test_orders_of_solvers(process: Reverting) -> None:
    """Slope of the last halving to the exact flow on six modes, within 0.2, errors above 1e-9: 1 for DDIM, 2 for
    DPM-Solver++. (The range of log-SNR is inside that of every process here; states are centred by the condition.)"""
    world, grid, cond = ring(), orn.LogSNR(start=-1.0, end=4.0, to_data=False), {process.mean: normal(8, 2, seed=5)}
    ends = grid(process, steps=1)
    x = process.corrupt(world.sample(8, seed=0).to(F64), ends[0], cond=cond, noise=normal(8, 2, seed=1)).x
    truth = world.flow(process, x, ends[0], ends[1], cond=cond, rtol=1e-10, atol=1e-11)
    oracle = world.denoiser(process, predicts="velocity")
    for solver, order in ((orn.DDIM(), 1), (orn.DPMSolverPP(order=2), 2)):
        coarse, fine = (
            float((orn.sample(oracle, x_init=x, cond=cond, solver=solver, grid=grid, steps=n).x - truth).norm())
            for n in (60, 120)
        )
        assert fine > 1e-9
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
