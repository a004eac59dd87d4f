"""Discrete-time models: a published table of alphas read as a process on [0, 1], and its timesteps as grids."""

import itertools

import pytest
import torch

import ornstein as orn
from worlds import F64, at, ring

N = 1000


def ddpm(n=N):
    """The linear table of DDPM, in float64."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, n, dtype=F64), 0)


def zero_snr(n=N):
    """The same, moved and scaled so that its last alpha is 0 and its first stays (Lin et al. 2023, algorithm 1)."""
    a = ddpm(n).sqrt()
    a = (a - a[-1]) * a[0] / (a[0] - a[-1])
    a[-1] = 0
    return a**2


TABLES = {"ddpm": ddpm, "zero-snr": zero_snr}
CASES = list(itertools.product(TABLES, ["log", "linear"]))


@pytest.mark.parametrize(("table", "interpolation"), CASES)
def test_the_table_stands_at_its_timesteps(table, interpolation):
    acp = TABLES[table]()
    process = orn.DiscreteTime(acp, interpolation)
    level = process.level((torch.arange(N, dtype=F64) + 1) / N)
    torch.testing.assert_close(level.alpha**2, acp, rtol=1e-12, atol=1e-30)
    torch.testing.assert_close(level.sigma**2, 1 - acp, rtol=1e-12, atol=0)
    torch.testing.assert_close(process.timestep(level), torch.arange(N, dtype=F64), rtol=0, atol=1e-9)
    assert (float(process.level(0.0).alpha), float(process.level(0.0).sigma)) == (1.0, 0.0)


@pytest.mark.parametrize(("table", "interpolation"), CASES)
def test_between_timesteps(table, interpolation):
    """Half way from timestep 99 to 100 s is the geometric ("log") or the arithmetic mean ("linear"), and half way to
    timestep 0 it is half of s_0; half way to zero SNR 1/s is half. The two conventions differ where they should."""
    acp = TABLES[table]()
    s = torch.sqrt((1 - acp) / acp)
    process = orn.DiscreteTime(acp, interpolation)

    def noise_level(timestep):
        level = process.level(process.time_of(timestep))
        return float(level.sigma / level.alpha)

    mean = float((s[99] * s[100]).sqrt() if interpolation == "log" else (s[99] + s[100]) / 2)
    other = float((s[99] + s[100]) / 2 if interpolation == "log" else (s[99] * s[100]).sqrt())
    assert noise_level(99.5) == pytest.approx(mean, rel=1e-12)
    assert noise_level(99.5) != pytest.approx(other, rel=1e-6)
    assert noise_level(-0.5) == pytest.approx(float(s[0]) / 2, rel=1e-12)
    if table == "zero-snr":
        assert noise_level(N - 1.5) == pytest.approx(2 * float(s[-2]), rel=1e-12)


@pytest.mark.parametrize(("table", "interpolation"), CASES)
def test_derivatives_and_inverse(table, interpolation):
    """Central differences of step h inside a piece miss by h^2 alpha'''/6, below 1e-6 of the slope here; the ends are
    one-sided. time() undoes log_snr()."""
    process = orn.DiscreteTime(TABLES[table](), interpolation)
    t, h = (torch.tensor([-0.5, 0.25, 17.3, 500.7, 998.5], dtype=F64) + 1) / N, 1e-3 / N
    for f, slope in ((process.alpha, process.d_alpha), (process.sigma, process.d_sigma)):
        torch.testing.assert_close(slope(t), (f(t + h) - f(t - h)) / (2 * h), rtol=1e-5, atol=1e-7)
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    step = torch.tensor([1e-7, -1e-7], dtype=F64)
    for f, slope in ((process.alpha, process.d_alpha), (process.sigma, process.d_sigma)):
        torch.testing.assert_close(slope(ends), (f(ends + step) - f(ends)) / step, rtol=1e-3, atol=1e-2)
        assert bool(slope(ends).isfinite().all())
    torch.testing.assert_close(process.time(process.log_snr(t)), t, rtol=1e-10, atol=0)
    torch.testing.assert_close(process.time(process.log_snr(ends)), ends, rtol=1e-12, atol=1e-15)
    level = process.level(t)
    torch.testing.assert_close(
        level.alpha * level.d_sigma - level.sigma * level.d_alpha, process.wronskian(t), rtol=1e-12, atol=0
    )


def test_a_solver_follows_its_flow():
    """The referee integrates the same process in its own way; the table's kinks at timesteps do not lower the order of
    methods in log-SNR, which never differentiate in t."""
    world, process = ring(), orn.DiscreteTime(ddpm())
    grid = orn.LogSNR(start=-5.0, end=5.0, to_data=False)
    ends = grid(process, steps=1)
    x = at(process, ends[0], world, 16)
    truth = world.flow(orn.VP(), x, *(orn.VP().level(orn.VP().time(level.log_snr)) for level in ends))
    oracle = world.denoiser(process, predicts="noise")
    error = [
        float((orn.sample(oracle, x_init=x, solver=orn.DPMSolverPP(), grid=grid, steps=n).x - truth).norm(dim=1).max())
        for n in (80, 160)
    ]
    assert error[0] / error[1] == pytest.approx(4, abs=0.6)


def test_the_network_is_told_its_timestep_whatever_the_dtype_of_the_state():
    seen = []

    def net(x, t):
        seen.append(t)
        return x

    process = orn.DiscreteTime(ddpm())
    model = orn.Denoiser(net, process, "noise", timestep=process.timestep)
    orn.sample(model, (2, 3), grid=orn.Timesteps("trailing"), steps=4, dtype=torch.bfloat16, seed=0)
    assert [t.tolist() for t in seen] == [[999.0] * 2, [749.0] * 2, [499.0] * 2, [249.0] * 2]  # 999 is no bfloat16
    assert seen[0].dtype == torch.float32


def test_nothing_finer_than_timestep_zero_is_asked_by_default():
    """LogSNR ends there and then goes to data, however many steps; an end of one's own is taken; below timestep 0 the
    network is still told 0."""
    process = orn.DiscreteTime(ddpm())
    level = orn.LogSNR()(process, steps=60)
    assert float(level.t[-2]) == pytest.approx(1 / N)
    assert float(level.t[-1]) == 0
    assert float(orn.LogSNR(end=12.0)(process, steps=60).t[-2]) < 0.9 / N
    assert float(process.timestep(process.level(0.5 / N))) == 0
    assert float(orn.LogSNR()(orn.VP(), steps=60).t[-2]) < 2e-3  # another process goes on


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (orn.Timesteps("trailing"), [999, 799, 599, 399, 199]),
        (orn.Timesteps("leading"), [800, 600, 400, 200, 0]),
        (orn.Timesteps("leading", offset=1), [801, 601, 401, 201, 1]),
        (orn.Timesteps("linspace"), [999, 749, 500, 250, 0]),
    ],
    ids=str,
)
def test_timesteps(grid, expected):
    """The table 2 of Lin et al.; 749.25 and 499.5 round to 749 and 500 (half to even)."""
    process = orn.DiscreteTime(ddpm())
    level = grid(process, steps=5)
    assert level.t[-1] == 0
    assert process.timestep(level[:-1]).round().tolist() == expected
    first = orn.Timesteps(grid.spacing, grid.offset, final="first")(process, steps=5)
    assert float(first.t[-1]) == pytest.approx(1 / N)
    assert float(first.alpha[-1] ** 2) == pytest.approx(1 - 1e-4)
    assert len(first) == (5 if expected[-1] == 0 else 6)  # timestep 0 is not repeated


def test_shifted():
    """sigma/alpha times 3, for a straight path t' = 3t/(1 + 2t); the ends stay; shifting twice multiplies."""
    base = orn.Uniform()(orn.Flow(), steps=8).t
    for process in (orn.Flow(), orn.VP(), orn.DiscreteTime(zero_snr())):
        plain = orn.Uniform(end=0.01)(process, steps=8)
        shifted = orn.Shifted(orn.Uniform(end=0.01), 3.0)(process, steps=8)
        ratio = (shifted.sigma / shifted.alpha) / (plain.sigma / plain.alpha)
        inside = shifted.t < 1  # a process of finite end clips there
        torch.testing.assert_close(ratio[inside], torch.full_like(ratio[inside], 3.0), rtol=1e-9, atol=0)
        assert int(inside.sum()) >= 5
    torch.testing.assert_close(orn.Shifted(orn.Uniform(), 3.0)(orn.Flow(), steps=8).t, 3 * base / (1 + 2 * base))
    twice = orn.Shifted(orn.Shifted(orn.Uniform(), 2.0), 3.0)(orn.Flow(), steps=8).t
    torch.testing.assert_close(twice, orn.Shifted(orn.Uniform(), 6.0)(orn.Flow(), steps=8).t)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: orn.DiscreteTime([0.9]), "at least 2"),
        (lambda: orn.DiscreteTime([0.5, 0.9]), "falls strictly"),
        (lambda: orn.DiscreteTime([1.0, 0.9]), "within \\[0, 1\\)"),
        (lambda: orn.DiscreteTime([0.9, -0.1]), "within \\[0, 1\\)"),
        (lambda: orn.DiscreteTime([0.9, 0.1], "cubic"), "choose log or linear"),
        (lambda: orn.Timesteps("even"), "choose trailing, leading or linspace"),
        (lambda: orn.Timesteps(final="zero"), "choose data or first"),
        (lambda: orn.Timesteps()(orn.VP(), steps=5), "has no timesteps"),
        (lambda: orn.Timesteps()(orn.DiscreteTime([0.9, 0.1]), steps=3), "this model has 2 timesteps"),
        (lambda: orn.Timesteps("leading", offset=200)(orn.DiscreteTime(ddpm()), steps=5), "timestep 1000 of a model"),
        (lambda: orn.Shifted(orn.Uniform(), 0.0), "positive factor"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
