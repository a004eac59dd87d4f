"""Phase space: kernels against their own differential equations, views against a density written out, solvers by order.

The ground truth uses none of the matrices of the library but F and G G^T: moments by DOP853 on their equations, the
density of z_t by summing the Gaussians of the mixture.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ornstein as orn
from ornstein.errors import TableError, ViewError
from ornstein.interop import export_sampler
from ornstein.numerics.dop853 import dop853
from ornstein.processes import CLD, PSLD, Matrix, Phase, PhaseSpace, mix
from ornstein.solvers import DEIS, RK4, AdamsBashforth, Conjugate, ReducedSymplecticEuler, Splitting, Table
from phases import coefficients, gaussian_law, law_of, moments
from worlds import F64, normal, ring, shaken

SKEWED = PhaseSpace(damping=0.5, friction=3.0, coupling=1.5, cross=0.2, mass=0.5, beta_min=2.0, beta_max=9.0, gamma=0.3)
PROCESSES = [CLD(), PSLD(), SKEWED, replace(PSLD(), hybrid=False)]
WORLD = ring()


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_kernel(process: PhaseSpace) -> None:
    """Mean and covariance of z_t solve their differential equations; the momentum's start belongs to the noise where it
    is integrated out, and not where it is drawn."""
    spread = process.gamma * process.mass
    for t in (1e-3, 0.1, 0.6, 1.0):
        level = process.level(t)
        phi, s = moments(process, t, spread if process.hybrid else 0.0)
        torch.testing.assert_close(level.mean, phi, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(level.root @ level.root.T, s, rtol=1e-9, atol=1e-13)
        phi, s = moments(process, t, spread)
        snr = phi[:, 0] @ torch.linalg.solve(s, phi[:, 0])
        assert float(level.log_snr) == pytest.approx(float(snr.log()), abs=1e-7)
    assert float(process.time(level.log_snr)) == pytest.approx(1.0, rel=1e-7)
    t = torch.linspace(1e-4, 1, 200, dtype=F64)
    assert bool((process.log_snr(t).diff() < 0).all())
    # the position's own noise without a start: int (F_12 s)^2 ds, to first order in t
    bare = replace(process, hybrid=False, damping=0.0, cross=0.0)
    drift, noise = coefficients(bare)
    small = bare.level(1e-6).root
    beta = bare.beta_min
    assert float((small @ small.T)[0, 0]) == pytest.approx(
        float(noise[1, 1] * drift[0, 1] ** 2) * beta**3 * 1e-18 / 3, rel=1e-4
    )


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_a_fine_simulation_agrees(process: PhaseSpace) -> None:
    """Euler-Maruyama on the forward SDE, 400 steps, 40,000 paths from the pair (1.5, m0): its mean and covariance agree
    with the kernel within five standard errors and the method's own error, which is below 2 % at this step."""
    n, steps, t = 40_000, 400, 0.4
    g = torch.Generator().manual_seed(0)
    drift, noise = coefficients(process)
    values, vectors = torch.linalg.eigh(noise)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt())
    z = torch.stack([torch.full((n,), 1.5, dtype=F64), torch.randn(n, generator=g, dtype=F64)], 1)
    z[:, 1] *= math.sqrt(process.gamma * process.mass)
    for i in range(steps):
        beta = process.beta_min + (i + 0.5) / steps * t * (process.beta_max - process.beta_min)
        h = beta * t / steps
        z = z + h * z @ drift.T + math.sqrt(h) * torch.randn(n, 2, generator=g, dtype=F64) @ root.T
    level = process.level(t)
    marginal = replace(process, hybrid=True).level(t)
    covariance = marginal.root @ marginal.root.T
    std = covariance.diagonal().sqrt()
    assert bool(((z.mean(0) - 1.5 * level.mean[:, 0]).abs() < 5 * std / math.sqrt(n) + 0.02).all())
    bound = 5 * math.sqrt(2 / n) * torch.outer(std, std) + 0.02 * torch.outer(std, std)
    assert bool(((z.T.cov() - covariance).abs() < bound).all())
    drawn = process.corrupt(torch.full((n, 1), 1.5, dtype=F64), t, seed=1).x
    pair = torch.cat([drawn.position, drawn.momentum], 1)
    assert bool(((pair.T.cov() - covariance).abs() < bound).all())
    assert bool(((pair.mean(0) - 1.5 * level.mean[:, 0]).abs() < 5 * std / math.sqrt(n)).all())


