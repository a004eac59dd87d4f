"""Diffusion of functions: noise that is a process in time, so that noisy data are functions at every resolution."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.exact import Functions
from ornstein.metrics import crps
from ornstein.processes import OU, RBF, VP, DiscreteTime, GaussianProcessNoise, Sine
from worlds import F64

DSPD = DiscreteTime(tuple((1 - torch.linspace(1e-3, 0.4, 50, dtype=F64)).cumprod(0).tolist()))


def irregular(batch, n, seed=0):
    return torch.rand(batch, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.system("stochastic-process-diffusion", rival="the same diffusion with white noise")
@pytest.mark.parametrize("base", [VP(), DSPD], ids=["CSPD", "DSPD"])
def test_stochastic_process_diffusion(base):
    """What is diffused is a function. (1) It is continuous at every level: as two times meet, values of x_t do, and
    under white noise they stay 2 sigma^2 apart. (2) What x_t tells of the function does not depend on how densely it is
    looked at: the error of the exact denoiser has a limit, which 8 points nearly reach, and under white noise it falls
    with every further point, so that no level is noisy on a fine grid. (3) Samples at irregular times, by the reverse
    SDE and by the flow, have the autocovariance of the data, within 4.5 standard errors."""
    process, level = GaussianProcessNoise(base, OU(0.5)), 0.4
    data = Functions(RBF(0.3, 1e-6))

    def gap(process, apart, n=4000):
        times = torch.stack([irregular(n, 1)[:, 0], irregular(n, 1)[:, 0] + apart], 1)
        x = process.corrupt(data.sample(times, seed=1), level, cond={"times": times}, seed=2).x
        return float((x[:, 0] - x[:, 1]).square().mean())

    def error(n, coloured=True):
        """E (x0 - E[x0 | x_t])^2 at n times: the trace of C - alpha^2 C (alpha^2 C + sigma^2 Sigma)^-1 C, over n."""
        times, at = torch.linspace(0, 1, n, dtype=F64)[None], base.level(level)
        c, noise = data.covariance(times)[0], OU(0.5)(times)[0] if coloured else torch.eye(n, dtype=F64)
        return float((c - at.alpha**2 * c @ torch.linalg.solve(at.alpha**2 * c + at.sigma**2 * noise, c)).trace() / n)

    white = 2 * float(base.level(level).sigma) ** 2
    at = {apart: gap(process, apart) for apart in (1e-1, 1e-2, 1e-3)}
    # increments 2 sigma^2 (1 - e^(-h/0.5)) + those of the data, alpha^2 h^2/0.09, at 4,000 pairs
    for apart, found in at.items():
        known = white * -math.expm1(-apart / 0.5) + float(base.level(level).alpha) ** 2 * apart**2 / 0.09
        assert found == pytest.approx(known, rel=4.5 * math.sqrt(2 / 4000) + 0.02)
    assert gap(base, 1e-3) > 0.9 * white
    assert error(32) > error(128) > 0.9 * error(8)
    assert error(128) == pytest.approx(error(32), rel=0.02)
    assert error(128, coloured=False) < 0.3 * error(8, coloured=False)

    n, times = 4000, irregular(1, 6, seed=5)
    for world, solver, steps in (
        (Functions(OU(0.3)), orn.solvers.StochasticHeun(), 40),
        (Functions(Sine(0.7)), orn.UniPC(), 12),
    ):
        cond, truth = {"times": times.expand(n, 6)}, world.covariance(times)[0]
        own = {"cond": cond, "solver": solver, "steps": steps, "seed": 6, "dtype": F64}
        x = orn.sample(world.denoiser(process), (n, 6), **own).x
        spread = torch.sqrt((1 + truth**2) / n)
        assert float(((torch.cov(x.T) - truth).abs() / spread).max()) < 4.5
        assert float(((torch.cov(x.T) - OU(0.5)(times)[0]).abs() / spread).max()) > 9


def test_imputation_and_forecast():
    """Given some values of irregular series, the samples of the rest are the exact posterior's: by its mean and
    covariance they are of mean 0 and variance 1, and their CRPS is that of the posterior, in closed form. What was
    observed comes back. Observing the past alone makes it a forecast. Blind to what was observed, the same sampler
    scores worse by more than that. Of k m draws at least as many are independent, of k truths each."""
    process, k, m = GaussianProcessNoise(VP(), OU(0.4)), 20, 200
    for world in (Functions(OU(0.3)), Functions(Sine(0.7))):
        times = irregular(k, 8, seed=1).sort(1).values
        values = world.sample(times, seed=2)
        gaps = (irregular(k, 8, seed=3) < 0.6).double()
        past = (torch.arange(8) < 5).double().expand(k, 8)
        for observed in (gaps, past):
            rows = {"times": times, "values": values * observed, "observed": observed}
            cond = {name: part.repeat(m, 1) for name, part in rows.items()}
            own = {"steps": 12, "seed": 4, "dtype": F64}
            x = orn.sample(world.denoiser(process), (k * m, 8), cond=cond, **own).x.reshape(m, k, 8)
            mean, cov = world.posterior(times, values, observed)
            hidden = observed == 0
            torch.testing.assert_close(x[:, ~hidden], values[~hidden].expand(m, -1), rtol=0, atol=1e-10)
            std = cov.diagonal(dim1=1, dim2=2).sqrt()[hidden]
            z = (x - mean)[:, hidden] / std
            assert float(z.mean()) == pytest.approx(0, abs=4.5 / math.sqrt(k * m))
            assert float(z.square().mean()) == pytest.approx(1, abs=4.5 * math.sqrt(2 / (k * m)) + 0.03)
            ideal = float(normal_crps(mean[hidden], std, values[hidden]).mean())
            slack = 4.5 * float(std.mean()) / math.sqrt(k * m)  # |X - y| has a standard deviation below that of X
            assert float(crps(x, values)[hidden].mean()) == pytest.approx(ideal, abs=slack)
            blind = orn.sample(world.denoiser(process), (k * m, 8), cond={"times": cond["times"]}, **own).x
            assert float(crps(blind.reshape(m, k, 8), values)[hidden].mean()) > ideal + 2 * slack


def normal_crps(mean, std, y):
    """CRPS of N(mean, std^2): std [w (2 Phi(w) - 1) + 2 phi(w) - 1/sqrt(pi)] with w = (y - mean)/std."""
    w = (y - mean) / std
    phi = torch.exp(-w.square() / 2) / math.sqrt(2 * math.pi)
    return std * (w * torch.erf(w / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi))


def test_crps_is_that_of_a_normal_forecast():
    """40,000 draws, within 4.5 standard errors; three numbers by hand."""
    y, m = torch.tensor([-1.0, 0.3, 2.5], dtype=F64), 40_000
    x = 0.5 + 2 * torch.randn(m, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(crps(x, y), normal_crps(0.5, 2.0, y), rtol=0, atol=4.5 * 2 / math.sqrt(m))
    three = torch.tensor([[0.0], [1.0], [4.0]], dtype=F64)
    assert float(crps(three, torch.tensor([2.0]))) == pytest.approx(5 / 3 - (1 + 4 + 3) / 6 / 1.0)
    with pytest.raises(ValueError, match="m >= 2"):
        crps(three[:1], y[:1])


def test_a_network_over_times():
    """The answer moves with the points when they are put in another order, and is of any number of them."""
    torch.manual_seed(0)
    net = orn.nets.SetTransformer(channels=2, width=16, depth=2, heads=2, conditions={"values": 2, "observed": 1})
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    net = net.double()
    times = irregular(3, 6)
    x, values = (torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(i), dtype=F64) for i in range(2))
    observed = (irregular(3, 6, seed=1) < 0.5).double()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)

    def ask(order):
        cond = {"times": times[:, order], "values": values[..., order], "observed": observed[:, order]}
        return net(x[..., order], t, cond)

    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(ask(order), ask(torch.arange(6))[..., order])
    assert ask(order[:4]).shape == (3, 2, 4)
    assert float((ask(torch.arange(5)) - ask(torch.arange(6))[..., :5]).abs().max()) > 1e-3  # points see each other
    moved = net(x, t, {"times": times + 0.1, "values": values, "observed": observed})
    assert float((moved - ask(torch.arange(6))).abs().max()) > 1e-3
    one = orn.nets.SetTransformer(width=16, depth=1, heads=2)
    assert one(torch.zeros(3, 6), t.float(), {"times": times.float()}).shape == (3, 6)
    with pytest.raises(ValueError, match="x has shape"):
        one(torch.zeros(3, 2, 6), t.float(), {"times": times.float()})
    with pytest.raises(ValueError, match="names the times"):
        orn.nets.SetTransformer(conditions={"times": 1})
    model = orn.Denoiser(net, GaussianProcessNoise(), "v")
    cond = {"times": times, "values": values, "observed": observed}
    assert bool(orn.sample(model, (3, 2, 6), cond=cond, steps=3, seed=0).x.isfinite().all())
