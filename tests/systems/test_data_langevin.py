"""The vanilla score samples a multimodal law if the chain starts at data and stops early."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import langevin
from worlds import F64

PROCESS, H = orn.VP(), 0.02


def world(apart, weight):
    """Two modes of standard deviation 0.5 at -apart and apart, the first of the given weight."""
    means = torch.tensor([[-apart], [apart]], dtype=F64)
    return orn.exact.GaussianMixture(means, 0.5, torch.tensor([weight, 1 - weight], dtype=F64))


def curve(model, truth, start, times):
    """TV to the truth after each number of steps, by quadrature of the chain's transition density: no sampling."""
    y = torch.linspace(-7, 7, 701, dtype=F64)
    dy = float(y[1] - y[0])
    drift = y + H * model.score(y[:, None])[:, 0]

    def step(to, centre):
        return torch.exp(-((to[:, None] - centre) ** 2) / (4 * H)) / math.sqrt(4 * math.pi * H)

    kernel = step(y, drift) * dy
    first = start + H * model.score(start[:, None])[:, 0]
    p, target = step(y, first).mean(1), truth.log_prob(y[:, None]).exp()
    found = []
    for k in range(1, max(times) + 1):
        if k in times:
            found.append(float((p - target).abs().sum() * dy / 2))
        p = kernel @ p
    return found


@pytest.mark.system("data-langevin", rival="the same chain from a random start, and run on instead of stopped")
def test_data_langevin():
    generator = torch.Generator().manual_seed(1)

    # far modes: from data the weights stay, from elsewhere they are those of the basins, whatever the score knows
    truth, blind = world(2.5, 0.8), world(2.5, 0.5)
    data = truth.sample(100, seed=0)
    have = float((data < 0).double().mean())
    scattered = 4 * torch.randn(1000, 1, generator=generator, dtype=F64)
    for model in (truth, blind):  # the score hardly depends on the weights, so that a learned one has them wrong
        oracle = model.denoiser(PROCESS, predicts="score")
        kept = langevin(oracle, data.repeat(10, 1), step=H, steps=120, seed=0).x
        lost = langevin(oracle, scattered, step=H, steps=120, seed=0).x
        assert float((kept < 0).double().mean()) == pytest.approx(have, abs=0.01)
        assert float((lost < 0).double().mean()) == pytest.approx(0.5, abs=0.06)  # 4 standard errors of 1000
    assert abs(have - 0.8) < 4 * 0.04  # a hundred data know the weight to 0.04

    # each mode is filled: the variance is that of the chain, v/(1 - h/2v), to 5 standard errors of 800
    within = langevin(truth.denoiser(PROCESS, predicts="score"), data.repeat(10, 1), step=H, steps=120, seed=0).x
    within = within[within < 0]
    assert float(within.var()) == pytest.approx(0.25 / (1 - H / 0.5), rel=5 * math.sqrt(2 / 800))

    # nearer modes and a score with the weights wrong: the error falls, and rises again as the chain crosses over
    truth, wrong = world(1.25, 0.8), world(1.25, 0.5)
    data = truth.sample(100, seed=0)
    times = (1, 4, 10, 20, 40, 100, 400, 1000)
    error = curve(wrong, truth, data[:, 0], times)
    best = error.index(min(error))
    assert 0 < best < len(times) - 1
    assert error[0] > 1.5 * error[best]  # stopped too early the data are memorised
    assert error[-1] > 2 * error[best]  # run on, the chain has the weights of its score
    fine = curve(truth, truth, data[:, 0], times)
    assert fine[-1] == min(fine)  # with the right score there would be no need to stop
    assert fine[-1] < 0.05

    # and the sampler has that law: its share of the first mode at three times, to 4.5 standard errors of 2000
    out = langevin(
        wrong.denoiser(PROCESS, predicts="score"), data.repeat(20, 1), step=H, steps=400, seed=4, trajectory=True
    )
    y = torch.linspace(-7, 7, 701, dtype=F64)
    for k in (20, 100, 400):
        share = float((out.trajectory[k] < 0).double().mean())
        centre = data[:, 0] + H * wrong.score(data)[:, 0]
        p = torch.exp(-((y[:, None] - centre) ** 2) / (4 * H)).mean(1)
        kernel = torch.exp(-((y[:, None] - y - H * wrong.score(y[:, None])[:, 0]) ** 2) / (4 * H))
        for _ in range(k - 1):
            p = kernel @ p
            p = p / p.sum()
        p = p / p.sum()
        assert share == pytest.approx(float(p[y < 0].sum() + p[y == 0].sum() / 2), abs=4.5 * 0.5 / math.sqrt(2000))
    assert out.nfe == 400
