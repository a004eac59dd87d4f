"""What a config says is what is built and trained, and what it may not say is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import ornstein as orn
from ornstein.cli.app import run
from ornstein.io import load_tensors
from ornstein.random import Share
from ornstein.report.config import dumped, make_config, merged, set_field
from ornstein.report.model import averages_asked, build_net, kind_of, objective_of
from ornstein.report.run import Run
from ornstein.training import (
    ConditionPerturbation,
    Fit,
    HybridLoss,
    LogitNormal,
    LogNormalSigma,
    MinSNR,
    PowerEMA,
    PseudoHuber,
    SharedTimestep,
    UniformTime,
    UShapedTime,
)
from ornstein.training.workers import Workers

TINY: dict[str, Any] = {"net": {"kind": "mlp", "width": 8, "depth": 1}, "steps": 4, "batch_size": 8, "watch": 2}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "small.npz", x=rng.normal(size=(60, 3)).astype(np.float32), y=np.arange(60) % 3)
    return tmp_path / "small.npz"


def test_every_default_is_printed_and_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--show", "--set", "loss.kind=hybrid", "--predicts", "noise", "--process", "cosine"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    config = make_config(shown, "shown")
    assert dumped(config) == yaml.safe_dump(shown, sort_keys=False)
    assert (config.loss.kind, config.predicts, config.process) == ("hybrid", "noise", "cosine")
    assert set(shown) == set(type(config).model_fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["lss.kind=hybrid"], "unknown field 'lss'; did you mean 'loss'"),
        (["loss.knd=hybrid"], "unknown field 'loss.knd'; did you mean 'kind'"),
        (["loss.kind=hybird"], "loss.kind 'hybird' is unknown; did you mean 'hybrid'"),
        (["steps=0"], "steps: input should be greater than or equal to 1, got 0"),
        (["steps"], "--set steps: give field=value"),
        (["=3"], "--set =3: give field=value"),
        (["data.x=3", "data=3"], "data: input should be a valid string"),
        (["seed=1", "seed.x=2"], "--set seed.x=2: 'seed' has no fields"),
        (["ema=[0.9, 0.9]"], "ema: one decay in [0, 1), or several different ones, got [0.9, 0.9]"),
        (["lengths=[0.4]"], "lengths: different shares of the run between 0 and 0.288"),
        (["accumulate=3"], "batch_size 256 does not divide into accumulate 3 passes"),
        (["loss.kind=hybrid"], "hybrid learns the variances of a discrete chain: predicts noise, x0 or v"),
        (["loss.shared_times=0.1"], "loss.shared_times changes the time told to the network"),
        (["lr=.nan"], "lr:"),
        (["steps={"], "is no YAML value"),
    ],
)
def test_a_wrong_field_is_one_line(fields: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word for field in fields for word in ("--set", field)]
    assert run(["train", "--show", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_options_lie_over_fields() -> None:
    values = merged({"net": {"kind": "unet"}, "lr": 1}, {"net": {"kind": None, "width": 8}, "lr": None, "steps": 3})
    assert values == {"net": {"kind": "unet", "width": 8}, "lr": 1, "steps": 3}
    assert merged({}, {"net": {"kind": None}}) == {}
    set_field(values, "net.depth=2")
    assert values["net"] == {"kind": "unet", "width": 8, "depth": 2}


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ((3,), "mlp"),
        ((1, 8, 8), "mlp"),
        ((1, 28, 28), "unet"),
        ((3, 16, 40), "unet"),
        ((6, 28, 28), "mlp"),
        ((2, 24), "mlp"),
    ],
)
def test_the_network_suits_the_data(event: tuple[int, ...], kind: str) -> None:
    config = make_config({}, "test").model_copy(update={"event": event, "labels": 0})
    assert kind_of(config) == kind
    assert type(build_net(config)).__name__ == {"mlp": "MLP", "unet": "UNet"}[kind]


def test_each_switch_of_the_objective_is_what_it_says() -> None:
    def made(**values: Any) -> Any:
        return objective_of(make_config(values, "test"))

    assert made().time == LogNormalSigma(-0.5, 1.2)
    flow = {"process": "flow", "predicts": "velocity"}
    assert made(**flow).time == UniformTime()
    assert made(**flow, loss={"time": "logit_normal"}).time == LogitNormal()
    assert made(**flow, loss={"time": "u_shaped", "penalty": "pseudo_huber"}).time == UShapedTime()
    assert made(**flow, loss={"penalty": "pseudo_huber"}).penalty == PseudoHuber()
    assert made(**flow, loss={"weighting": "min_snr"}).weighting == MinSNR()
    perturbed = made(**flow, loss={"perturb": 0.5})
    assert isinstance(perturbed, ConditionPerturbation)
    assert perturbed.gamma == 0.5
    hybrid = {"process": "cosine", "predicts": "noise", "loss": {"kind": "hybrid"}}
    assert isinstance(made(**hybrid), HybridLoss)
    assert averages_asked(make_config({"ema": [0.9, 0.99]}, "test")) == (0.9, 0.99)
    assert averages_asked(make_config({"lengths": [0.05, 0.1]}, "test")) == PowerEMA((0.05, 0.1))


@pytest.mark.parametrize(
    "values",
    [
        {"process": "cosine", "predicts": "x0", "loss": {"kind": "hybrid"}},
        {"process": "flow", "predicts": "velocity", "loss": {"perturb": 0.3, "shared_times": 0.1}},
        {"ema": [0.5, 0.9], "accumulate": 2, "recompute": True, "precision": "bf16"},
        {"lengths": [0.05, 0.1], "keep": 1, "every": 2, "schedule": "constant", "clip": None},
    ],
)
def test_each_technique_trains_and_samples(values: dict[str, Any], small: Path, tmp_path: Path) -> None:
    made = Run.create(tmp_path / "run", {**TINY, "data": str(small), **values})
    model, fitted = made.train(progress=False)
    assert bool(fitted.history["loss"].isfinite().all())
    assert (model.timestep == SharedTimestep(0.1)) is ("shared_times" in values.get("loss", {}))
    again = made.model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    out = made.sample(3, steps=4, solver="ddpm" if values.get("loss", {}).get("kind") == "hybrid" else "dpmpp")
    assert out.x.shape == (3, 3)
    assert bool(out.x.isfinite().all())


def test_watched_samples_are_those_of_the_model_at_that_step(small: Path, tmp_path: Path) -> None:
    made = Run.create(tmp_path / "run", {**TINY, "data": str(small), "every": 2})
    made.train(progress=False)
    last = load_tensors(tmp_path / "run" / "watch" / "step-000004.safetensors", kind="samples")[0]["x"]
    first = load_tensors(tmp_path / "run" / "watch" / "step-000002.safetensors", kind="samples")[0]["x"]
    assert torch.equal(last, made.sample(2, steps=20).x)
    assert not torch.equal(first, last)


def test_steps_may_be_added_where_the_rate_is_constant(small: Path, tmp_path: Path) -> None:
    values = {**TINY, "data": str(small), "schedule": "constant", "watch": 0}
    Run.create(tmp_path / "short", values).train(progress=False)
    longer = Run.create(tmp_path / "short", {**values, "steps": 8})
    model, fitted = longer.train(progress=False)
    whole, one = Run.create(tmp_path / "long", {**values, "steps": 8}).train(progress=False)
    assert len(fitted.history["loss"]) == 8
    assert torch.equal(fitted.history["loss"], one.history["loss"])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    assert Run.open(tmp_path / "short").config.steps == 8
    Run.create(tmp_path / "cosine", {**values, "schedule": "cosine"})
    with pytest.raises(ValueError, match="steps = 4"):
        Run.create(tmp_path / "cosine", {**values, "schedule": "cosine", "steps": 8})


def test_checking_writes_nothing(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(tmp_path.iterdir())
    options = ["--data", str(small), "--out", str(tmp_path / "run"), "--width", "8", "--depth", "1", "--steps", "4"]
    assert run(["train", *options, "--check"]) == 0
    assert set(tmp_path.iterdir()) == before
    said = capsys.readouterr().out
    assert "of memory (weights" in said
    assert "ok" in said


def test_gaps_are_not_learned(tmp_path: Path) -> None:
    """Where nothing was observed the loss does not look: what stands in the state there changes nothing but through
    the network's input, and with a network that answers 0 nothing at all."""
    torch.manual_seed(0)
    net = orn.nets.MLP((2, 6), width=8, depth=1, conditions={"observed": (2, 6)})
    model = orn.Denoiser(net, orn.Flow())
    x, seen = torch.randn(16, 2, 6), (torch.rand(16, 2, 6) < 0.6).float()
    objective = orn.Objective(observed="observed")
    losses, t = objective.losses(model, x, {"observed": seen}, seed=0)
    draw, _ = objective.draw(model, x, t, None, 0, Share(0, 16, 16))
    target = draw.target("velocity")
    weight = 0.5  # of Flow's velocity, 1/(1 + 1)
    wanted = weight * (target.square() * seen).flatten(1).sum(1) / seen.flatten(1).sum(1)
    assert torch.allclose(losses, wanted, rtol=1e-5)
    rival = orn.Objective().losses(model, x, {"observed": seen}, seed=0)[0]
    assert not torch.allclose(losses, rival, rtol=1e-2)


