"""Processes: schedules to a few eps of the truth, drift and diffusion against simulated marginals, draws, refusals."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ornstein.processes import EDM, VE, VP, Cosine, Flow, GaussianProcess, MeanReverting, Process, Product, SubVP
from ornstein.processes.linear import inverse
from ornstein.random import Noise
from schedules import EPS, EXPONENT, INFINITE_SLOPE, PROCESSES, ZERO_TERMINAL_SNR, Truth, double, mp

NAMES = list(PROCESSES)
TIMES = [1e-12, 1e-9, 1e-6, 1e-3, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9]
SCHEDULE = ("alpha", "sigma", "d_alpha", "d_sigma", "wronskian", "drift", "diffusion2")


def condition_of(name: str, batch: int, *event: int) -> Any:
    """What a process needs besides t: a mean for the one that reverts to it."""
    if name != "MeanReverting":
        return None
    return {"mean": torch.linspace(-1, 2, batch * math.prod(event), dtype=torch.float64).reshape(batch, *event)}


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- schedules


@pytest.mark.parametrize("name", NAMES)
def test_schedules_equal_their_formulas_to_rounding(name: str) -> None:
    """A chain of at most eight correctly rounded operations, and an exponent whose rounding is amplified by itself."""
    process, bound = PROCESSES[name], (4 + EXPONENT.get(name, 0)) * EPS
    for t in TIMES:
        truth = Truth.at(name, t)
        for quantity in SCHEDULE:
            got, wanted = mp.mpf(float(getattr(process, quantity)(double(t)))), getattr(truth, quantity)
            if abs(wanted) < 1e-25:  # a derivative of a constant: mpmath leaves 1e-30
                assert got == 0, (quantity, t)
            else:
                assert abs(got - wanted) <= bound * abs(wanted), (quantity, t, float((got - wanted) / wanted / EPS))


@pytest.mark.parametrize("name", NAMES)
def test_log_snr_and_its_inverse(name: str) -> None:
    """log_snr to a few eps of max(1, |log_snr|); time to a few eps of itself, given exactly that log_snr."""
    process, bound = PROCESSES[name], (4 + EXPONENT.get(name, 0)) * EPS
    for t in TIMES:
        truth = Truth.at(name, t)
        log_snr = process.log_snr(double(t))
        error = mp.mpf(float(log_snr)) - truth.log_snr
        assert abs(error) <= bound * max(1, abs(truth.log_snr)), t
        exact = mp.mpf(t) + error / truth.d_log_snr  # one Newton step: its own error is of order eps^2
        assert abs(mp.mpf(float(process.time(log_snr))) - exact) <= bound * exact, t


@pytest.mark.parametrize("name", NAMES)
def test_level_carries_the_schedule(name: str) -> None:
    process, t = PROCESSES[name], torch.tensor([[0.1, 0.5], [0.9, 1.0]], dtype=torch.float64)
    level = process.level(t)
    for field in ("alpha", "sigma", "log_snr", "d_alpha", "d_sigma"):
        assert torch.equal(getattr(level, field), getattr(process, field)(t))
        assert getattr(level, field).dtype == torch.float64
    assert level.shape == (2, 2)
    assert len(level) == 2
    assert torch.equal(level[1].alpha, process.alpha(t[1]))
    assert [float(one.sigma[0]) for one in level] == [float(process.sigma(t[0, 0])), float(process.sigma(t[1, 0]))]
    assert process.level(level) is level
    assert process.level(torch.tensor(0.25)).alpha.dtype == torch.float64  # a float32 time, float64 level
    for time in (0.1, [0.1, 0.9]):  # Python's numbers are float64, whatever torch's default
        assert torch.equal(process.level(time).t, torch.tensor(time, dtype=torch.float64))


class Bare(GaussianProcess):
    """A process of which only alpha and sigma are known."""

    def __init__(self, inner: GaussianProcess) -> None:
        self.inner = inner

    def alpha(self, t: Tensor) -> Tensor:
        return self.inner.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.inner.sigma(t)


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_from_alpha_and_sigma_alone(name: str) -> None:
    """The defaults (forward-mode derivatives, bisection) agree with the analytic forms of the built-in process.

    A derivative of a function near 1 loses a few eps of its scale, not of itself, as cos(pi/2 (1 - t)) near t = 0.
    """
    process, bare = PROCESSES[name], Bare(PROCESSES[name])
    t = torch.tensor([1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6], dtype=torch.float64)
    for quantity in (*SCHEDULE, "log_snr"):
        wanted, got = getattr(process, quantity)(t), getattr(bare, quantity)(t)
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
    # from the same log-SNR: the bisection inverts the default log_snr, which is within eps |log_snr| of the analytic
    slope = torch.tensor([float(Truth.at(name, float(s)).d_log_snr) for s in t], dtype=torch.float64)
    log_snr = process.log_snr(t)
    allowed = 20 * EPS * (t + (1 + log_snr.abs()) / slope.abs())
    assert bool(((bare.time(log_snr) - process.time(log_snr)).abs() <= allowed).all())
    assert float(bare.time(torch.tensor(torch.inf, dtype=torch.float64))) == 0.0


def test_bisection_ends_with_the_last_bit() -> None:
    """The t of every value, one beyond either end, and for each of a batch under vmap; nothing is asked for the data,
    and a value that is found is not sought on."""
    asked = []

    def falling(t: Tensor) -> Tensor:
        asked.append(t)
        return -t

    values = torch.tensor([torch.inf, -1e-9, -0.25, -1 / 3, -1.0, -2.0, -torch.inf], dtype=torch.float64)
    found = inverse(falling, values)
    assert torch.allclose(
        found, torch.tensor([0.0, 1e-9, 0.25, 1 / 3, 1.0, 1.0, 1.0], dtype=torch.float64), rtol=2**-52, atol=0
    )
    assert 60 < len(asked) < 95  # 1e-9 has 30 zeros before its 53 bits
    asked.clear()
    inverse(falling, values[:1])
    assert not asked
    assert torch.equal(torch.vmap(lambda value: inverse(falling, value))(values), found)


@pytest.mark.parametrize("name", NAMES)
def test_the_ends(name: str) -> None:
    process, zero, one = PROCESSES[name], double(0.0), double(1.0)
    data, end = process.level(zero), process.level(one)
    assert float(data.sigma) == 0.0
    assert abs(float(data.alpha) - 1) <= 2 * EPS
    assert float(data.log_snr) == math.inf
    assert float(process.time(data.log_snr)) == 0.0
    g2 = {"VP": 0.1, "SubVP": 0.0, "VE": 2 * math.log(5000) * 1e-4, "Cosine": 0.0, "EDM": 0.0, "Flow": 0.0}
    g2["MeanReverting"] = 0.09 * 0.1
    rate = math.pi / 2 / 1.008
    g2["CosineOffset"] = 2 * rate * math.tan(0.008 * rate)
    assert float(process.diffusion2(zero)) == pytest.approx(g2[name], rel=1e-14, abs=0)
    slope = {"SubVP": 0.1, "Cosine": math.pi / 2, "EDM": 80.0, "Flow": 1.0}.get(name, math.inf)
    assert float(data.d_sigma) == pytest.approx(slope, rel=1e-14)
    assert (name in INFINITE_SLOPE) == math.isinf(float(data.d_sigma))
    fall = {"Flow": -1.0, "VE": 0.0, "EDM": 0.0, "Cosine": 0.0, "CosineOffset": -rate * math.tan(0.008 * rate)}
    assert float(data.d_alpha) == pytest.approx(fall.get(name, -0.05), rel=1e-14, abs=0)
    if name in ZERO_TERMINAL_SNR:
        assert float(end.alpha) == 0.0
        assert float(end.sigma) == pytest.approx(1.0, rel=2 * EPS)
        assert float(end.log_snr) == -math.inf
        assert 1 - 2 * EPS <= float(process.time(end.log_snr)) <= 1.0
        assert float(end.d_sigma) == (1.0 if name == "Flow" else 0.0)
        assert math.isfinite(float(process.wronskian(one)))
    else:
        last = {"VP": (math.exp(-5.025), math.sqrt(-math.expm1(-10.05))), "SubVP": (math.exp(-5.025), 0)}
        last |= {"VE": (1.0, math.sqrt(2500 - 1e-4)), "EDM": (1.0, 80.0)}
        last["SubVP"] = (math.exp(-5.025), -math.expm1(-10.05))
        last["MeanReverting"] = (math.exp(-5.025), 0.3 * math.sqrt(-math.expm1(-10.05)))
        assert (float(end.alpha), float(end.sigma)) == pytest.approx(last[name], rel=1e-14)
        assert float(process.time(end.log_snr)) == pytest.approx(1.0, rel=20 * EPS)


def test_times_of_infinite_levels_stay_inside() -> None:
    """Whatever the offset, the end of the cosine's time is a time: rounding must not carry it over 1."""
    for offset in (0.0, 1e-4, 0.003, 0.008, 0.05, 0.3, 1.0, 7.0):
        process = Cosine(offset=offset)
        ends = process.time(torch.tensor([torch.inf, -torch.inf], dtype=torch.float64))
        assert float(ends[0]) == 0.0
        assert abs(float(ends[1]) - 1) <= 4 * EPS
        assert float(ends[1]) <= 1.0, offset


