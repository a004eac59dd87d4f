"""The time-shift sampler: the time that a state's variance shows, per sample, and what asking there repairs."""

import math

import pytest
import torch

import ornstein as orn
from ornstein._types import VIEWS
from ornstein.guidance.time_shift import TimeShift
from test_thresholding import Silent
from worlds import F64, normal

PROCESS, D = orn.VP(), 4096
SPREAD, WITHIN = 0.3, 0.4
V = SPREAD**2 + WITHIN**2


def world():
    """Four modes in 4,096 dimensions whose entries have variance V within each sample."""
    g = torch.Generator().manual_seed(0)
    means = SPREAD * torch.sign(torch.randn(4, D, generator=g, dtype=F64))
    return orn.exact.GaussianMixture(means, WITHIN)


class Watched(torch.nn.Module):
    """The exact network, which remembers the times it is asked at."""

    def __init__(self, process=PROCESS):
        super().__init__()
        self.exact, self.asked = world().denoiser(process, "noise"), []

    def forward(self, x, t):
        self.asked.append(t.clone())
        return self.exact(x, t).noise


def states(t, n, seed):
    return PROCESS.corrupt(world().sample(n, seed=seed), t, seed=seed + 1).x


def variance(t, v):
    level = PROCESS.level(t)
    return level.alpha**2 * v + level.sigma**2


@pytest.mark.parametrize("t", [0.25, 0.35])
def test_no_shift_on_exact_marginals(t):
    """var(x) of one sample deviates by V_t sqrt(2/d) at most, so t_s by that over the slope of V_t; the mean of 200 by
    4/sqrt(200) of it and half the spacing of the candidates. With data_variance = 0, as published, t_s solves
    sigma(t_s)^2 = V_t instead: a shift of many standard errors where nothing is wrong."""
    x = states(t, 200, seed=1)
    now, h = torch.tensor(t, dtype=F64), 1e-5
    slope = float(variance(now + h, V) - variance(now - h, V)) / (2 * h)
    single = float(variance(now, V)) * math.sqrt(2 / D) / slope
    shifts = {}
    for v in (V, 0.0):
        net = Watched()
        TimeShift(orn.Denoiser(net, PROCESS, "noise"), v, window=0.4, candidates=201)(x, t)
        shifts[v] = net.asked[-1] - t
    bound = 4 * single / math.sqrt(200) + 0.4 / 400
    assert abs(float(shifts[V].mean())) < bound
    assert 0.5 * single < float(shifts[V].std()) < 1.1 * single  # the means' signs share a little of the variance
    wanted = float(PROCESS.time(torch.log((1 - variance(now, V)) / variance(now, V)))) - t
    assert float(shifts[0.0].mean()) == pytest.approx(wanted, abs=0.1 * wanted)
    assert wanted > 5 * bound


@pytest.mark.parametrize("keeps", ["x0", "noise"])
@pytest.mark.parametrize("predicts", VIEWS)
def test_the_answer_is_that_of_the_shifted_time(predicts, keeps):
    """Half of the batch comes from t = 0.36, half from 0.24, all are handed in at 0.3: each is asked at its own time,
    and the x0 (or noise) found there is the answer at 0.3. A single t_s deviates by 0.009 at most (see above)."""
    x = torch.cat([states(0.36, 6, seed=1), states(0.24, 6, seed=3)])
    net, options = Watched(), {"window": 0.3, "candidates": 301, "keeps": keeps}
    TimeShift(orn.Denoiser(net, PROCESS, "noise"), V, **options)(x, 0.3)
    asked = net.asked[-1]
    assert float((asked[:6] - 0.36).abs().max()) < 0.04
    assert float((asked[6:] - 0.24).abs().max()) < 0.04
    wanted = world().denoiser(PROCESS)(x, asked).view(keeps)
    other = TimeShift(world().denoiser(PROCESS, predicts), V, **options)
    for t in (0.3, torch.full((12,), 0.3, dtype=F64)):
        torch.testing.assert_close(other(x, t).view(keeps), wanted, rtol=1e-7, atol=1e-7)


