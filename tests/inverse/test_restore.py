"""Restoration: exact posteriors where a method claims them, limits, one call for many measurements, refusals."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein import linops
from ornstein.inverse import (
    DDNM,
    DDRM,
    DDS,
    DPS,
    MCG,
    MMPS,
    Corrected,
    Covaried,
    DiffPIR,
    Measurement,
    PiGDM,
    Pulled,
    RePaint,
    restore,
)
from ornstein.inverse.projected import noised
from worlds import F64, normal, ring

A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.3, -1.0]], dtype=F64)
STD, VP = 0.4, orn.VP()
OPERATOR = linops.Matrix(A)


def gaussian(dim: int = 3) -> orn.exact.Gaussian:
    """Standard deviations from 0.4 to 2, in a basis of its own."""
    basis = torch.linalg.qr(normal(dim, dim, seed=5)).Q
    return orn.exact.Gaussian(
        0.5 * normal(dim, seed=6), cov=basis @ torch.diag(torch.linspace(0.4, 2.0, dim, dtype=F64) ** 2) @ basis.mT
    )


def measured(world: Any, n: int = 1, std: float = STD) -> Tensor:
    x = world.sample(n, seed=3).to(F64)
    return x @ A.mT + std * normal(n, 2, seed=4)


def flow_error(method: Any, world: Any, steps: int) -> float:
    """Distance of the method's deterministic samples to the exact posterior's own flow, from the same noise."""
    y = measured(world)
    posterior = world.posterior(y[0], A, noise_std=STD)
    start = VP.prior((16, 3), seed=0, dtype=F64)
    measurement = Measurement(OPERATOR, y.expand(16, -1), linops.GaussianNoise(STD))
    truth = posterior.flow(VP, start, 1.0, 0.0)
    model = method.denoiser(world.denoiser(VP), measurement)
    found = orn.sample(model, x_init=start, solver=orn.DPMSolverPP(order=2), grid=orn.LogSNR(end=12.0), steps=steps).x
    return float((found - truth).square().mean().sqrt())


def test_moment_matching_is_the_posterior_of_a_gaussian() -> None:
    """Any solver then follows the posterior's flow: at order 2, to 1e-3 in 160 steps (the last jump leaves e^(-12/2) of
    the least deviation). The rival believes that x0 given x_t is isotropic."""
    errors = [flow_error(MMPS(iterations=2), gaussian(), steps) for steps in (40, 80, 160)]
    assert errors[-1] < 1e-3
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2]
    assert flow_error(PiGDM(), gaussian(), 160) > 50 * errors[-1]
    assert flow_error(MMPS(iterations=1), gaussian(), 160) > 10 * errors[-1]


def test_pseudo_inverse_guidance_is_the_posterior_of_white_data() -> None:
    """r^2 is then Cov[x0 | x_t]: the two agree to rounding, and with the truth; other data need its `prior`."""
    for std, prior in ((1.0, 1.0), (0.5, 0.5)):
        world = orn.exact.Gaussian(torch.zeros(3, dtype=F64), std=std)
        error = flow_error(PiGDM(prior=prior), world, 80)
        assert error < 5e-3
        assert error == pytest.approx(flow_error(MMPS(iterations=2), world, 80), rel=1e-6)
    assert flow_error(PiGDM(prior=1.0), world, 80) > 20 * error


def test_the_pull_is_the_gradient_through_the_denoiser() -> None:
    """J^T v of a mixture by its dense Jacobian; the step of DPS is minus the gradient of |y - A x0|."""
    world, n = ring(), 5
    a = torch.tensor([[1.0, 0.5]], dtype=F64)
    y = normal(n, 1, seed=2)
    model = world.denoiser(VP)
    measurement = Measurement(linops.Matrix(a), y, linops.GaussianNoise(0.1))
    x = normal(n, 2, seed=1).requires_grad_()
    misfit = (y - model(x, 0.4).x0 @ a.mT).norm(dim=1).sum()
    (slope,) = torch.autograd.grad(misfit, x)
    found = DPS().denoiser(model, measurement)(x.detach(), 0.4)
    torch.testing.assert_close(found.output["pull"], -slope)
    torch.testing.assert_close(found.x0, model(x.detach(), 0.4).x0)
    level = VP.level(0.4)
    into = Pulled(model, measurement, lambda x0, level: torch.ones_like(x0), into=True)(x.detach(), 0.4).x0
    (columns,) = torch.autograd.grad(model(x, 0.4).x0.sum(), x)
    torch.testing.assert_close(into, found.x0 + level.sigma**2 / level.alpha * columns)


def test_dps_through_other_operators_and_noises() -> None:
    """For any misfit m = -log p the step is the gradient of sqrt(2 m), less its constant: of counts, the deviance."""
    world, n = ring(), 4
    model, x = world.denoiser(VP), normal(n, 2, seed=1).requires_grad_()
    cubic = linops.Function(lambda u: u**3, (2,), (2,))
    y = normal(n, 2, seed=2)
    found = DPS().denoiser(model, Measurement(cubic, y, linops.GaussianNoise(0.3)))(x.detach(), 0.4)
    (slope,) = torch.autograd.grad((y - model(x, 0.4).x0 ** 3).norm(dim=1).sum(), x)
    torch.testing.assert_close(found.output["pull"], -slope)
    counts = linops.PoissonNoise(20.0, offset=5.0)
    y = counts.sample(torch.zeros(n, 2, dtype=F64), seed=0)
    identity = linops.Function(lambda u: u, (2,), (2,))
    found = DPS().denoiser(model, Measurement(identity, y, counts))(x.detach(), 0.4)
    k, rate = 20 * (y + 5), 20 * (model(x, 0.4).x0 + 5)
    (slope,) = torch.autograd.grad((2 * (k * (k / rate).log() - k + rate).sum(1)).sqrt().sum(), x)
    torch.testing.assert_close(found.output["pull"], -slope)


def test_projection_meets_the_measurement_to_rounding() -> None:
    world, y = gaussian(), measured(gaussian(), 4, 0.0)
    for method in (DDNM(), DDRM()):
        out = restore(world.denoiser(VP), OPERATOR, y, method=method, samples=20, steps=15, seed=1)
        assert float(out.residual.max()) < 1e-12
        assert float(out.std.min()) > 0.05  # and only there: what was not measured differs
    soft = restore(world.denoiser(VP), OPERATOR, y, method=DDS(gamma=3.0), samples=3, steps=15, seed=1)
    assert float(soft.residual.min()) > 1e-3


def test_without_noise_the_spectral_method_is_the_projection() -> None:
    """Where all noise is fresh; with less noise the two agree as the noise goes to nothing."""
    world, y = gaussian(), measured(gaussian(), 4, 0.0)

    def run(method: Any, noise: float) -> Tensor:
        grid = orn.LogSNR(end=30.0)  # from its last level a step goes to x0, as near to the measurement as that is
        return restore(world.denoiser(VP), OPERATOR, y, method=method, noise=noise, steps=15, grid=grid, seed=1).samples

    projected = run(DDNM(eta=1.0), 0.0)
    torch.testing.assert_close(run(DDRM(eta=1.0), 0.0), projected)
    torch.testing.assert_close(run(DDRM(eta=1.0), 1e-9), projected, rtol=0, atol=1e-5)
    assert float((run(DDRM(eta=1.0), 0.3) - projected).abs().max()) > 0.05


def test_one_conjugate_gradient_is_the_gradient_step() -> None:
    """x0 + a g, g = gamma A^T (y - A x0) and a = |g|^2/<g, (I + gamma A^T A) g>; many solve the proximal problem."""
    world, n, gamma = gaussian(), 4, 2.0
    y, model = measured(world, n), world.denoiser(VP)
    measurement, x = Measurement(OPERATOR, y, linops.GaussianNoise(STD)), normal(n, 3, seed=1)
    x0 = model(x, 0.4).x0
    g = gamma * (y - x0 @ A.mT) @ A
    bend = g + gamma * g @ A.mT @ A
    step = (g * g).sum(1) / (g * bend).sum(1)
    torch.testing.assert_close(DDS(gamma, 1).denoiser(model, measurement)(x, 0.4).x0, x0 + step[:, None] * g)
    exact = torch.linalg.solve(torch.eye(3, dtype=F64) + gamma * A.mT @ A, (x0 + gamma * y @ A).mT).mT
    torch.testing.assert_close(DDS(gamma, 3).denoiser(model, measurement)(x, 0.4).x0, exact)
    # the same proximal point, weighed by the noise of measurement and level
    level = VP.level(0.4)
    s2 = float((level.sigma / level.alpha) ** 2)
    system = torch.eye(3, dtype=F64) + s2 / (1.5 * STD**2) * A.mT @ A
    exact = torch.linalg.solve(system, (x0 + s2 / (1.5 * STD**2) * y @ A).mT).mT
    torch.testing.assert_close(DiffPIR(weight=1.5).denoiser(model, measurement)(x, 0.4).x0, exact)


def test_no_measurement_gives_the_prior() -> None:
    world, nothing = gaussian(), linops.Mask(torch.zeros(3, dtype=F64))
    model, y = world.denoiser(VP), torch.zeros(4, *nothing.measured, dtype=F64)
    blind = linops.GaussianNoise(STD)
    x = normal(4, 3, seed=1)
    for method in (MMPS(), PiGDM(), DDS(), DiffPIR()):
        found = method.denoiser(model, Measurement(nothing, y, blind))(x, 0.4).x0
        torch.testing.assert_close(found, model(x, 0.4).x0)
    torch.testing.assert_close(
        DDNM().denoiser(model, Measurement(nothing, y, linops.GaussianNoise(0.0)))(x, 0.4).x0, model(x, 0.4).x0
    )


def test_the_identity_without_noise_returns_the_measurement() -> None:
    world, identity = gaussian(), linops.Matrix(torch.eye(3, dtype=F64))
    y = world.sample(4, seed=0).to(F64)
    for method, noise in ((DDNM(), 0.0), (DDRM(), 0.0), (MMPS(iterations=3), 1e-6), (DiffPIR(), 1e-6)):
        out = restore(world.denoiser(VP), identity, y, method=method, noise=noise, steps=10, seed=1)
        torch.testing.assert_close(out.samples[:, 0], y, rtol=0, atol=1e-8)


def test_what_else_is_in_the_batch_does_not_matter() -> None:
    world, y = gaussian(), measured(gaussian(), 3)
    for method in (MMPS(), DPS(0.1), DDRM(), DDS()):
        options: dict[str, Any] = {"method": method, "noise": STD, "steps": 6, "seed": 5}
        whole = restore(world.denoiser(VP), OPERATOR, y, samples=2, **options)
        first = restore(world.denoiser(VP), OPERATOR, y[:1], samples=4, **options)
        assert whole.samples.shape == (3, 2, 3)
        torch.testing.assert_close(first.samples[:, :2], whole.samples[:1])
        assert first.nfe == whole.nfe


def test_projected_steps() -> None:
    """They meet the measurement to rounding. Without its gradient, and without resampling, either is replacement; with
    a gradient of |y - A x0|^2 the mean of the hidden direction is nearer to the truth, and so it is with resampling."""
    world, n = gaussian(), 400
    y = measured(world, 1, 0.0)
    truth = world.posterior(y[0], A, noise_std=0.0).moments()[0]
    hidden = torch.linalg.svd(A).Vh[2]

    def run(method: Any) -> Tensor:
        out = restore(world.denoiser(VP), OPERATOR, y, method=method, samples=n, steps=60, seed=1)
        assert float(out.residual.max()) < 1e-12
        return out.samples[0]

    plain = run(RePaint(resamples=1))
    torch.testing.assert_close(run(MCG(step=1e-13)), plain)

    def miss(x: Tensor) -> float:
        return abs(float((x.mean(0) - truth) @ hidden))

    error = float((plain @ hidden).std()) / math.sqrt(n)
    assert miss(plain) > 5 * error
    assert miss(run(RePaint(resamples=8))) < miss(plain) - 3 * error
    for method in (RePaint(3), MCG(0.1)):
        assert restore(world.denoiser(VP), OPERATOR, y, method=method, steps=4).nfe == (
            12 if method == RePaint(3) else 8
        )


class Scaled(nn.Module):
    """The exact x0 of the world in units (x - 2)/3, from the world's own units."""

    def __init__(self, world: Any) -> None:
        super().__init__()
        self.inner = world.denoiser(VP)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        answer: Tensor = self.inner(x, t).x0
        return answer


