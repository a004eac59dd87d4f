"""Training regresses on conditional expectations, with the stated weights, times, averages and refusals."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ornstein as orn
from ornstein._types import VIEWS, View
from ornstein.denoiser import BaseDenoiser
from ornstein.errors import CheckpointError, NonFiniteError
from ornstein.random import Share
from ornstein.training import (
    ELBO,
    EMA,
    LogitNormal,
    LogNormalSigma,
    MinSNR,
    Objective,
    TimeLaw,
    UniformLogSNR,
    UniformTime,
    UnitOutput,
    UnitTarget,
    fit,
    load_weights,
    save_weights,
)
from ornstein.training.drop import dropper
from ornstein.training.feeds import TensorFeed
from ornstein.training.schedule import factor_of

PROCESSES = [orn.VP(), orn.SubVP(), orn.VE(), orn.Cosine(), orn.Cosine(0.008), orn.EDM(), orn.Flow()]
COV = torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64)
GAUSSIAN = orn.exact.Gaussian(torch.tensor([0.5, -1.0], dtype=torch.float64), COV)


def name(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


class Zero(nn.Module):
    """A network that answers 0; its one parameter is only there to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.w * x


class Nudged(BaseDenoiser):
    """An exact answer plus theta_0 (its own value) + theta_1 (the state at unit size) + theta_2."""

    def __init__(self, exact: BaseDenoiser, theta: Tensor) -> None:
        super().__init__()
        self.exact, self.process, self.predicts = exact, exact.process, exact.predicts
        self.theta = nn.Parameter(theta)

    def bind(self, levels: Any, x: Tensor, cond: Any) -> list[Callable[[Tensor], Tensor]]:
        calls = self.exact.bind(levels, x, cond)

        def nudged(call: Callable[[Tensor], Tensor], e: int) -> Callable[[Tensor], Tensor]:
            size = orn.processes.broadcast(torch.hypot(levels[e].alpha, levels[e].sigma), x)
            a, b = levels[e].rows(self.predicts)
            unit = orn.processes.broadcast(torch.hypot(a, b), x)  # nudges are as large as the target is
            s = self.theta
            return lambda x: (1 + s[0]) * call(x) + unit * (s[1] * x / size + s[2])

        return [nudged(call, e) for e, call in enumerate(calls)]


class Ends(TimeLaw):
    """The first and last times that any law can draw, in turn."""

    def quantile(self, u: Tensor, process: Any) -> Tensor:
        return torch.where(torch.arange(len(u)) % 2 == 0, 0.0, 1.0).double()

    def density(self, level: Any) -> Tensor:
        raise NotImplementedError


