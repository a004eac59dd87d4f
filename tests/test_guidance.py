"""Guidance: linear in every view, honest about its cost, on exact mixtures whose labels are the condition."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein._types import VIEWS
from ornstein.guidance import CFG, Autoguidance
from ornstein.processes import VP, Flow, GaussianProcess, MeanReverting, Product
from schedules import PROCESSES

NULL = -1


def world() -> Any:
    means = torch.tensor([[1.0, 0.5], [-1.5, 1.0], [0.3, -2.0]], dtype=torch.float64)
    return orn.exact.GaussianMixture(means, torch.tensor([0.4, 0.7, 0.5]), torch.tensor([0.5, 0.2, 0.3]))


LABELS = torch.tensor([0, 1, 2, 1])
COND = {"label": LABELS}
NOBODY = {"label": torch.full_like(LABELS, NULL)}
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Counting(nn.Module):
    """A network that counts its calls and rows, and answers by label: (label + 2) sin x + t."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.calls.append(len(x))
        assert t.shape == (len(x),)
        assert cond["label"].shape == (len(x),)
        return self.weight * (cond["label"][:, None] + 2) * torch.sin(x) + t[:, None]


def counting(process: GaussianProcess | None = None, predicts: Any = "velocity") -> tuple[orn.Denoiser, Counting]:
    net = Counting()
    return orn.Denoiser(net, process or Flow(), predicts, null={"label": NULL}), net


@pytest.mark.parametrize("predicts", VIEWS)
def test_scales_zero_and_one_are_the_branches(predicts: Any) -> None:
    model = world().denoiser(VP(), predicts)
    for view in VIEWS:
        wanted = model(X, 0.4, COND).view(view)
        torch.testing.assert_close(CFG(model, 1.0)(X, 0.4, COND).view(view), wanted, rtol=1e-12, atol=1e-12)
        wanted = model(X, 0.4, NOBODY).view(view)
        torch.testing.assert_close(CFG(model, 0.0)(X, 0.4, COND).view(view), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in PROCESSES if n != "MeanReverting"])
def test_the_extrapolation_is_linear_and_the_same_in_every_view(name: str) -> None:
    """u + w (c - u) of each view, whichever view carries it, to the conditions of conversions (below 1e4)."""
    process, w = PROCESSES[name], 2.5
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    exact = world().denoiser(process)
    for predicts in VIEWS:
        guided = CFG(world().denoiser(process, predicts), w)(X, t, COND)
        for view in VIEWS:
            c, u = exact(X, t, COND).view(view), exact(X, t, NOBODY).view(view)
            wanted = u + w * (c - u)
            torch.testing.assert_close(guided.view(view), wanted, rtol=0, atol=1e-11 * float(wanted.abs().max()))
        head = guided.head("uncond")
        torch.testing.assert_close(head.x0, exact(X, t, NOBODY).x0, rtol=0, atol=1e-11 * float(head.x0.abs().max()))


def test_guidance_with_a_shift() -> None:
    """The shift and its slope enter once, not w times."""
    process, mean = MeanReverting(), torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cond, nobody = ({"mean": mean, **label} for label in (COND, NOBODY))
    exact = world().denoiser(process)
    for predicts in VIEWS:
        guided = CFG(world().denoiser(process, predicts), 3.0)(X, 0.3, cond)
        for view in VIEWS:
            c, u = exact(X, 0.3, cond).view(view), exact(X, 0.3, nobody).view(view)
            wanted = u + 3.0 * (c - u)
            torch.testing.assert_close(guided.view(view), wanted, rtol=0, atol=1e-11 * float(wanted.abs().max()))


def test_a_scale_a_sample() -> None:
    w = torch.tensor([0.0, 1.0, 2.0, -1.0])
    model = world().denoiser(Flow(), "velocity")
    guided = CFG(model, w)(X, 0.5, COND).velocity
    for k, scale in enumerate(w.tolist()):
        alone = CFG(model, scale)(X[k : k + 1], 0.5, {"label": LABELS[k : k + 1]}).velocity
        torch.testing.assert_close(guided[k : k + 1], alone, rtol=1e-13, atol=1e-13)
    images = orn.Denoiser(lambda x, t, c: x * c["label"].reshape(-1, 1, 1), Flow(), "x0", null={"label": NULL})
    x = torch.ones(4, 2, 3, dtype=torch.float64)
    wanted = (-1 + w * (LABELS + 1)).double().reshape(-1, 1, 1).expand(4, 2, 3)
    torch.testing.assert_close(CFG(images, w)(x, 0.5, COND).x0, wanted)
    torch.testing.assert_close(CFG(images, torch.tensor(2.0))(x, 0.5, COND).x0[0], torch.ones(2, 3).double())
    live = torch.tensor(2.0, requires_grad=True)
    (slope,) = torch.autograd.grad(CFG(images, live)(x, 0.5, COND).x0[2].sum(), live)
    assert float(slope) == 6 * (LABELS[2] + 1)