def test_the_end_law_stays() -> None:
    """F H^-1 + H^-1 F^T + G G^T = 0 for every damping, cross, coupling and mass; a step of the flows O, A, L too."""
    for process in PROCESSES:
        drift, noise = coefficients(process)
        law = torch.diag(torch.tensor([1.0, process.mass], dtype=F64))
        torch.testing.assert_close(drift @ law + law @ drift.T + noise, torch.zeros(2, 2, dtype=F64))
        for friction, exchange in ((True, False), (False, True), (True, True)):
            moved, root = process.relax(torch.tensor(0.7, dtype=F64), friction=friction, exchange=exchange)
            torch.testing.assert_close(moved @ law @ moved.T + root @ root.T, law)
    prior = PSLD().prior((50_000, 1), seed=0, dtype=F64)
    # five standard errors of a variance
    assert float(prior.position.var()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / 50_000))
    assert float(prior.momentum.var()) == pytest.approx(0.25, abs=0.25 * 5 * math.sqrt(2 / 50_000))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_root_of_the_flow(process: PhaseSpace) -> None:
    """R R^T = S and R' = F R + G G^T R^-T/2, by DOP853 from t = 0.05 to 0.8; so a point mass is carried."""
    drift, noise = coefficients(process)

    def slope(at: Tensor | float, y: Tensor) -> Tensor:
        beta = process.beta_min + float(at) * (process.beta_max - process.beta_min)
        r = y.reshape(2, 2)
        return beta * (drift @ r + noise @ torch.linalg.inv(r).T / 2).reshape(1, 4)

    ends = torch.tensor([0.05, 0.8], dtype=F64)
    first, last = process.flow_root(ends)
    out = dop853(slope, first.reshape(1, 4), 0.05, 0.8, rtol=1e-12, atol=1e-14).y.reshape(2, 2)
    torch.testing.assert_close(last, out, rtol=1e-8, atol=1e-9)
    s = moments(process, 0.8, process.gamma * process.mass)[1]
    torch.testing.assert_close(last @ last.T, s, rtol=1e-9, atol=1e-12)
    # DDIM is exact for a point mass, in any number of steps
    point = orn.exact.GaussianMixture(torch.tensor([[0.7, -1.1]], dtype=F64), stds=0.0)
    denoiser = point.denoiser(process)
    z = process.prior((8, 2), seed=0, dtype=F64)
    z = Phase(z.position, z.momentum)
    runs = [
        orn.sample(denoiser, x_init=z, solver=orn.DDIM(), grid=[1.0, *inner, 0.02], trajectory=True).x
        for inner in ([], [0.9, 0.5, 0.1])
    ]
    torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-9)