# --- the objective ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("process", [orn.VP(), orn.Flow(), orn.EDM(8.0), orn.Cosine()], ids=name)
def test_the_minimiser_is_the_conditional_expectation(process: Any, view: View) -> None:
    n, objective = 20_000, Objective()
    x0 = GAUSSIAN.sample(n, seed=1)
    exact = GAUSSIAN.denoiser(process, view)

    def slopes(theta: list[float]) -> Tensor:
        """The gradient of each sample's loss, (3, n): the loss is quadratic in theta, so central differences are exact
        but for rounding."""
        rows, h = [], 0.125
        for i in range(3):
            at = torch.tensor([theta, theta], dtype=torch.float64)
            at[0, i] += h
            at[1, i] -= h
            with torch.no_grad():
                up, down = (objective.losses(Nudged(exact, value), x0, seed=5)[0] for value in at)
            rows.append((up - down) / (2 * h))
        return torch.stack(rows)

    # 60 comparisons at 4.5 standard errors: a false alarm in 2,500 such files, and the seeds are fixed
    gradient = slopes([0.0, 0.0, 0.0])
    error = gradient.std(1) / math.sqrt(n)
    assert (gradient.mean(1).abs() < 4.5 * error).all()
    wrong = slopes([0.1, 0.1, 0.1])
    assert (wrong.mean(1).abs() > 9 * wrong.std(1) / math.sqrt(n)).any()
    # and the scalar that is differentiated is the mean of what was measured
    model = Nudged(exact, torch.full((3,), 0.1, dtype=torch.float64))
    objective(model, x0, seed=5).backward()
    torch.testing.assert_close(model.theta.grad, wrong.mean(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_default_weights_bound_the_loss(process: Any, view: View) -> None:
    n, m = 4096, 4.0
    model = orn.Denoiser(Zero(), process, view)
    x0 = 2 * torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    for law in (Ends(), UniformTime()):
        losses, t = Objective(time=law).losses(model, x0, seed=2)
        level = process.level(t)
        a, b = level.rows(view)
        expected = (a**2 * m + b**2) / (a**2 + b**2)
        assert expected.max() <= m * (1 + 1e-12)
        assert losses.isfinite().all()
        # the squared Gaussian target over its mean is chi^2 of one degree, variance 2; 8 n of them, at most m times 1
        assert abs(float((losses / expected).detach().mean()) - 1) < 5 * math.sqrt(2 / (8 * n))
    if view == "score":  # the simpler relative: no weight, no bound
        losses, _ = Objective(time=Ends(), weighting=lambda level, view, process: torch.ones_like(level.t)).losses(
            model, x0, seed=2
        )
        assert losses.max() > 1e6 * m


def test_components_add() -> None:
    class Pair(NamedTuple):
        a: Any
        b: Any

    class Halves(nn.Module):
        def forward(self, x: Any, t: Tensor, cond: Any = None) -> Any:
            return Pair(0 * x.a, 0 * x.b)

    class Careless(nn.Module):
        def forward(self, x: Any, t: Tensor, cond: Any = None) -> Any:
            return Pair(0 * x.a, 0 * x.b + 7)  # whatever it says where the mask is 0 does not count

    product = orn.Product(Pair(orn.VP(), orn.Flow()))
    x0 = Pair(torch.full((4000, 3), 2.0, dtype=torch.float64), torch.full((4000, 1), 3.0, dtype=torch.float64))
    loss, t = Objective().losses(orn.Denoiser(Halves(), product, "v"), x0, seed=0)
    # v with weight 1/(alpha^2 + sigma^2): (sigma^2 x0^2 + alpha^2)/(alpha^2 + sigma^2) on average, in each component
    vp, flow = product.level(t).components
    expected = vp.sigma**2 * 4 + vp.alpha**2 + (flow.sigma**2 * 9 + flow.alpha**2) / (flow.alpha**2 + flow.sigma**2)
    assert abs(float((loss - expected).mean())) < 4.5 * float((loss - expected).std()) / math.sqrt(4000)

    masked = orn.Product(product.processes, project=lambda state, cond: Pair(state.a, 0 * state.b))
    loss, _ = Objective().losses(orn.Denoiser(Careless(), masked, "v"), x0, seed=0)
    assert abs(float((loss - (vp.sigma**2 * 4 + vp.alpha**2)).mean())) < 4.5 * float(loss.std()) / math.sqrt(4000)


# --- weightings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [orn.VP(), orn.EDM(8.0), orn.Flow()], ids=name)
def test_weightings_do_not_depend_on_the_view(process: Any) -> None:
    law = UniformLogSNR(-6, 6)
    x0 = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))  # not the world's: errors
    for weighting in (MinSNR(), MinSNR(gamma=1.0), ELBO(law)):
        objective = Objective(time=law, weighting=weighting)
        losses = {v: objective.losses(GAUSSIAN.denoiser(process, v), x0, seed=1)[0] for v in VIEWS}
        for view in VIEWS:
            torch.testing.assert_close(losses[view], losses["x0"], rtol=1e-9, atol=1e-12)
    # the default, a unit target in each view, is another loss in each
    objective = Objective(time=law)
    default = [objective.losses(GAUSSIAN.denoiser(process, v), x0, seed=1)[0] for v in ("x0", "noise")]
    assert not torch.allclose(*default, rtol=0.1)


