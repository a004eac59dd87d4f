"""Gaussian-process noise over irregular times, and the exact world of functions."""

import copy
import math
import pickle

import pytest
import torch

import ornstein as orn
from ornstein.exact import Functions
from ornstein.processes import OU, RBF, VP, Correlated, GaussianProcessNoise, Sine
from worlds import F64, normal

KERNELS = [OU(0.3), RBF(0.2), Sine(0.7, 0.05)]


def irregular(batch, n, seed=0):
    return torch.rand(batch, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_the_noise_is_the_process_at_its_times(kernel):
    """At one set of times for all, the empirical covariance is the kernel's within 4.5 standard errors at 15 entries;
    sample by sample, L L^T is the kernel; each sample's noise is that of its seed; the density is the normal one."""
    process, n = GaussianProcessNoise(VP(), kernel), 20_000
    at = irregular(1, 5)
    truth = kernel(at)[0]
    noise = process.draw_noise((n, 5), orn.Noise(0, batch=n, dtype=F64), {"times": at.expand(n, 5)})
    spread = torch.sqrt((1 + truth**2) / n)
    assert float(((torch.cov(noise.T) - truth).abs() / spread).max()) < 4.5
    assert float(((torch.cov(noise.T) - torch.eye(5)).abs() / spread).max()) > 4.5
    assert float(((torch.cov(noise.T) - 1.1 * truth).abs() / spread).max()) > 4.5

    cond = {"times": irregular(4, 5, seed=1)}
    factor = process.factor(normal(4, 5), cond)
    torch.testing.assert_close(factor @ factor.mT, kernel(cond["times"]))
    whole = process.prior((4, 5), seed=[1, 2, 3, 4], cond=cond, dtype=F64)
    rows = process.prior((2, 5), seed=[4, 2], cond={"times": cond["times"][[3, 1]]}, dtype=F64)
    torch.testing.assert_close(rows, whole[[3, 1]])
    x, end = normal(4, 5), process.level(1.0).sigma ** 2
    law = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=F64), end * kernel(cond["times"]))
    torch.testing.assert_close(process.log_prior(x, cond), law.log_prob(x))
    two = torch.stack([x, 2 * x], 1)  # channels are independent
    torch.testing.assert_close(process.log_prior(two, cond), law.log_prob(x) + law.log_prob(2 * x))
    z = normal(4, 2, 5)
    torch.testing.assert_close(process.colour(z, cond)[:, 1], process.colour(z[:, 1], cond))
    torch.testing.assert_close(process.whiten(process.colour(z, cond), cond), z)
    inverse = torch.linalg.inv(kernel(cond["times"]))
    torch.testing.assert_close(process.precision(z, cond), z @ inverse)


def test_kept_factors_are_never_stale():
    process, z = GaussianProcessNoise(), normal(3, 4)
    times = irregular(3, 4)
    first = process.colour(z, {"times": times})
    assert torch.equal(process.colour(z, {"times": times.clone()}), first)
    times.numpy()[1, 2] += 0.5  # behind torch's back
    second = process.colour(z, {"times": times})
    assert torch.equal(second[0], first[0])
    assert not torch.equal(second[1], first[1])
    assert torch.equal(process.colour(z, {"times": times}), GaussianProcessNoise().colour(z, {"times": times}))
    half = process.colour(z.float(), {"times": times.float()})
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), second, rtol=1e-5, atol=1e-5)
    assert pickle.loads(pickle.dumps(process)) == copy.deepcopy(process) == process == GaussianProcessNoise()
    assert hash(process) == hash(GaussianProcessNoise())


def test_the_world_of_functions():
    """Samples, density and posterior against dense linear algebra with what is hidden left out."""
    world, times = Functions(RBF(0.3, 1e-3), mean=0.5, std=2.0), irregular(20_000, 3)
    times[:] = times[0]
    x = world.sample(times, seed=1)
    k = 4 * RBF(0.3, 1e-3)(times[:1])[0]
    assert float(((torch.cov(x.T) - k).abs() / torch.sqrt((16 + k**2) / len(x))).max()) < 4.5
    assert float((x.mean(0) - 0.5).abs().max()) < 4.5 * 2 / math.sqrt(len(x))

    times = irregular(5, 6, seed=2)
    values, k = world.sample(times, seed=3), world.covariance(times)
    law = torch.distributions.MultivariateNormal(torch.full((6,), 0.5, dtype=F64), k)
    torch.testing.assert_close(world.log_prob(times, values), law.log_prob(values))
    observed = (irregular(5, 6, seed=4) < 0.5).double()
    observed[0] = 0
    gone = torch.where(observed > 0, values, math.nan)  # hidden values are not read
    mean, cov = world.posterior(times, gone, observed)
    for i in range(5):
        o, h = observed[i] > 0, observed[i] == 0
        solve = torch.linalg.solve(k[i][o][:, o], k[i][o][:, h])
        torch.testing.assert_close(mean[i, h], 0.5 + solve.T @ (values[i, o] - 0.5))
        torch.testing.assert_close(cov[i][h][:, h], k[i][h][:, h] - k[i][h][:, o] @ solve)
        assert torch.equal(mean[i, o], values[i, o])
        assert not bool(cov[i, o].any())


