"""Denoisers: a network read in any view, with precondition, null condition, scaling, heads and clear refusals."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein._types import VIEWS
from ornstein.errors import ViewError
from ornstein.flow_map import FlowMap
from ornstein.processes import VP, Flow, GaussianProcess, MeanReverting, Product
from schedules import PROCESSES

NAMES = list(PROCESSES)


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Net(nn.Module):
    """A tiny network that reads x, t and a label."""

    def __init__(self, features: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(features + 1, 8), nn.Linear(8, features)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        hidden = torch.tanh(self.first(torch.cat([x, t[:, None]], 1)))
        if cond is not None:
            hidden = hidden * (2 + cond["label"][:, None])
        return self.last(hidden)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("predicts", VIEWS)
def test_the_truth_told_in_any_view_is_the_truth_in_every_view(name: str, predicts: Any) -> None:
    """A network that answers the draw's own target: every view of the prediction is the draw's target of that view."""
    process, t = PROCESSES[name], torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    cond = {"mean": normals(3, 2, seed=2)} if name == "MeanReverting" else None
    draw = process.corrupt(normals(3, 2), t, cond=cond, seed=1)
    seen = []

    def net(x: Tensor, t: Tensor, *rest: Any) -> Tensor:
        seen.append((x, t, rest))
        return draw.target(predicts)

    model = orn.Denoiser(net, process, predicts)
    prediction = model(draw.x, t, cond)
    for view in VIEWS:
        wanted = draw.target(view)
        torch.testing.assert_close(prediction.view(view), wanted, rtol=1e-9, atol=1e-10 * float(wanted.abs().max()))
    ((x, time, rest),) = seen
    assert x is draw.x
    assert torch.equal(time, t)
    assert rest == (() if cond is None else (cond,))
    assert torch.equal(model.forward(draw.x, t, cond), prediction.output)


def test_the_network_reads_the_time_that_was_given() -> None:
    """(batch,) in the dtype of x, for a number, a scalar, one value, and a value a sample."""
    for dtype in (torch.float32, torch.float64):
        seen: list[Tensor] = []
        model = orn.Denoiser(lambda x, t: seen.append(t) or x, Flow(), "x0")
        x = normals(3, 2).to(dtype)
        many = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
        for t in (0.3, torch.tensor(0.3, dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64), many):
            model(x, t)
            assert torch.equal(seen[-1], torch.as_tensor(t, dtype=torch.float64).expand(3).to(dtype))
            model.forward(x, t)
            assert torch.equal(seen[-1], seen[-2])


def test_bind_gives_one_call_a_level() -> None:
    model = orn.Denoiser(lambda x, t: x * t[:, None], Flow(), "x0")
    x, times = normals(3, 2), torch.tensor([1.0, 0.6, 0.2], dtype=torch.float64)
    for grid in (times, times[:, None].expand(3, 3) * torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)):
        levels = Flow().level(grid)
        calls = model.bind(levels, x, None)
        assert len(calls) == len(model.cost(levels)) == 3
        assert model.cost(levels) == [1, 1, 1]
        for call, t in zip(calls, grid, strict=True):
            torch.testing.assert_close(call(2 * x), 2 * x * t.expand(3)[:, None])


# -- preconditioning


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sigma_data", [0.5, 1.7])
def test_preconditioned_input_and_target_have_unit_variance(name: str, sigma_data: float) -> None:
    """For data of deviation sigma_data, x - shift = alpha x0 + sigma n. The variances of c_in (x - shift) and of
    (x0 - c_skip (x - shift))/c_out follow from their coefficients on x0 and n, no sampling; c_skip makes the target
    uncorrelated with the input, which is what makes c_out least (its defining property)."""
    process, pre = PROCESSES[name], orn.EDMPrecondition(sigma_data)
    level = process.level(torch.tensor([1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6], dtype=torch.float64))
    c_in, c_skip, c_out, c_noise = pre.coefficients(level)
    ones = torch.ones_like(c_in)
    x0, n = c_in * level.alpha * sigma_data, c_in * level.sigma
    torch.testing.assert_close(x0**2 + n**2, ones, rtol=1e-14, atol=0)
    # (1 - c_skip alpha) = sigma^2/s^2, where the difference would cancel near t = 0
    rest = level.sigma**2 / (level.alpha**2 * sigma_data**2 + level.sigma**2)
    torch.testing.assert_close(1 - c_skip * level.alpha, rest, rtol=0, atol=4e-16)
    target = (rest * sigma_data / c_out, -c_skip * level.sigma / c_out)
    torch.testing.assert_close(target[0] ** 2 + target[1] ** 2, ones, rtol=1e-13, atol=0)
    torch.testing.assert_close(x0 * target[0] + n * target[1], 0 * ones, rtol=0, atol=1e-13)
    wanted = torch.log(level.sigma / level.alpha).clamp(-10, 10) / 4
    torch.testing.assert_close(c_noise, wanted, rtol=1e-13, atol=1e-14)


def test_precondition_is_the_papers_at_alpha_one() -> None:
    """Karras et al., table 1: c_skip = s_d^2/r^2, c_out = s s_d/r, c_in = 1/r, c_noise = ln(s)/4, r^2 = s^2 + s_d^2."""
    s, d = 3.0, 0.5
    level = orn.EDM(sigma_max=80.0).level(s / 80)
    root = math.sqrt(s**2 + d**2)
    wanted = (1 / root, d**2 / root**2, s * d / root, math.log(s) / 4)
    assert [float(c) for c in orn.EDMPrecondition(d).coefficients(level)] == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_a_preconditioned_denoiser_is_its_formula(name: str) -> None:
    process, x, pre = PROCESSES[name], normals(3, 2), orn.EDMPrecondition(0.8)
    cond = {"mean": normals(3, 2, seed=2), "label": torch.arange(3)} if name == "MeanReverting" else None
    net = Net().double()
    model = orn.Denoiser(net, process, precondition=pre)
    assert model.predicts == "x0"
    for t in (0.3, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)):
        level = process.level(t)
        c_in, c_skip, c_out, c_noise = (c.expand(3)[:, None] for c in pre.coefficients(level))
        shift = process.shift(level.t, cond)
        centred = x if shift is None else x - shift
        wanted = c_skip * centred + c_out * net(c_in * centred, c_noise[:, 0], cond)
        torch.testing.assert_close(model(x, t, cond).x0, wanted, rtol=1e-13, atol=1e-14)
    # at data it answers the state itself, whatever the network: c_skip = 1, c_out = 0
    data = model(x, 0.0, cond).x0
    torch.testing.assert_close(data, x, rtol=1e-14, atol=1e-14)


def test_precondition_and_further_heads() -> None:
    model = orn.Denoiser(
        lambda x, t: {"main": x, "spread": x[:, :1]}, Flow(), precondition=orn.EDMPrecondition(), heads={}
    )
    x = normals(3, 2)
    c_in, c_skip, c_out, _ = (float(c) for c in orn.EDMPrecondition().coefficients(Flow().level(0.5)))
    prediction = model(x, 0.5)
    torch.testing.assert_close(prediction.x0, (c_skip + c_out * c_in) * x)
    torch.testing.assert_close(prediction.output["spread"], c_in * x[:, :1])


# -- heads, null, scaling


def test_named_heads() -> None:
    def net(x: Tensor, t: Tensor) -> dict[str, Tensor]:
        return {"main": 2 * x, "other": 3 * x, "variance": x[:, :1].exp()}

    model = orn.Denoiser(net, Flow(), "velocity", heads={"other": "x0"})
    x = normals(3, 2)
    prediction = model(x, 0.25)
    torch.testing.assert_close(prediction.x0, x - 0.25 * 2 * x)
    torch.testing.assert_close(prediction.head("other").velocity, (x - 3 * x) / 0.25)
    assert torch.equal(prediction.output["variance"], x[:, :1].exp())


def test_the_null_condition() -> None:
    model = orn.Denoiser(Net(), Flow(), null={"label": -1, "text": torch.tensor([1.0, 2.0])})
    cond = {"label": torch.arange(3), "text": torch.randn(3, 2), "image": torch.randn(3, 4)}
    bare = model.without(cond)
    assert torch.equal(bare["label"], torch.full((3,), -1))
    assert bare["label"].dtype == torch.long
    assert torch.equal(bare["text"], torch.tensor([[1.0, 2.0]]).expand(3, 2))
    assert bare["image"] is cond["image"]
    assert torch.equal(cond["label"], torch.arange(3))  # the caller's is untouched
    with pytest.raises(ValueError, match=r"null=\{\"label\": orn.nets.NULL\}"):
        orn.Denoiser(Net(), Flow()).without(cond)


def test_scaling_round_trip_and_storage() -> None:
    data = 3 * normals(50, 2, 4) - 7
    scaling = orn.denoiser.Scaling.of(data)
    units = scaling.encode(data)
    # the scaling holds float32: its own rounding is 6e-8 of mean and std
    assert abs(float(units.mean())) < 1e-6
    assert abs(float(units.std()) - 1) < 1e-6
    torch.testing.assert_close(scaling.decode(units), data, rtol=1e-13, atol=1e-13)
    assert units.dtype == torch.float64
    assert scaling.encode(data.float()).dtype == torch.float32
    channels = orn.denoiser.Scaling(mean=torch.tensor([[1.0], [2.0]]), std=torch.tensor([[2.0], [4.0]]))
    torch.testing.assert_close(channels.encode(data)[:, 1], (data[:, 1] - 2) / 4)
    torch.testing.assert_close(channels.decode(data)[:, 0], data[:, 0] * 2 + 1)
    for std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="std is positive and finite"):
            orn.denoiser.Scaling(0.0, std)


def test_a_denoiser_gives_its_scaling_back() -> None:
    """A registered module, not hidden by a default: samples leave in the user's units, guided ones too."""
    scaling = orn.denoiser.Scaling(5.0, 2.0)
    model = orn.Denoiser(lambda x, t, c=None: 0 * x, Flow(), "x0", scaling=scaling, null={"label": -1})
    assert model.scaling is scaling
    assert orn.CFG(model, 2.0).scaling is scaling
    assert orn.Denoiser(Net(), Flow()).scaling is None
    assert orn.BaseDenoiser().scaling is None
    x = normals(3, 2)
    assert torch.equal(model(x, 0.5).x0, 0 * x)  # predictions stay in model units
    for guided in (model, orn.CFG(model, 2.0)):
        cond = {"label": torch.zeros(3, dtype=torch.long)}
        assert torch.equal(orn.sample(guided, (3, 2), cond=cond, steps=3, seed=0).x, torch.full((3, 2), 5.0))