def test_weights_are_the_published_ones() -> None:
    level = orn.EDM().level(torch.tensor([1e-4, 0.003, 0.05, 0.9]))
    process, sigma, snr = orn.EDM(), 80 * level.t, (80 * level.t) ** -2
    torch.testing.assert_close(MinSNR(5.0)(level, "x0", process), snr.clamp(max=5.0))
    torch.testing.assert_close(MinSNR(5.0)(level, "noise", process), snr.clamp(max=5.0) / snr)
    edm = UnitOutput(orn.EDMPrecondition(0.5))(level, "x0", process)
    torch.testing.assert_close(edm, (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    level = orn.VP().level(torch.tensor([0.1, 0.6]))
    # v of a variance-preserving process: min(SNR, gamma)/(SNR + 1), Hang et al.
    torch.testing.assert_close(
        MinSNR(5.0)(level, "v", orn.VP()), level.log_snr.exp().clamp(max=5.0) / (level.log_snr.exp() + 1)
    )


def test_a_precondition_brings_its_weight() -> None:
    # F = 0 answers c_skip x, whose error over c_out has unit variance when the data have sigma_data: the loss is 1
    n = 20_000
    model = orn.Denoiser(lambda x, t: 0 * x, orn.Flow(), precondition=orn.EDMPrecondition(0.5))
    x0 = 0.5 * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses, _ = Objective(time=LogNormalSigma()).losses(model, x0, seed=0)
    assert abs(float(losses.mean()) - 1) < 5 * math.sqrt(2 / (2 * n))
    plain, _ = Objective(time=LogNormalSigma(), weighting=UnitTarget()).losses(model, x0, seed=0)
    assert float(plain.mean()) < 0.5


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("process", [orn.VP(), orn.Flow(), orn.VE()], ids=name)
def test_elbo_is_exact_on_a_gaussian(process: Any, view: View) -> None:
    # With the exact denoiser the bound is tight, and between two levels it is what x_t tells of x0:
    # 1/2 int |noise - E noise|^2 d log_snr = I(x0; x_high) - I(x0; x_low) = 1/2 sum log (1 + S c)/(1 + s c)
    low, high, n = -6.0, 6.0, 20_000
    c = torch.linalg.eigvalsh(COV)
    exact = float(torch.log((1 + math.exp(high) * c) / (1 + math.exp(low) * c)).sum() / 2)
    # and so -log p of the data blurred at `high` is it plus the prior's and the reconstruction's terms
    blurred = orn.exact.Gaussian(torch.zeros(2).double(), COV + math.exp(-high) * torch.eye(2).double())
    nll = float(-blurred.log_prob(blurred.sample(n, seed=7)).mean())
    prior = float(torch.log1p(math.exp(low) * c).sum() / 2)
    reconstruction = math.log(2 * math.pi * math.e) - high
    assert abs(nll - (exact + prior + reconstruction)) < 5 / math.sqrt(n)  # chi^2_2 / 2 has unit variance

    law = UniformLogSNR(low, high)
    x0 = GAUSSIAN.sample(n, seed=3)
    losses, _ = Objective(time=law, weighting=ELBO(law)).losses(GAUSSIAN.denoiser(process, view), x0, seed=4)
    # the standard error counts times as independent, which overstates it: they cover the range evenly
    error = 2 * float(losses.std()) / math.sqrt(n)
    assert error < 0.02 * exact
    assert abs(2 * float(losses.mean()) - exact) < 4 * error


# --- time laws -------------------------------------------------------------------------------------------------------


def normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


LAWS: list[tuple[TimeLaw, Any, Callable[[Tensor], Tensor]]] = [
    (UniformTime(), orn.Flow(), lambda t: t),
    (LogitNormal(0.3, 0.8), orn.Flow(), lambda t: normal_cdf((torch.log(t / (1 - t)) - 0.3) / 0.8)),
    (LogNormalSigma(), orn.EDM(), lambda t: normal_cdf((torch.log(80 * t) + 1.2) / 1.2)),
    (LogNormalSigma(), orn.Flow(), lambda t: normal_cdf((torch.log(t / (1 - t)) + 1.2) / 1.2)),
    (UniformLogSNR(-4, 9), orn.Flow(), lambda t: (9 - 2 * torch.log((1 - t) / t)) / 13),
    (UniformLogSNR(-4, 9), orn.VP(), lambda t: (9 - orn.VP().log_snr(t)) / 13),
]


@pytest.mark.parametrize(("law", "process", "cdf"), LAWS, ids=lambda value: repr(value)[:14])
def test_time_laws(law: TimeLaw, process: Any, cdf: Callable[[Tensor], Tensor]) -> None:
    def distance(t: Tensor) -> float:
        """Kolmogorov's, between the times and the law."""
        place, n = cdf(t.sort().values), len(t)
        steps = torch.arange(n, dtype=torch.float64) / n
        return float(torch.maximum((place - steps).abs(), (place - steps - 1 / n).abs()).max())

    rng, n = torch.Generator().manual_seed(0), 1000
    batches = torch.stack([law.draw(8, process, rng) for _ in range(n)])
    assert batches.dtype == torch.float64
    # one value a batch, at any place in it, has the law: P(distance > d) <= 2 exp(-2 n d^2), here one in a million
    for place in (0, 5):
        assert distance(batches[:, place]) < math.sqrt(math.log(2e6) / (2 * n))
    assert distance(law.draw(n, process, rng)) <= 1 / n + 1e-9  # a batch covers it evenly, as independent ones do not
    # the density is the slope of the law, by Simpson's rule between its quantiles
    ends = law.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), process)
    t = torch.linspace(float(ends[0]), float(ends[1]), 4001, dtype=torch.float64)
    weights = torch.tensor([1.0, *[4.0, 2.0] * 1999, 4.0, 1.0], dtype=torch.float64) * (t[1] - t[0]) / 3
    assert float(weights @ law.density(process.level(t))) == pytest.approx(0.9, abs=1e-6)


