"""The trainer's switches: each changes what it says, and nothing else."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ornstein as orn
from ornstein.errors import CheckpointError, DivergenceWarning, NonFiniteError
from ornstein.io import load_tensors
from ornstein.report.during import Keep, stops
from ornstein.training import (
    VLB,
    Fit,
    Forecast,
    LossSecondMoment,
    Objective,
    PowerEMA,
    SharedTimestep,
    fit,
    post_hoc,
    profile,
    recomputed,
)
from ornstein.training import forecast as forecasts
from ornstein.training.power_ema import exponent
from ornstein.training.recompute import blocks_of
from ornstein.training.run import Training
from ornstein.training.track import Track

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def images(seed: int = 1) -> orn.Denoiser:
    """A small U-Net whose every weight matters."""
    torch.manual_seed(seed)
    net = orn.nets.UNet(1, width=8, levels=(1, 2), blocks=1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return orn.Denoiser(net, orn.Flow())


def points(width: int = 32) -> orn.Denoiser:
    torch.manual_seed(1)
    return orn.Denoiser(orn.nets.MLP(2, width=width, depth=2), orn.Flow())


def train(model: orn.Denoiser, x: Tensor = X, **options: Any) -> Fit:
    return fit(model, x, **{"steps": 4, "batch_size": 16, "lr": 1e-2, "ema": None, **options})


def distance(a: orn.Denoiser, b: orn.Denoiser) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for p, q in pairs)


# --- the arithmetic of a step ----------------------------------------------------------------------------------------


def test_recomputing_blocks_keeps_less_and_changes_nothing() -> None:
    plain, spare = images(), images()
    seen: list[Forecast] = []
    one = train(plain, foresee=seen.append)
    other = train(spare, recompute=True, foresee=seen.append)
    assert distance(plain, spare) < 1e-6
    assert torch.allclose(one.history["loss"], other.history["loss"], rtol=1e-6)
    assert seen[1].activations < 0.6 * seen[0].activations
    assert all("forward" not in vars(block) for block in blocks_of(spare))  # as it was
    bare = orn.Denoiser(nn.Flatten(), orn.Flow())
    with pytest.raises(ValueError, match="this Flatten has none"), recomputed(bare):
        pass


class Plain(nn.Module):
    """A network that is not looked at by the tests' type checker, which cannot be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = self.last(torch.tanh(self.first(torch.cat([x, t[:, None]], 1))))
        return answer


def test_a_compiled_network_trains_as_itself() -> None:
    torch.manual_seed(0)
    net = Plain()
    plain, fast = orn.Denoiser(net, orn.Flow()), orn.Denoiser(copy.deepcopy(net), orn.Flow())
    calls: list[object] = []
    fast.net.first.register_forward_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    train(plain, x, steps=3)
    train(fast, x, steps=3, compile="aot_eager")
    assert distance(plain, fast) < 1e-5
    assert list(plain.state_dict()) == list(fast.state_dict())
    assert fast.net._compiled_call_impl is None
    assert any(calls)


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 8), ("fp16", 11)])
def test_half_precision_rounds_the_network_alone(precision: str, bits: int) -> None:
    """A loss is a mean of squares of numbers rounded to `bits` bits, layer after layer: near 2^-bits, not equal."""
    plain, half = images(), images()
    one, other = train(plain, steps=1), train(half, steps=1, precision=precision)
    error = abs(float(other.history["loss"] / one.history["loss"]) - 1)
    assert 0 < error < 4 * 2.0**-bits
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert float((other.history["grad_norm"] / one.history["grad_norm"] - 1).abs()) < 0.1  # unscaled again


