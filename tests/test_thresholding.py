"""Thresholding: x0 kept in the range of the data, and left alone inside it."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn
from ornstein._types import VIEWS
from ornstein.guidance.thresholding import DynamicThresholding, StaticThresholding, quantile
from worlds import F64, normal

WORLD = orn.exact.GaussianMixture(torch.tensor([[0.8] * 16, [-0.8] * 8 + [0.8] * 8], dtype=F64), 0.08)


class Pair(NamedTuple):
    a: Any
    b: Any


class Silent(TorchDispatchMode):
    """Refuses what would wait for the device: reading a value on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("q", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 784])
def test_the_quantile_is_numpys(q, n):
    values = normal(5, n, seed=n)
    np.testing.assert_allclose(quantile(values, q), np.quantile(values.numpy(), q, axis=1), rtol=1e-13)


@pytest.mark.parametrize("predicts", VIEWS)
@pytest.mark.parametrize("wrap", [StaticThresholding, DynamicThresholding])
def test_inside_the_range_nothing_changes(wrap, predicts):
    """The exact x0 of this world lies in [-2, 2]; a sample that stays inside is returned bit for bit, in any view."""
    process = orn.Flow()
    model = WORLD.denoiser(process, predicts)
    wide = wrap(model, -3.0, 3.0) if wrap is StaticThresholding else wrap(model, 0.995, 3.0)
    x, t = normal(6, 16), torch.linspace(0.1, 0.9, 6, dtype=F64)
    plain = orn.Prediction(process, process.level(t), x, model.forward(x, t), predicts)
    assert torch.equal(wide(x, t).x0, plain.x0)
    assert wide.cost(process.level([0.2, 0.4])) == [1, 1]


def test_static_clips_what_is_outside_and_only_that():
    process, x = orn.VP(), 3 * normal(8, 16)
    free = orn.Denoiser(lambda x, t: x, process, "x0")
    low, high = torch.linspace(-1.0, -0.2, 16, dtype=F64), 0.7
    got = StaticThresholding(free, low, high)(x, 0.4).x0
    assert torch.equal(got, x.clamp(max=high).maximum(low))
    inside = (x >= low) & (x <= high)
    assert torch.equal(got[inside], x[inside])
    assert bool(inside.any(1).all())
    # in the user's units: model units are (u - 5)/2
    scaled = orn.Denoiser(lambda x, t: x, process, "x0", scaling=orn.Scaling(5.0, 2.0))
    torch.testing.assert_close(StaticThresholding(scaled, 4.0, 7.0)(x, 0.4).x0, x.clamp(-0.5, 1.0))


def test_dynamic_is_the_papers_rule_for_each_sample():
    """By numpy, sample by sample; samples far inside, with outliers only, and far outside; user units too."""
    process = orn.VP()
    size = torch.tensor([0.1, 0.45, 3.0, 10.0], dtype=F64)
    x = size[:, None, None] * normal(4, 20, 20, seed=2)
    for mean, std in ((0.0, 1.0), (0.5, 2.0)):
        free = orn.Denoiser(lambda x, t: x, process, "x0", scaling=orn.Scaling(mean, std))
        got = DynamicThresholding(free, 0.99, bound=1.5)(x, 0.4).x0
        user = x.numpy() * std + mean
        s = np.maximum(np.quantile(np.abs(user.reshape(4, -1)), 0.99, axis=1) / 1.5, 1)[:, None, None]
        wanted = (np.clip(user, -1.5 * s, 1.5 * s) / s - mean) / std
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-12, atol=1e-12)
        assert torch.equal(got[0], x[0])  # inside: bit for bit
        assert bool((torch.from_numpy(s.ravel()) > 1)[2:].all())


def test_strong_guidance_stays_in_a_bounded_world():
    """Two classes of values near -0.8 and 0.8 under CFG of scale 6: entries beyond 1.1, which is 3.75 standard
    deviations of the truth (a share below 1e-4), all but vanish; the data's range is known, the network's is not."""
    process = orn.VP()
    model = WORLD.denoiser(process)
    cond = {"label": torch.arange(2).repeat(64)}
    x = process.prior((128, 16), seed=0, dtype=F64)
    # the guided answer of a network that has never seen such states: an affine overshoot of x0
    rough = orn.Denoiser(lambda x, t, c: 1.25 * model(x, t, c).x0, process, "x0", null=model.null)
    guided = orn.CFG(rough, 6.0)

    def outside(denoiser, value=1.1):
        return float((orn.sample(denoiser, x_init=x, cond=cond, steps=12).x.abs() > value).double().mean())

    plain = outside(guided)
    assert plain > 0.1
    assert outside(StaticThresholding(guided), 1.0 + 1e-12) == 0.0
    assert outside(DynamicThresholding(guided, 0.9), 1.0 + 1e-12) == 0.0


def test_a_step_does_not_wait_for_the_device():
    process, x = orn.VP(), normal(3, 16)
    for wrapped in (StaticThresholding, DynamicThresholding):
        free = orn.Denoiser(lambda x, t: 2 * x, process, "x0", scaling=orn.Scaling(0.1, 2.0))
        (call,) = wrapped(free).bind(process.level([0.5]), x, None)
        with Silent():
            call(x)


def test_components_are_thresholded_each():
    model = orn.Denoiser(lambda x, t: Pair(2 * x.a, 3 * x.b), orn.Product(Pair(orn.VP(), orn.Flow())), "x0")
    x = Pair(normal(4, 3), normal(4, 5, seed=1))
    got = StaticThresholding(model, -0.5, 0.6)(x, 0.5).x0
    assert torch.equal(got.a, (2 * x.a).clamp(-0.5, 0.6))
    assert torch.equal(got.b, (3 * x.b).clamp(-0.5, 0.6))


def test_refusals():
    model = WORLD.denoiser(orn.Flow(), "noise")
    with pytest.raises(ValueError, match="low < high"):
        StaticThresholding(model, 1.0, -1.0)
    for q in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="quantile="):
            DynamicThresholding(model, q)
    with pytest.raises(ValueError, match="bound=0"):
        DynamicThresholding(model, bound=0.0)
    with pytest.raises(orn.ViewError, match=r"x0 cannot be formed from noise at t = 1"):
        StaticThresholding(model)(normal(2, 16), 1.0)