@pytest.mark.parametrize("base", [orn.VP(), orn.Flow(), orn.EDM(10.0)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("coloured", [True, False])
def test_exact_denoisers(base, coloured):
    """E[x0 | x_t] = m + alpha C S^-1 (x - alpha m) with S = alpha^2 C + sigma^2 Sigma, every view, times a sample,
    channels, with values observed or none; the score is -S^-1 (x - alpha m), where nothing is observed: that of
    the density. The rival -noise/sigma is not."""
    process = GaussianProcessNoise(base, OU(0.4)) if coloured else base
    world, times = Functions(RBF(0.2, 1e-2), mean=-0.3), irregular(4, 5)
    x, t = normal(4, 2, 5), torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)
    level, values = process.level(t), world.sample(times, seed=7, channels=2)
    observed = torch.tensor([[1, 0, 1, 0, 0], [0] * 5, [0, 0, 0, 0, 1], [1, 1, 1, 1, 0]], dtype=F64)
    given = {"times": times, "values": values, "observed": observed}
    for cond in ({"times": times}, given):
        m, c = torch.full_like(x, -0.3), world.covariance(times)
        if cond is given:
            m, c = world.posterior(times, values, observed)
        a, s = level.alpha[:, None, None], level.sigma[:, None, None]
        noise = OU(0.4)(times) if coloured else torch.eye(5, dtype=F64).expand(4, 5, 5)
        solved = torch.linalg.solve(a**2 * c + s**2 * noise, (x - a * m).mT).mT
        for view in ("x0", "noise", "velocity", "v"):
            p = world.denoiser(process, view)(x, t, cond)
            torch.testing.assert_close(p.x0, m + a * solved @ c, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(p.noise, s * solved @ noise, rtol=1e-8, atol=1e-8)
            torch.testing.assert_close(p.score, -solved, rtol=1e-7, atol=1e-7)
    flat = world.denoiser(process)(x[:, 1], t, {"times": times})
    torch.testing.assert_close(flat.x0, world.denoiser(process)(x, t, {"times": times}).x0[:, 1])
    if coloured:
        assert float((p.score + p.noise / s).abs().max()) > 0.1


def test_at_equal_times_it_is_correlated_noise():
    """One matrix for all samples: the exact worlds of `Correlated` and of functions agree, and samplers run alike."""
    times, k = irregular(1, 4), RBF(0.3, 1e-2)
    fixed = Correlated(VP(), k(times)[0])
    process, cond = GaussianProcessNoise(VP(), k), {"times": times.expand(6, 4)}
    data = OU(0.5)
    gaussian = orn.exact.Gaussian(torch.zeros(4, dtype=F64), cov=data(times)[0])
    for solver in (orn.UniPC(), orn.EulerMaruyama(), orn.DDPM()):
        own = {"solver": solver, "steps": 8, "seed": 1, "dtype": F64}
        one = orn.sample(Functions(data).denoiser(process), (6, 4), cond=cond, **own).x
        torch.testing.assert_close(one, orn.sample(gaussian.denoiser(fixed), (6, 4), **own).x, rtol=1e-8, atol=1e-9)


def test_refusals():
    process, times = GaussianProcessNoise(VP(), OU()), irregular(3, 4)
    with pytest.raises(ValueError, match=r"cond\['times'\] \(batch, n\): got None"):
        process.prior((3, 4))
    with pytest.raises(ValueError, match=r"got \['label'\]"):
        process.prior((3, 4), cond={"label": times})
    with pytest.raises(ValueError, match=r"\(3, 5\) at \(3, 4\)"):
        process.prior((3, 5), cond={"times": times})
    twice = times.clone()
    twice[1, 3] = twice[1, 0]
    with pytest.raises(ValueError, match=r"sample 1, whose closest times are 0 apart.*eigenvalue"):
        process.prior((3, 4), cond={"times": twice})
    GaussianProcessNoise(VP(), OU(nugget=1e-3)).prior((3, 4), cond={"times": twice})
    twice[2, 0] = math.nan
    with pytest.raises(ValueError, match="sample 2 are not"):
        process.prior((3, 4), cond={"times": twice})
    with pytest.raises(ValueError, match="length=0"):
        OU(0.0)
    with pytest.raises(ValueError, match="nugget=1"):
        RBF(nugget=1.0)
    with pytest.raises(ValueError, match="std=0"):
        Functions(OU(), std=0)
    with pytest.raises(ValueError, match="belong to times"):
        Functions(OU()).posterior(times, times, times[:, :2])
    with pytest.raises(orn.ViewError, match="functions answer"):
        Functions(OU()).denoiser(process, "score")