# -- the stochastic differential equation


def moments_by_runge_kutta(process: GaussianProcess, t0: float, t1: float, mean: Any, cond: Any, n: int = 4000) -> Any:
    """(m, v) at t1 of dx = [f (x - shift) + shift'] dt + g dw from the marginal at t0: classical RK4 on m', v'."""
    nodes = torch.linspace(t0, t1, 2 * n + 1, dtype=torch.float64)
    f, g2, h = process.drift(nodes).tolist(), process.diffusion2(nodes).tolist(), (t1 - t0) / n
    shift = [0.0] * len(nodes) if cond is None else process.shift(nodes, cond)[:, 0].tolist()
    slope = [0.0] * len(nodes) if cond is None else process.d_shift(nodes, cond)[:, 0].tolist()
    m, v = mean, float(process.sigma(double(t0))) ** 2
    for k in range(0, 2 * n, 2):

        def field(i: int, m: float, v: float) -> tuple[float, float]:
            return f[i] * (m - shift[i]) + slope[i], 2 * f[i] * v + g2[i]

        a = field(k, m, v)
        b = field(k + 1, m + h / 2 * a[0], v + h / 2 * a[1])
        c = field(k + 1, m + h / 2 * b[0], v + h / 2 * b[1])
        d = field(k + 2, m + h * c[0], v + h * c[1])
        m, v = (y + h / 6 * (a[i] + 2 * b[i] + 2 * c[i] + d[i]) for i, y in enumerate((m, v)))
    return m, v


