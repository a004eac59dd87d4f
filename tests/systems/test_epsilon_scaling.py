"""Epsilon scaling: what dividing the predicted noise does, in closed form and on imperfect models."""

import pytest
import torch

import ornstein as orn
from ornstein._types import VIEWS
from ornstein.guidance.epsilon_scaling import EpsilonScaling
from ornstein.guidance.exposure_bias import exposure_bias
from worlds import F64, normal, ring


def test_the_predicted_noise_is_divided_in_every_view():
    """lambda = k t + b of the exact noise, whichever view the model answers in; a shift and its slope enter once."""
    for process in (orn.VP(), orn.Flow(), orn.MeanReverting()):
        x, t = normal(4, 2), torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=F64)
        cond = {"mean": normal(4, 2, seed=9)} if isinstance(process, orn.MeanReverting) else None
        wanted = ring().denoiser(process)(x, t, cond).noise / (0.2 * t + 1.05)[:, None]
        for predicts in VIEWS:
            scaled = EpsilonScaling(ring().denoiser(process, predicts), b=1.05, k=0.2)
            torch.testing.assert_close(scaled(x, t, cond).noise, wanted, rtol=1e-9, atol=1e-9)
            for k, (time, own) in enumerate(zip(t.tolist(), wanted, strict=True)):
                part = None if cond is None else {"mean": cond["mean"][k : k + 1]}
                alone = scaled(x[k : k + 1], time, part).noise
                torch.testing.assert_close(alone[0], own, rtol=1e-9, atol=1e-9)


def test_one_is_the_model():
    model, process = ring().denoiser(orn.Flow()), orn.Flow()
    x = process.prior((8, 2), seed=0, dtype=F64)
    runs = [orn.sample(m, x_init=x, steps=6).x for m in (model, EpsilonScaling(model), EpsilonScaling(model, b=1.02))]
    assert torch.equal(runs[0], runs[1])
    assert float((runs[0] - runs[2]).abs().max()) > 1e-3


def test_the_flow_of_a_gaussian_under_scaled_noise():
    """dy/ds = noise/lambda with noise = s y/(c^2 + s^2): y gains (c^2/(c^2 + S^2))^(1/2 lambda) from s = S to 0. So
    lambda > 1 leaves a spread larger by ((c^2 + S^2)/c^2)^((1 - 1/lambda)/2)."""
    process, c, b = orn.EDM(sigma_max=20.0), 0.5, 1.1
    model = EpsilonScaling(orn.exact.Gaussian(torch.zeros(1, dtype=F64), std=c).denoiser(process), b=b)
    x = torch.tensor([[20.0]], dtype=F64)
    grid = orn.LogSNR(end=14.0)
    out = orn.sample(model, x_init=x, solver=orn.DPMSolverPP(order=2), grid=grid, steps=600).x
    assert float(out) == pytest.approx(20 * (c**2 / (c**2 + 400)) ** (1 / (2 * b)), rel=1e-3)


@pytest.mark.system("epsilon-scaling", rival="the same sampler without scaling; and scaling the other way")
def test_epsilon_scaling():
    """Data N(0, I) in four dimensions, a model whose world is 15 % too narrow or 20 % too wide, 60 steps of order 2.

    Dividing the predicted noise by 1.03 brings the narrow model's samples to the data: the gap between the noise that
    it predicts while sampling and on noised data shrinks, and MMD^2 falls. But that gap is negative. Where the samples
    are too wide and the predicted noise is too large, as the paper has it, the same lambda widens both, and 1/1.03
    repairs them: the published mechanism has the wrong sign. The noise of MMD^2 under equal laws, from the two halves
    of a sample of 2,000, is measured beside (below 1e-3)."""
    process, n = orn.VP(), 1000
    data = normal(n, 4, seed=3)
    assert abs(orn.metrics.mmd(data, normal(n, 4, seed=4))) < 1e-3

    def judge(std, b):
        wrong = orn.exact.Gaussian(torch.zeros(4, dtype=F64), std=std).denoiser(process)
        model, run = EpsilonScaling(wrong, b=b), {"solver": orn.DPMSolverPP(), "grid": orn.LogSNR(), "steps": 60}
        bias = exposure_bias(model, data, seed=1, **run)
        x = orn.sample(model, (n, 4), seed=5, dtype=F64, **run).x
        late = slice(30, 55)
        return float(bias.noise_gap[late].mean()), float(bias.variance_error[late].mean()), orn.metrics.mmd(x, data)

    plain, scaled = judge(0.85, 1.0), judge(0.85, 1.03)
    assert plain[0] < -0.1
    assert abs(scaled[0]) < abs(plain[0]) / 2
    assert scaled[1] < plain[1] / 4
    assert scaled[2] < 1e-3 < 3e-3 < plain[2]

    plain, scaled, other = judge(1.2, 1.0), judge(1.2, 1.03), judge(1.2, 1 / 1.03)
    assert plain[0] > 0.1
    assert scaled[0] > 1.5 * plain[0]
    assert scaled[2] > 2 * plain[2] > 6e-3
    assert abs(other[0]) < plain[0] / 2
    assert other[2] < 1e-3


def test_exposure_bias_is_zero_where_there_is_none():
    """Exact denoiser, a fine sampler: standard deviations of 3,000 samples agree to 4 sqrt(2) sqrt(1/2n) = 7 %, and
    the curves are those of the levels: std_training = sqrt(alpha^2 + sigma^2) = 1 for unit data under VP."""
    world, process = orn.exact.Gaussian(torch.full((2,), 0.3, dtype=F64), std=1.0), orn.VP()
    bias = exposure_bias(world.denoiser(process), world.sample(3000, seed=1), solver=orn.Heun(), steps=40, seed=2)
    assert bias.t.shape == bias.variance_error.shape == (40,)
    assert float(bias.t[0]) == 1.0
    torch.testing.assert_close(bias.std_training, torch.ones(40, dtype=F64), rtol=0, atol=0.052)
    torch.testing.assert_close(bias.std_sampling, torch.ones(40, dtype=F64), rtol=0, atol=0.052)
    assert float(bias.variance_error.max()) < 0.073**2
    level = process.level(bias.t)
    torch.testing.assert_close(bias.noise_training, level.sigma, rtol=0.052, atol=0)
    assert float(bias.noise_gap.abs().max()) < 0.073


def test_refusals():
    model = ring().denoiser(orn.VP())
    for options in ({"b": 0.0}, {"b": 0.5, "k": -0.6}, {"b": float("nan")}, {"k": float("inf")}):
        with pytest.raises(ValueError, match="must be positive on"):
            EpsilonScaling(model, **options)
    flow = EpsilonScaling(ring().denoiser(orn.Flow()), b=1.1)
    with pytest.raises(orn.ViewError, match="alpha > 0 for all samples"):
        flow(normal(2, 2), torch.tensor([1.0, 0.5]))
    with pytest.raises(ValueError, match="at least 2 samples"):
        exposure_bias(model, normal(1, 2))
