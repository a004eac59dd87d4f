"""DAPS: exact where its law of x0 is, both ways of drawing it, any operator and noise, limits, refusals."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import DAPS, Measurement, restore
from worlds import F64, normal

VP, STD = orn.VP(), 0.4
A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, -1.0]], dtype=F64)
OPERATOR = linops.Matrix(A)
WHITE = orn.exact.Gaussian(torch.tensor([0.3, -0.5, 1.0], dtype=F64), std=1.5)
Y = torch.tensor([[-1.0, -1.5]], dtype=F64)


def white(x: Tensor, world: Any) -> Tensor:
    """Samples (n, 3) of the world as samples of N(0, I)."""
    mean, cov = world.moments()
    return torch.linalg.solve_triangular(torch.linalg.cholesky(cov), (x - mean).mT, upper=False).mT


@pytest.mark.parametrize("process", [VP, orn.Flow(), orn.EDM()], ids=repr)
def test_the_posterior_of_white_data(process: Any) -> None:
    """Exact at any number of steps, but for the last jump from log-SNR 7 (e^-7 = 0.001 of the variance) and for where
    the process begins. n = 4000: means within 5/sqrt(n) = 0.08, covariances within 5 sqrt(2/n) = 0.11. With more steps
    of the flow, or with r = s, the variance is a fifth too large at least."""
    posterior = WHITE.posterior(Y[0], A, noise_std=STD)

    def law(method: Any) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"noise": STD, "samples": 4000, "steps": 10, "seed": 1}
        z = white(restore(WHITE.denoiser(process), OPERATOR, Y, method=method, **options).samples[0], posterior)
        return z.mean(0), torch.cov(z.mT)

    mean, cov = law(DAPS(prior=1.5))
    assert float(mean.abs().max()) < 0.08
    assert float((cov - torch.eye(3, dtype=F64)).abs().max()) < 0.11
    for rival in (DAPS(prior=1.5, ode_steps=5), DAPS(prior=50.0)):
        assert float(torch.linalg.eigvalsh(law(rival)[1]).max()) > 1.2


def one_draw(measurement: Measurement, m: float, t: Any, **options: Any) -> Tensor:
    """x0 ~ q about m, one for each row of the measurement, with a denoiser that answers m."""
    shape = (len(measurement), *measurement.operator.event)
    model = orn.Denoiser(lambda x, t: torch.full_like(x, m), VP, "x0")
    solver = DAPS(**options).solver(measurement)
    return orn.sample(model, x_init=torch.zeros(shape, dtype=F64), solver=solver, grid=[float(t), 0.0], seed=0).x


def test_the_exact_draw() -> None:
    """Affine in its noise: mean and covariance of exp(-|x0 - m|^2/(2 r^2)) p(y | x0), entry by entry, for each row's
    own deviation of the noise; without noise A x0 = y and the rest keeps r^2."""
    stds = torch.tensor([0.3, 1.2, 0.0], dtype=F64)
    measurement = Measurement(OPERATOR, normal(3, 2, seed=1), linops.GaussianNoise(stds))
    solver: Any = DAPS(prior=1.3).solver(measurement)
    t = VP.level(0.4)
    s2 = float((t.sigma / t.alpha) ** 2)
    r2 = s2 * 1.69 / (s2 + 1.69)
    (row,) = [row for row in solver.compile(VP, VP.level([0.4, 0.0])).rows if row.function is not None]
    m, zero = normal(3, 3, seed=2), torch.zeros(3, 3, dtype=F64)
    mean = row.function(m, zero)
    columns = torch.stack([row.function(m, zero + e) - mean for e in torch.eye(3, dtype=F64)], 2)
    for i, std in enumerate(stds.tolist()):
        gain = r2 * A.mT @ torch.linalg.inv(r2 * A @ A.mT + std**2 * torch.eye(2, dtype=F64))
        torch.testing.assert_close(mean[i], m[i] + gain @ (measurement.y[i] - A @ m[i]))
        torch.testing.assert_close(columns[i] @ columns[i].mT, r2 * (torch.eye(3, dtype=F64) - gain @ A))


def test_langevin_has_the_right_variance_at_any_step() -> None:
    """q normal with precisions 1/r^2 + a^2/std^2, h = step over the largest, K = 12 and step = 1: what the slowest had
    at the start is left by (1 - k)^12. Noises of their own would double the variance of the narrowest (k = 1).
    n = 20,000: five standard errors of a variance are 0.05 of it, of a mean 0.035 deviations."""
    n, k = 20_000, 12
    a = torch.tensor([2.0, 1.0, 0.0], dtype=F64)
    y = torch.tensor([1.0, -0.5, 0.0], dtype=F64).expand(n, 3)
    level = VP.level(0.4)
    s2 = float((level.sigma / level.alpha) ** 2)
    r2 = s2 / (s2 + 1)
    found = one_draw(
        Measurement(linops.Matrix(torch.diag(a)), y, linops.GaussianNoise(0.7)),
        0.5, 0.4, inner="langevin", langevin=k, step=1.0,
    )  # fmt: skip
    precision = 1 / r2 + a**2 / 0.49
    mean = (0.5 / r2 + a * y[0] / 0.49) / precision
    left = (1 - precision / precision.max()) ** k * (0.5 - mean)
    torch.testing.assert_close(found.var(0) * precision, torch.ones(3, dtype=F64), rtol=0, atol=0.05 + 0.01)
    assert float(((found.mean(0) - mean - left) * precision.sqrt()).abs().max()) < 0.035


def test_langevin_begins_where_nothing_was_measured() -> None:
    """At a draw of N(m, r^2), all but (1 - c) c^3 of whose variance is left after 2 steps, c = 0.9 (to 5 standard
    errors of 20,000)."""
    nothing = Measurement(linops.Mask(torch.zeros(1)), torch.zeros(20_000, 1, dtype=F64), linops.GaussianNoise(0.7))
    level = VP.level(0.4)
    s2 = float((level.sigma / level.alpha) ** 2)
    found = one_draw(nothing, 0.5, 0.4, prior=2.0, inner="langevin", langevin=2, step=0.1)
    assert float(found.var()) * (1 / s2 + 0.25) == pytest.approx(1 - 0.1 * 0.9**3, abs=0.05)
    assert float(found.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(4 / 20_000))


def test_steep_misfits_do_not_diverge() -> None:
    """A cube from far outside: the curvature is found anew, and no drift is longer than r sqrt(d)."""
    cube = linops.Function(lambda u: u**3, (1,), (1,))
    measurement = Measurement(cube, torch.full((2000, 1), 8.0, dtype=F64), linops.GaussianNoise(0.05))
    found = one_draw(measurement, 0.0, 0.9, prior=20.0, langevin=100)
    assert float((found.median() - 2).abs()) < 0.05


def test_any_operator_and_noise() -> None:
    """q of one dimension by its values on a grid: a phaseless measurement, a cube, and counts.

    n = 20,000: five standard errors are 0.035 deviations of a mean, and of a second moment, whose own deviation is at
    most twice its mean for these laws, 0.07 of it. Langevin's bias of order h^2 is below both, and 100 steps
    leave e^-6 of what begins where the curvature is eight times that of the middle."""
    n, m = 20_000, 0.3
    x = torch.linspace(-8, 8, 20_001, dtype=F64)[:, None]
    level = VP.level(0.5)
    s2 = float((level.sigma / level.alpha) ** 2)
    r2 = s2 / (s2 + 1)
    cases: list[tuple[Any, Any, float]] = [
        (lambda u: u.abs(), linops.GaussianNoise(0.6), 0.8),
        (lambda u: u + u**3 / 5, linops.GaussianNoise(0.5), -0.9),
        (lambda u: torch.nn.functional.softplus(u), linops.PoissonNoise(4.0), 2.0),
    ]
    for function, noise, y in cases:
        operator = linops.Function(function, (1,), (1,))
        log_q = noise.log_prob(torch.full_like(x, y), operator(x)) - (x[:, 0] - m) ** 2 / (2 * r2)
        weight = log_q.softmax(0)
        first, second = float(weight @ x[:, 0]), float(weight @ x[:, 0] ** 2)
        measurement = Measurement(operator, torch.full((n, 1), y, dtype=F64), noise)
        found = one_draw(measurement, m, 0.5, langevin=100, step=0.5)[:, 0]
        assert abs(float(found.mean()) - first) < 0.035 * math.sqrt(second - first**2)
        assert abs(float((found**2).mean()) - second) < 0.07 * second


def test_no_measurement_gives_the_prior_or_adds_to_it() -> None:
    """White data keep their variance. After more steps of the flow the state is c x_t, with c of DDIM over the levels
    that are left, and the variance of x_s/alpha_s is c^2 v + r^2 + s^2: the excess is as derived."""
    nothing, y = linops.Mask(torch.zeros(3)), torch.zeros(1, 3, dtype=F64)
    n, steps, p2 = 4000, 12, 2.25
    grid = orn.LogSNR()(VP, steps)
    s2 = torch.exp(-grid.log_snr[:-1])
    for each in (1, 4):
        method = DAPS(prior=1.5, ode_steps=each)
        options: dict[str, Any] = {"noise": STD, "samples": n, "steps": steps, "seed": 1}
        found = restore(WHITE.denoiser(VP), nothing, y, method=method, **options)
        v, count = p2 + float(s2[0]), 0
        for i in range(steps):
            stops = sorted({i + j * (steps - i) // each for j in range(each)})
            count += len(stops)
            c = 1.0
            for now, after in zip(stops, [*stops[1:], None], strict=True):
                share = p2 / (p2 + s2[now])
                left = 0.0 if after is None else float((s2[after] / s2[now]).sqrt())
                c *= float(left + (1 - left) * share)
            v = c**2 * v + float(p2 * s2[i] / (p2 + s2[i])) + (float(s2[i + 1]) if i + 1 < steps else 0.0)
        assert found.nfe == count
        assert v > 3 if each == 4 else v == pytest.approx(p2)
        torch.testing.assert_close(found.samples[0].var(0), torch.full((3,), v, dtype=F64), rtol=0.11, atol=0)


def test_the_identity_without_noise_returns_the_measurement() -> None:
    y = WHITE.sample(4, seed=0).to(F64)
    out = restore(WHITE.denoiser(VP), linops.Matrix(torch.eye(3, dtype=F64)), y, method=DAPS(), steps=5, seed=1)
    torch.testing.assert_close(out.samples[:, 0], y, rtol=0, atol=1e-12)
    out = restore(WHITE.denoiser(VP), OPERATOR, y @ A.mT, method=DAPS(), samples=20, steps=5, seed=1)
    assert float(out.residual.max()) < 1e-12
    assert float(out.std.min()) > 0.05


def test_what_else_is_in_the_batch_does_not_matter() -> None:
    """Nor in whose units it is."""
    y = normal(3, 2, seed=4)
    model = orn.Denoiser(lambda x, t: WHITE.denoiser(VP)(x, t).x0, VP, "x0", scaling=orn.Scaling(2.0, 3.0))
    origin = torch.full((3,), 2.0, dtype=F64) @ A.mT
    cubic = linops.Function(lambda u: u + u**3 / 9, (3,), (3,))
    for inner in ("exact", "langevin"):
        options: dict[str, Any] = {"method": DAPS(inner=inner, langevin=4), "steps": 4, "seed": 5, "dtype": F64}
        whole = restore(WHITE.denoiser(VP), OPERATOR, y, noise=STD, samples=2, **options)
        first = restore(WHITE.denoiser(VP), OPERATOR, y[:1], noise=STD, samples=4, **options)
        torch.testing.assert_close(first.samples[:, :2], whole.samples[:1])
        scaled = restore(model, OPERATOR, 3 * y + origin, noise=3 * STD, samples=2, **options)
        torch.testing.assert_close(scaled.samples, 3 * whole.samples + 2)
        assert whole.nfe == 4
    y = normal(3, 3, seed=4)
    whole = restore(WHITE.denoiser(VP), cubic, y, noise=STD, **options | {"method": DAPS(langevin=4)})
    first = restore(WHITE.denoiser(VP), cubic, y[:1], noise=STD, **options | {"method": DAPS(langevin=4)})
    torch.testing.assert_close(first.samples, whole.samples[:1])
    assert restore(WHITE.denoiser(VP), OPERATOR, y[:, :2], method=DAPS(), noise=STD, nfe=9).nfe == 9


def test_refusals() -> None:
    model = WHITE.denoiser(VP)
    cubic = linops.Function(lambda u: u**3, (3,), (3,))

    def refused(match: str, method: Any, operator: Any = OPERATOR, y: Tensor = Y, noise: Any = STD) -> None:
        with pytest.raises(ValueError, match=re.escape(match)):
            restore(model, operator, y, method=method, noise=noise, steps=2)

    y = torch.zeros(1, 3, dtype=F64)
    refused("choose inner='langevin'", DAPS(inner="exact"), cubic, y)
    refused("choose EnKG()", DAPS(), linops.BlackBox(lambda u: u, (3,), (3,)), y)
    refused("give the noise", DAPS(), cubic, y, noise=0.0)
    refused("give the noise", DAPS(inner="langevin"), noise=0.0)
    for name, value in (("prior", 0.0), ("step", 1.5), ("ode_steps", 0), ("langevin", 0), ("inner", "mala")):
        with pytest.raises(ValueError, match=f"{name}="):
            DAPS(**{name: value})
    pair = orn.Denoiser(lambda x, t: x, orn.TwoSided())
    with pytest.raises(ValueError, match="GaussianProcess"):
        restore(pair, OPERATOR, Y, method=DAPS(), noise=STD, steps=2)