def test_times_stay_inside() -> None:
    rng = torch.Generator().manual_seed(0)
    for law, process in ((LogitNormal(0, 100), orn.Flow()), (LogNormalSigma(0, 100), orn.VP()), (Ends(), orn.VE())):
        t = law.draw(1000, process, rng)
        assert 0 < t.min() < 1e-9
        assert 1 - 1e-9 < t.max() < 1


def test_laws_and_weightings_refuse() -> None:
    for make in (
        lambda: LogitNormal(std=0),
        lambda: LogNormalSigma(std=-1),
        lambda: UniformLogSNR(3, 3),
        lambda: UniformLogSNR(-math.inf, 3),
        lambda: MinSNR(gamma=0),
    ):
        with pytest.raises(ValueError, match="got"):
            make()

    class One(NamedTuple):
        a: Any

    with pytest.raises(ValueError, match="UniformTime or LogitNormal"):
        LogNormalSigma().draw(2, orn.Product(One(orn.VP())), torch.Generator())


# --- the average of the weights --------------------------------------------------------------------------------------


def test_ema_closed_form() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    ema = EMA(model, 0.9)
    nn.init.constant_(model.weight, 5.0)
    for _ in range(50):
        ema.update()
    # the distance to constant weights is the product of the d_k: (1+k)/(10+k) up to k = 80 stays below 0.9, and the
    # product telescopes to (n+1)! 10!/(n+10)!
    n = 50
    left = math.factorial(n + 1) * math.factorial(10) / math.factorial(n + 10)
    assert float(ema.state_dict()["weight"]) == pytest.approx(5 - 2 * left, rel=1e-12)
    for _ in range(60):
        ema.update()
    for k in range(51, 111):
        left *= min(0.9, (1 + k) / (10 + k))
    assert float(ema.state_dict()["weight"]) == pytest.approx(5 - 2 * left, rel=1e-12)

    half = EMA(model, half_life=7)
    half.updates = 10**6
    nn.init.constant_(model.weight, 6.0)
    for _ in range(7):
        half.update()
    assert float(half.state_dict()["weight"]) == pytest.approx(5.5, rel=1e-12)
    with half.swap():
        assert model.weight.item() == pytest.approx(5.5)
    assert model.weight.item() == 6.0
    with pytest.raises(RuntimeError), half.swap():
        raise RuntimeError
    assert model.weight.item() == 6.0
    half.copy()
    assert model.weight.item() == pytest.approx(5.5)
    for bad in ({"decay": 1.0}, {"decay": -0.1}, {"half_life": 0.0}):
        with pytest.raises(ValueError, match="got"):
            EMA(model, **bad)


