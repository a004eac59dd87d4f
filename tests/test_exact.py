"""The ground truth is judged by what shares nothing with it: quadrature, autograd, dense formulas, Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal
from torch.utils._python_dispatch import TorchDispatchMode

from ornstein._types import VIEWS
from ornstein.errors import ViewError
from ornstein.exact import Empirical, Gaussian, GaussianMixture, World, empirical
from ornstein.exact.covariance import Covariance
from ornstein.exact.world import coefficients
from ornstein.processes import EDM, VE, VP, Cosine, Flow, GaussianProcess, MeanReverting, SubVP

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(), Cosine(), Cosine(0.008), EDM(), Flow(), MeanReverting()]
by_name = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: f"{type(p).__name__}{getattr(p, 'offset', '')}")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def psd(k: int, d: int, seed: int = 0) -> Tensor:
    a = randn(k, d, d, seed=seed)
    return a @ a.mT / d + 0.1 * torch.eye(d, dtype=F64)


WEIGHTS = torch.tensor([0.5, 1.5, 1.0], dtype=F64)
MEANS = randn(3, 2, 2, seed=1)  # events of shape (2, 2): four dimensions
KINDS: dict[str, Callable[[], World]] = {
    "isotropic": lambda: GaussianMixture(MEANS, torch.tensor([0.3, 0.5, 0.9], dtype=F64), WEIGHTS),
    "diagonal": lambda: GaussianMixture(MEANS, 0.2 + randn(3, 2, 2, seed=2).abs(), WEIGHTS),
    "full": lambda: GaussianMixture(MEANS, weights=WEIGHTS, covs=psd(3, 4)),
    "low rank": lambda: GaussianMixture(
        MEANS, torch.tensor([0.3, 0.5, 0.2], dtype=F64), WEIGHTS, factors=randn(3, 4, 2, seed=3)
    ),
    "gaussian": lambda: Gaussian(MEANS[0], cov=psd(1, 4)[0]),
    "empirical": lambda: Empirical(randn(7, 2, 2, seed=4), weights=torch.arange(1.0, 8.0)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def condition(process: GaussianProcess, batch: int, event: tuple[int, ...]) -> dict[str, Tensor] | None:
    return {"mean": randn(batch, *event, seed=9)} if isinstance(process, MeanReverting) else None


def state(world: World, process: GaussianProcess, t: Any, batch: int = 5) -> tuple[Tensor, dict[str, Tensor] | None]:
    cond = condition(process, batch, tuple(world.event))
    x0 = world.sample(batch, seed=5)
    return process.corrupt(x0, t, cond=cond, noise=randn(*x0.shape, seed=6)).x, cond


def close(a: Tensor, b: Tensor, rtol: float) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert (a - b).norm() <= rtol * (b.norm() + 1e-300), float((a - b).norm() / b.norm())


# --- one dimension, by quadrature ------------------------------------------------------------------------------------


@by_name
def test_everything_in_one_dimension_by_quadrature(process: GaussianProcess):
    mu, std = torch.tensor([-1.3, 0.2, 2.0], dtype=F64), torch.tensor([0.3, 0.6, 0.15], dtype=F64)
    world = GaussianMixture(mu[:, None], std, WEIGHTS)
    law = MixtureSameFamily(Categorical(WEIGHTS), Normal(mu, std))
    # The trapezoidal rule is exact to rounding for analytic integrands that die out; no width is below 40 nodes.
    grid = torch.linspace(-7, 8, 20_001, dtype=F64)
    for log_snr in (4.0, 0.5, -3.0):
        t = float(process.time(torch.tensor(log_snr, dtype=F64)))
        level = process.level(t)
        x, cond = state(world, process, t, batch=6)
        shift = process.shift(level.t, cond)
        centred = x if shift is None else x - shift
        joint = (law.log_prob(grid) + Normal(level.alpha * grid, level.sigma).log_prob(centred)).exp()  # (6, grid)
        mass = torch.trapezoid(joint, grid)
        mean = torch.trapezoid(joint * grid, grid) / mass
        var = torch.trapezoid(joint * (grid - mean[:, None]) ** 2, grid) / mass
        score = torch.trapezoid(joint * (level.alpha * grid - centred) / level.sigma**2, grid) / mass
        close(world.log_prob(x, process, t, cond), mass.log(), 1e-11)
        close(world.posterior_mean(x, process, t, cond)[:, 0], mean, 1e-11)
        close(world.posterior_cov(x, process, t, cond)[:, 0, 0], var, 1e-10)
        close(world.score(x, process, t, cond)[:, 0], score, 1e-10)
        # The nearest simpler relative, one Gaussian of the same moments, is another law.
        centre, spread = world.moments()
        wiener = Gaussian(centre, spread).posterior_mean(x, process, t, cond)[:, 0]
        assert (wiener - mean).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["mixture", "empirical"])
def test_density_integrates_to_one(kind: str):
    """Step h under Gaussians no narrower than s: the rule's error is exp(-2 (pi s / h)^2), here below 1e-15."""
    for d, n in ((1, 2001), (2, 601)):
        world: World = Empirical(randn(5, d)) if kind == "empirical" else GaussianMixture(randn(3, d), covs=psd(3, d))
        process, t = VP(), 0.3
        axis = torch.linspace(-15, 15, n, dtype=F64)
        points = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
        for arguments in ((process, t), () if kind == "mixture" else (process, 0.5)):
            total = world.log_prob(points, *arguments).exp().sum() * (axis[1] - axis[0]) ** d
            assert abs(total - 1) < 1e-9