def test_fp16_passes_over_a_step_whose_gradient_overflows(tmp_path: Path) -> None:
    """A loss 1e4 times as large, times the first scale of 65,536, is beyond 65,504: the scale falls until it fits."""

    def large(level: Any, view: Any, process: Any) -> Tensor:
        return torch.full_like(level.t, 1e4)

    objective, path = Objective(weighting=large), tmp_path / "run.safetensors"
    options: dict[str, Any] = {"precision": "fp16", "objective": objective, "steps": 12, "clip": None}
    model = images()
    result = train(model, **options, checkpoint=path)
    norms = result.history["grad_norm"]
    assert float(norms[0]) == 0  # passed over
    assert float(norms[-1]) > 0
    scale = load_tensors(path, kind="checkpoint")[1]["scale"]
    assert scale["scale"] < 65536
    again = images()

    def stop(step: int, _: Training) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(images(), **options, checkpoint=tmp_path / "killed.safetensors", every=6, callbacks=[stop])
    resumed = train(again, **options, checkpoint=tmp_path / "killed.safetensors", every=6)
    assert distance(model, again) == 0
    assert torch.equal(resumed.history["grad_norm"], norms)


def test_fp16_finds_a_scale_below_one() -> None:
    """A loss 1e7 times as large needs a scale near 65,504/1e8: it is halved from 2^16, once a step, to about 2^-10."""

    def large(level: Any, view: Any, process: Any) -> Tensor:
        return torch.full_like(level.t, 1e7)

    x, options = X[:, 0, 0, :2], {"objective": Objective(weighting=large), "steps": 36, "clip": None, "lr": 1e-6}
    half, plain = train(points(), x, precision="fp16", **options), train(points(), x, **options)
    assert float(half.history["grad_norm"][20]) == 0  # 2^-4 is still too much
    assert float((half.history["grad_norm"][-1] / plain.history["grad_norm"][-1] - 1).abs()) < 0.1


def test_deterministic_algorithms_are_asked_for_inside_only() -> None:
    asked: list[bool] = []

    def note(step: int, _: Training) -> None:
        asked.append(torch.are_deterministic_algorithms_enabled())

    train(points(), X[:, 0, 0, :2], deterministic=True, callbacks=[note])
    train(points(), X[:, 0, 0, :2], callbacks=[note])
    assert asked == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


# --- averages --------------------------------------------------------------------------------------------------------


def weights_of_a_run(ema: Any, every: int = 1, steps: int = 40) -> tuple[list[Tensor], Fit, list[Any]]:
    """(the first weight after each step, the result, the averages at each step)."""
    model, raw, kept = points(), [], []
    first = next(iter(model.parameters()))

    def note(step: int, training: Training) -> None:
        raw.append(first.detach().double().clone())
        own = {key: {k: v.clone() for k, v in a.state_dict().items()} for key, a in training.averages.items()}
        kept.append((step, own))

    result = train(model, X[:, 0, 0, :2], steps=steps, every=every, ema=ema, callbacks=[note])
    return raw, result, kept


def test_several_decays_are_kept_and_the_first_is_left() -> None:
    raw, result, _ = weights_of_a_run((0.5, 0.9))
    assert list(result.averages) == ["ema", "ema 0.9"]
    torch.manual_seed(1)
    start = next(iter(orn.nets.MLP(2, width=32, depth=2).parameters())).detach().double()
    for key, decay in (("ema", 0.5), ("ema 0.9", 0.9)):
        wanted = start
        for k, weight in enumerate(raw, 1):
            d = min(decay, (1 + k) / (10 + k))
            wanted = d * wanted + (1 - d) * weight
        name = next(iter(result.averages[key]))
        assert float((result.averages[key][name] - wanted).abs().max()) < 1e-6
    with pytest.raises(ValueError, match="different decays"):
        weights_of_a_run((0.5, 0.5))


def test_a_power_average_has_its_profile() -> None:
    raw, result, _ = weights_of_a_run(PowerEMA((0.05, 0.2)))
    stack = torch.stack(raw)
    for key, length in (("ema", 0.05), ("power 0.2", 0.2)):
        wanted = torch.einsum("k,k...->...", profile(length, 40, 40), stack)
        assert float((next(iter(result.averages[key].values())) - wanted).abs().max()) < 1e-6


@pytest.mark.parametrize("length", [0.03, 0.1, 0.25])
def test_the_length_of_a_profile_is_its_spread(length: float) -> None:
    """Over 20,000 steps the sum differs from the integral by about a step, 1/20,000 of the run."""
    n = 20_000
    w = profile(length, n, n)
    k = (torch.arange(1, n + 1, dtype=torch.float64) - 0.5) / n
    mean = float((w * k).sum())
    assert abs(float(w.sum()) - 1) < 1e-12
    assert abs(math.sqrt(float((w * (k - mean) ** 2).sum())) - length) < 1 / n
    g = exponent(length)
    assert abs(mean - (g + 1) / (g + 2)) < 1 / n


