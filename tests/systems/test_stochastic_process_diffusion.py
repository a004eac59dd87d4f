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
    with every further point, so that no level is noisy on a fine grid. (3) Samples at irregular times, by ancestral
    steps and by the flow, have the autocovariance of the data: whitened by it, the mean of squares of n values has
    standard error sqrt(2/n)."""
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

    for world in (Functions(OU(0.3)), Functions(Sine(0.7))):
        times = irregular(600, 10, seed=5)
        model, cond, values = world.denoiser(process), {"times": times}, times.numel()
        for solver, steps in ((orn.DDPM(), 50), (orn.UniPC(), 20)):
            x = orn.sample(model, times.shape, cond=cond, solver=solver, steps=steps, seed=6, dtype=F64).x
            root = torch.linalg.cholesky(world.covariance(times))
            squares = torch.linalg.solve_triangular(root, x[..., None], upper=False).square()
            assert float(squares.mean()) == pytest.approx(1, abs=4.5 * math.sqrt(2 / values) + 0.02)


def test_imputation_and_forecast():
    """Given some values of irregular series, the samples of the rest are the exact posterior's: by its mean and
    covariance they are of mean 0 and variance 1, and their CRPS is that of its own draws. What was observed comes back.
    Observing the past alone makes it a forecast. Blind to what was observed the same sampler scores half as much more."""
    process, m = GaussianProcessNoise(VP(), OU(0.4)), 24
    for world in (Functions(OU(0.3)), Functions(Sine(0.7))):
        times = irregular(30, 10, seed=1).sort(1).values
        values = world.sample(times, seed=2)
        gaps = (irregular(30, 10, seed=3) < 0.6).double()
        past = (torch.arange(10) < 7).double().expand(30, 10)
        for observed in (gaps, past):
            rows = {"times": times, "values": values * observed, "observed": observed}
            cond = {name: part.repeat(m, 1) for name, part in rows.items()}
            model = world.denoiser(process)
            x = orn.sample(model, (30 * m, 10), cond=cond, steps=15, seed=4, dtype=F64).x.reshape(m, 30, 10)
            mean, cov = world.posterior(times, values, observed)
            hidden = observed == 0
            torch.testing.assert_close(x[:, ~hidden], values[~hidden].expand(m, -1), rtol=0, atol=1e-2)
            std = cov.diagonal(dim1=1, dim2=2).sqrt()
            z = ((x - mean) / std)[:, hidden]
            # draws within a series are correlated: 30 m independent ones at least
            assert float(z.mean()) == pytest.approx(0, abs=4.5 / math.sqrt(30 * m))
            assert float(z.square().mean()) == pytest.approx(1, abs=4.5 * math.sqrt(2 / (30 * m)) + 0.02)
            exact = mean + (torch.linalg.cholesky(cov + torch.diag_embed(1e-12 + observed)) @ _z(m, 30, 10))[..., 0]
            own, ideal = (float(crps(s, values)[hidden].mean()) for s in (x, exact))
            assert own == pytest.approx(ideal, rel=0.1)  # both of 24 draws for the same truths
            blind = orn.sample(model, (30 * m, 10), cond={"times": cond["times"]}, steps=15, seed=4, dtype=F64).x
            assert float(crps(blind.reshape(m, 30, 10), values)[hidden].mean()) > 1.5 * ideal


def _z(*shape):
    return torch.randn(*shape, 1, generator=torch.Generator().manual_seed(9), dtype=F64)


def test_crps_is_that_of_a_normal_forecast():
    """Of N(mu, s^2): s [w (2 Phi(w) - 1) + 2 phi(w) - 1/sqrt(pi)] with w = (y - mu)/s; 40,000 draws, 4.5 errors."""
    y, m = torch.tensor([-1.0, 0.3, 2.5], dtype=F64), 40_000
    x = 0.5 + 2 * torch.randn(m, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    w = (y - 0.5) / 2
    phi = torch.exp(-w.square() / 2) / math.sqrt(2 * math.pi)
    truth = 2 * (w * torch.erf(w / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi))
    torch.testing.assert_close(crps(x, y), truth, rtol=0, atol=4.5 * 2 / math.sqrt(m))
    three = torch.tensor([[0.0], [1.0], [4.0]], dtype=F64)
    assert float(crps(three, torch.tensor([2.0]))) == pytest.approx(5 / 3 - (1 + 4 + 3) / 6)
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