def test_density_is_that_of_torch():
    covs, process = psd(3, 4), Flow()
    world = GaussianMixture(MEANS, weights=WEIGHTS, covs=covs)
    t = torch.linspace(0, 1, 6, dtype=F64)
    x, _ = state(world, process, t, batch=6)
    for i, s in enumerate(t.tolist()):
        s_k = (1 - s) ** 2 * covs + s**2 * torch.eye(4, dtype=F64)
        truth = MixtureSameFamily(Categorical(WEIGHTS), MultivariateNormal((1 - s) * MEANS.flatten(1), s_k))
        close(world.log_prob(x, process, t)[i], truth.log_prob(x[i].flatten()), 1e-12)
        close(world.log_prob(x[i : i + 1], process, s)[0], truth.log_prob(x[i].flatten()), 1e-12)
    close(world.log_prob(x), world.log_prob(x, process, 0.0), 1e-15)


# --- identities that hold for every world and process ----------------------------------------------------------------


@kinds
@by_name
def test_score_is_the_gradient_of_the_density(kind: str, process: GaussianProcess):
    world = KINDS[kind]()
    t = torch.tensor([0.02, 0.2, 0.5, 0.8, 1.0], dtype=F64)
    x, cond = state(world, process, t)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(world.log_prob(x, process, t, cond).sum(), x)
    close(world.score(x, process, t, cond), gradient, 1e-9)


@kinds
@pytest.mark.parametrize("log_snr", [0.5, -1.0])
def test_posterior_covariance_is_tweedies(kind: str, log_snr: float):
    """Cov[x0 | x] = (sigma^2 / alpha) d E[x0 | x] / dx, the second-order Tweedie identity."""
    world, process = KINDS[kind](), VP()
    t = process.time(torch.tensor(log_snr, dtype=F64))
    level = process.level(t)
    x, _ = state(world, process, t, batch=3)
    cov = world.posterior_cov(x, process, t)
    for i in range(3):
        j = jacobian(lambda v: world.posterior_mean(v[None], process, t)[0], x[i]).reshape(4, 4)
        close(cov[i], level.sigma**2 / level.alpha * j, 1e-9)
    # one time a sample is the same
    close(world.posterior_cov(x, process, t.expand(3).clone()), cov, 1e-12)


@kinds
@by_name
def test_five_views_are_one_answer(kind: str, process: GaussianProcess):
    world = KINDS[kind]()
    for t in (0.3, torch.tensor([0.05, 0.3, 0.5, 0.9, 1.0], dtype=F64)):
        level = process.level(t)
        x, cond = state(world, process, t)
        x0 = world.posterior_mean(x, process, t, cond)
        column = level.sigma if level.sigma.dim() == 0 else level.sigma[:, None, None]
        noise = -column * world.score(x, process, t, cond)
        wide = (lambda c: c) if level.t.dim() == 0 else (lambda c: c[:, None, None])
        slope = process.d_shift(level.t, cond)
        truth = {
            "x0": x0,
            "noise": noise,
            "score": world.score(x, process, t, cond),
            "velocity": wide(level.d_alpha) * x0 + wide(level.d_sigma) * noise + (0 if slope is None else slope),
            "v": wide(level.alpha) * noise - wide(level.sigma) * x0,
        }
        shift = process.shift(level.t, cond)
        close(wide(level.alpha) * x0 + wide(level.sigma) * noise + (0 if shift is None else shift), x, 1e-12)
        for view in VIEWS:
            denoiser = world.denoiser(process, predicts=view)
            close(denoiser.forward(x, t, cond), truth[view], 1e-11)
        prediction = world.denoiser(process, "v")(x, t, cond)
        for view in VIEWS:
            close(prediction.view(view), truth[view], 1e-11)


@pytest.mark.parametrize("process", [VP(), Flow(), Cosine(), EDM(), VE(), SubVP()], ids=lambda p: type(p).__name__)
def test_both_ends_are_the_limits(process: GaussianProcess):
    world = KINDS["full"]()
    x, _ = state(world, process, 0.0)
    at = world.denoiser(process)(x, 0.0)
    close(at.x0, x, 1e-12)
    close(at.score, world.score(x), 1e-12)
    assert (at.noise == 0).all()
    assert (at.v == 0).all()
    # sigma sigma' has a limit where sigma' has none: the velocity of VP and VE exists at t = 0
    near = world.denoiser(process)(x, 1e-9)
    assert (at.velocity - near.velocity).abs().max() < 1e-4  # the next term, of order t sigma_max^2 score
    close(world.denoiser(process, "velocity").forward(x, 0.0), at.velocity, 1e-14)
    if isinstance(process, (Flow, Cosine)):
        x = randn(5, 2, 2)
        end = world.denoiser(process)(x, 1.0)
        close(end.x0, world.moments()[0].expand(5, 2, 2), 1e-14)
        close(end.noise, x, 1e-14)
        close(end.score, -x, 1e-14)


def test_point_masses_where_noise_ends():
    data = randn(4, 3)
    near = data[2] + 1e-3
    for world in (Empirical(data), GaussianMixture(data, 0.0)):
        for process in (Flow(), VP(), EDM()):
            assert torch.equal(world.posterior_mean(near[None], process, 0.0)[0], data[2])
            denoiser = world.denoiser(process)
            prediction = denoiser(near[None].float(), 0.0)
            assert torch.equal(prediction.x0[0], data[2].float())
            assert torch.equal(prediction.noise, torch.zeros(1, 3))
            with pytest.raises(ValueError, match="sigma = 0"):
                _ = prediction.score
            with pytest.raises(ValueError, match="sigma = 0"):
                world.log_prob(near[None])
        close(world.denoiser(Flow())(near[None], 0.0).velocity[0], -data[2], 1e-15)
        with pytest.raises(ValueError, match="sigma = 0"):
            _ = world.denoiser(VP())(near[None], 0.0).velocity  # there sigma' is infinite