def test_state_dict_round_trip() -> None:
    def make(seed: int, scaling: tuple[float, float]) -> orn.Denoiser:
        torch.manual_seed(seed)
        return orn.Denoiser(Net(), VP(), "v", scaling=orn.denoiser.Scaling(*scaling))

    first, second = make(0, (1.0, 2.0)), make(1, (0.0, 1.0))
    x = normals(3, 2, dtype=torch.float32)
    assert not torch.equal(first(x, 0.5).x0, second(x, 0.5).x0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x, 0.5).x0, second(x, 0.5).x0)
    assert torch.equal(second.scaling.decode(x), 2 * x + 1)
    assert set(first.state_dict()) == {
        *(f"net.{n}" for n in ("first.weight", "first.bias", "last.weight", "last.bias")),
        "scaling.mean",
        "scaling.std",
    }


class Power(GaussianProcess, nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def sigma(self, t: Tensor) -> Tensor:
        return t


def test_a_learned_process_is_part_of_the_denoiser() -> None:
    model = orn.Denoiser(Net().double(), Power(), "x0")
    assert "process.power" in model.state_dict()
    (model(normals(3, 2), 0.5).velocity ** 2).sum().backward()
    assert float(model.process.power.grad) != 0


# -- conditions, compilation, derivatives, products


class Extra(NamedTuple):
    first: Any
    second: Any


def test_any_nest_is_a_condition() -> None:
    got = []
    model = orn.Denoiser(lambda x, t, cond: got.append(cond) or x, Flow(), "x0")
    for cond in (
        torch.zeros(3, 1),
        {"a": [torch.zeros(3), (torch.ones(3, 2),)], "b": None, "c": 2.0},
        Extra(torch.zeros(3), {"deep": torch.zeros(3, 2, 2)}),
    ):
        model(normals(3, 2), 0.5, cond)
        assert got[-1] is cond
    with pytest.raises(
        ValueError, match=r"cond\['a'\]\[1\]\[0\] has shape \(2, 2\), its first axis must be the batch of 3"
    ):
        model(normals(3, 2), 0.5, {"a": [torch.zeros(3), (torch.ones(2, 2),)]})
    with pytest.raises(ValueError, match=r"has shape \(\), its first axis"):
        model(normals(3, 2), 0.5, {"a": torch.tensor(1.0)})


def test_forward_compiles() -> None:
    torch.manual_seed(0)
    model = orn.Denoiser(Net(), Flow(), precondition=orn.EDMPrecondition())
    x, t = normals(3, 2, dtype=torch.float32), torch.tensor([0.1, 0.5, 0.9])
    compiled = torch.compile(model.forward, backend="eager")
    torch.testing.assert_close(compiled(x, t), model.forward(x, t))
    compiled(x, t).sum().backward()
    assert float(model.net.first.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("precondition", [None, orn.EDMPrecondition()])
def test_forward_has_forward_derivatives(precondition: Any) -> None:
    torch.manual_seed(0)
    model = orn.Denoiser(Net().double(), VP(), precondition=precondition)
    x, dx, t, dt = normals(3, 2), normals(3, 2, seed=1), torch.tensor([0.2, 0.5, 0.8]).double(), normals(3, seed=2)
    value, slope = torch.func.jvp(model.forward, (x, t), (dx, dt))
    assert torch.equal(value, model.forward(x, t))
    h = 1e-5  # the error of central differences: h^2 f'''/6 + eps f/h, about 1e-10 of the scale
    wanted = (model.forward(x + h * dx, t + h * dt) - model.forward(x - h * dx, t - h * dt)) / (2 * h)
    torch.testing.assert_close(slope, wanted, rtol=0, atol=1e-7 * float(wanted.abs().max()))


def test_products_of_states() -> None:
    product = Product(Extra(VP(), MeanReverting()))
    t, mean = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), normals(3, 4, seed=3)
    draw = product.corrupt(Extra(normals(3, 2), normals(3, 4, seed=1)), t, cond={"mean": mean}, seed=2)
    for predicts in VIEWS:
        model = orn.Denoiser(lambda x, t, cond, p=predicts: draw.target(p), product, predicts)
        prediction = model(draw.x, t, {"mean": mean})
        for view in VIEWS:
            for got, wanted in zip(prediction.view(view), draw.target(view), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10 * float(wanted.abs().max()))


# -- refusals


def test_refusals() -> None:
    x = normals(3, 2)
    model = orn.Denoiser(lambda x, t: x[:, :1], Flow(), "velocity")
    for t in (torch.zeros(2), torch.zeros(3, 1), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match=r"one value a sample: got \(.*\) for a batch of 3"):
            model(x, t)
    with pytest.raises(ValueError, match=r"t = 1.5 lies outside"):
        model(x, 1.5)
    with pytest.raises(ValueError, match=r"network returned \(3, 1\) for a state of \(3, 2\)"):
        _ = model(x, 0.5).x0
    with pytest.raises(ViewError, match="noise cannot be formed from x0 at t = 0"):
        _ = orn.Denoiser(lambda x, t: x, Flow(), "x0")(x, 0.0).noise
    with pytest.raises(ValueError, match=r"sigma_data is the standard deviation of the data, positive: got 0.0"):
        orn.EDMPrecondition(0.0)
    with pytest.raises(ValueError, match="mean is finite"):
        orn.Scaling(float("nan"), 1.0)
    with pytest.raises(ViewError, match="makes the denoiser predict x0, not noise"):
        orn.Denoiser(Net(), Flow(), "noise", precondition=orn.EDMPrecondition())
    with pytest.raises(ValueError, match="one state of one GaussianProcess"):
        orn.Denoiser(Net(), Product(Extra(VP(), Flow())), precondition=orn.EDMPrecondition())
    with pytest.raises(NotImplementedError, match="must write bind"):
        orn.BaseDenoiser().bind(None, x, None)


class Straight(Flow):
    views = ("velocity", "x0")


def test_a_view_that_the_process_does_not_offer() -> None:
    with pytest.raises(ViewError, match=r"Straight\(\) has no noise: choose from velocity, x0"):
        orn.Denoiser(Net(), Straight(), "noise")
    assert orn.Denoiser(Net(), Straight(), "x0").predicts == "x0"


def test_flow_maps_keep_levels() -> None:
    """A straight map of a point mass at c: X(x, t, s) = c + (s/t) (x - c), the flow of x = (1 - t) c + t noise."""

    class Point(FlowMap):
        process = Flow()

        def forward(self, x: Tensor, t: Any, s: Any, cond: Any = None) -> Tensor:
            c = cond["c"]
            return (1 - s.t) * c + s.t / t.t * (x - (1 - t.t) * c)

    x, cond = normals(3, 2), {"c": normals(3, 2, seed=1)}
    jump = Point()
    torch.testing.assert_close(jump(x, 0.8, 0.8, cond), x)
    torch.testing.assert_close(jump(x, 0.8, 0.2, cond), 0.8 * cond["c"] + (x - 0.2 * cond["c"]) / 4)
    torch.testing.assert_close(jump(jump(x, 0.8, 0.5, cond), 0.5, 0.2, cond), jump(x, 0.8, 0.2, cond))
    with pytest.raises(ValueError, match="its first axis must be the batch"):
        jump(x, 0.8, 0.2, {"c": x[:2]})
    with pytest.raises(ValueError, match="lies outside"):
        jump(x, 0.8, -0.2, cond)
    with pytest.raises(NotImplementedError, match="must write forward"):
        type("Empty", (FlowMap,), {"process": Flow()})()(x, 0.5, 0.2)