@pytest.mark.parametrize("t", [0.5, torch.tensor([0.5]), torch.tensor([0.1, 0.3, 0.6, 0.9])])
def test_both_branches_are_one_call_on_a_doubled_batch(t: Any) -> None:
    model, net = counting()
    guided = CFG(model, 3.0)
    answer = guided(X, t, COND)
    assert net.calls == [8]
    time = torch.as_tensor(t, dtype=torch.float64).expand(4)[:, None]
    wanted = (1 + 3 * (LABELS[:, None] + 1)) * torch.sin(X) + torch.as_tensor(t).double().expand(4)[:, None]
    torch.testing.assert_close(answer.velocity, wanted)
    torch.testing.assert_close(answer.head("uncond").velocity, torch.sin(X) + time)
    assert guided.cost(Flow().level([0.2, 0.5, 0.7])) == [2, 2, 2]


def test_a_scale_of_one_runs_one_branch() -> None:
    model, net = counting()
    guided = CFG(model, 1.0)
    guided(X, 0.5, COND)
    assert net.calls == [4]
    assert guided.cost(Flow().level([0.2, 0.5])) == [1, 1]


@pytest.mark.parametrize(
    ("scale", "interval", "rows"),
    [(3.0, None, 2.0), (1.0, None, 1.0), (3.0, (0.25, 0.75), None), (torch.tensor([1.0, 2.0, 3.0, 0.0]), None, 2.0)],
)
def test_the_cost_is_what_was_run(scale: Any, interval: Any, rows: float | None) -> None:
    """Network rows divided by the batch, over ten steps of Euler: t = 1, 0.9, ..., 0.1; 0.3 to 0.7 lie inside."""
    model, net = counting()
    out = orn.sample(
        CFG(model, scale, interval=interval),
        (4, 2),
        cond=COND,
        solver=orn.Euler(),
        grid=orn.Uniform(),
        steps=10,
        seed=0,
    )
    assert out.nfe * 4 == sum(net.calls)
    assert out.nfe == (10 * rows if rows else 15)
    assert len(net.calls) == 10


def test_nested_guidance_is_counted_and_combined() -> None:
    """Autoguidance of a CFG by a weak CFG: weak + w (main - weak) of two extrapolations, four rows a sample."""
    (model, net), (weak, weak_net) = counting(), counting()
    weak_net.weight.data.fill_(0.3)
    guided = Autoguidance(CFG(model, 3.0), CFG(weak, 2.0), 1.5)
    answer = guided(X, 0.5, COND)
    strong, poor = (1 + 3 * (LABELS[:, None] + 1)) * torch.sin(X), 0.3 * (1 + 2 * (LABELS[:, None] + 1)) * torch.sin(X)
    torch.testing.assert_close(answer.velocity, poor + 1.5 * (strong - poor) + 0.5)
    torch.testing.assert_close(answer.head("weak").velocity, poor + 0.5)
    assert (net.calls, weak_net.calls) == ([8], [8])
    assert guided.cost(Flow().level([0.5])) == [4]
    out = orn.sample(guided, (4, 2), cond=COND, solver=orn.Euler(), grid=orn.Uniform(), steps=5, seed=0)
    assert out.nfe * 4 == sum(net.calls[1:]) + sum(weak_net.calls[1:]) == 80


def test_cfg_around_autoguidance() -> None:
    (model, net), (weak, weak_net) = counting(), counting()
    weak_net.weight.data.fill_(0.3)
    guided = CFG(Autoguidance(model, weak, 2.0), 3.0)
    inner = 0.3 + 2.0 * 0.7
    wanted = inner * (1 + 3 * (LABELS[:, None] + 1)) * torch.sin(X) + 0.5
    torch.testing.assert_close(guided(X, 0.5, COND).velocity, wanted)
    assert (net.calls, weak_net.calls) == ([8], [8])
    assert guided.cost(Flow().level([0.5])) == [4]


def test_the_interval() -> None:
    """Closed at both ends; outside it one branch runs, and w = 1 there."""
    model, net = counting()
    guided = CFG(model, 3.0, interval=(0.25, 0.75))
    for t, acts in ((0.0, False), (0.2, False), (0.25, True), (0.5, True), (0.75, True), (0.8, False), (1.0, False)):
        net.calls.clear()
        got = guided(X, t, COND).velocity
        w = 3 if acts else 1
        torch.testing.assert_close(got, (1 + w * (LABELS[:, None] + 1)) * torch.sin(X) + t)
        assert net.calls == [8 if acts else 4]
        assert guided.cost(Flow().level([t])) == [1 + acts]
    shared = torch.full((4,), 0.5)
    assert torch.equal(guided(X, shared, COND).velocity, guided(X, 0.5, COND).velocity)
    with pytest.raises(ValueError, match=r"interval=\(0.25, 0.75\) needs times that all samples share"):
        guided(X, torch.tensor([0.1, 0.5, 0.5, 0.5]), COND)