# --- one covariance written in several ways --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "low rank"])
def test_every_form_of_a_covariance_is_the_full_one(kind: str):
    world = KINDS[kind]()
    assert isinstance(world, GaussianMixture)
    if kind == "isotropic":
        covs = torch.tensor([0.3, 0.5, 0.9], dtype=F64)[:, None, None] ** 2 * torch.eye(4, dtype=F64)
    elif kind == "diagonal":
        covs = torch.diag_embed((0.2 + randn(3, 2, 2, seed=2).abs()).flatten(1) ** 2)
    else:
        f, floor = randn(3, 4, 2, seed=3), torch.tensor([0.3, 0.5, 0.2], dtype=F64)
        covs = f @ f.mT + floor[:, None, None] ** 2 * torch.eye(4, dtype=F64)
    full = GaussianMixture(MEANS, weights=WEIGHTS, covs=covs)
    close(world.covariance.dense(), covs, 1e-14)
    close(world.covariance.logdet(lambda c: 1 / c), -torch.logdet(covs), 1e-12)
    v = randn(6, 3, 4)
    close(world.covariance.apply(lambda c: 1 / c, v), torch.linalg.solve(covs, v[..., None])[..., 0], 1e-12)
    y, a = randn(2, seed=7), randn(2, 4, seed=8)
    for one, two in ((world, full), (world.posterior(y, a, 0.4), full.posterior(y, a, 0.4))):
        close(torch.cat([m.flatten() for m in one.moments()]), torch.cat([m.flatten() for m in two.moments()]), 1e-12)
        for t in (0.0, 0.4, torch.linspace(0.1, 1, 5, dtype=F64)):
            x, _ = state(full, VP(), t)
            for answer in ("log_prob", "score", "posterior_mean"):
                close(getattr(one, answer)(x, VP(), t), getattr(two, answer)(x, VP(), t), 1e-11)
    x, _ = state(full, VP(), 0.4)
    close(world.posterior_cov(x, VP(), 0.4), full.posterior_cov(x, VP(), 0.4), 1e-11)


def test_low_rank_stays_low_rank_in_many_dimensions():
    d, r, m = 1024, 3, 5
    world = GaussianMixture(randn(2, d), 0.05, factors=randn(2, d, r, seed=1))
    a = randn(m, d, seed=2)
    y = a @ world.sample(1, seed=3)[0]
    posterior = world.posterior(y, a, 0.1)
    assert posterior.covariance.values.shape == (2, r + m)
    assert GaussianMixture(randn(2, d), 0.05).posterior(y, a, 0.1).covariance.rank == m
    dense = GaussianMixture(randn(2, d)[:1], covs=world.covariance.dense()[:1]).posterior(y, a, 0.1)
    close(posterior.means[:1], dense.means, 1e-9)
    close(posterior.covariance.dense()[0], dense.covariance.dense()[0], 1e-9)


# --- posteriors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["std", "per entry", "cov"])
def test_posterior_is_gaussian_conditioning(noise: str):
    """Against the information form, which shares no step with the gain form of the library."""
    covs, y, a = psd(3, 4), randn(2, seed=7), randn(2, 4, seed=8)
    noises: dict[str, tuple[dict[str, Any], Tensor]] = {
        "std": ({"noise_std": 0.3}, 0.09 * torch.eye(2, dtype=F64)),
        "per entry": ({"noise_std": torch.tensor([0.3, 1.0])}, torch.diag(torch.tensor([0.3, 1.0]).double() ** 2)),
        "cov": ({"noise_cov": psd(1, 2, 5)[0]}, psd(1, 2, 5)[0]),
    }
    keywords, r = noises[noise]
    world = GaussianMixture(MEANS, weights=WEIGHTS, covs=covs, labels=torch.tensor([4, 4, 0]))
    posterior = world.posterior(y, a, **keywords)
    precision = torch.linalg.inv(covs) + a.T @ torch.linalg.inv(r) @ a
    cov = torch.linalg.inv(precision)
    pull = torch.linalg.solve(covs, MEANS.flatten(1)[..., None])[..., 0] + a.T @ torch.linalg.solve(r, y)
    mean = (cov @ pull[..., None])[..., 0]
    evidence = MultivariateNormal(MEANS.flatten(1) @ a.T, a @ covs @ a.T + r).log_prob(y)
    close(posterior.means, mean, 1e-11)
    close(posterior.covariance.dense(), cov, 1e-11)
    close(posterior.weights, (WEIGHTS.log() + evidence).softmax(0), 1e-11)
    assert torch.equal(posterior.labels, world.labels)


def test_posterior_of_an_exact_measurement():
    for world in (KINDS["full"](), KINDS["low rank"](), KINDS["isotropic"]()):
        y, a = randn(2, seed=7), randn(2, 4, seed=8)
        posterior = world.posterior(y, a, 0.0)
        x = posterior.sample(50, seed=1)
        close(x.flatten(1) @ a.T, y.expand(50, 2), 1e-7)  # the square root of the rounding of an eigenvalue 0
        assert posterior.posterior_cov(x[:1], VP(), 0.5).isfinite().all()


@pytest.mark.parametrize("kind", ["diagonal", "empirical"])
def test_posterior_agrees_with_importance_sampling(kind: str):
    """Self-normalised weights w: the error of sum w f has variance sum w^2 (f - mean)^2 (delta method); five sigma."""
    world, y, a = KINDS[kind](), randn(2, seed=7), randn(2, 4, seed=8)
    posterior = world.posterior(y, a, noise_std=0.8)
    x = world.sample(200_000, seed=11).flatten(1)
    w = (-((y - x @ a.T) ** 2).sum(1) / (2 * 0.8**2)).softmax(0)
    statistics = torch.cat([x, x[:, :, None].mul(x[:, None]).flatten(1)], 1)
    estimate = w @ statistics
    error = (w**2 @ (statistics - estimate) ** 2).sqrt()
    mean, cov = posterior.moments()
    truth = torch.cat([mean.flatten(), (cov + torch.outer(mean.flatten(), mean.flatten())).flatten()])
    assert ((estimate - truth).abs() < 5 * error).all()
    prior_mean = world.moments()[0].flatten()
    assert ((estimate[:4] - prior_mean).abs() > 5 * error[:4]).any()  # the prior, its simpler relative, is refused
    # and its denoiser is that of the new law: E[x0 | x_t, y]
    x_t, _ = state(world, VP(), 0.3, batch=1)
    level = VP().level(0.3)
    w = (w.log() - ((x_t.flatten() - level.alpha * x) ** 2).sum(1) / (2 * level.sigma**2)).softmax(0)
    estimate, error = w @ x, (w**2 @ (x - w @ x) ** 2).sqrt()
    assert ((estimate - posterior.denoiser(VP())(x_t, 0.3).x0.flatten()).abs() < 5 * error + 1e-9).all()