def test_units_are_the_users() -> None:
    """A model trained on scaled data restores what is measured of the data: like the same world, scaled."""
    own = gaussian()  # of the scaled data
    model = orn.Denoiser(Scaled(own), VP, "x0", scaling=orn.Scaling(2.0, 3.0))
    y_own = measured(own, 2)
    origin = torch.full((3,), 2.0, dtype=F64) @ A.mT
    y = 3 * y_own + origin
    options: dict[str, Any] = {"steps": 6, "seed": 5, "samples": 2, "dtype": F64}
    for method in (MMPS(), DPS(0.1), DDRM()):
        found = restore(model, OPERATOR, y, method=method, noise=3 * STD, **options)
        wanted = restore(own.denoiser(VP), OPERATOR, y_own, method=method, noise=STD, **options)
        torch.testing.assert_close(found.samples, 3 * wanted.samples + 2)
        torch.testing.assert_close(found.residual, 3 * wanted.residual)


def test_mean_spread_and_coverage() -> None:
    """Of MMPS on a Gaussian: within five standard errors of the exact posterior, and 90 % covers as much of the truth
    (K = 400 quantiles move it by less than 0.01, 3 x 64 entries by 5 sqrt(0.09/192) = 0.11)."""
    world, n, k = gaussian(), 64, 400
    y, truth = measured(world, n), world.sample(n, seed=3).to(F64)
    out = restore(world.denoiser(VP), OPERATOR, y, method=MMPS(iterations=2), noise=STD, samples=k, steps=60, seed=0)
    covered = float(out.coverage(truth).mean())
    assert abs(covered - 0.9) < 0.12
    options: dict[str, Any] = {"samples": 50, "steps": 60, "seed": 0}
    sure = restore(world.denoiser(VP), OPERATOR, y, method=MMPS(iterations=2), noise=STD / 4, **options)
    assert float(sure.coverage(truth).mean()) < 0.7
    mean, cov = world.posterior(y[0], A, noise_std=STD).moments()
    slack = 5 / math.sqrt(k) + 0.05  # and the bias of 60 steps
    assert float(((out.mean[0] - mean) / cov.diagonal().sqrt()).abs().max()) < slack
    torch.testing.assert_close(out.std[0], cov.diagonal().sqrt(), rtol=5 / math.sqrt(2 * k) + 0.05, atol=0)


