"""Predictions: every conversion within its condition number of the truth, the ends by their limits, heads, dtypes."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

import ornstein as orn
from ornstein._types import VIEWS
from ornstein.errors import ViewError
from ornstein.prediction import Prediction, predict
from ornstein.processes import VP, Flow, GaussianProcess, Level, MeanReverting, Product
from schedules import EPS, INFINITE_SLOPE, PROCESSES, ZERO_TERMINAL_SNR, Truth, double, long, mp

NAMES = list(PROCESSES)
TIMES = [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6]
PAIRS = [(source, target) for source in VIEWS for target in VIEWS]


def uniforms(*shape: int, seed: int) -> Tensor:
    """Unit variance, and never above sqrt(3), so that errors are compared with root mean squares."""
    unit = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * unit - 1) * 3**0.5


class Case:
    """x0, noise and a mean known exactly, and from them the state and each view in 80 bits, rounded once."""

    def __init__(self, name: str, t: float, batch: int = 3, seed: int = 0) -> None:
        self.truth, shape = Truth.at(name, t), (batch, 4)
        self.parts = [uniforms(*shape, seed=seed), uniforms(*shape, seed=seed + 1)]
        self.mean = uniforms(*shape, seed=seed + 2)
        self.shifted = name == "MeanReverting"
        self.cond = {"mean": self.mean} if self.shifted else None
        self.x = self._combine(self.truth.alpha, self.truth.sigma, 1 - self.truth.alpha)

    def _combine(self, a: Any, b: Any, c: Any) -> Tensor:
        x0, noise, mean = (part.numpy().astype(np.longdouble) for part in (*self.parts, self.mean))
        return torch.from_numpy((long(a) * x0 + long(b) * noise + self.shifted * long(c) * mean).astype(np.float64))

    def view(self, name: str) -> Tensor:
        return self._combine(*self.truth.row(name), -self.truth.d_alpha if name == "velocity" else mp.mpf(0))


@pytest.mark.parametrize("name", NAMES)
def test_every_conversion_is_exact_to_its_condition(name: str) -> None:
    """All 25 pairs, 1e-6 from the ends too: errors within 100 eps x condition x rms of the target.

    With a shift the roundings of x - shift and of the slope enter too, each of the size of the shift itself.
    """
    process = PROCESSES[name]
    for t in TIMES:
        case, level = Case(name, t), process.level(t)
        for source, target in PAIRS:
            got = Prediction(process, level, case.x, case.view(source), source, cond=case.cond).view(target)
            a, b = (float(c) for c in case.truth.row(target))
            scale = float(level.condition(source, target)) * float(np.hypot(a, b))
            if case.shifted and source != target:
                c_x, c_p = (abs(float(c)) for c in case.truth.conversion(source, target))
                shift, slope = float(1 - case.truth.alpha), abs(float(case.truth.d_alpha))
                scale += c_x * shift + slope * (c_p * (source == "velocity") + (target == "velocity"))
            error = float((got - case.view(target)).abs().max())
            assert error <= 100 * EPS * scale, (t, source, target, error / EPS / scale)


@pytest.mark.parametrize("name", NAMES)
def test_the_condition_is_the_one_stated(name: str) -> None:
    """(|c_x| split into its two products) rms x + (the same of c_p) rms P, over rms of the target, from the truth."""
    process = PROCESSES[name]
    for t in (1e-3, 0.3, 0.9):
        truth, level = Truth.at(name, t), process.level(t)
        for source, target in PAIRS:
            if source == target:
                assert float(level.condition(source, target)) == 1
                continue
            (p, q), (a, b) = truth.row(source), truth.row(target)
            system = abs(truth.alpha * q - truth.sigma * p)
            state, answer, wanted = (mp.hypot(*pair) for pair in ((truth.alpha, truth.sigma), (p, q), (a, b)))
            from_x = (abs(a * q) + abs(b * p)) / system * state / wanted
            from_p = (abs(truth.alpha * b) + abs(truth.sigma * a)) / system * answer / wanted
            assert float(level.condition(source, target)) == pytest.approx(float(from_x + from_p), rel=1e-12)
    # known by hand: x0 = (x - sigma noise)/alpha, noise = -sigma score, x0 = alpha x - sigma v
    half = Flow().level(0.25)
    assert float(half.condition("noise", "x0")) == pytest.approx(((0.75**2 + 0.25**2) ** 0.5 + 0.25) / 0.75)
    assert float(half.condition("score", "noise")) == 1
    quarter = VP().level(0.3)
    assert float(quarter.condition("v", "x0")) == pytest.approx(float(quarter.alpha + quarter.sigma))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("source", "target"), [("x0", "velocity"), ("velocity", "score"), ("noise", "v"), ("v", "x0")])
def test_a_time_a_sample_is_each_time_alone(name: str, source: Any, target: Any) -> None:
    process, times = PROCESSES[name], [0.05, 0.5, 0.95]
    cases = [Case(name, t, batch=1, seed=k) for k, t in enumerate(times)]
    x, answer = torch.cat([c.x for c in cases]), torch.cat([c.view(source) for c in cases])
    cond = {"mean": torch.cat([c.mean for c in cases])} if name == "MeanReverting" else None
    together = Prediction(process, process.level(torch.tensor(times)), x, answer, source, cond=cond).view(target)
    times = torch.tensor(times).tolist()  # as float32 holds them
    for k, (t, case) in enumerate(zip(times, cases, strict=True)):
        alone = Prediction(process, process.level(t), case.x, answer[k : k + 1], source, cond=case.cond).view(target)
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-12, atol=1e-13 * float(alone.abs().max()))
        level = process.level(torch.full((1,), t, dtype=torch.float64))
        one = Prediction(process, level, case.x, answer[k : k + 1], source, cond=case.cond).view(target)
        torch.testing.assert_close(one, alone, rtol=1e-12, atol=1e-13 * float(alone.abs().max()))


# -- the ends, by the mathematics: target = c_x x + c_p P, and the limits of (c_x, c_p) as t goes to the end


def refused_at_data(name: str) -> set[tuple[str, str]]:
    """sigma = 0, x = x0. The state says nothing about the noise, so x0 gives no view that holds noise; a score is
    noise/sigma and comes from nothing but itself. Where sigma' is infinite the velocity is no number: refused."""
    refused = {("x0", target) for target in ("noise", "score", "velocity", "v")}
    refused |= {(source, "score") for source in ("noise", "velocity", "v")}
    if name in INFINITE_SLOPE:
        refused |= {pair for pair in PAIRS if "velocity" in pair and pair[0] != pair[1]}
    return refused