# --- feeds, drops, the trainer ---------------------------------------------------------------------------------------


def small(predicts: View = "velocity", **extra: Any) -> orn.Denoiser:
    torch.manual_seed(11)
    net = orn.nets.MLP(features=2, labels=3, width=16, depth=1)
    return orn.Denoiser(net, orn.Flow(), predicts, null={"label": orn.nets.NULL}, **extra)


X = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
Y = {"label": torch.arange(100) % 3}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_every_epoch_has_every_item_once() -> None:
    feed = TensorFeed(torch.arange(10.0), None, 4, seed=3)
    drawn = torch.cat([feed(step, feed.share(step, 0, 1))[0] for step in range(10)]).reshape(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in drawn)
    assert len({tuple(epoch.tolist()) for epoch in drawn}) == 4
    assert torch.equal(TensorFeed(torch.arange(10.0), None, 4, seed=3)(6, Share(0, 4, 4))[0], drawn.flatten()[24:28])
    large = TensorFeed(torch.arange(10.0), None, 25, seed=3)(0, Share(0, 25, 25))[0]
    assert torch.equal(large, drawn.flatten()[:25])


def test_tensor_dataset_and_loader_train_alike() -> None:
    options: dict[str, Any] = {"steps": 30, "batch_size": 16, "seed": 4, "drop": {"label": 0.2}}
    items = [(x, {"label": label}) for x, label in zip(X, Y["label"], strict=True)]
    feed = TensorFeed(X, Y, 16, 4)
    order = [feed.indices(step).tolist() for step in range(30)]
    weights = []
    for data, cond in ((X, Y), (items_dataset(items), None), (DataLoader(items, batch_sampler=order), None)):
        model = small()
        fit(model, data, cond=cond, **options)
        weights.append(model.state_dict())
    assert same(weights[0], weights[1])
    assert same(weights[0], weights[2])
    model = small()
    fit(model, X, cond=Y, **{**options, "seed": 5})
    assert not same(weights[0], model.state_dict())