# --- finite data sets ------------------------------------------------------------------------------------------------


def test_empirical_is_the_limit_of_narrow_mixtures():
    data, weights = randn(7, 2, 2, seed=4), torch.arange(1.0, 8.0)
    one, two = Empirical(data, weights=weights), GaussianMixture(data, 1e-9, weights)
    for process in (VP(), Flow(), EDM()):
        for t in (0.1, 0.6, 1.0, torch.linspace(0.05, 1, 5, dtype=F64)):
            x, _ = state(one, process, t)
            for answer in ("log_prob", "score", "posterior_mean"):
                close(getattr(one, answer)(x, process, t), getattr(two, answer)(x, process, t), 1e-9)
            assert (one.posterior_cov(x, process, t) - two.posterior_cov(x, process, t)).abs().max() < 1e-9


@pytest.mark.parametrize("std", [0.3, 1e-3])
def test_a_mixture_is_accurate_in_float32_whatever_its_width(std: float):
    """Where a component is narrow beside where it is, |x|^2 has lost the digits of |x - mu|^2: two that lie four
    deviations apart, under noise of one, share the states between them as they do in float64, to 1e-3. Products of
    matrices, which serve the wide, would be off by more than 0.01 for the narrow."""
    means = (0.3 + randn(1, 16)).repeat(2, 1).double()
    means[1] += std  # in 16 coordinates four deviations
    denoiser, process = GaussianMixture(means, std).denoiser(VP()), VP()
    level = process.level(process.time(-2 * torch.tensor(std, dtype=F64).log()))
    apart = means[1] - means[0]
    x = (level.alpha * (means[:1] + torch.linspace(0, 1, 9, dtype=F64)[:, None] * apart)).float()
    single, truth = (((denoiser(v, level).x0.double() - means[0]) @ apart / (apart @ apart)) for v in (x, x.double()))
    assert float((single - truth).abs().max()) < 1e-3