def refused_at_the_end(name: str) -> set[tuple[str, str]]:
    """alpha = 0, x = sigma noise: noise and score (its multiple) know each other, but nothing that holds x0."""
    if name not in ZERO_TERMINAL_SNR:
        return set()
    return {(source, target) for source in ("noise", "score") for target in ("x0", "velocity", "v")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_at_the_ends_the_limit_or_a_refusal(name: str, end: float) -> None:
    process, level = PROCESSES[name], PROCESSES[name].level(end)
    refused = refused_at_data(name) if end == 0 else refused_at_the_end(name)
    tiny = mp.mpf(10) ** -40
    truth = Truth.at(name, tiny if end == 0 else 1 - tiny)
    x, answer = uniforms(2, 3, seed=0), uniforms(2, 3, seed=1)
    mean = torch.zeros_like(x) if end == 0 else uniforms(2, 3, seed=2)
    cond = {"mean": mean} if name == "MeanReverting" else None
    for source, target in PAIRS:
        prediction = Prediction(process, level, x, answer, source, cond=cond)
        if (source, target) in refused:
            with pytest.raises(ViewError, match=f"{target} cannot be formed from {source} at t = {end:g}"):
                prediction.view(target)
            continue
        limit = [float(c) for c in truth.conversion(source, target)]
        got = [float(c) for c in level.conversion(source, target)]
        # distances of the limit: sigma(1e-40) is below 1e-18 for every process
        assert got == pytest.approx(limit, rel=1e-13, abs=1e-15), (source, target)
        shift, slope = (float(1 - truth.alpha) * mean, -float(truth.d_alpha) * mean) if cond else (0, 0)
        wanted = limit[0] * (x - shift) + limit[1] * (answer - slope * (source == "velocity"))
        wanted = wanted + slope * (target == "velocity") if cond and source != target else wanted
        if source == target:
            wanted = answer
        torch.testing.assert_close(prediction.view(target), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_bad_time_in_a_batch_refuses(name: str) -> None:
    level = PROCESSES[name].level(torch.tensor([0.5, 0.0]))
    x = uniforms(2, 3, seed=0)
    cond = {"mean": x} if name == "MeanReverting" else None
    with pytest.raises(ViewError, match="score cannot be formed from x0 at t = 0"):
        _ = Prediction(PROCESSES[name], level, x, x, "x0", cond=cond).score


def test_unknown_views_and_wrong_shapes() -> None:
    x = uniforms(2, 3, seed=0)
    prediction = Prediction(Flow(), Flow().level(0.5), x, x, "x0")
    with pytest.raises(ViewError, match="no view is called 'epsilon': choose from x0, noise"):
        inspect.unwrap(Level.rows)(prediction.level, "epsilon")  # past the checks of types that tests switch on
    with pytest.raises(ViewError, match="no head 'variance': it returned main"):
        prediction.head("variance")
    for bad in (x[:, :1], x[:1]):
        with pytest.raises(ValueError, match=r"network returned \(\d, \d\) for a state of \(2, 3\)"):
            _ = Prediction(Flow(), Flow().level(0.5), x, bad, "x0").noise


# -- heads, memory of views, products


def test_heads_are_read_in_their_own_view() -> None:
    process, level = Flow(), Flow().level(0.25)
    x, main, weak, spread = (uniforms(2, 3, seed=k) for k in range(4))
    output = {"main": main, "weak": weak, "spread": spread[:, :1]}
    prediction = Prediction(process, level, x, output, "velocity", heads={"weak": "x0"})
    torch.testing.assert_close(prediction.x0, x - 0.25 * main)
    torch.testing.assert_close(prediction.head("main").x0, x - 0.25 * main)
    torch.testing.assert_close(prediction.head("weak").noise, (x - 0.75 * weak) / 0.25)
    assert prediction.head("weak").x0 is weak
    assert prediction.velocity is main
    assert prediction.noise is prediction.noise
    assert prediction.output["spread"].shape == (2, 1)
    with pytest.raises(ViewError, match="head 'spread' is not a view of the state"):
        prediction.head("spread")


class Pair(NamedTuple):
    a: Any
    b: Any


def test_products_predict_by_component() -> None:
    product = Product(Pair(VP(), MeanReverting()))
    t, mean = torch.tensor([0.2, 0.7]), uniforms(2, 4, seed=9)
    x, out, other = (Pair(uniforms(2, 3, seed=k), uniforms(2, 4, seed=k + 20)) for k in range(3))
    output = {"main": out, "other": other}
    both = predict(product, product.level(t), x, output, "noise", cond={"mean": mean}, heads={"other": "x0"})
    for view in VIEWS:
        for c, process in enumerate(product.processes):
            for head, answer, source in ((both, out, "noise"), (both.head("other"), other, "x0")):
                alone = Prediction(process, process.level(t), x[c], answer[c], source, cond={"mean": mean})
                assert torch.equal(getattr(head, view)[c], alone.view(view))
    assert type(both.velocity) is Pair
    with pytest.raises(AttributeError, match="epsilon"):
        _ = both.epsilon


# -- derivatives


@pytest.mark.parametrize("name", NAMES)
def test_views_have_forward_derivatives_in_x_and_t(name: str) -> None:
    """torch.func.jvp of each view against five-point differences: error h^4 f^(5)/30 + eps f/h, below 1e-7 here."""
    process, x, dx = PROCESSES[name], uniforms(3, 2, seed=0), uniforms(3, 2, seed=1)
    cond = {"mean": uniforms(3, 2, seed=2)} if name == "MeanReverting" else None
    model = orn.Denoiser(lambda x, t, *_: torch.sin(x) * (1 + t[:, None]) ** 2, process, predicts="noise")
    t, dt = torch.tensor([0.3, 0.5, 0.8], dtype=torch.float64), torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64)
    for view in VIEWS:

        def f(x: Tensor, t: Tensor) -> Tensor:
            return model(x, t, cond).view(view)

        h = 2e-4
        for ex, et in ((dx, torch.zeros_like(dt)), (torch.zeros_like(dx), dt), (dx, dt)):
            value, slope = torch.func.jvp(f, (x, t), (ex, et))
            assert torch.equal(value, f(x, t))
            at = {k: f(x + k * h * ex, t + k * h * et) for k in (-2, -1, 1, 2)}
            wanted = (at[-2] - 8 * at[-1] + 8 * at[1] - at[2]) / (12 * h)
            scale = float(wanted.abs().max()) + float(value.abs().max())
            torch.testing.assert_close(slope, wanted, rtol=0, atol=1e-7 * scale)
    # and through a scalar time
    slope = torch.func.jvp(lambda s: model(x, s, cond).velocity, (double(0.4),), (double(1.0),))[1]
    wanted = (model(x, 0.4 + 1e-5, cond).velocity - model(x, 0.4 - 1e-5, cond).velocity) / 2e-5
    torch.testing.assert_close(slope, wanted, rtol=1e-7, atol=1e-7 * float(wanted.abs().max()))


# -- dtypes and devices: the meta device stands for one without float64


class NoDouble(TorchDispatchMode):
    """Refuses a float64 tensor on the device "meta", wherever it comes from."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in _pytree.tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta" and leaf.dtype == torch.float64:
                raise AssertionError(f"{func} met float64 on the device of the state")
        return out


def test_the_mode_refuses() -> None:
    with NoDouble(), pytest.raises(AssertionError, match="met float64"):
        torch.zeros(2, device="meta", dtype=torch.float64) + 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_double_reaches_the_device_of_a_float_state(name: str, dtype: torch.dtype) -> None:
    process = PROCESSES[name]
    x = torch.empty(3, 2, device="meta", dtype=dtype)
    cond: Any = {"label": torch.empty(3, dtype=torch.long, device="meta")}
    if name == "MeanReverting":
        cond["mean"] = torch.empty_like(x)

    def net(x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        assert (t.dtype, t.device, t.shape) == (x.dtype, x.device, (x.shape[0],))
        return x * t[:, None]

    models: list[Any] = [orn.Denoiser(net, process, predicts=view, null={"label": -1}) for view in VIEWS]
    models.append(orn.Denoiser(net, process, precondition=orn.EDMPrecondition(), null={"label": -1}))
    models.append(orn.CFG(models[0], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)))
    models.append(orn.Autoguidance(models[1], models[1], 1.5))
    with NoDouble():
        for t in (0.5, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)):
            for model in models:
                prediction = model(x, t, cond)
                for view in VIEWS:
                    made = prediction.view(view)
                    assert (made.dtype, made.device.type, made.shape) == (dtype, "meta", x.shape)
            draw = process.corrupt(x, t, cond=cond, noise=x)
            assert {draw.x.dtype, *(draw.target(view).dtype for view in VIEWS)} == {dtype}


def test_a_float32_prediction_is_its_twin_rounded() -> None:
    """At t = 1 - 1e-6 too, where a schedule in float32 would lose alpha: within 4 eps (of float32) x condition."""
    for name, process in PROCESSES.items():
        for t in (0.01, 0.5, 1 - 1e-6):
            case, level = Case(name, t), process.level(t)
            cond = None if case.cond is None else {"mean": case.mean.float()}
            for source, target in (("velocity", "x0"), ("v", "noise"), ("x0", "velocity"), ("noise", "score")):
                answer = case.view(source)
                twin = Prediction(process, level, case.x, answer, source, cond=case.cond).view(target)
                got = Prediction(process, level, case.x.float(), answer.float(), source, cond=cond).view(target)
                assert got.dtype == torch.float32
                a, b = (float(c) for c in case.truth.row(target))
                scale = float(level.condition(source, target)) * float(np.hypot(a, b))
                if case.shifted:
                    c_x, c_p = (abs(float(c)) for c in case.truth.conversion(source, target))
                    shift, slope = float(1 - case.truth.alpha), abs(float(case.truth.d_alpha))
                    scale += c_x * shift + slope * (c_p * (source == "velocity") + (target == "velocity"))
                # each rounding is eps/2 of at most sqrt(3) rms; four of them a product
                assert float((got.double() - twin).abs().max()) <= 4 * 2**-23 * scale, (name, t, source, target)


class Slow(GaussianProcess):
    """float32 arithmetic in a schedule would show here: alpha = 1 - t to the third power near t = 1."""

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** 3

    def sigma(self, t: Tensor) -> Tensor:
        return t


def test_times_of_float32_do_not_lower_the_schedule() -> None:
    t = torch.tensor(1 - 2.0**-20)
    assert float(Slow().level(t).alpha) == 2.0**-60
    assert float(Slow().level(t).d_alpha) == -3 * 2.0**-40