def test_another_length_is_made_after_training() -> None:
    """post_hoc is linear: applied to the profiles kept it gives the profile that it made of them, and the error of the
    weights is at most the sum of |made - wanted| over the steps, times how far the weights ranged."""
    raw, _, kept = weights_of_a_run(PowerEMA((0.05, 0.1)))
    stack = torch.stack(raw)
    lengths = {"ema": 0.05, "power 0.1": 0.1}
    some = [(lengths[key], step, own[key]) for step, own in kept if step % 4 == 0 for key in lengths]
    profiles = [(length, step, {"w": profile(length, step, 40)}) for length, step, _ in some]
    name = next(iter(some[0][2]))
    range_of_weights = float((stack.amax(0) - stack.amin(0)).max())
    for length, step in ((0.07, 40), (0.15, 40), (0.08, 34)):
        wanted = profile(length, step, 40)
        off = float((post_hoc(profiles, length, step)["w"] - wanted).abs().sum())
        nearest = min(float((own["w"] - wanted).abs().sum()) for _, _, own in profiles)
        assert off < 0.5 * nearest  # the nearest one kept is the rival
        truth = torch.einsum("k,k...->...", wanted, stack)
        error = float((post_hoc(some, length, step)[name] - truth).abs().max())
        assert error < off * range_of_weights + 1e-6
    for length in (0.0, 0.3, -1.0):
        with pytest.raises(ValueError, match=r"between 0 and 0.288"):
            PowerEMA((length,))
    with pytest.raises(ValueError, match="no averages"):
        post_hoc([], 0.1)
    with pytest.raises(ValueError, match="from 1 to 40"):
        post_hoc(some, 0.1, 41)


# --- what is known beforehand ----------------------------------------------------------------------------------------


def test_the_forecast_counts_what_the_training_keeps() -> None:
    model, seen = points(), []
    count = sum(p.numel() for p in model.parameters())
    x = X[:, 0, 0, :2]
    one = train(model, x, ema=(0.5, 0.9), foresee=seen.append)
    coming = seen[0]
    assert coming.weights == coming.gradients == 4 * count
    assert coming.averages == 8 * count
    steps = 4 * len(list(model.parameters()))  # AdamW also counts the steps of each tensor
    assert 8 * count <= coming.optimizer <= 8 * count + steps
    again = points()
    assert torch.equal(train(again, x, ema=(0.5, 0.9)).history["loss"], one.history["loss"])  # it leaves no trace
    assert distance(model, again) == 0
    train(points(), x, batch_size=64, ema=None, foresee=seen.append)
    assert 3 < seen[1].activations / coming.activations < 4.5  # of four times the batch, less what has no batch axis
    assert seen[1].averages == 0
    assert coming.seconds > 0
    assert "MB of memory (weights" in str(coming)
    plain = train(points(), x, optimizer=lambda p: torch.optim.SGD(p, lr=1e-2), foresee=seen.append)
    assert seen[2].optimizer == 0
    assert plain.steps == 4