def test_any_solver_runs_a_denoiser_that_knows_the_measurement() -> None:
    """Of a Gaussian MMPS is the posterior's flow: 30 steps of order 2 leave a variance nearer to it than 30 steps of
    the published first-order sampler, by more than 5 standard errors of 4,000 samples. DPS is no such denoiser."""
    world, y, k = gaussian(), measured(gaussian()), 4_000
    cov = world.posterior(y[0], A, noise_std=STD).moments()[1]
    options: dict[str, Any] = {"method": MMPS(iterations=2), "noise": STD, "samples": k, "steps": 30, "seed": 0}

    def miss(**own: Any) -> float:
        samples = restore(world.denoiser(VP), OPERATOR, y, **options, **own).samples[0]
        return float((torch.cov(samples.mT) - cov).norm() / cov.norm())

    second = miss(solver=orn.DPMSolverPP(order=2), grid=orn.LogSNR(end=12.0))
    assert second < 0.05
    assert miss() > second + 5 * math.sqrt(2 / k)
    with pytest.raises(ValueError, match=r"DPS\(zeta=0.5.*\) has a solver of its own"):
        restore(world.denoiser(VP), OPERATOR, y, method=DPS(), noise=STD, steps=3, solver=orn.Heun())


def test_what_was_not_measured_is_not_read() -> None:
    """Where nothing is seen, y may hold anything: samples and residuals are the same to the bit."""
    world, seen = gaussian(), torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    mask = linops.Mask(seen)
    fourier = torch.zeros(4, 4)
    fourier[0, :2] = fourier[1, 0] = 1
    image = orn.exact.Gaussian(torch.zeros(1, 4, 4, dtype=F64), std=1.0)
    shuffled = linops.Matrix(torch.eye(3, dtype=F64)[[2, 0, 1]])
    cases = [
        (world, mask, seen),
        (world, mask @ shuffled, seen),
        (world, linops.Truncated(mask, 0.1), seen),
        (world, linops.Stack([shuffled, mask]), torch.cat([torch.ones(3), seen])),
        (image, linops.Fourier(fourier, (1, 4, 4)), fourier),
    ]
    for (prior, operator, known), method in itertools.product(cases, (MMPS(iterations=2), DPS())):
        y = operator(prior.sample(2, seed=1).to(F64))
        assert torch.equal(operator.seen(y), known.expand_as(y).to(F64))
        hidden = torch.where(known.bool(), y, 7.0)
        assert not torch.equal(y, hidden)
        options: dict[str, Any] = {"noise": 0.3, "steps": 5, "seed": 0, "method": method}
        plain, other = (restore(prior.denoiser(VP), operator, v, **options) for v in (y, hidden))
        assert torch.equal(plain.samples, other.samples)
        assert torch.equal(plain.residual, other.residual)