@pytest.mark.parametrize("name", NAMES)
def test_drift_and_diffusion_carry_the_marginals(name: str) -> None:
    """m' = f (m - shift) + shift' and v' = 2 f v + g^2 arrive at alpha x0 + shift and sigma^2.

    RK4 with 4000 steps: the local rate |2f| + 1/t is at most 40 here, (40 h)^4 < 1e-8, times 1/120: error below 1e-9.
    """
    process, t0, t1, x0 = PROCESSES[name], 0.05, 0.95, 1.7
    cond = None if name != "MeanReverting" else {"mean": torch.full((8001, 1), -0.6, dtype=torch.float64)}

    def marginal(t: float) -> tuple[float, float]:
        one = None if cond is None else {"mean": cond["mean"][:1]}
        shift = 0.0 if one is None else float(process.shift(double(t), one))
        return float(process.alpha(double(t))) * x0 + shift, float(process.sigma(double(t))) ** 2

    m, v = moments_by_runge_kutta(process, t0, t1, marginal(t0)[0], cond)
    assert (m, v) == pytest.approx(marginal(t1), rel=1e-9)


@pytest.mark.parametrize("name", ["SubVP", "MeanReverting"])
def test_euler_maruyama_reaches_the_marginal(name: str) -> None:
    """20 000 paths: the mean within 5 standard errors sd/sqrt(n), the variance within 5 v sqrt(2/n), and the bias of
    Euler-Maruyama itself, which its own moment recursion gives exactly (and is below a percent)."""
    process, n, steps, t0, t1, x0, mean = PROCESSES[name], 20_000, 300, 0.1, 0.6, 1.5, -0.8
    cond = None if name != "MeanReverting" else {"mean": torch.full((n, 1), mean, dtype=torch.float64)}
    rng = torch.Generator().manual_seed(3)
    x = process.corrupt(torch.full((n, 1), x0, dtype=torch.float64), t0, cond=cond, seed=rng).x
    level, h = process.level(t0), (t1 - t0) / steps
    shift, slope = (0.0, 0.0) if cond is None else (mean * (1 - float(level.alpha)), 0.0)
    m, v = float(level.alpha) * x0 + shift, float(level.sigma) ** 2
    for k in range(steps):
        t = double(t0 + k * h)
        f, g2 = float(process.drift(t)), float(process.diffusion2(t))
        if cond is not None:
            shift, slope = (float(s(t, cond)[0, 0]) for s in (process.shift, process.d_shift))
        x = x + h * (f * (x - shift) + slope) + math.sqrt(g2 * h) * torch.randn(n, 1, generator=rng)
        m, v = m + h * (f * (m - shift) + slope), (1 + h * f) ** 2 * v + g2 * h
    level = process.level(t1)
    shift = 0.0 if cond is None else mean * (1 - float(level.alpha))
    wanted_m, wanted_v = float(level.alpha) * x0 + shift, float(level.sigma) ** 2
    assert (m, v) == pytest.approx((wanted_m, wanted_v), rel=1e-2)
    assert abs(float(x.mean()) - wanted_m) < 5 * math.sqrt(v / n) + abs(m - wanted_m)
    assert abs(float(x.var()) - wanted_v) < 5 * v * math.sqrt(2 / n) + abs(v - wanted_v)