@pytest.mark.parametrize(("most", "own"), [(10**8, False), (5, False), (10**8, True)])
def test_a_forecast_adds_up(most: int, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of ours, a pass takes 2 s and an update 5 s, for 14 weights of 4 bytes.

    Adam has two more numbers a weight and a count of 4 bytes a tensor. Of too many weights the update of the smallest
    tensor, 2 of the 14, is tried; where the optimizer has the model's own, none is, and Adam's two numbers are taken.
    """
    clock = iter((2.0, 5.0))
    monkeypatch.setattr(forecasts, "_time", lambda work, device: next(clock))
    monkeypatch.setattr(forecasts, "_MOST", most)
    weights = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(2))]
    before = [torch.full_like(p, 7.0) for p in weights]
    for p, grad in zip(weights, before, strict=True):
        p.grad = grad
    found = forecasts.forecast(
        lambda: torch.stack([p.exp().sum() for p in weights]).sum(),
        weights,
        lambda given: torch.optim.Adam(weights if own else given),
        steps=10, passes=3, averages=2,
    )  # fmt: skip
    update = 0.0 if own else 5.0 if most > 14 else 14 / 2 * 5.0
    state = 2 * 56 if own else 2 * 56 + 2 * 4 if most > 14 else 14 / 2 * (2 * 8 + 4)
    assert found.seconds == 10 * (3 * 2.0 + update)
    assert (found.weights, found.gradients, found.averages, found.activations) == (56, 56, 112, 56)
    assert found.optimizer == state
    assert all(p.grad is grad and bool((grad == 7).all()) for p, grad in zip(weights, before, strict=True))


def test_what_a_forecast_measures_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of three times, of 5, 2 and 7 s; and the kibibytes that Linux names, in bytes."""
    moments = iter((0.0, 5.0, 10.0, 12.0, 20.0, 27.0))
    monkeypatch.setattr(forecasts, "_now", lambda device: next(moments))
    assert forecasts._time(lambda: None, torch.device("cpu")) == 2.0
    monkeypatch.setattr(Path, "read_text", lambda self: "MemTotal: 900 kB\nMemAvailable:     100 kB\n")
    assert forecasts.free_memory(torch.device("cpu")) == 102_400


def test_a_training_that_does_not_fit_is_said_so() -> None:
    tight = Forecast(seconds=7200.0, weights=99, gradients=10, optimizer=20, averages=99, activations=5, free=34)
    assert not tight.fits
    assert replace(tight, free=35).fits
    assert Forecast(1.0, 1, 10, 20, 0, 5, None).fits
    assert str(tight).startswith("about 2 h 0 min")

    def stop(coming: Forecast) -> None:
        raise KeyboardInterrupt

    model = points()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        train(model, X[:, 0, 0, :2], foresee=stop)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# --- divergence ------------------------------------------------------------------------------------------------------


def history(losses: Tensor) -> list[warnings.WarningMessage]:
    """The warnings of a training with these losses."""
    training = Training(points(), {}, lambda k: 1e-3, len(losses))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for k, loss in enumerate(losses, 1):
            training.record(loss, torch.ones(()))
            if k % 50 == 0:
                training.look()
    return [w for w in caught if issubclass(w.category, DivergenceWarning)]


def test_a_rising_loss_is_named_with_its_step() -> None:
    falling = torch.linspace(1.0, 0.3, 400)
    rising = 0.3 * torch.exp(torch.arange(100) / 10.0)
    found = history(torch.cat([falling, rising]))
    assert len(found) == 1
    first = 400 + math.ceil(10 * math.log(4)) + 1  # 4 times the least median of 100 losses, about 0.387: a little later
    said = int(str(found[0].message).split("at step ")[1].split(" ")[0])
    assert first <= said <= first + 20
    assert not history(torch.cat([falling, torch.full((300,), 0.9)]))  # a rise by three is no divergence


def test_noise_is_not_taken_for_divergence() -> None:
    """Losses of one sample each, chi-square of one degree: 30 runs of 1,000 steps."""
    noise = torch.Generator().manual_seed(0)
    alarms = sum(bool(history(torch.randn(1000, generator=noise) ** 2)) for _ in range(30))
    assert alarms == 0


def test_a_diverging_training_warns() -> None:
    with pytest.warns(DivergenceWarning, match="lower lr"):
        train(points(), X[:, 0, 0, :2], steps=600, every=600, schedule=lambda k: min(1.03**k, 300), clip=None)


# --- what a resumed run needs ----------------------------------------------------------------------------------------


def killed_at(step: int) -> Any:
    def stop(now: int, _: Training) -> None:
        if now == step:
            raise KeyboardInterrupt

    return stop


def test_what_a_time_law_has_seen_is_resumed(tmp_path: Path) -> None:
    """Without its memory the law would draw the steps after the kill uniformly."""

    def objective() -> VLB:
        return VLB(LossSecondMoment(bins=4, memory=2), variance="posterior", steps=4, grid=orn.Uniform(start=0.99))

    x, path = X[:, 0, 0, :2], tmp_path / "run.safetensors"
    whole, other = points(), points()
    one = train(whole, x, objective=objective(), steps=12)
    with pytest.raises(KeyboardInterrupt):
        train(points(), x, objective=objective(), steps=12, every=6, checkpoint=path, callbacks=[killed_at(6)])
    law = objective()
    two = train(other, x, objective=law, steps=12, every=6, checkpoint=path, foresee=lambda coming: None)
    assert torch.equal(one.history["loss"], two.history["loss"])
    assert distance(whole, other) == 0
    assert isinstance(law.time, LossSecondMoment)
    assert int(law.time.state_dict()["count"].sum()) == 12 * 16  # the forecast's trial has told it nothing


def test_another_timestep_is_another_run(tmp_path: Path) -> None:
    def told(until: float) -> orn.Denoiser:
        torch.manual_seed(1)
        return orn.Denoiser(orn.nets.MLP(2, width=8, depth=1), orn.Flow(), timestep=SharedTimestep(until))

    train(told(0.1), X[:, 0, 0, :2], checkpoint=tmp_path / "run.safetensors")
    with pytest.raises(CheckpointError, match=r"SharedTimestep\(until=0\.1.*is velocity.*SharedTimestep\(until=0\.2"):
        train(told(0.2), X[:, 0, 0, :2], checkpoint=tmp_path / "run.safetensors")


def test_a_kill_between_checkpoint_and_callback_leaves_neither_out(tmp_path: Path) -> None:
    path, seen = tmp_path / "run.safetensors", []

    def note(step: int, _: Training) -> None:
        seen.append(step)

    options: dict[str, Any] = {"steps": 6, "every": 2, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        train(points(), X[:, 0, 0, :2], **options, callbacks=[killed_at(4), note])
    assert seen == [2]
    train(points(), X[:, 0, 0, :2], **options, callbacks=[note])
    assert seen == [2, 4, 6]


# --- trackers and what is kept ---------------------------------------------------------------------------------------


def test_a_tracker_is_told_every_step_once(tmp_path: Path) -> None:
    """Killed after step 4, before the tracker heard of steps 3 and 4: the resumed run tells it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("accelerate")
    path, folder = tmp_path / "run.safetensors", tmp_path / "trackers"
    options: dict[str, Any] = {"steps": 6, "every": 2, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        train(points(), X[:, 0, 0, :2], **options, callbacks=[killed_at(4), Track(["tensorboard"], folder)])
    result = train(points(), X[:, 0, 0, :2], **options, callbacks=[Track(["tensorboard"], folder)])
    events = accumulator.EventAccumulator(str(folder / "run"))
    events.Reload()
    told = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6]
    assert torch.allclose(torch.tensor([value for _, value in told]), result.history["loss"])
    with pytest.raises(ValueError, match=r"unknown tracker 'tensorbord'.*tensorboard"):
        Track(["tensorbord"], folder)


def test_averages_are_kept_at_the_last_stops(tmp_path: Path) -> None:
    keep = Keep(tmp_path, 2)
    seen = []

    def note(step: int, training: Training) -> None:
        seen.append({key: {k: v.clone() for k, v in a.state_dict().items()} for key, a in training.averages.items()})

    train(points(), X[:, 0, 0, :2], steps=8, every=2, ema=PowerEMA((0.1, 0.2)), callbacks=[keep, note])
    assert [path.name for path in stops(tmp_path)] == ["step-000006.safetensors", "step-000008.safetensors"]
    tensors, metadata = load_tensors(stops(tmp_path)[0], kind="averages")
    assert metadata["step"] == 6
    wanted = {f"{key}/{name}": value for key, own in seen[2].items() for name, value in own.items()}
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)


# --- what a review found ---------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two layers of one weight, a batch norm that counts, and a part that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.frozen = (nn.Linear(2, 2) for _ in range(3))
        self.norm = nn.BatchNorm1d(2)
        self.second.weight = self.first.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = self.frozen(self.norm(self.second(torch.tanh(self.first(x)))))
        return answer


def tied() -> orn.Denoiser:
    torch.manual_seed(0)
    return orn.Denoiser(Tied(), orn.Flow())


def test_a_weight_of_two_names_is_left_averaged() -> None:
    model = tied()
    result = train(model, X[:, 0, 0, :2], ema=0.9, steps=8)
    assert torch.equal(model.net.first.weight, result.averages["ema"]["net.first.weight"])
    assert not torch.equal(model.net.first.weight, result.raw["net.first.weight"])
    assert not any("frozen" in name for name in result.averages["ema"])


def test_a_forecast_leaves_no_trace() -> None:
    """Not in the buffers; and not in weights that the optimizer's maker takes from the model itself."""

    def named(model: orn.Denoiser) -> Any:
        groups = [{"params": list(model.net.first.parameters())}, {"params": [model.net.second.bias]}]
        return lambda _: torch.optim.SGD(groups, lr=0.1)

    for grouped in (False, True):
        plain, foreseen = tied(), tied()
        for model, more in ((plain, {}), (foreseen, {"foresee": lambda coming: None})):
            maker = {"optimizer": named(model)} if grouped else {}
            train(model, X[:, 0, 0, :2], **maker, **more)
        pairs = zip(plain.state_dict().values(), foreseen.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_prolonged_run_keeps_its_warmup(tmp_path: Path) -> None:
    path, x = tmp_path / "run.safetensors", X[:, 0, 0, :2]
    options: dict[str, Any] = {"schedule": "constant", "checkpoint": path, "lr": 1e-2}
    train(points(), x, steps=40, **options)
    result = train(points(), x, steps=60, **options)
    rates = result.history["lr"]
    rising = 1e-2 * torch.arange(1, 5, dtype=rates.dtype) / 5  # 40 // 10 = 4 steps of rise, not 60 // 10
    assert torch.allclose(rates[:4], rising)
    assert torch.allclose(rates[4:], torch.full((56,), 1e-2, dtype=rates.dtype))
    with pytest.raises(CheckpointError, match="warmup was None, is 20"):
        train(points(), x, steps=60, warmup=20, **options)


def test_a_gradient_that_is_never_finite_is_an_error_in_fp16() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradient: Tensor) -> Tensor:
            return gradient[0] * math.nan

    class Net(Plain):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            answer: Tensor = Broken.apply(super().forward(x, t))
            return answer

    with pytest.raises(NonFiniteError, match="overflows in fp16 at any scale"):
        train(orn.Denoiser(Net(), orn.Flow()), X[:, 0, 0, :2], precision="fp16", steps=60)


def test_losses_below_zero_may_fall() -> None:
    assert not history(torch.linspace(-1.0, -1.4, 600))
    assert not history(torch.linspace(0.2, -0.4, 600))
    assert history(torch.cat([torch.linspace(-1.0, -1.4, 400), torch.full((100,), 10.0)]))


def test_ragged_batches_are_refused_before_the_work() -> None:
    data: Any = TensorDataset(X[:61, 0, 0, :2])
    whole = DataLoader(data, batch_size=16)
    with pytest.raises(ValueError, match=r"batches of 16, the last of 13, do not divide into 2 shares"):
        fit(points(), whole, steps=8, accumulate=2)
    assert fit(points(), DataLoader(data, batch_size=16, drop_last=True), steps=4, accumulate=2).steps == 4


def test_a_block_that_is_repeated_is_recomputed_once() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
            self.blocks = nn.ModuleList([block, block])

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    torch.manual_seed(0)
    net = Loop()
    plain, spare = orn.Denoiser(net, orn.Flow()), orn.Denoiser(copy.deepcopy(net), orn.Flow())
    train(plain, X[:, 0, 0, :2])
    train(spare, X[:, 0, 0, :2], recompute=True)
    assert distance(plain, spare) < 1e-6


def test_checking_a_run_calls_no_callback(tmp_path: Path) -> None:
    path, x = tmp_path / "run.safetensors", X[:, 0, 0, :2]
    with pytest.raises(KeyboardInterrupt):
        train(points(), x, every=2, checkpoint=path, callbacks=[killed_at(2)])
    seen: list[int] = []

    def stop(coming: Forecast) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(points(), x, every=2, checkpoint=path, foresee=stop, callbacks=[lambda step, _: seen.append(step)])
    assert seen == []