def items_dataset(items: list[Any]) -> Any:
    class Items(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    return Items()


def test_scaling_is_applied_to_the_data() -> None:
    raw = 100 + 20 * X
    scaling = orn.Scaling.of(raw)
    first, second = small(scaling=scaling), small()
    fit(first, raw, cond=Y, steps=5, batch_size=16)
    fit(second, scaling.encode(raw), cond=Y, steps=5, batch_size=16)
    assert same(first.net.state_dict(), second.net.state_dict())


def test_every_step_has_its_own_randomness() -> None:
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    class Watcher(Zero):
        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            if self.training:
                seen.append((x.detach(), t, torch.rand(3)))
            return super().forward(x, t, cond)

    class Half(UniformTime):
        def quantile(self, u: Tensor, process: Any) -> Tensor:
            return torch.full_like(u, 0.5)

    state = torch.get_rng_state()
    for law in (UniformTime(), UniformTime(), Half()):
        model = orn.Denoiser(Watcher(), orn.Flow(), "v")
        fit(model, torch.ones(1, 3), steps=20, batch_size=4, seed=9, objective=Objective(time=law))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is as it was
    first, again, fixed = (
        [tuple(tuple(part.flatten().tolist()) for part in step) for step in seen[start : start + 20]]
        for start in (0, 20, 40)
    )
    assert first == again
    _, times, own = zip(*first, strict=True)
    states, _, _ = zip(*fixed, strict=True)  # at one time and from one point: the noise alone
    assert len(set(times)) == len(set(own)) == len(set(states)) == 20


def test_drop_rate() -> None:
    n = 20_000
    model = orn.Denoiser(Zero(), orn.Flow(), null={"label": -1, "image": 0.5})
    every = Share(0, n, n)
    cond = {"label": torch.arange(n), "image": torch.ones(n, 2), "kept": torch.ones(n)}
    after = dropper(model, {"label": 0.3, "image": 0.1})(cond, 1, every)
    label, image = after["label"] == -1, after["image"][:, 0] == 0.5
    for gone, p in ((label, 0.3), (image, 0.1), (label & image, 0.03)):  # and independently of each other
        assert abs(float(gone.double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert torch.equal(after["label"][~label], cond["label"][~label])
    assert torch.equal(after["image"][:, 0] == 0.5, after["image"][:, 1] == 0.5)  # whole samples
    assert after["kept"] is cond["kept"]
    assert after["label"].dtype == torch.long
    assert torch.equal(cond["label"], torch.arange(n))
    assert not torch.equal(dropper(model, {"label": 0.3})(cond, 2, every)["label"] == -1, label)
    assert bool((dropper(model, {"label": 1.0})(cond, 0, every)["label"] == -1).all())


def test_learns_what_no_linear_denoiser_can() -> None:
    angle = torch.arange(5) * 2 * math.pi / 5
    world = orn.exact.GaussianMixture(torch.stack([angle.cos(), angle.sin()], 1), torch.full((5,), 0.15), torch.ones(5))
    process = orn.Flow()
    torch.manual_seed(0)
    model = orn.Denoiser(orn.nets.MLP(features=2, width=48, depth=2), process)
    fit(model, world.sample(5000, seed=0), steps=400, batch_size=256, lr=3e-3, ema=0.98)
    t = torch.linspace(0.05, 0.95, 4000, dtype=torch.float64)
    x = process.corrupt(world.sample(4000, seed=1), t, seed=2).x
    linear = orn.exact.Gaussian(*world.moments()).denoiser(process)
    with torch.no_grad():
        truth = world.denoiser(process)(x, t).velocity
        learned, rival = (float((m(x, t).velocity - truth).square().mean()) for m in (model, linear))
    assert not model.training
    assert learned < 0.25 * rival  # measured 0.06: the seed and the machine may move it fourfold


def test_bf16_is_close_and_keeps_float32_weights() -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        model = small()
        result = fit(model, X, cond=Y, steps=20, batch_size=64, precision=precision, lr=1e-2)
        losses[precision] = result.history["loss"]
        assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())
    difference = (losses["bf16"] / losses["fp32"] - 1).abs()
    assert 0 < difference.max() < 0.05  # bfloat16 has 8 bits: errors of 2^-8 a rounding, averaged over a batch


def test_history_schedule_and_clipping() -> None:
    model = small()
    seen: list[tuple[int, bool, bool, bool]] = []

    def callback(step: int, training: Any) -> None:
        own = {name: value.clone() for name, value in model.state_dict().items()}
        trains = model.training
        with training.average() as averaged:
            assert averaged is model
            seen.append((step, trains, model.training, same(own, model.state_dict())))
        assert same(own, model.state_dict())
        assert len(training.history["loss"]) == step
        model.eval()  # a callback may leave it so

    result = fit(model, X, cond=Y, steps=25, batch_size=16, lr=0.1, warmup=4, every=10, callbacks=[callback])
    assert seen == [(10, True, False, False), (20, True, False, False), (25, True, False, False)]
    expected = [0.1 * (1 + math.cos(math.pi * k / 25)) / 2 * min(1, (k + 1) / 5) for k in range(25)]
    torch.testing.assert_close(result.history["lr"], torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(result.history["step"], torch.arange(1, 26))
    assert not same(result.raw, model.state_dict())  # the average stays in the model, the raw weights in the result

    # one step of plain descent moves the weights by lr times the clipped norm, which is 0.01
    model = small()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    descent: Any = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731
    result = fit(
        model, X, cond=Y, steps=1, ema=None, clip=0.01, optimizer=descent, schedule=lambda step: 0.5, batch_size=50
    )
    assert result.history["grad_norm"][0] > 0.02
    moved = float((nn.utils.parameters_to_vector(model.parameters()) - before).norm())
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-3)  # torch adds 1e-6 to the norm that it divides by
    assert same(result.raw, model.state_dict())
    result = fit(small(), X, cond=Y, steps=1, ema=None, clip=None, optimizer=descent, batch_size=50)
    moved = float((nn.utils.parameters_to_vector(list(result.raw.values())) - before).norm())
    assert moved == pytest.approx(float(result.history["grad_norm"][0]), rel=1e-4)


def test_nan_names_the_step() -> None:
    calls = []

    class Breaks(Zero):
        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            calls.append(0)
            return super().forward(x, t, cond) + (math.nan if len(calls) == 8 else 0.0)  # one call is the check before

    with pytest.raises(NonFiniteError, match="at step 7 of 20 the loss is nan"):
        fit(orn.Denoiser(Breaks(), orn.Flow()), X, steps=20)


def bad_cases() -> dict[str, tuple[str, dict[str, Any]]]:
    nan = X.clone()
    nan[17, 1] = math.nan
    return {
        "empty": ("data set is empty", {"data": X[:0], "cond": None}),
        "empty loader": ("gave no batch", {"data": DataLoader([(X[0],)], batch_size=9, drop_last=True), "cond": None}),
        "nan": ("NaN or infinity, first in sample 17", {"data": nan}),
        "cond nan": ("NaN or infinity", {"cond": {**Y, "z": nan}}),
        "integers": ("torch.int64", {"data": Y["label"]}),
        "label": ("label 3 is out of range", {"cond": {"label": Y["label"] + 1}}),
        "shape": ("features a sample", {"data": torch.zeros(100, 3)}),
        "cond batch": ("must be the batch of 100", {"cond": {"label": Y["label"][:50]}}),
        "no cond": ("needs cond", {"cond": None}),
        "steps": ("steps must be at least 1: got 0", {"steps": 0}),
        "batch": ("batch_size must be at least 1: got 0", {"batch_size": 0}),
        "lr": ("lr must be positive", {"lr": 0.0}),
        "clip": ("clip is", {"clip": 0.0}),
        "warmup": ("warmup", {"warmup": -1}),
        "ema": ("decay must lie", {"ema": 1.0}),
        "precision": ("'fp32', 'bf16' or 'fp16'", {"precision": "fp8"}),
        "no null": ("needs a null value for 'mask'", {"drop": {"mask": 0.1}}),
        "probability": ("is a probability: got 1.5", {"drop": {"label": 1.5}}),
        "type": ("a tensor, a Dataset or a DataLoader: got list", {"data": [1, 2], "cond": None}),
        "dataset cond": ("goes with a tensor", {"data": TensorDataset(X)}),
        "three parts": ("got 3 parts", {"data": TensorDataset(X, X, X), "cond": None}),
    }


@pytest.mark.parametrize("case", bad_cases())
def test_bad_input(case: str) -> None:
    message, change = bad_cases()[case]
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments: dict[str, Any] = {"data": X, "cond": Y, "steps": 3, "batch_size": 20, **change}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(fit)(model, **arguments)  # as users have it: without the type checker of the tests
    assert same(before, model.state_dict())


def test_unknown_schedule() -> None:
    unchecked: Any = inspect.unwrap(factor_of)
    with pytest.raises(ValueError, match="'cosine', 'constant' or a function of the step: got 'linear'"):
        unchecked("linear", 10, None)


def test_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    first = small(scaling=orn.Scaling(torch.tensor([1.0, 2.0]), 3.0))
    save_weights(first, path, {"note": [1, "two"]})
    second = small(scaling=orn.Scaling(torch.zeros(2), 1.0))
    nn.init.zeros_(second.net.first.weight)
    assert load_weights(second, path) == {"note": [1, "two"]}
    assert same(first.state_dict(), second.state_dict())
    for other, message in (
        (small(), "'scaling.*', which this Denoiser lacks"),
        (small(scaling=orn.Scaling(torch.zeros(3), 1.0)), r"'scaling.mean' has shape \(2,\)"),
        (orn.FlowMap(), "lacks"),
    ):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(CheckpointError, match=message):
            load_weights(other, path)
        assert same(before, other.state_dict())