def test_the_window_and_the_cutoff_hold():
    x = states(0.7, 4, seed=1)
    net = Watched()
    model = TimeShift(orn.Denoiser(net, PROCESS, "noise"), V, window=0.1, cutoff=0.3)
    model(x, 0.4)
    assert net.asked[-1].tolist() == pytest.approx([0.45] * 4)
    model(x, 0.3)
    assert net.asked[-1].tolist() == [0.3] * 4
    model(x, torch.tensor([0.2, 0.3, 0.35, 0.4], dtype=F64))
    assert net.asked[-1].tolist() == pytest.approx([0.2, 0.3, 0.4, 0.45])
    flow = orn.Flow()
    at_one = TimeShift(world().denoiser(flow, "velocity"), V, keeps="noise")(normal(2, D), 1.0).velocity
    torch.testing.assert_close(at_one, world().denoiser(flow, "velocity")(normal(2, D), 1.0).velocity)


@pytest.mark.system("time-shift", rival="the same sampler at its own times; and the published rule")
def test_time_shift():
    """A sample's residual about its mode has variance WITHIN^2 in truth; its relative excess over 32 samples of 4,096
    entries is known to sqrt(2/131072) = 0.4 %, so 0.02 is 5 of that.

    States of t = 0.34 and 0.26 taken for t = 0.3 (starts too noisy, too quiet), 20 steps of order 2: x0 of the shifted
    time takes the excess, of either sign, to less than half, and leaves a right start alone. The noise of the shifted
    time does not, and the published rule makes the noisy start worse and harms the right one. The shift also repairs
    what ten DDIM steps do to a right start."""
    model = world().denoiser(PROCESS)
    grid = orn.LogSNR(start=float(PROCESS.level(0.3).log_snr), end=7.0)

    def excess(denoiser, t, solver=None, steps=20):
        solver = solver or orn.DPMSolverPP(order=2)
        out = orn.sample(denoiser, x_init=states(t, 32, seed=5), solver=solver, grid=grid, steps=steps).x
        apart = (out[:, None] - world().means).square().mean(2).min(1).values
        return float(apart.mean()) / WITHIN**2 - 1

    ours = TimeShift(model, V, window=0.3)
    noise = TimeShift(model, V, window=0.3, keeps="noise")
    published = TimeShift(model, 0.0, window=0.3, cutoff=0.1, keeps="noise")
    for t in (0.34, 0.26):
        assert abs(excess(model, t)) > 0.1
        assert abs(excess(ours, t)) < abs(excess(model, t)) / 2
        assert abs(excess(noise, t)) > abs(excess(model, t)) / 2
    assert abs(excess(model, 0.3)) < 0.02
    assert abs(excess(ours, 0.3)) < 0.02
    assert excess(published, 0.34) > 2 * excess(model, 0.34)
    assert excess(published, 0.3) > 0.1
    assert excess(model, 0.3, orn.DDIM(), 10) < -0.15
    assert abs(excess(ours, 0.3, orn.DDIM(), 10)) < 0.05


def test_a_step_does_not_wait_for_the_device():
    x = states(0.5, 3, seed=1)
    free = orn.Denoiser(lambda x, t: x * t[:, None], PROCESS, "velocity")
    (call,) = TimeShift(free, V).bind(PROCESS.level([0.5]), x, None)
    with Silent():
        call(x)


def test_refusals():
    model = world().denoiser(PROCESS)
    for options, match in (
        ({"window": 0.0}, "window=0"),
        ({"cutoff": 1.5}, r"cutoff=1\.5"),
        ({"candidates": 10}, "candidates=10"),
        ({"data_variance": -1.0}, "data_variance=-1"),
        ({"keeps": "score"}, "choose noise or x0"),
    ):
        with pytest.raises(ValueError, match=match):
            TimeShift(model, **{"data_variance": V, **options})
    with pytest.raises(ValueError, match=r"the same variance at all times around t = 0\.5"):
        TimeShift(model, 1.0)(normal(2, D), 0.5)
    moving = orn.exact.Gaussian(torch.zeros(2, dtype=F64), std=1.0).denoiser(orn.MeanReverting())
    with pytest.raises(ValueError, match="shifts the mean"):
        TimeShift(moving, 0.5)(normal(2, 2), 0.5, {"mean": normal(2, 2)})