def test_autoguidance_in_closed_form() -> None:
    """Two Gaussians of one mean: D = x0 shrunk by g = alpha s^2/(alpha^2 s^2 + sigma^2), so the guided factor is
    g_weak + w (g - g_weak)."""
    process, t, w = VP(), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64), 1.8
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    sharp, blurred = (orn.exact.Gaussian(mean, std=std).denoiser(process, "noise") for std in (0.5, 0.9))
    level = process.level(t)
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    gains = [alpha * std**2 / (alpha**2 * std**2 + sigma**2) for std in (0.5, 0.9)]
    factor = gains[1] + w * (gains[0] - gains[1])
    got = Autoguidance(sharp, blurred, w)(X, t)
    torch.testing.assert_close(got.x0, mean + factor * (X - alpha * mean), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.head("weak").x0, mean + gains[1] * (X - alpha * mean), rtol=1e-12, atol=1e-12)


class Pair(NamedTuple):
    a: Any
    b: Any


def test_guidance_of_a_product() -> None:
    product = Product(Pair(VP(), Flow()))

    def net(x: Pair, t: Tensor, cond: Any) -> Pair:
        label = cond["label"][:, None]
        return Pair(x.a * (label + 2), x.b - label + t[:, None])

    model = orn.Denoiser(net, product, "x0", null={"label": NULL})
    x, w = Pair(X, torch.cat([X, X], 1)), torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)[:, None]
    t = torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    got = CFG(model, w[:, 0])(x, t, COND)
    torch.testing.assert_close(got.x0.a, X * (1 + w * (LABELS[:, None] + 1)))
    torch.testing.assert_close(got.x0.b, x.b + 1 - w * (LABELS[:, None] + 1) + t[:, None])
    level = Flow().level(t)
    noise = (x.b - level.alpha[:, None] * got.x0.b) / level.sigma[:, None]
    torch.testing.assert_close(got.noise.b, noise)


def test_other_conditions_reach_both_branches() -> None:
    """Only what has a null value is replaced; the rest, numbers too, goes to both."""
    seen = []

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen.append(cond)
        return x

    model = orn.Denoiser(net, Flow(), null={"text": 0.0, "label": NULL})
    text, image = torch.randn(4, 3), torch.randn(4, 2)
    CFG(model, 2.0)(X, 0.5, {**COND, "text": text, "more": {"image": image, "strength": 0.5, "none": None}})
    (cond,) = seen
    assert torch.equal(cond["label"], torch.cat([LABELS, NOBODY["label"]]))
    assert torch.equal(cond["text"], torch.cat([text, torch.zeros(4, 3)]))
    assert torch.equal(cond["more"]["image"], torch.cat([image, image]))
    assert (cond["more"]["strength"], cond["more"]["none"]) == (0.5, None)


def test_refusals() -> None:
    model, _ = counting()
    bare = orn.Denoiser(lambda x, t, c: x, Flow())
    with pytest.raises(ValueError, match=r"no null condition.*null=\{\"label\""):
        CFG(bare, 2.0)
    with pytest.raises(ValueError, match="guidance needs cond with 'label': got none"):
        CFG(model, 2.0)(X, 0.5)
    with pytest.raises(ValueError, match="got only 'text'"):
        CFG(model, 2.0)(X, 0.5, {"text": X})
    with pytest.raises(ValueError, match=r"scale has shape \(3,\): give a number, or one a sample \(4,\)"):
        CFG(model, torch.ones(3))(X, 0.5, COND)
    with pytest.raises(ValueError, match=r"scale has shape \(4, 1\)"):
        CFG(model, torch.ones(4, 1))(X, 0.5, COND)
    for scale in (float("nan"), torch.tensor([1.0, float("inf")])):
        with pytest.raises(ValueError, match="scale must be finite"):
            CFG(model, scale)
    for interval in ((0.7, 0.2), (0.3, 0.3), (-0.1, 0.5), (0.5, 1.5), (float("nan"), 0.5)):
        with pytest.raises(ValueError, match=r"times \(low, high\) with 0 <= low < high <= 1"):
            CFG(model, 2.0, interval=interval)
    with pytest.raises(ValueError, match="they must agree"):
        Autoguidance(model, counting(VP())[0], 2.0)
    with pytest.raises(ValueError, match="they must agree"):
        Autoguidance(model, counting(predicts="x0")[0], 2.0)