def log_density(z: Tensor, process: PhaseSpace, t: float) -> Tensor:
    """log p_t(z) for rows (x_1, x_2, m_1, m_2), the Gaussians of the ring pushed forward by the moments' equations."""
    phi, s = moments(process, t, process.gamma * process.mass)
    total = []
    for mean, weight in zip(WORLD.means, WORLD.weights, strict=True):
        covariance = s + 0.15**2 * torch.outer(phi[:, 0], phi[:, 0])
        law = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), covariance)
        apart = z.reshape(-1, 2, 2).transpose(1, 2) - mean[:, None] * phi[:, 0]  # (batch, coordinate, component)
        total.append(weight.log() + law.log_prob(apart).sum(1))
    return torch.logsumexp(torch.stack(total), 0)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_every_view_of_an_exact_world(process: PhaseSpace) -> None:
    """The score is the gradient of the density written out; the velocity is F z - G G^T score/2; noise and x0 make the
    state again, whichever the denoiser answers natively."""
    drift, noise = coefficients(process)
    for t in (0.05, 0.5, 0.95):
        x0 = WORLD.sample(16, seed=0).to(F64)
        z = process.corrupt(x0, t, seed=1).x
        rows = torch.cat(list(z), 1).requires_grad_()
        (score,) = torch.autograd.grad(log_density(rows, process, t).sum(), rows)
        beta = process.beta_min + t * (process.beta_max - process.beta_min)
        halves = score.reshape(-1, 2, 2)
        velocity = beta * torch.einsum("ij,bjd->bid", drift, rows.detach().reshape(-1, 2, 2))
        velocity = velocity - beta * torch.einsum("ij,bjd->bid", noise, halves) / 2
        for native in ("noise", "x0", "score"):
            p = WORLD.denoiser(process, native)(z, t)
            torch.testing.assert_close(torch.stack(p.score, 1), halves, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(torch.stack(p.velocity, 1), velocity, rtol=1e-7, atol=1e-7)
            level = process.level(t)
            made = [a + b for a, b in zip(mix(level.mean, p.x0), mix(level.root, p.noise), strict=True)]
            torch.testing.assert_close(made, list(z), rtol=1e-9, atol=1e-9)
            if process.hybrid:
                torch.testing.assert_close(p.x0.momentum, torch.zeros_like(z.momentum), rtol=0, atol=1e-9)


def test_targets_average_to_the_views() -> None:
    """E[target | z_t] is the view: the regression of a draw's targets on functions of z has no bias. And the hybrid
    score has less variance than the one that knows the momentum (Dockhorn et al. 2021), by the trace of S^-1."""
    t, n = 0.02, 200_000
    variance = {}
    for process in (CLD(), replace(CLD(), hybrid=False)):
        drawn = process.corrupt(WORLD.sample(n, seed=0).to(F64), t, seed=1)
        target, exact = drawn.target("score"), WORLD.denoiser(process)(drawn.x, t).score
        for part, view, z in zip(target, exact, drawn.x, strict=True):
            residual = part - view
            for probe in (torch.ones_like(z), z, torch.sin(3 * z)):
                product = (residual * probe).flatten()
                assert abs(float(product.mean())) < 5 * float(product.std()) / math.sqrt(product.numel())
        variance[process.hybrid] = sum(float(part.square().mean()) for part in target)
        s = moments(process, t, process.gamma * process.mass if process.hybrid else 0.0)[1]
        assert variance[process.hybrid] == pytest.approx(float(torch.linalg.inv(s).trace()), rel=0.02)
    assert variance[True] < 0.9 * variance[False]  # the traces: 650 and 763


def test_limits() -> None:
    """A momentum apart (coupling = cross = 0, damping = 1) leaves VP: kernel, noise and samples, to rounding."""
    process = PhaseSpace(damping=1.0, friction=2.0, coupling=0.0, beta_min=0.1, beta_max=20.0)
    vp = orn.VP()
    t = torch.tensor([0.01, 0.3, 1.0], dtype=F64)
    mine, theirs = process.level(t), vp.level(t)
    torch.testing.assert_close(mine.mean[:, 0, 0], theirs.alpha, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mine.root[:, 0, 0], theirs.sigma, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mine.log_snr, theirs.log_snr, rtol=1e-9, atol=1e-9)
    z = process.prior((16, 2), seed=0, dtype=F64)
    times = [1.0, 0.7, 0.4, 0.15, 0.03, 0.0]
    for ours, its in ((orn.DDIM(), orn.DDIM()), (DEIS(order=2), DEIS(order=2)), (orn.Euler(), orn.Euler())):
        got = orn.sample(WORLD.denoiser(process), x_init=z, solver=ours, grid=times).x
        want = orn.sample(WORLD.denoiser(vp), x_init=z.position, solver=its, grid=times).x
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
    # CLD is PSLD without damping
    a, b = CLD().level(t), PSLD(damping=0.0, friction=4.0).level(t)
    assert torch.equal(a.root, b.root)
    # and its drift is the paper's: dx = 4 beta' m, dm = -beta' x - 4 beta' m with beta' = beta/2 = 4, M = 1/4
    torch.testing.assert_close(a.drift[0], torch.tensor([[0.0, 16.0], [-4.0, -16.0]], dtype=F64))


ORDERS: list[tuple[Any, float]] = [
    (orn.DDIM(), 1),
    (DEIS(order=0), 1),
    (DEIS(order=1), 2),
    (DEIS(order=2), 3),
    (DEIS(order=1, method="rhoAB"), 2),
    (Conjugate(-1.0), 1),
    (orn.Euler(), 1),
    (orn.Heun("t"), 2),
    (RK4("t"), 4),
    (AdamsBashforth(3, "t"), 3),
    (ReducedSymplecticEuler(), 1),
]


def wide() -> tuple[orn.exact.GaussianMixture, Any, Phase, Tensor]:
    """Two wide components under PSLD, 12 starts and where DOP853 carries them on the exact velocity from 0.9 to 0.2."""
    world = orn.exact.GaussianMixture(torch.tensor([[1.0], [-1.5]], dtype=F64), stds=0.5)
    process = PSLD()
    denoiser = world.denoiser(process)
    start = process.corrupt(world.sample(12, seed=0).to(F64), 0.9, seed=1).x

    def slope(at: Tensor | float, y: Tensor) -> Tensor:
        out = denoiser(Phase(y[:, :1], y[:, 1:]), float(at)).velocity
        return torch.cat(list(out), 1)

    truth = dop853(slope, torch.cat(list(start), 1), 0.9, 0.2, rtol=1e-10, atol=1e-11).y
    return world, denoiser, start, truth


def test_orders() -> None:
    """Each solver has its order in phase space: the slope of the error over one halving, within 0.3 of theory (0.2
    holds on more steps, and takes them)."""
    _, denoiser, start, truth = wide()

    def error(solver: Any, steps: int) -> float:
        grid = torch.linspace(0.9, 0.2, steps + 1, dtype=F64)
        kept: list[Any] = []
        orn.sample(denoiser, x_init=start, solver=solver, grid=grid, hooks=[lambda m: kept.append(m.x)])
        return float((torch.cat(list(kept[-1]), 1) - truth).norm(dim=1).median())

    for solver, order in ORDERS:
        steps = 48 if isinstance(solver, DEIS) and order > 2 else 24 if order > 2 else 40
        a, b = error(solver, steps), error(solver, 2 * steps)
        assert math.log2(a / b) == pytest.approx(order, abs=0.3), (solver, a, b)


@pytest.mark.parametrize("process", [CLD(), SKEWED], ids=repr)
def test_stochastic_laws(process: PhaseSpace) -> None:
    """On Gaussian data the covariance that a stochastic solver ends with is computed without sampling; it converges to
    the marginal's at the order claimed (1; 2 for StochasticHeun) for several diffusions. The flow's own law is another
    solver's: with the score's sign turned, or twice the noise, nothing converges."""
    world = orn.exact.Gaussian(torch.zeros(1, dtype=F64), torch.full((1, 1), 0.36, dtype=F64))
    denoiser = world.denoiser(process)

    first, truth = (gaussian_law(process, t, 0.6) for t in (0.9, 0.15))
    cases: list[tuple[Any, int]] = [
        (orn.EulerMaruyama(), 1),
        (orn.EulerMaruyama(diffusion=0.5), 1),
        (orn.solvers.StochasticHeun(), 2),
        (Splitting("LBL"), 1),
        (Splitting("OBA"), 1),
        (Splitting("BAOAB"), 1),
    ]
    for solver, order in cases:
        errors = []
        for steps in (30, 60):
            table = solver.compile(process, process.level(torch.linspace(0.9, 0.15, steps + 1, dtype=F64)))
            errors.append(float((law_of(denoiser, table, first) - truth).abs().max()))
        slope = math.log2(errors[0] / errors[1])
        assert slope > order - 0.25, (solver, errors)
        assert errors[1] < (0.2 if order == 1 else 0.05) * float(truth.abs().max()), (solver, errors)


def test_samples() -> None:
    """From the end law to the data: the ring's modes, weights and widths, by flow and by SDE (thresholds: five standard
    errors of 4,000 samples, and 6 % of the width for 60 steps of order 3 and 100 of a splitting)."""
    for process, solver, steps in ((PSLD(), DEIS(order=2), 60), (CLD(), Splitting(), 120)):
        out = orn.sample(WORLD.denoiser(process), (4_000, 2), solver=solver, steps=steps, seed=0, dtype=F64)
        assert out.x.shape == (4_000, 2)
        apart = (out.x[:, None] - WORLD.means).norm(dim=2)
        nearest, mode = apart.min(1)
        weights = torch.bincount(mode, minlength=6) / 4_000
        assert bool(((weights - WORLD.weights).abs() < 5 * (WORLD.weights / 4_000).sqrt() + 0.01).all())
        assert float(nearest.square().mean().div(2).sqrt()) == pytest.approx(0.15, rel=0.06)


def test_per_sample_times_and_precision() -> None:
    """A time for each sample is each sample's run; float32 is its float64 twin rounded."""
    process = PSLD()
    denoiser = WORLD.denoiser(process)
    z = process.prior((3, 2), seed=0, dtype=F64)
    ends = torch.tensor([0.1, 0.2, 0.3], dtype=F64)
    grid = torch.stack([torch.ones(3, dtype=F64), (1 + ends) / 2, ends])
    for solver in (orn.DDIM(), DEIS(order=1), orn.Euler(), Conjugate(0.5), ReducedSymplecticEuler(), Splitting()):
        stochastic = isinstance(solver, Splitting)
        seeds = [5, 6, 7]
        both = orn.sample(denoiser, x_init=z, solver=solver, grid=grid, seed=seeds).x
        for i in range(3):
            alone = Phase(z.position[i : i + 1], z.momentum[i : i + 1])
            one = orn.sample(denoiser, x_init=alone, solver=solver, grid=grid[:, i], seed=seeds[i : i + 1]).x
            torch.testing.assert_close(both[i : i + 1], one, rtol=1e-9, atol=1e-9)
        if not stochastic:
            half = Phase(*(part.float() for part in z))
            low = orn.sample(denoiser, x_init=half, solver=solver, grid=grid).x
            assert low.dtype == torch.float32
            torch.testing.assert_close(low.double(), both, rtol=1e-3, atol=1e-3)


def test_a_table_of_matrices_is_a_file(tmp_path: Any) -> None:
    process = PSLD()
    table = DEIS(order=1).compile(process, orn.LogSNR()(process, 5))
    table.save(tmp_path / "table.json")
    again = Table.load(tmp_path / "table.json")
    z = process.prior((4, 2), seed=0, dtype=F64)
    runs = [orn.sample(WORLD.denoiser(process), x_init=z, table=t).x for t in (table, again)]
    assert torch.equal(*runs)
    assert "; " in str(table)  # printed as rows of a matrix
    with pytest.raises(TableError, match="another process"):
        orn.sample(WORLD.denoiser(CLD()), x_init=z, table=again)
    with pytest.raises(TableError, match="not of VP"):
        orn.sample(WORLD.denoiser(orn.VP()), x_init=z.position, table=again)


def test_a_trained_network() -> None:
    """A `Joined` MLP trained by `fit` on Gaussian data N(1, 0.5^2) to answer x0: samples have its mean within 0.1 and
    its spread within a fifth, as untrained ones have not; the loss of noise is bounded too."""
    torch.manual_seed(0)
    data = 1 + 0.5 * normal(4_000, 1).float()
    model = orn.Denoiser(orn.nets.Joined(orn.nets.MLP(2, width=32, depth=2)), PSLD(), "x0")

    def draw() -> Tensor:
        return orn.sample(model, (2_000, 1), solver=orn.DDIM(), steps=30, seed=0).x

    assert abs(float(draw().mean()) - 1) > 0.5
    orn.fit(model, data, steps=300, batch_size=256, lr=4e-3, seed=0, progress=False, ema=0.98)
    x = draw()
    assert float(x.mean()) == pytest.approx(1.0, abs=0.1)
    assert float(x.std()) == pytest.approx(0.5, abs=0.1)
    other = orn.Denoiser(orn.nets.Joined(orn.nets.MLP(2, width=32, depth=2)), PSLD(), "noise")
    out = orn.fit(other, data, steps=30, batch_size=256, seed=0, progress=False)
    assert 0.5 < float(out.history["loss"][0]) < 4.5  # two parts, each of unit target


def test_a_model_is_a_file(tmp_path: Any) -> None:
    """Process, network of both components and weights come back: the same samples to the last bit."""
    torch.manual_seed(0)
    model = orn.Denoiser(
        orn.nets.Joined(orn.nets.MLP(4, width=8, depth=1)), SKEWED, "x0", scaling=orn.Scaling(0.5, 2.0)
    )
    shaken(model.net)
    orn.save(model, tmp_path / "model.safetensors")
    runs = [
        orn.sample(m, (3, 2), solver=orn.DDIM(), steps=5, seed=0).x
        for m in (model, orn.load(tmp_path / "model.safetensors"))
    ]
    assert torch.equal(*runs)
    with pytest.raises(TableError, match="several components"):
        export_sampler(model, (3, 2), solver=orn.DDIM(), steps=5)


def test_guidance() -> None:
    """CFG at scale 2 is 2 conditional - unconditional, part by part."""
    process = CLD()
    denoiser = WORLD.denoiser(process)
    z = process.prior((6, 2), seed=0, dtype=F64)
    label = {"label": torch.arange(6)}
    guided = orn.CFG(denoiser, 2.0)(z, 0.6, label).score
    with_label, without = denoiser(z, 0.6, label).score, denoiser(z, 0.6, {"label": torch.full((6,), -1)}).score
    for g, a, b in zip(guided, with_label, without, strict=True):
        torch.testing.assert_close(g, 2 * a - b, rtol=1e-8, atol=1e-8)


def test_matrices_in_order() -> None:
    """Products keep their order, numbers stand for multiples of the identity, 1/M is the inverse."""
    a, b = (Matrix(normal(2, 2, seed=i)) for i in (0, 1))
    torch.testing.assert_close((a * b).value, a.value @ b.value)
    torch.testing.assert_close((a / b).value, a.value @ torch.linalg.inv(b.value))
    torch.testing.assert_close((2.0 - a).value, 2 * torch.eye(2, dtype=F64) - a.value)
    each = torch.tensor([1.0, 3.0], dtype=F64)
    torch.testing.assert_close((each * a).value[1], 3 * a.value)
    spread = Matrix(a.value @ a.value.T)
    torch.testing.assert_close((spread.root() * spread.root().mT).value, spread.value)


def test_refusals() -> None:
    process = PSLD()
    table = orn.DDIM().compile(process, process.level([1.0, 0.5]))
    with pytest.raises(TableError, match="mixes components"):
        orn.response(table, 0.0, 1.0)
    with pytest.raises(ValueError, match="step by step"):
        orn.sample_parallel(WORLD.denoiser(process), (4, 2), solver=orn.DDIM(), steps=4)
    model, data = orn.Denoiser(orn.nets.Joined(orn.nets.MLP(4, width=8, depth=1)), process, "score"), torch.zeros(8, 2)
    with pytest.raises(ViewError, match="no weighting of its own"):
        orn.fit(model, data, steps=1, progress=False)
    model = orn.Denoiser(model.net, process, "noise")
    with pytest.raises(ValueError, match="take UnitTarget"):
        orn.fit(model, data, steps=1, progress=False, objective=orn.Objective(weighting=orn.training.MinSNR()))
    with pytest.raises(ValueError, match="steps by scalars"):
        orn.sample(WORLD.denoiser(process), (4, 2), solver=orn.DPMSolverPP(), steps=4)
    with pytest.raises(ValueError, match="no momentum"):
        orn.sample(WORLD.denoiser(orn.VP()), (4, 2), solver=Splitting(), steps=4)
    with pytest.raises(ViewError, match="choose from noise, x0, score"):
        orn.Denoiser(orn.nets.Joined(orn.nets.MLP(4)), process)
    with pytest.raises(ViewError, match="no v"):
        _ = WORLD.denoiser(process)(process.prior((2, 2), seed=0), 0.5).v
    with pytest.raises(ViewError, match="t = 0"):
        _ = WORLD.denoiser(process, "x0")(process.prior((2, 2), seed=0), 0.0).score
    with pytest.raises(ValueError, match="takes and returns a named tuple"):
        orn.sample(orn.Denoiser(lambda z, t: z.position, process, "noise"), (4, 2), solver=orn.DDIM(), steps=4)
    with pytest.raises(ValueError, match="not positive semidefinite"):
        PhaseSpace(damping=0.1, cross=2.0)
    with pytest.raises(ValueError, match="forgets nothing"):
        PhaseSpace(damping=0.0, friction=4.0, coupling=0.0)
    with pytest.raises(ValueError, match="mass=-1"):
        PhaseSpace(mass=-1.0)
    with pytest.raises(ValueError, match="outside"):
        process.level(1.5)
    with pytest.raises(ValueError, match="x1 belongs"):
        process.corrupt(torch.zeros(2, 1), 0.5, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="noise of shape"):
        process.corrupt(torch.zeros(2, 1), 0.5, noise=Phase(torch.zeros(2, 1), torch.zeros(3, 1)))
    with pytest.raises(ValueError, match="parts='OB'"):
        Splitting("OB")
    with pytest.raises(ValueError, match="this grid rises"):
        orn.sample(WORLD.denoiser(process), x_init=process.prior((2, 2)), solver=Splitting(), grid=[0.5, 0.9])