# -- draws and the end law


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("per_sample", [False, True])
def test_corrupt_is_the_equation(name: str, per_sample: bool) -> None:
    process, x0, cond = PROCESSES[name], normals(4, 3, 2), condition_of(name, 4, 3, 2)
    t = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64) if per_sample else double(0.4)
    draw = process.corrupt(x0, t, cond=cond, seed=5)
    assert torch.equal(draw.noise, Noise(5, batch=4, dtype=torch.float64).normal((4, 3, 2)))
    alpha, sigma = (f(t).reshape(-1, 1, 1) for f in (process.alpha, process.sigma))
    shift = 0 if cond is None else (1 - alpha) * cond["mean"]
    torch.testing.assert_close(draw.x, alpha * x0 + shift + sigma * draw.noise, rtol=4 * EPS, atol=8 * EPS)
    assert draw.x0 is x0
    assert draw.x1 is None
    assert torch.equal(draw.level.alpha, process.alpha(t))
    again = process.corrupt(x0, t, cond=cond, noise=draw.noise)
    assert torch.equal(again.x, draw.x)


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_their_definitions(name: str) -> None:
    """velocity = d x_t/dt at fixed (x0, noise); score = grad log N(x; alpha x0 + shift, sigma^2); v = alpha noise -
    sigma x0. The five-point difference errs by h^4 x^(5)/30 + eps x/h; h = 2e-4 leaves 1e-9 of the slope's scale."""
    process, x0, noise, cond = PROCESSES[name], normals(3, 2), normals(3, 2, seed=1), condition_of(name, 3, 2)
    t = torch.tensor([0.2, 0.5, 0.85], dtype=torch.float64)
    draw = process.corrupt(x0, t, cond=cond, noise=noise)

    def at(k: int) -> Tensor:
        return process.corrupt(x0, t + k * h, cond=cond, noise=noise).x

    h = 2e-4
    slope = (at(-2) - 8 * at(-1) + 8 * at(1) - at(2)) / (12 * h)
    torch.testing.assert_close(draw.target("velocity"), slope, rtol=1e-8, atol=1e-9 * float(slope.abs().max()))
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    torch.testing.assert_close(draw.target("v"), alpha * noise - sigma * x0, rtol=4 * EPS, atol=1e-14)
    x = draw.x.clone().requires_grad_()
    shift = 0 if cond is None else (1 - alpha) * cond["mean"]
    log_density = -((x - alpha * x0 - shift) ** 2 / (2 * sigma**2)).sum()
    (score,) = torch.autograd.grad(log_density, x)
    torch.testing.assert_close(draw.target("score"), score, rtol=1e-11, atol=1e-11 * float(score.abs().max()))
    assert draw.target("x0") is x0
    assert draw.target("noise") is noise


