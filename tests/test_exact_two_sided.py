"""The world of two ends against quadrature, the continuity equation, its own flow, and one-sided worlds."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.exact import GaussianMixture, TwoSidedMixture
from ornstein.processes import Interpolant, TwoSided
from worlds import F64, name, normal, ring

PROCESSES = [TwoSided(), TwoSided(orn.VP()), Interpolant(), Interpolant(orn.Cosine(), noise_level=0.3)]
PLAN = torch.tensor([[0.25, 0.05], [0.1, 0.6]], dtype=F64)


class Hump(Interpolant):
    """gamma^2 = 2 t (1 - t)^2: another latent noise, by one function."""

    def gamma2(self, t):
        return 2 * t * (1 - t) ** 2


def line() -> TwoSidedMixture:
    """Two components at each end of a line, their plan and their covariances dependent."""
    data = GaussianMixture(torch.tensor([[-1.0], [1.5]]), torch.tensor([0.5, 0.7], dtype=F64), PLAN.sum(1))
    other = GaussianMixture(torch.tensor([[0.5], [-2.0]]), torch.tensor([0.6, 0.4], dtype=F64), PLAN.sum(0))
    cross = torch.tensor([[0.1, -0.1], [0.3, 0.2]], dtype=F64)[..., None, None]
    return TwoSidedMixture(data, other, PLAN, cross=cross)


def plane(dim: int = 2) -> TwoSidedMixture:
    """Full covariances and a dependence that is not symmetric."""
    roots = normal(5, dim, dim, seed=1) / 2
    covs = roots @ roots.mT + 0.1 * torch.eye(dim, dtype=F64)
    data = GaussianMixture(2 * normal(3, dim, seed=2), covs=covs[:3], weights=torch.tensor([1.0, 2, 3]))
    other = GaussianMixture(2 * normal(2, dim, seed=3), covs=covs[3:])
    return TwoSidedMixture(data, other, cross=0.03 * normal(3, 2, dim, dim, seed=4))


def joint(x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
    """The density of `line` written out."""
    total = torch.zeros(())
    mu, nu, a, b = (-1.0, 1.5), (0.5, -2.0), (0.25, 0.49), (0.36, 0.16)
    cross = ((0.1, -0.1), (0.3, 0.2))
    for k in range(2):
        for j in range(2):
            det = a[k] * b[j] - cross[k][j] ** 2
            u, v = x0 - mu[k], x1 - nu[j]
            square = (b[j] * u**2 - 2 * cross[k][j] * u * v + a[k] * v**2) / det
            total = total + PLAN[k, j] * torch.exp(-square / 2) / (2 * math.pi * math.sqrt(det))
    return total


def brute(process, t: float, x: float) -> dict[str, float]:
    """p_t(x) and conditional means by the trapezoidal rule, which is exact to rounding for what falls off so fast."""
    level, step = process.level(t), 0.04
    line_ = torch.arange(-7, 7, step, dtype=F64)
    if isinstance(process, TwoSided):
        x0 = line_
        x1, z = (x - level.alpha * x0) / level.sigma, torch.zeros_like(line_)
        mass = joint(x0, x1) * step / level.sigma
    else:
        x0, x1 = torch.meshgrid(line_, line_, indexing="ij")
        z = (x - level.alpha * x0 - level.beta * x1) / level.sigma
        mass = joint(x0, x1) * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) / level.sigma * step**2
    p = float(mass.sum())
    means = {"x0": x0, "x1": x1, "z": z, "x0x1": x0 * x1, "x0x0": x0 * x0}
    return {"p": p} | {key: float((mass * value).sum()) / p for key, value in means.items()}


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_against_quadrature(process):
    """Density, E[x0], E[x1], E[z], velocity, score and posterior samples, on a line where they can be summed up."""
    world, h = line(), 1e-3
    for t, x in ((0.15, -0.7), (0.5, 0.3), (0.8, 1.1)):
        truth, level, state = brute(process, t, x), process.level(t), torch.tensor([[x]], dtype=F64)
        assert float(world.at(process, t).log_prob(state)) == pytest.approx(math.log(truth["p"]), abs=1e-10)
        x0, x1 = world.posterior_mean(state, process, t)
        assert float(x0) == pytest.approx(truth["x0"], abs=1e-9)
        assert float(x1) == pytest.approx(truth["x1"], abs=1e-9)
        around = [math.log(brute(process, t, x + k * h)["p"]) for k in (-2, -1, 1, 2)]
        slope = (around[0] - 8 * around[1] + 8 * around[2] - around[3]) / (12 * h)  # to h^4
        assert float(world.score(state, process, t)) == pytest.approx(slope, abs=1e-8)
        answer = world.denoiser(process)(state, t)
        if isinstance(process, TwoSided):
            expected = float(level.d_alpha) * truth["x0"] + float(level.d_sigma) * truth["x1"]
            assert float(answer.noise) == pytest.approx(truth["x1"], abs=1e-9)
            assert float(answer.x0) == pytest.approx(truth["x0"], abs=1e-9)
        else:
            expected = float(level.d_alpha) * truth["x0"] + float(level.d_beta) * truth["x1"]
            expected += float(level.d_sigma) * truth["z"]
            assert float(answer.noise) == pytest.approx(truth["z"], abs=1e-9)
        assert float(answer.velocity) == pytest.approx(expected, abs=1e-9)

        n = 20_000
        many = state.expand(n, 1)
        for times in (t, torch.full((n,), t, dtype=F64)):
            x0, x1 = world.posterior_sample(many, process, times, seed=0)
            for value, exact in ((x0, "x0"), (x1, "x1"), (x0 * x1, "x0x1"), (x0**2, "x0x0")):
                assert float(value.mean()) == pytest.approx(truth[exact], abs=5 * float(value.std()) / math.sqrt(n))
        if isinstance(process, TwoSided):
            torch.testing.assert_close(level.alpha * x0 + level.sigma * x1, many, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [*PROCESSES, Hump()], ids=name)
def test_continuity_and_change_of_variables(process):
    """d log p/dt + div velocity + velocity . score = 0; and the flow carries the density with its own Jacobian:
    log p_t(x) = log p_s(X(x)) + log |dX/dx|. The density comes from `at`, by the ends' own covariances alone."""
    world, x, h = plane(), normal(6, 2, seed=5), 1e-4
    for t in (0.2, 0.6, 0.9):
        rise = (world.at(process, t + h).log_prob(x) - world.at(process, t - h).log_prob(x)) / (2 * h)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda y, t=t: world.velocity(y[None], process, t)[0]))(x)
        moved = (world.velocity(x, process, t) * world.at(process, t).score(x)).sum(1)
        torch.testing.assert_close(rise, -jacobian.diagonal(dim1=1, dim2=2).sum(1) - moved, rtol=1e-5, atol=1e-5)
    few = x[:2].clone().requires_grad_()
    there = world.flow(process, few, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    rows = [torch.autograd.grad(there[:, i].sum(), few, retain_graph=True)[0] for i in range(2)]
    volume = torch.linalg.slogdet(torch.stack(rows, 1)).logabsdet
    ends = world.at(process, 1.0).log_prob(few), world.at(process, 0.0).log_prob(there)
    torch.testing.assert_close(ends[0], ends[1] + volume, rtol=1e-6, atol=1e-6)


def test_ends_and_samples():
    """The laws at both ends are those given, whatever joins them, and samples have the joint's moments."""
    world, n = plane(), 40_000
    x = normal(5, 2)
    for process in PROCESSES:
        for t, end in ((0.0, world.data), (1.0, world.other)):
            if not isinstance(process, TwoSided) or process.base == orn.Flow():  # VP leaves a little data at t = 1
                torch.testing.assert_close(world.at(process, t).log_prob(x), end.log_prob(x))
    x0, x1 = line().sample(n, seed=0)
    mean0, mean1 = (float(law.moments()[0]) for law in (line().data, line().other))
    cross = torch.tensor([[0.1, -0.1], [0.3, 0.2]], dtype=F64)
    mu, nu = torch.tensor([-1.0, 1.5], dtype=F64), torch.tensor([0.5, -2.0], dtype=F64)
    product = float((PLAN * (cross + mu[:, None] * nu)).sum())
    for value, truth in ((x0, mean0), (x1, mean1), (x0 * x1, product)):
        assert float(value.mean()) == pytest.approx(truth, abs=5 * float(value.double().std()) / math.sqrt(n))
    assert x0.dtype == torch.float32
    assert line().sample(3, dtype=F64)[1].dtype == F64


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_ends_that_turn(process):
    """x1 is x0 turned by a quarter, but for some noise: what the continuity equation cannot see (a flux W grad p with W
    antisymmetric has no divergence). The errors of both means are uncorrelated with functions of x_t, to 5 standard
    errors, and alpha E[x0] + beta E[x1] + gamma E[z] is x_t."""
    eye, n, t = torch.eye(2, dtype=F64)[None], 20_000, 0.4
    turn = 0.8 * torch.tensor([[[[0.0, 1.0], [-1.0, 0.0]]]], dtype=F64)
    law = GaussianMixture(torch.zeros(1, 2, dtype=F64), covs=eye)
    world = TwoSidedMixture(law, law, cross=turn)
    x0, x1 = world.sample(n, seed=0, dtype=F64)
    level, x = process.level(t), process.corrupt(x0, t, x1, seed=1).x
    found = world.posterior_mean(x, process, t)
    for end, mean in zip((x0, x1), found, strict=True):
        products = ((end - mean)[:, :, None] * x[:, None]).flatten(1)
        z = products.mean(0) / (products.std(0) / math.sqrt(n))
        assert float(z.abs().max()) < 5
    latent = isinstance(process, Interpolant)
    beta, gamma = (level.beta, level.sigma) if latent else (level.sigma, torch.zeros_like(level.sigma))
    whole = level.alpha * found[0] + beta * found[1] - gamma**2 * world.score(x, process, t)
    torch.testing.assert_close(whole, x)


def test_limits():
    """A standard normal end is a diffusion; no latent noise is `TwoSided`; both to rounding. A noise that goes to
    nothing goes there: the velocities differ by O(noise_level)."""
    data, x = ring(0.3), normal(7, 2)
    t = torch.linspace(0.1, 0.9, 7, dtype=F64)
    world = TwoSidedMixture(data, GaussianMixture(torch.zeros(1, 2, dtype=F64), 1.0))
    for base in (orn.Flow(), orn.VP(), orn.Cosine()):
        mine, theirs = world.denoiser(TwoSided(base))(x, t), data.denoiser(base)(x, t)
        for view in ("velocity", "x0", "noise", "v"):
            torch.testing.assert_close(mine.view(view), theirs.view(view), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(world.score(x, TwoSided(base), t), theirs.score, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            world.flow(TwoSided(base), x, 0.9, 0.2), data.flow(base, x, 0.9, 0.2), rtol=1e-7, atol=1e-8
        )
    world = plane()
    straight = world.velocity(x, TwoSided(), t)
    torch.testing.assert_close(world.velocity(x, Interpolant(noise_level=0.0), t), straight)
    gaps = [float((world.velocity(x, Interpolant(noise_level=g), t) - straight).norm()) for g in (1e-2, 1e-3, 1e-4)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("process", [TwoSided(), Interpolant()], ids=name)
def test_denoiser(process):
    """Every view is that of the process's own identities, at the ends too, in either dtype, for any event shape."""
    world, x = plane(), normal(6, 2)
    for t in (0.0, 0.3, 1.0, torch.linspace(0, 1, 6, dtype=F64)):
        answer = world.denoiser(process)(x, t)
        torch.testing.assert_close(answer.velocity, world.velocity(x, process, t))
        if isinstance(process, Interpolant):
            level = process.level(t)
            torch.testing.assert_close(answer.score, world.score(x, process, t))
            torch.testing.assert_close(answer.noise, -level.sigma.reshape(-1, 1) * answer.score)
            # the velocity identity of the paper: b = v - gamma gamma' s, v = E[alpha' x0 + beta' x1 | x]
            x0, x1 = world.posterior_mean(x, process, t)
            slow = torch.broadcast_to(0.5 * (1 - 2 * level.t.reshape(-1, 1)), x.shape)
            torch.testing.assert_close(answer.velocity, x1 - x0 - slow * answer.score, rtol=1e-10, atol=1e-10)
            with pytest.raises(orn.ViewError, match="x0 does not follow"):
                _ = answer.x0
    single = world.denoiser(process)(x.float(), 0.3).velocity
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), world.velocity(x, process, 0.3), rtol=1e-4, atol=1e-4)
    image = TwoSidedMixture(
        GaussianMixture(world.data.means.reshape(3, 1, 2), 0.4), GaussianMixture(normal(2, 1, 2, seed=3), 0.5)
    )
    assert orn.sample(image.denoiser(process), x_init=image.sample(4)[1], steps=3).x.shape == (4, 1, 2)


def test_refusals():
    """Each by its own name and value."""
    data, other = line().data, line().other
    with pytest.raises(ValueError, match=r"the ends differ: events of \(1,\) at t = 0, \(2,\) at t = 1"):
        TwoSidedMixture(data, ring())
    with pytest.raises(ValueError, match=r"plan has shape \(2, 2\).*\(2, 1\)"):
        TwoSidedMixture(data, other, torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"0 or more: got -0.1"):
        TwoSidedMixture(data, other, torch.tensor([[0.4, -0.1], [0.1, 0.6]]))
    with pytest.raises(ValueError, match=r"component 0 of `data` the weight 0.5, the law itself 0.3"):
        TwoSidedMixture(data, other, torch.full((2, 2), 0.25))
    with pytest.raises(ValueError, match=r"of `other` the weight"):
        TwoSidedMixture(data, other, torch.tensor([[0.0, 0.3], [0.3, 0.4]]))
    with pytest.raises(ValueError, match="cross has shape"):
        TwoSidedMixture(data, other, cross=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="not positive semi-definite"):
        TwoSidedMixture(data, other, cross=torch.full((2, 2, 1, 1), 0.9))
    world = line()
    with pytest.raises(Exception, match=r"(?i)two_?sided"):  # by the type checker of the tests, or by name
        world.denoiser(orn.Flow())
    with pytest.raises(orn.ViewError, match="has no score"):
        world.denoiser(TwoSided(), "score")
    with pytest.raises(ValueError, match="one time"):
        world.at(TwoSided(), torch.tensor([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"\(batch, \*\(1,\)\)"):
        world.velocity(normal(3, 2), TwoSided(), 0.5)
    with pytest.raises(orn.ViewError, match=r"velocity of TwoSided.*not finite"):
        world.velocity(normal(3, 1), TwoSided(orn.VP()), 0.0)
    point = TwoSidedMixture(GaussianMixture(torch.zeros(1, 1), 0.0), other)
    with pytest.raises(orn.ViewError, match="no density"):
        point.velocity(normal(3, 1), TwoSided(), 0.0)
