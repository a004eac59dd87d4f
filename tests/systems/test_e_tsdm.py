"""E-TSDM: a noise prediction whose derivative in time is infinite at 0, and a timestep under which it is not."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.density import time_lipschitz
from ornstein.numerics.quadrature import between
from ornstein.training import SharedTimestep
from worlds import F64

PROCESS, STD, DIM = orn.VP(), 0.5, 64
WORLD = orn.exact.GaussianMixture(torch.zeros(1, DIM, dtype=F64), torch.tensor([STD], dtype=F64))
SHARED = SharedTimestep(until=0.1, intervals=5)


def gain(t):
    """E[noise | x_t] = gain x_t and the standard deviation of x_t, for Gaussian data."""
    level = PROCESS.level(t)
    variance = level.alpha**2 * STD**2 + level.sigma**2
    return level.sigma / variance, variance.sqrt()


class Learned(torch.nn.Module):
    """What a network of the noise learns that is told c: E[noise | x, c], a mean over the times that share c."""

    def forward(self, x, c):
        shared = c < SHARED.until
        width = SHARED.until / SHARED.intervals
        start = c[:1].double()
        nodes, weights = between(start, (start + width).clamp(max=1), 80)
        gains, stds = gain(nodes[0])
        squares = x.double().square().sum(1, keepdim=True)
        p = (-squares / (2 * stds**2) - DIM * stds.log() + weights[0].log()).softmax(1)
        alone = gain(start)[0]
        return torch.where(shared[:, None], (p @ gains[:, None]), alone) * x


PLAIN = WORLD.denoiser(PROCESS, predicts="noise")
MAPPED = orn.Denoiser(Learned(), PROCESS, predicts="noise", timestep=SHARED)


@pytest.mark.system("e-tsdm", rival="the same network told t itself")
def test_e_tsdm():
    x0 = WORLD.sample(200, seed=0).to(F64)
    times = 2.0 ** -torch.arange(4, 31, 2, dtype=F64)

    # the rival's ratio is the closed form, and doubles whenever t is quartered
    plain = time_lipschitz(PLAIN, x0, times, seed=1)
    gains, stds = gain(times)
    size = stds[1:] * math.exp(math.lgamma((DIM + 1) / 2) - math.lgamma(DIM / 2)) * math.sqrt(2 / DIM)
    # the mean over 200 samples of a norm of 64 entries, whose relative spread is 1/sqrt(128): 5 standard errors
    torch.testing.assert_close(
        plain, gains.diff().abs() / times.diff().abs() * size, rtol=5 / math.sqrt(128 * 200), atol=0
    )
    # g = sigma/(c + (1 - c) sigma^2) is sigma/c to sigma^2 = beta_min t = 1e-6 and (beta_max - beta_min) t/4 = 5e-5
    assert float(plain[-1] / plain[-2]) == pytest.approx(2, rel=5 / math.sqrt(64 * 200))
    assert float(plain[-1]) > 1000 * float(time_lipschitz(PLAIN, x0, torch.tensor([0.1, 0.2], dtype=F64), seed=1))

    # the mapped network's is not: nothing changes inside an interval, and from one to the next the change by the width
    # is at most that of the rival over the two intervals
    assert float(time_lipschitz(MAPPED, x0, times[2:], seed=1).abs().max()) == 0  # below 1/64 < 0.02: one interval
    ends = torch.arange(6, dtype=F64) * 0.02 + 1e-9
    mapped = time_lipschitz(MAPPED, x0, ends, clock=SHARED, seed=1)
    width, reach = 0.02, gain(torch.tensor([0.0, 0.04], dtype=F64))
    assert float(mapped.max()) < float(reach[0].diff()) / width * float(size.max())
    assert float(mapped.max()) < float(plain[-1]) / 100
    assert float(mapped.min()) > 0
    # over the whole of t it jumps, where the clock does: no bound holds in t itself
    jump = time_lipschitz(MAPPED, x0, torch.tensor([0.02 - 1e-12, 0.02 + 1e-12], dtype=F64), seed=1)
    assert float(jump) > float(plain[-1])


def test_what_is_told():
    t = torch.tensor([0.0, 0.0199, 0.02, 0.0401, 0.06, 0.0999, 0.1, 0.5, 1.0], dtype=F64)
    told = torch.tensor([0, 0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.5, 1], dtype=F64)
    torch.testing.assert_close(SHARED(PROCESS.level(t)), told, rtol=1e-12, atol=1e-15)
    ends = torch.arange(1000, dtype=F64) / 1000  # an end up to rounding begins its interval
    torch.testing.assert_close(SharedTimestep(1.0, 1000).times(ends), ends, rtol=1e-12, atol=0)
    table = orn.DiscreteTime(torch.linspace(0.999, 0.01, 100, dtype=F64).tolist())
    mapped = SharedTimestep(0.1, 5, of=table.timestep, process=table)
    assert mapped(table.level([0.01, 0.03, 0.09, 0.5])).tolist() == pytest.approx([0, 1, 7, 49])
    for bad in ({"until": 0.0}, {"until": 1.5}, {"intervals": 0}, {"of": table.timestep}):
        with pytest.raises(ValueError, match=r"until|least one|both"):
            SharedTimestep(**bad)
    seen = []
    model = orn.Denoiser(lambda x, c: (seen.append(c), x)[1], PROCESS, predicts="noise", timestep=SHARED)
    model(torch.zeros(2, 3), torch.tensor([0.03, 0.3]))
    assert seen[0].tolist() == pytest.approx([0.02, 0.3])


def test_refusals_of_times():
    with pytest.raises(ValueError, match="at least two"):
        time_lipschitz(PLAIN, WORLD.sample(2, seed=0).to(F64), torch.tensor([0.1]))