@pytest.mark.parametrize("name", NAMES)
def test_the_prior_is_the_end_law(name: str) -> None:
    """Its numbers exactly; its moments within 5 standard errors: 1/sqrt(n) of the mean, sqrt(1/2n) of the deviation."""
    process, n, cond = PROCESSES[name], 4000, condition_of(name, 4000, 5)
    x = process.prior((n, 5), seed=2, cond=cond, dtype=torch.float64)
    noise = Noise(2, batch=n, dtype=torch.float64).normal((n, 5))
    mean = torch.zeros(()) if cond is None else cond["mean"] * -math.expm1(-5.025)
    sigma = float(process.sigma(double(1.0)))
    torch.testing.assert_close(x, mean + sigma * noise, rtol=4 * EPS, atol=1e-15)
    z = (x - mean) / sigma
    assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())
    assert abs(float(z.std()) - 1) < 5 / math.sqrt(2 * z.numel())
    assert (
        process.prior((2, 3), seed=0, cond=condition_of(name, 2, 3) and {"mean": torch.zeros(2, 3)}).dtype
        == torch.float32
    )


def test_mean_reverting_shift() -> None:
    """(1 - alpha) mean and its slope -alpha' mean to rounding, where 1 - alpha is 5e-14 too."""
    process, mean = MeanReverting(noise_level=0.2, mean="low"), normals(3, 2)
    t = torch.tensor([1e-12, 0.3, 1.0], dtype=torch.float64)
    shift, slope = process.shift(t, {"low": mean}), process.d_shift(t, {"low": mean})
    for k, s in enumerate(t.tolist()):
        exponent = (mp.mpf(0.1) * s + mp.mpf(19.9) * mp.mpf(s) ** 2 / 2) / 2
        rate = (mp.mpf(0.1) + mp.mpf(19.9) * s) / 2
        torch.testing.assert_close(shift[k], float(-mp.expm1(-exponent)) * mean[k], rtol=8 * EPS, atol=0)
        torch.testing.assert_close(slope[k], float(rate * mp.exp(-exponent)) * mean[k], rtol=16 * EPS, atol=0)
    derived = GaussianProcess.d_shift(process, t, {"low": mean})
    torch.testing.assert_close(slope, derived, rtol=1e-14, atol=1e-15)
    scalar = double(0.3)
    torch.testing.assert_close(
        process.d_shift(scalar, {"low": mean}), GaussianProcess.d_shift(process, scalar, {"low": mean})
    )
    assert float(process.sigma(double(1.0))) == pytest.approx(0.2 * math.sqrt(-math.expm1(-10.05)), rel=1e-15)