@pytest.mark.parametrize("view", ["x0", "noise", "velocity"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", [*KINDS, "narrow"])
def test_levels_bound_together_are_those_bound_alone(
    kind: str, dtype: torch.dtype, view: Any, monkeypatch: pytest.MonkeyPatch
):
    """To the bit, and each with its own way to square differences: of the narrow one, by products at large noise. The
    law of one level is what each is compared with; grids in blocks are the same."""
    narrow = GaussianMixture(MEANS, torch.tensor([0.3, 1e-4, 0.2], dtype=F64), factors=randn(3, 4, 2, seed=3))
    denoiser = (narrow if kind == "narrow" else KINDS[kind]()).denoiser(VP(), predicts=view)
    world, flat = denoiser.world, randn(5, 4, seed=6).to(dtype)
    grid = VP().level(torch.linspace(0.99, 0.001, 9, dtype=F64))
    a, c = coefficients(world, VP(), grid, view)
    together = list(world._bound(grid, a, c, flat, None))
    with monkeypatch.context() as patch:
        patch.setattr("ornstein.exact.mixture._BLOCK", 2 * 3 * 4)
        blocks = list(world._bound(grid, a, c, flat, None))
    assert len(together) == len(blocks) == 9
    for call, block, alone in zip(together, blocks, World._bound(world, grid, a, c, flat, None), strict=True):
        assert torch.equal(call(flat), alone(flat))
        assert torch.equal(block(flat), alone(flat))
    if isinstance(world, GaussianMixture):
        assert ({call.args[0].by_products for call in together} == {True, False}) == (kind == "narrow")
    x = flat.reshape(5, 2, 2)
    for i, call in enumerate(denoiser.bind(grid, x, None)):
        assert torch.equal(call(x), denoiser(x, grid[i]).output)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_denoiser_has_a_derivative_in_time(kind: str):
    """Forward-mode, of one time for all: the difference quotient."""
    denoiser, x = KINDS[kind]().denoiser(VP()), randn(5, 2, 2, seed=6)
    t, e = torch.tensor(0.4, dtype=F64), 1e-5
    _, slope = torch.func.jvp(lambda s: denoiser.forward(x, s), (t,), (torch.ones_like(t),))
    close(slope, (denoiser.forward(x, t + e) - denoiser.forward(x, t - e)) / (2 * e), 1e-6)


def test_a_velocity_that_is_not_finite_is_refused_by_its_first_time():
    class Steep(GaussianProcess):
        """alpha' is infinite at data."""

        def alpha(self, t: Tensor) -> Tensor:
            return 1 - t.sqrt()

        def sigma(self, t: Tensor) -> Tensor:
            return t

    denoiser = GaussianMixture(MEANS, 0.3).denoiser(Steep(), predicts="velocity")
    with pytest.raises(ViewError, match=r"not finite at t = 0: start a little above 0"):
        denoiser(randn(5, 2, 2), torch.tensor([0.5, 0.0, 0.0, 0.2, 0.1], dtype=F64))


def test_empirical_is_accurate_in_float32_at_small_noise():
    """Where |x|^2 / sigma^2 has lost its digits, the differences have not. The data are about 1, sigma is 0.002."""
    data = (1 + 0.001 * randn(64, 48)).float().double()  # the same points for both
    x = (data[:40] + 0.002 * randn(40, 48, seed=1)).float()
    t, process = 0.002 / 80, EDM()
    truth = Empirical(data).posterior_mean(x.double(), process, t)
    single = Empirical(data.float()).posterior_mean(x, process, t)
    assert (truth - data[:40]).abs().max() > 5e-4  # several points share the answer
    # x and y are exact, so |x - y|^2 / (2 sigma^2), some 50, is off by 50 eps: this moves the mean by 50 eps times the
    # width 0.001 of the data, which drowns in the eps of its rounding.
    assert (single.double() - truth).abs().max() < 4 * torch.finfo(torch.float32).eps
    expanded = (x @ data.float().T - data.float().square().sum(1) / 2).div(0.002**2).softmax(1) @ data.float()
    assert (expanded.double() - truth).abs().max() > 1e-4  # the simpler form


def test_empirical_never_holds_the_cube(monkeypatch: pytest.MonkeyPatch):
    batch, n, d = 40, 300, 50
    world, x = Empirical(randn(n, d), torch.arange(n) % 7), randn(batch, d, seed=1)
    cond = {"label": torch.arange(batch) % 7}
    t = torch.linspace(0.1, 1, batch, dtype=F64)
    whole = [getattr(world, f)(x, VP(), s, cond) for f in ("score", "log_prob", "posterior_cov") for s in (0.3, t)]

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(
                [largest, *(o.numel() for o in (out if isinstance(out, tuple) else (out,)) if isinstance(o, Tensor))]
            )
            return out

    with Watch():
        world.score(x, VP(), 0.3)
    assert largest <= max(batch * n, n * d)
    monkeypatch.setattr(empirical, "_BLOCK", 6 * n)  # blocks of six samples, the last one of four
    blocks = [getattr(world, f)(x, VP(), s, cond) for f in ("score", "log_prob", "posterior_cov") for s in (0.3, t)]
    for one, two in zip(blocks, whole, strict=True):
        close(one, two, 1e-14)


@kinds
def test_forward_mode_and_second_order_derivatives(kind: str):
    world = KINDS[kind]()
    denoiser = world.denoiser(VP(), "noise")
    x, v = state(world, VP(), 0.3)[0], randn(5, 2, 2, seed=12)
    out, tangent = torch.func.jvp(lambda x: denoiser.forward(x, 0.3), (x,), (v,))
    eps = 1e-5
    finite = (denoiser.forward(x + eps * v, 0.3) - denoiser.forward(x - eps * v, 0.3)) / (2 * eps)
    close(tangent, finite, 1e-7)
    close(out, denoiser.forward(x, 0.3), 1e-14)
    _, (pulled,) = torch.autograd.functional.vjp(lambda x: denoiser.forward(x, 0.3), (x,), v)
    close((pulled * v).sum(), (tangent * v).sum(), 1e-10)  # the Jacobian of a score is symmetric
    hessian = torch.func.hessian(lambda x: world.log_prob(x[None], VP(), 0.3)[0])(x[0]).reshape(4, 4)
    covariance, level = world.posterior_cov(x[:1], VP(), 0.3)[0], VP().level(0.3)
    exact = level.alpha**2 / level.sigma**4 * covariance - torch.eye(4, dtype=F64) / level.sigma**2
    close(hessian, exact, 1e-9)


# --- precision -------------------------------------------------------------------------------------------------------


@contextmanager
def no_double() -> Iterator[None]:
    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for o in out if isinstance(out, tuple) else (out,):
                # a scalar on the host goes into any kernel as a number
                assert not (isinstance(o, Tensor) and o.dtype == F64 and o.dim() > 0), f"{func} made a float64 tensor"
            return out

    with Refuse():
        yield


@kinds
@pytest.mark.parametrize("process", [VP(), EDM()], ids=lambda p: type(p).__name__)
def test_float32_differs_by_rounding_only(kind: str, process: GaussianProcess):
    world = KINDS[kind]()
    levels = process.level(torch.tensor([1.0, 0.7, 0.1, 0.003], dtype=F64))
    per_sample = process.level(torch.linspace(0.01, 1, 5, dtype=F64)[None])
    for view in VIEWS:
        denoiser = world.denoiser(process, view)
        x = state(world, process, 0.1)[0].float()
        for grid in (levels, per_sample):
            calls, twins = denoiser.bind(grid, x, None), denoiser.bind(grid, x.double(), None)
            for level, call, twin in zip(grid, calls, twins, strict=True):
                with no_double():
                    out = call(x)
                assert out.dtype == torch.float32
                truth = twin(x.double())
                # Terms of the softmax reach |d|^2 / S, which grow with 1 / sigma^2: so does their rounding.
                stiff = 1 + float(((x.double() / level.alpha.clamp_min(1e-3).reshape(-1, 1, 1)) ** 2).sum((1, 2)).max())
                stiff *= 1 + float((level.alpha / level.sigma).max()) ** 2
                assert (out - truth).norm() < 10 * stiff * 6e-8 * truth.norm(), (view, level.t)
    half = world.denoiser(process)(x.bfloat16(), 0.5).x0
    assert half.dtype == torch.bfloat16


@kinds
def test_states_live_on_any_device(kind: str):
    """The meta device refuses what a real accelerator would: tensors of two devices in one kernel."""
    world, x = KINDS[kind](), torch.empty(5, 2, 2, device="meta")
    for t in (0.3, torch.linspace(0.1, 1, 5, dtype=F64)):
        for view in VIEWS:
            assert world.denoiser(VP(), view).forward(x, t).device == x.device
            assert world.denoiser(VP())(x, t).view(view).dtype == torch.float32
        assert world.log_prob(x, VP(), t).device == x.device
        assert world.posterior_cov(x, VP(), t).device == x.device


def test_native_views_keep_the_digits_that_conversions_lose():
    """In float32 at sigma/alpha = 1e4 (a wide EDM) x0 by way of the score is off by eps sigma; natively by eps."""
    world, process = KINDS["full"](), EDM(sigma_max=1e4)
    x = state(world, process, 1.0)[0].float()
    truth = world.posterior_mean(x.double(), process, 1.0)
    prediction = world.denoiser(process, "score")(x, 1.0)
    close(prediction.x0, truth.float(), 1e-5)
    converted = x + 1e4**2 * prediction.score
    assert (converted - truth).norm() > 1e-4 * truth.norm()
    # and at the other end the score from x0 is lost
    x = state(world, process, 1e-8)[0].float()  # sigma = 1e-4
    truth = world.score(x.double(), process, 1e-8)
    prediction = world.denoiser(process, "x0")(x, 1e-8)
    close(prediction.score, truth.float(), 1e-4)
    assert ((prediction.x0 - x) / 1e-4**2 - truth).norm() > 0.1 * truth.norm()


# --- the flow map ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP(), VE(), EDM(), Flow(), MeanReverting()], ids=lambda p: type(p).__name__)
def test_flow_of_a_gaussian_is_linear(process: GaussianProcess):
    """xc - alpha mu scales along each eigenvector by the standard deviation of x_t, both ends included."""
    cov, mu = psd(1, 3)[0], randn(3)
    world = Gaussian(mu, cov)
    variances, basis = torch.linalg.eigh(cov)
    for t, s in ((1.0, 0.0), (0.1, 0.6)):
        x, cond = state(world, process, t, batch=4)
        here, there = process.level(t), process.level(s)
        first, last = process.shift(here.t, cond), process.shift(there.t, cond)
        spread = ((there.alpha**2 * variances + there.sigma**2) / (here.alpha**2 * variances + here.sigma**2)).sqrt()
        centred = (x if first is None else x - first) - here.alpha * mu
        truth = (centred @ basis * spread) @ basis.T + there.alpha * mu + (0 if last is None else last)
        close(world.flow(process, x, t, s, cond=cond), truth, 1e-10)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.0), (0.0, 0.5)])