def test_a_wrong_adjoint_is_found_before_the_run() -> None:
    class Doubled(linops.LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return x

        def transpose(self, y: Tensor) -> Tensor:
            return 2 * y

    def never(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("the network was asked")

    with pytest.raises(ValueError, match=r"adjoint of .*Doubled.* is wrong: .* differ by \d"):
        restore(orn.Denoiser(never, VP, "x0"), Doubled((3,), (3,)), torch.zeros(1, 3), method=DPS(), noise=STD)


def test_noise_of_its_own_for_each_measurement_goes_with_it() -> None:
    each = linops.GaussianNoise(torch.tensor([0.1, 2.0], dtype=F64))
    many = Measurement(OPERATOR, torch.zeros(2, 2, dtype=F64), each).repeat(3)
    assert isinstance(many.noise, linops.GaussianNoise)
    torch.testing.assert_close(many.noise.std, torch.tensor([0.1] * 3 + [2.0] * 3, dtype=F64))


def test_evaluations_are_counted_with_their_gradients() -> None:
    world, y = gaussian(), measured(gaussian())
    for method, each in ((DDNM(), 1), (DDRM(), 1), (DPS(), 2), (PiGDM(), 2), (MMPS(iterations=3), 5)):
        noise = 0.0 if isinstance(method, DDNM) else STD
        assert restore(world.denoiser(VP), OPERATOR, y, method=method, noise=noise, steps=4).nfe == 4 * each
    assert restore(world.denoiser(VP), OPERATOR, y, method=DPS(), noise=STD, nfe=9).nfe == 8


def test_refusals() -> None:
    world, y = gaussian(), measured(gaussian())
    model = world.denoiser(VP)
    cubic = linops.Function(lambda u: u**3, (3,), (3,))

    def refused(match: str, *, operator: Any = OPERATOR, y: Tensor = y, **options: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(match)):
            restore(model, operator, y, **{"method": DDS(), "noise": STD, "steps": 2, **options})

    refused("(batch, 2)", y=y[:, :1])
    refused("NaN", y=y * torch.nan)
    refused("linear operators", operator=cubic, y=torch.zeros(1, 3, dtype=F64))
    refused("takes the measurement as exact", method=DDNM())
    refused("without any choose DDNM()", method=DiffPIR(), noise=0.0)
    refused(
        "normal noise of one size", method=DDRM(), noise=linops.QuantisationNoise(0.1, 0.1), y=(y / 0.1).round() * 0.1
    )
    refused("samples=0", samples=0)
    blind = linops.BlackBox(lambda u: u[:, :2], (3,), (2,))
    refused("has no gradient", method=DPS(), operator=blind)
    given = Measurement(OPERATOR, y, linops.GaussianNoise(1.0))
    with pytest.raises(ValueError, match="Covaried is for a process that is a GaussianProcess"):
        Covaried(orn.Denoiser(lambda x, t: x, orn.TwoSided()), given, 1.0, 1)
    with pytest.raises(ValueError, match="Corrected is for a process that is a AffineProcess"):
        Corrected(orn.Denoiser(lambda x, t: x, orn.processes.Interpolant()), given, max)
    with pytest.raises(ValueError, match=r"DDS\(.*\) is for an AffineProcess: Interpolant\(.*\) is none"):
        restore(orn.Denoiser(lambda x, t: x, orn.processes.Interpolant()), OPERATOR, y, method=DDS(), noise=STD)
    with pytest.raises(ValueError, match="zeta=-1"):
        DPS(-1.0)
    with pytest.raises(ValueError, match="truth has the shape"):
        restore(model, OPERATOR, y, method=DDS(), noise=STD, steps=2).coverage(torch.zeros(3))


def test_what_is_put_in_leaves_the_rest_alone() -> None:
    """The projection on a level changes what is measured, to alpha y + sigma A z, and nothing else."""
    x, z, level = normal(4, 3, seed=1), normal(4, 3, seed=2), VP.level(0.3)
    y = normal(4, 2, seed=3)
    found = noised(OPERATOR, y)(level, x, z)
    torch.testing.assert_close(OPERATOR.null(found), OPERATOR.null(x))
    torch.testing.assert_close(found @ A.mT, level.alpha * y + level.sigma * z @ A.mT)


@pytest.mark.parametrize("eta_b", [1.0, 0.6])
def test_every_coefficient_by_what_is_known_of_it(eta_b: float) -> None:
    """The three cases, entry by entry, of an operator that is diagonal: not measured, worse than the level, better."""
    a = torch.tensor([0.0, 0.5, 4.0], dtype=F64)
    method, y = DDRM(eta=0.7, eta_b=eta_b), normal(5, 3, seed=1)
    x, x0, z = (normal(5, 3, seed=k) for k in (2, 3, 4))
    t, s = VP.level(0.3), VP.level(0.15)
    after = float(s.sigma / s.alpha)
    assert STD / 4.0 < after < STD / 0.5
    measurement = Measurement(linops.Matrix(torch.diag(a)), y, linops.GaussianNoise(STD))
    table = method.solver(measurement).compile(VP, VP.level([0.3, 0.15]))
    row = table.rows[-1]
    assert row.function is not None
    found = row.function(x, x0, z) / s.alpha
    noise = (x[:, 0] - t.alpha * x0[:, 0]) / t.sigma
    torch.testing.assert_close(found[:, 0], x0[:, 0] + after * (math.sqrt(1 - 0.49) * noise + 0.7 * z[:, 0]))
    b = y[:, 1] / 0.5
    moved = math.sqrt(1 - 0.49) * (b - x0[:, 1]) * 0.5 / STD + 0.7 * z[:, 1]
    torch.testing.assert_close(found[:, 1], x0[:, 1] + after * moved)
    b = y[:, 2] / 4.0
    left = math.sqrt(after**2 - eta_b**2 * STD**2 / 16)
    torch.testing.assert_close(found[:, 2], (1 - eta_b) * x0[:, 2] + eta_b * b + left * z[:, 2])