class Drifting(GaussianProcess):
    """Written in four lines: alpha = 1 - t^2, sigma = 3t, shift = sin(t) c."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**2

    def sigma(self, t: Tensor) -> Tensor:
        return 3 * t

    def shift(self, t: Tensor, cond: Any) -> Tensor:
        from ornstein.processes import broadcast

        return broadcast(torch.sin(t), cond["c"]) * cond["c"]


def test_a_new_process_gets_everything() -> None:
    process, t = Drifting(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert isinstance(process, Process)
    torch.testing.assert_close(process.drift(t), -2 * t / (1 - t**2))
    torch.testing.assert_close(process.wronskian(t), 3 * (1 + t**2))
    torch.testing.assert_close(process.diffusion2(t), 18 * t * (1 + t**2) / (1 - t**2))
    torch.testing.assert_close(process.log_snr(t), 2 * torch.log((1 - t**2) / (3 * t)))
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-14, atol=0)
    x0, noise, c = normals(2, 3), normals(2, 3, seed=1), normals(2, 3, seed=2)
    draw = process.corrupt(x0, t, cond={"c": c}, noise=noise)
    wide = t[:, None]
    torch.testing.assert_close(draw.x, (1 - wide**2) * x0 + wide.sin() * c + 3 * wide * noise)
    torch.testing.assert_close(draw.target("velocity"), -2 * wide * x0 + 3 * noise + wide.cos() * c)
    prior = process.prior((2, 3), seed=1, cond={"c": c}, dtype=torch.float64)
    torch.testing.assert_close(prior, math.sin(1) * c + 3 * Noise(1, batch=2, dtype=torch.float64).normal((2, 3)))
    # float32 states meet the derived slope in their own dtype
    assert process.corrupt(x0.float(), 0.3, cond={"c": c.float()}, seed=0).target("velocity").dtype == torch.float32


class Learned(GaussianProcess, nn.Module):
    """alpha = (1 - t)^p, sigma = t^p with p learned."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(power, dtype=torch.float64))

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.power

    def sigma(self, t: Tensor) -> Tensor:
        return t**self.power


@pytest.mark.parametrize("view", ["velocity", "score", "v"])
def test_a_process_with_learned_parts_passes_gradients(view: Any) -> None:
    x0, noise, t = normals(3, 2), normals(3, 2, seed=1), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)

    def loss(process: Learned) -> Tensor:
        draw = process.corrupt(x0, t, noise=noise)
        return (draw.target(view) ** 2).sum() + (draw.x**3).sum()

    process = Learned(1.3)
    loss(process).backward()
    h = 1e-5
    with torch.no_grad():
        slope = (loss(Learned(1.3 + h)) - loss(Learned(1.3 - h))) / (2 * h)
    assert float(process.power.grad) == pytest.approx(float(slope), rel=1e-7)
    assert [name for name, _ in process.named_parameters()] == ["power"]


# -- products


class Molecule(NamedTuple):
    place: Any
    kind: Any


def centred(state: Molecule, cond: Any) -> Molecule:
    """Padded atoms are zero and the centre of mass of the others is the origin."""
    mask = cond["mask"].to(state.place)[..., None]
    middle = (state.place * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    return Molecule((state.place - middle) * mask, state.kind * mask)


@pytest.mark.parametrize("per_sample", [False, True])
def test_product_corrupts_each_component_by_its_own_process(per_sample: bool) -> None:
    product = Product(Molecule(VP(), Flow()))
    x0 = Molecule(normals(3, 4, 3), normals(3, 4, 5, seed=1))
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64) if per_sample else 0.5
    draw = product.corrupt(x0, t, seed=7)
    assert isinstance(draw.x, Molecule)
    stream = Noise(7, batch=3, dtype=torch.float64)
    for component, process, x in zip(("place", "kind"), (VP(), Flow()), x0, strict=True):
        one = process.corrupt(x, t, noise=stream.normal(x.shape))
        for part in ("x", "x0", "noise"):
            assert torch.equal(getattr(getattr(draw, part), component), getattr(one, part))
        for view in ("x0", "noise", "score", "velocity", "v"):
            assert torch.equal(getattr(draw.target(view), component), one.target(view))
    assert draw.x1 == Molecule(None, None)
    assert torch.equal(draw.level.components[1].sigma, torch.as_tensor(t, dtype=torch.float64))
    assert torch.equal(draw.level.t, torch.as_tensor(t, dtype=torch.float64))