def test_flow_carries_the_density(t: float, s: float):
    """log p_s(F(x)) + log |det dF/dx| = log p_t(x): any other transport than the flow's ends in another density."""
    world = GaussianMixture(2 * randn(3, 2), weights=WEIGHTS, covs=0.3 * psd(3, 2))
    process = VP()
    x, _ = state(world, process, t, batch=8)
    x.requires_grad_()

    def change(transport: World) -> Tensor:
        end = transport.flow(process, x, t, s)
        rows = [torch.autograd.grad(end[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
        volume = torch.linalg.slogdet(torch.stack(rows, 1))[1]
        with torch.no_grad():
            return world.log_prob(end, process, s) + volume - world.log_prob(x, process, t)

    assert change(world).abs().max() < 1e-8
    assert change(Gaussian(*world.moments())).abs().min() > 1e-4  # the flow of the Gaussian of the same moments


def test_flow_there_and_back():
    world, process = GaussianMixture(MEANS, 0.3, WEIGHTS), VP()
    x, _ = state(world, process, 1.0)
    down = world.flow(process, x, 1.0, 0.0)
    close(world.flow(process, down, 0.0, 1.0), x, 1e-9)
    close(world.flow(process, x, 1.0, 0.0, rtol=1e-13, atol=1e-14), down, 1e-9)  # the stated accuracy
    half = world.flow(process, x, 1.0, 0.4)
    close(world.flow(process, half, 0.4, 0.0), down, 1e-9)
    velocity = world.denoiser(process, "velocity").forward(half, 0.4)
    step = world.flow(process, half, 0.4, 0.4 + 1e-5) - world.flow(process, half, 0.4, 0.4 - 1e-5)
    close(step / 2e-5, velocity, 1e-6)  # the third derivative is below 1e4


def test_flow_is_the_same_whichever_process_carries_it():
    world, label = GaussianMixture(MEANS, 0.3, WEIGHTS), {"label": torch.tensor([0, 1, 2, -1, 1])}
    start, end = torch.tensor(-4.0, dtype=F64), torch.tensor(3.0, dtype=F64)
    u = randn(5, 2, 2)
    ends = []
    for process in (VP(), Flow(), EDM(), Cosine()):
        here, there = process.level(process.time(start)), process.level(process.time(end))
        x = world.flow(process, u * torch.hypot(here.alpha, here.sigma), here, there, cond=label)
        ends.append(x / torch.hypot(there.alpha, there.sigma))
    for other in ends[1:]:
        close(other, ends[0], 1e-9)
    whole = world.flow(Cosine(), u * torch.hypot(here.alpha, here.sigma), here, there)
    close(whole[3] / torch.hypot(there.alpha, there.sigma), ends[-1][3], 1e-9)
    assert (whole[0] - ends[-1][0]).abs().max() > 1e-2  # without its label the sample flows elsewhere


def test_flow_takes_a_time_for_each_sample_and_keeps_the_dtype():
    world, process = GaussianMixture(MEANS, 0.3, WEIGHTS), VP()
    t, s = torch.tensor([1.0, 0.5, 0.2], dtype=F64), torch.tensor([0.0, 0.5, 0.9], dtype=F64)
    x = randn(3, 2, 2)
    together = world.flow(process, x, t, s)
    for i in range(3):
        close(together[i : i + 1], world.flow(process, x[i : i + 1], float(t[i]), float(s[i])), 1e-9)
    assert torch.equal(together[1], x[1]) or (together[1] - x[1]).abs().max() < 1e-14
    single = world.flow(process, x.float(), t, s)
    assert single.dtype == torch.float32
    close(single, world.flow(process, x.float().double(), t, s).float(), 1e-6)


def test_flow_of_a_data_set_stops_above_zero():
    world, process = Empirical(randn(6, 2)), Flow()
    x = randn(4, 2, seed=1)
    with pytest.raises(ValueError, match="posterior_mean"):
        world.flow(process, x, 1.0, 0.0)
    near = world.flow(process, x, 1.0, 1e-3)
    narrow = GaussianMixture(world.data.double(), 1e-9).flow(process, x, 1.0, 1e-3)
    close(near, narrow, 1e-8)
    nearest = torch.cdist(near, world.data).min(1).values
    assert (nearest < 10e-3).all()  # sigma times the size of u, and 1 - alpha
    close(world.flow(process, near, 1e-3, 1.0), x, 1e-6)


# --- samples and labels ----------------------------------------------------------------------------------------------


@kinds
def test_samples_have_the_moments(kind: str):
    """Five standard errors of each of 4 + 16 moments, estimated from the sample's own fourth moments."""
    world, n = KINDS[kind](), 40_000
    x = world.sample(n, seed=3)
    assert x.shape == (n, 2, 2)
    assert x.dtype == F64
    flat = x.flatten(1)
    mean, cov = world.moments()
    assert ((flat.mean(0) - mean.flatten()).abs() < 5 * (cov.diagonal() / n).sqrt()).all()
    apart = flat - mean.flatten()
    products = apart[:, :, None] * apart[:, None]
    assert ((products.mean(0) - cov).abs() < 5 * products.std(0) / math.sqrt(n)).all()
    if kind not in ("empirical", "gaussian"):
        # the law itself, not its moments: E log p is the negative entropy, so a Gaussian of the same moments has less
        gap = world.log_prob(x) - Gaussian(mean, cov).log_prob(x)
        assert gap.mean() > 5 * gap.std() / math.sqrt(n)
        # and grad log p has mean zero and E[score x^T] = -I (Stein): five standard errors
        score = world.score(x).flatten(1)
        stein = score[:, :, None] * flat[:, None] + torch.eye(4, dtype=F64)
        for zero in (score, stein.flatten(1)):
            assert (zero.mean(0).abs() < 5 * zero.std(0) / math.sqrt(n)).all()


def test_samples_are_named_by_their_seed():
    world = GaussianMixture(torch.randn(3, 2), 0.1)
    x, y = world.sample(50, seed=1, labels=True)
    assert x.dtype == torch.float32
    assert torch.equal(x, world.sample(50, seed=1))
    assert not torch.equal(x, world.sample(50, seed=2))
    assert torch.equal(x, world.sample(50, seed=torch.Generator().manual_seed(1)))
    assert world.sample(3, seed=1, dtype=F64).dtype == F64
    assert y.shape == (50,)


@pytest.mark.parametrize("kind", ["mixture", "empirical"])
def test_labels_name_components_and_restrict_them(kind: str):
    labels = torch.tensor([7, 2, 7, 2, 5])
    weights = torch.tensor([1.0, 2, 3, 4, 5], dtype=F64)
    means, stds = 10 * randn(5, 2), 0.1 + 0.1 * torch.arange(5.0).double()
    make: Callable[..., World] = (
        (lambda rows: GaussianMixture(means[rows], stds[rows], weights[rows], labels=labels[rows]))
        if kind == "mixture"
        else (lambda rows: Empirical(means[rows], labels[rows], weights[rows]))
    )
    world = make(slice(None))
    x, y = world.sample(20_000, seed=0, labels=True)
    for label in (2, 5, 7):
        p = float(weights[labels == label].sum() / weights.sum())
        assert abs((y == label).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / 20_000)
    nearest = torch.cdist(x, means).argmin(1)
    assert (labels[nearest] == y).double().mean() > 0.999  # components ten apart, at most 0.5 wide
    # each sample with a label of its own, -1 for none
    asked = torch.tensor([2, 7, -1, 5, 2, -1])
    t = torch.linspace(0.2, 0.9, 6, dtype=F64)
    points = 3 * randn(6, 2, seed=5)
    for process in (VP(), Flow()):
        for answer in ("log_prob", "score", "posterior_mean", "posterior_cov"):
            got = getattr(world, answer)(points, process, t, {"label": asked})
            scalar = getattr(world, answer)(points, process, 0.4, {"label": asked})
            for i, label in enumerate(asked.tolist()):
                alone = world if label < 0 else make((labels == label).nonzero()[:, 0])
                one = points[i : i + 1]
                assert torch.allclose(
                    got[i : i + 1], getattr(alone, answer)(one, process, float(t[i])), rtol=1e-11, atol=1e-11
                )
                assert torch.allclose(
                    scalar[i : i + 1], getattr(alone, answer)(one, process, 0.4), rtol=1e-11, atol=1e-11
                )
    chosen = world.sample(6, seed=1, labels=True, cond={"label": asked})[1]
    assert (chosen[asked >= 0] == asked[asked >= 0]).all()
    denoiser = world.denoiser(VP())
    free = denoiser.forward(points, 0.4, denoiser.without({"label": asked}))
    close(free, denoiser.forward(points, 0.4), 1e-15)


def test_a_label_and_a_shift_live_in_one_condition():
    world, process = GaussianMixture(MEANS, 0.3), MeanReverting()
    cond = {"mean": randn(5, 2, 2), "label": torch.tensor([0, 1, 2, -1, 0])}
    x = randn(5, 2, 2, seed=3)
    both = world.denoiser(process, "velocity")(x, 0.4, cond)
    assert both.head("main") is both
    alone = Gaussian(MEANS[1], std=0.3).denoiser(process, "velocity")(x, 0.4, {"mean": cond["mean"]})
    close(both.velocity[1], alone.velocity[1], 1e-13)
    close(both.x0[1], alone.x0[1], 1e-13)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_refusals_of_worlds():
    means = randn(3, 2)
    cases: list[tuple[str, Callable[[], Any]]] = [
        (r"stds, covs or factors", lambda: GaussianMixture(means)),
        (r"must not be negative: got -0\.5", lambda: GaussianMixture(means, torch.tensor([0.1, -0.5, 0.2]))),
        (r"\(3,\) or \(3, 2\): got \(2,\)", lambda: GaussianMixture(means, torch.ones(2))),
        (r"positive and finite: got 0", lambda: GaussianMixture(means, 0.1, torch.tensor([1.0, 0, 1]))),
        (r"positive and finite: got -2", lambda: Empirical(means, weights=torch.tensor([1.0, 1, -2]))),
        (r"weights have shape \(2,\)", lambda: GaussianMixture(means, 0.1, torch.ones(2))),
        (r"labels have shape \(4,\)", lambda: Empirical(means, torch.arange(4))),
        (r"not negative.*-3", lambda: Empirical(means, torch.tensor([0, -3, 1]))),
        (r"covs of 3 components", lambda: GaussianMixture(means, covs=psd(3, 3))),
        (
            r"covariance 1 is not positive.*-1",
            lambda: GaussianMixture(
                means, covs=torch.stack([torch.diag(torch.tensor(v)) for v in ([1.0, 1], [1.0, -1], [1.0, 2])])
            ),
        ),
        (
            r"covariance 0 is not symmetric",
            lambda: GaussianMixture(means[:1], covs=torch.tensor([[[1.0, 0.5], [0, 1]]])),
        ),
        (r"neither stds nor factors", lambda: GaussianMixture(means, 0.1, covs=psd(3, 2))),
        (r"\(3, 2, rank\)", lambda: GaussianMixture(means, factors=randn(3, 3, 1))),
        (r"means must be finite: got nan", lambda: GaussianMixture(means * math.nan, 0.1)),
        (r"row 1 is not", lambda: Empirical(torch.tensor([[0.0], [math.inf]]))),
        (r"at least one point", lambda: Empirical(torch.zeros(0, 2))),
        (r"one row a component", lambda: GaussianMixture(torch.zeros(0, 2), 0.1)),
    ]
    for message, make in cases:
        with pytest.raises(ValueError, match=message):
            make()


def test_refusals_of_questions():
    world, process, x = GaussianMixture(randn(3, 2), 0.1), VP(), randn(4, 2)
    y, a = randn(1), randn(1, 2)
    cases: list[tuple[str, Callable[[], Any]]] = [
        (r"\(batch, \*\(2,\)\): got \(4, 3\)", lambda: world.score(randn(4, 3), process, 0.5)),
        (r"outside|\[0, 1\]", lambda: world.score(x, process, 1.5)),
        (r"belong together", lambda: world.log_prob(x, process)),
        (
            r"label 3 is out of range.*0 to 2",
            lambda: world.score(x, process, 0.5, {"label": torch.tensor([0, 3, 1, 2])}),
        ),
        (r"label -2 is out of range", lambda: world.sample(1, cond={"label": torch.tensor([-2])})),
        (r"shape \(4,\)", lambda: world.score(x, process, 0.5, {"label": torch.tensor([0])})),
        (r"torch.float32", lambda: world.score(x, process, 0.5, {"label": torch.zeros(4)})),
        (r'cond=\{"label"', lambda: world.score(x, process, 0.5, torch.zeros(4).long())),
        (r"A \(m, 2\).*A \(1, 3\)", lambda: world.posterior(y, randn(1, 3), 0.1)),
        (r"noise_std or noise_cov", lambda: world.posterior(y, a)),
        (r"not negative.*-0\.1", lambda: world.posterior(y, a, -0.1)),
        (r"noise_cov has shape \(1, 1\)", lambda: world.posterior(y, a, noise_cov=torch.eye(2))),
        (r"not positive semi-definite", lambda: world.posterior(y, a, noise_cov=-torch.eye(1))),
        (r"singular, add noise", lambda: world.posterior(randn(2), torch.ones(2, 2), 0.0)),
        (r"noise in every measurement", lambda: Empirical(randn(3, 2)).posterior(y, a, 0.0)),
        (r"mean in the condition", lambda: world.denoiser(MeanReverting())(x, 0.5)),
    ]
    for message, ask in cases:
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_covariance_says_how_many_it_holds():
    covariance = Covariance.low_rank(randn(3, 4, 2), torch.tensor([0.1, 0.2, 0.0], dtype=F64))
    assert len(covariance) == 3
    assert covariance.rank == 2
    assert covariance.smallest == 0
    assert GaussianMixture(randn(2, 3), torch.tensor([0.0, 1.0])).singular
    assert not KINDS["full"]().singular


def test_the_flow_map_is_a_flow_map() -> None:
    """X(x, t, t) = x, X(X(x, t, u), u, s) = X(x, t, s), and its slope in s at s = t is the exact velocity; a straight
    line along that velocity, the nearest simpler map, misses X(x, t, s)."""
    process, world = (
        Flow(),
        GaussianMixture(torch.tensor([[-1.0, 0.5], [2.0, 0.0]], dtype=F64), torch.tensor([0.3, 0.5])),
    )
    jump, x = world.flow_map(process), torch.tensor([[0.4, -0.3], [1.0, 0.7]], dtype=F64)
    torch.testing.assert_close(jump(x, 0.6, 0.6), x, rtol=0, atol=1e-14)
    far = jump(x, 0.9, 0.1)
    torch.testing.assert_close(jump(jump(x, 0.9, 0.4), 0.4, 0.1), far, rtol=1e-8, atol=1e-8)
    velocity = world.denoiser(process)(x, 0.5).velocity
    slope = (jump(x, 0.5, 0.5 + 1e-5) - jump(x, 0.5, 0.5 - 1e-5)) / 2e-5
    torch.testing.assert_close(slope, velocity, rtol=0, atol=1e-6)
    assert float((x - 0.8 * world.denoiser(process)(x, 0.9).velocity - far).abs().min()) > 1e-2