def test_the_average_is_chosen_by_name_or_length(small: Path, tmp_path: Path) -> None:
    """A length that was kept, made again from what was kept, is the average itself."""
    values = {**TINY, "data": str(small), "lengths": [0.1, 0.2], "keep": 9, "every": 1, "watch": 0, "steps": 6}
    made = Run.create(tmp_path / "run", values)
    _, fitted = made.train(progress=False)
    name = next(iter(fitted.averages["ema"]))
    for average, wanted in (
        (None, fitted.averages["ema"]),
        ("power 0.2", fitted.averages["power 0.2"]),
        ("raw", fitted.raw),
        ("0.1", fitted.averages["ema"]),
        ("0.2", fitted.averages["power 0.2"]),
    ):
        assert torch.allclose(made.model(average).state_dict()[name], wanted[name], atol=1e-6), average
    assert not torch.allclose(fitted.averages["ema"][name], fitted.averages["power 0.2"][name], atol=1e-6)
    assert torch.equal(made.sample(2, steps=3, average="raw").x, made.sample(2, steps=3, model=made.model("raw")).x)
    with pytest.raises(ValueError, match=r"unknown average 'emma'; did you mean 'ema'"):
        made.model("emma")
    plain = Run.create(tmp_path / "plain", {**TINY, "data": str(small), "watch": 0})
    plain.train(progress=False)
    with pytest.raises(ValueError, match=r"--set lengths=\[0.05,0.1\] --set keep=10"):
        plain.model("0.1")


def test_a_run_trains_where_it_is_fastest(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def note(*_: Any, device: Any, **options: Any) -> Fit:
        asked.append(device)
        return Fit({}, {}, 0, 0)

    monkeypatch.setattr("ornstein.report.run.fit", note)
    made = Run.create(tmp_path / "run", {**TINY, "data": str(small)})
    made.train()
    monkeypatch.setattr(Workers, "best", staticmethod(lambda: torch.device("meta")))
    made.train()
    assert asked == [torch.device("cpu"), torch.device("meta")]


def test_noise_on_labels_needs_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 2), dtype=np.float32) + np.arange(20)[:, None])
    with pytest.raises(ValueError, match=r"loss\.perturb 0\.5 is noise on the labels, and the data have none"):
        Run.create(tmp_path / "run", {**TINY, "data": str(tmp_path / "x.npy"), "loss": {"perturb": 0.5}})
    assert not (tmp_path / "run").exists()