def test_product_projects_data_noise_and_prior() -> None:
    """With a mask and a zero centre of mass: everything that a draw holds obeys both, and so do its targets."""
    product = Product(Molecule(VP(), Flow()), project=centred)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    cond = {"mask": mask}
    draw = product.corrupt(Molecule(normals(3, 4, 3), normals(3, 4, 5, seed=1)), 0.4, cond=cond, seed=1)
    states = [draw.x, draw.x0, draw.noise, draw.target("velocity"), draw.target("score")]
    states.append(product.prior(Molecule((3, 4, 3), (3, 4, 5)), seed=3, cond=cond, dtype=torch.float64))
    for state in states:
        assert float(state.place.sum(1).abs().max()) < 1e-13
        assert float(state.place[~mask].abs().max()) == 0
        assert float(state.kind[~mask].abs().max()) == 0
        assert float(state.place[mask].abs().min()) > 0
    level = product.level(0.4)
    wanted = level.components[0].alpha * draw.x0.place + level.components[0].sigma * draw.noise.place
    torch.testing.assert_close(draw.x.place, wanted, rtol=1e-14, atol=1e-15)


def test_product_prior_has_each_end_law_and_independent_components() -> None:
    """Also with per-sample seeds and different event shapes: correlations of n numbers are N(0, 1/n)."""
    n, product = 4000, Product(Molecule(EDM(), Flow()))
    for seed in (0, list(range(n))):
        x = product.prior(Molecule((n, 2), (n, 3)), seed=seed, dtype=torch.float64)
        assert float(x.place.std()) == pytest.approx(80, rel=5 / math.sqrt(4 * n))
        assert float(x.kind.std()) == pytest.approx(1, rel=5 / math.sqrt(6 * n))
        between = torch.corrcoef(torch.cat([x.place, x.kind], 1).T)[:2, 2:]
        assert float(between.abs().max()) < 5 / math.sqrt(n)


# -- refusals


@pytest.mark.parametrize("t", [-1e-9, 1.0000001, math.nan, math.inf, [0.5, 1.5]])
def test_times_outside_are_refused(t: Any) -> None:
    for process in (*PROCESSES.values(), Product(Molecule(VP(), Flow()))):
        with pytest.raises(ValueError, match=r"lies outside \[0, 1\]"):
            process.level(torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_draws_refuse_what_does_not_fit(name: str) -> None:
    process, x0, cond = PROCESSES[name], normals(3, 2), condition_of(name, 3, 2)
    with pytest.raises(ValueError, match="x1 belongs to two-sided"):
        process.corrupt(x0, 0.5, x0, cond)
    with pytest.raises(ValueError, match="one value a sample"):
        process.corrupt(x0, torch.tensor([0.1, 0.2]), cond=cond)
    with pytest.raises(ValueError, match=r"noise of shape \(3, 1\)"):
        process.corrupt(x0, 0.5, cond=cond, noise=normals(3, 1))


def test_mean_reverting_asks_for_its_mean() -> None:
    for cond in (None, {"low": torch.zeros(2, 1)}):
        with pytest.raises(ValueError, match=r"cond=\{'mean': tensor\}"):
            MeanReverting().corrupt(torch.zeros(2, 1), 0.5, cond=cond)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: VP(beta_min=0.0), "0.0"),
        (lambda: SubVP(beta_min=2.0, beta_max=1.0), "2.0"),
        (lambda: VE(sigma_min=-0.1), "-0.1"),
        (lambda: VE(sigma_min=60.0), "60.0"),
        (lambda: Cosine(offset=-0.1), "-0.1"),
        (lambda: EDM(sigma_max=0.0), "0.0"),
        (lambda: EDM(sigma_max=math.nan), "nan"),
        *((lambda make=make: make(math.inf), "inf") for make in (Cosine, EDM)),
        (lambda: VP(beta_max=math.inf), "inf"),
        (lambda: VE(sigma_max=math.inf), "inf"),
        (lambda: MeanReverting(noise_level=0.0), "0.0"),
        (lambda: Product((VP(), Flow())), "tuple"),
        (lambda: Product(Molecule(VP(), "flow")), "'kind'"),
    ],
)
def test_bad_parameters_are_refused_by_name(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_processes_print_and_compare_by_their_parameters() -> None:
    assert repr(VP()) == "VP(beta_min=0.1, beta_max=20.0)"
    assert VP() == VP()
    assert VP() != VP(beta_max=10.0)
    assert repr(Product(Molecule(VP(), Flow()))).startswith("Product(Molecule(place=VP(")
    assert isinstance(Product(Molecule(VP(), Flow())), Process)
