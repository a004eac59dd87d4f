"""One file a model: it comes back bit for bit, and nothing that a stranger wrote into it runs or takes memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import ornstein as orn
from ornstein.cli.app import run as cli
from ornstein.data import SeriesCodec, TableCodec
from ornstein.interop import read_card, save
from ornstein.io import load_tensors, save_tensors
from worlds import shaken

TABLE = torch.linspace(0.999, 0.01, 50)
PROCESSES = [
    orn.Flow(),
    orn.VP(beta_max=15.0),
    orn.SubVP(beta_min=0.2),
    orn.VE(sigma_max=20.0),
    orn.EDM(sigma_max=40.0),
    orn.Cosine(offset=0.008),
    orn.MeanReverting(noise_level=0.4, mean="damaged"),
    orn.DiscreteTime(TABLE, "linear"),
    orn.processes.ConditionalOT(0.01),
]
IMAGE = (2, 8, 8)


def mlp(**options: Any) -> Any:
    return shaken(orn.nets.MLP(2, width=8, depth=1, **options))


NETS: dict[str, Callable[[dict[str, int]], Any]] = {
    "mlp": lambda c: shaken(
        orn.nets.MLP(IMAGE, 3, width=8, depth=2, conditions=dict.fromkeys(c, IMAGE), outputs=("main", "extra"))
    ),
    "unet": lambda c: shaken(
        orn.nets.UNet(2, 3, width=8, levels=(1, 2), blocks=1, attention=(-1, 0), heads=2, conditions=c)
    ),
    "dit": lambda c: shaken(orn.nets.DiT(2, (8, 8), labels=3, patch=4, width=8, depth=1, heads=2, conditions=c)),
}


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", NETS)
def test_every_net_process_and_precondition_comes_back_exactly(
    kind: str, process: Any, preconditioned: bool, tmp_path: Path
) -> None:
    reverts = isinstance(process, orn.MeanReverting)
    model = orn.Denoiser(
        NETS[kind]({"damaged": 2} if reverts else {}),
        process,
        None if preconditioned else "v",
        precondition=orn.EDMPrecondition(0.7) if preconditioned else None,
        timestep=getattr(process, "timestep", None),
        null={"label": orn.nets.NULL},
        scaling=orn.Scaling(torch.tensor([[[0.5]], [[-1.0]]]), 0.3),
        heads={"extra": "x0"} if kind == "mlp" else None,
    )
    save(model, tmp_path / "m.safetensors", card={"by": "me"})
    again = orn.load(tmp_path / "m.safetensors")
    assert type(again) is orn.Denoiser
    assert not again.training
    assert (again.process, again.predicts, again.precondition) == (process, model.predicts, model.precondition)
    assert (again.null, dict(again.heads)) == (model.null, dict(model.heads))
    x = torch.randn(3, *IMAGE, generator=torch.Generator().manual_seed(1))
    cond = {"label": torch.tensor([0, 2, -1])} | ({"damaged": x.flip(0)} if reverts else {})
    t = torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        ours, theirs = model(x, t, cond), again(x, t, cond)
    for view in ("x0", "velocity"):
        assert torch.equal(ours.view(view), theirs.view(view))
    assert kind != "mlp" or torch.equal(ours.head("extra").noise, theirs.head("extra").noise)
    if preconditioned:
        ours, theirs = (orn.sample(orn.CFG(m, 1.5), x.shape, cond=cond, steps=1, seed=0).x for m in (model, again))
        assert torch.equal(ours, theirs)
    assert read_card(tmp_path / "m.safetensors") == {"by": "me"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_and_the_buffers_that_are_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    """The frequencies of the embedding are no weights. A network made in float64 has others than one made in float32
    and cast, and one that was float16 for a while has rounded ones: both come back."""
    x, t = torch.randn(4, 2, dtype=dtype), torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=dtype)
    cast = orn.Denoiser(mlp().to(dtype), orn.Flow())
    rounded = orn.Denoiser(mlp().to(dtype).float().to(dtype), orn.Flow())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        native = orn.Denoiser(mlp().to(dtype), orn.Flow())
    finally:
        torch.set_default_dtype(before)
    for model in (cast, rounded, native):
        save(model, tmp_path / "m.safetensors")
        again = orn.load(tmp_path / "m.safetensors")
        for (name, own), (other, found) in zip(model.named_buffers(), again.named_buffers(), strict=True):
            assert name == other
            assert own.dtype == found.dtype
            assert torch.equal(own, found)
        assert torch.equal(model.net(x, t), again.net(x, t))
    if dtype is torch.float64:  # else nothing is proven: the simpler file, of weights alone, would do
        assert not torch.equal(native.net.time.frequencies, cast.net.time.frequencies)


def test_codecs_of_tables_and_series_come_back_fitted(tmp_path: Path) -> None:
    rows = torch.tensor([[1.5, 0.0], [2.5, 2.0], [torch.nan, 1.0], [-3.0, 1.0]])
    table = TableCodec([("number", 1, True), ("category", 3, False)], knots=8).fit(rows)
    series = torch.arange(24.0).reshape(2, 3, 4)
    series[0, 0, 0] = torch.nan
    for codec, event in ((table, (5,)), (SeriesCodec(3).fit(series), (3, 4))):
        model = orn.Denoiser(shaken(orn.nets.MLP(event, width=8, depth=1)), orn.Flow(), scaling=codec)
        save(model, tmp_path / "m.safetensors")
        again = orn.load(tmp_path / "m.safetensors")
        ours, theirs = (orn.sample(m, (6, *event), steps=3, seed=0).x for m in (model, again))
        assert torch.equal(ours.nan_to_num(-9), theirs.nan_to_num(-9))


def test_the_callers_random_numbers_and_dtype_stay(tmp_path: Path) -> None:
    model = orn.Denoiser(mlp(), orn.Flow())
    state = torch.get_rng_state()
    save(model, tmp_path / "m.safetensors")
    orn.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_default_dtype(torch.float64)  # another's, who loads the file
    try:
        again = orn.load(tmp_path / "m.safetensors")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.net.time.frequencies.dtype == torch.float32


def test_a_loaded_model_trains_and_its_weights_fit_an_old_one(tmp_path: Path) -> None:
    model = orn.Denoiser(mlp(), orn.Flow())
    save(model, tmp_path / "m.safetensors")
    again = orn.load(tmp_path / "m.safetensors", dtype=torch.float64)
    assert next(again.parameters()).dtype == torch.float64
    again = orn.load(tmp_path / "m.safetensors")
    orn.fit(again, torch.randn(32, 2), steps=2, batch_size=8, seed=0, progress=False)
    assert not torch.equal(again.net.first.weight, model.net.first.weight)
    orn.load_weights(again, tmp_path / "m.safetensors")  # one file for both ways
    assert torch.equal(again.net.first.weight, model.net.first.weight)


def test_a_compiled_network_is_saved_as_what_it_was(tmp_path: Path) -> None:
    plain = orn.Denoiser(mlp(), orn.Flow())
    compiled = orn.Denoiser(torch.compile(plain.net), orn.Flow())
    save(compiled, tmp_path / "m.safetensors")
    x = torch.randn(3, 2)
    assert torch.equal(orn.load(tmp_path / "m.safetensors")(x, 0.5).output, plain(x, 0.5).output)


def test_arguments_are_those_of_the_making() -> None:
    """What happens to a dict or a list afterwards changes nothing, and defaults are written out."""
    conditions, levels = {"a": 2}, [1, 2]
    net = orn.nets.UNet(1, width=8, levels=levels, blocks=1, conditions=conditions)
    conditions["b"], levels[0] = 3, 9
    made = net.__dict__["_made_with"]
    assert (made["conditions"], made["levels"], made["heads"]) == ({"a": 2}, [1, 2], 4)
    assert "self" not in made
    with pytest.raises(TypeError, match="'features'"):
        orn.nets.MLP()  # type: ignore[call-arg]


# --- what a file cannot hold ---


class Mine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.out = nn.Linear(width, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.layer(x) + t[:, None]))
        return out


class Wider(orn.nets.MLP):
    def __init__(self, half: int, *, bend: float = 1.0) -> None:
        super().__init__(2, width=2 * half, depth=1)
        self.bend = bend

    def body(self, h: Tensor, e: Tensor) -> Tensor:
        return self.bend * super().body(h, e)


@dataclass(frozen=True)
class Bent(orn.Flow):
    bend: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.bend

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.bend * (1 - t) ** (self.bend - 1)


def test_ones_own_classes_travel_by_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    x = torch.randn(3, 2)
    wide = orn.Denoiser(shaken(Wider(4, bend=1.5)), Bent(2.0), "noise")
    with pytest.raises(ValueError, match=r"net .*Wider is not one of MLP.*save_weights.*classes=\[Wider\]"):
        save(wide, path)
    with pytest.raises(ValueError, match=r"the process .* Bent is not one of"):
        save(wide, path, classes=[Wider])
    impostor = type("MLP", (Wider,), {})
    with pytest.raises(ValueError, match=r"net .*MLP is not one of MLP"):
        save(orn.Denoiser(impostor(4), orn.Flow()), path)
    save(wide, path, classes=[Wider, Bent])
    again = orn.load(path, classes=[Wider, Bent])
    assert torch.equal(again(x, 0.4).x0, wide(x, 0.4).x0)
    with pytest.raises(orn.CheckpointError, match=r"class 'Bent' is not one of"):
        orn.load(path, classes=[Wider])
    with pytest.raises(orn.CheckpointError, match=r"class 'Wider' is not one of"):
        orn.load(path, classes=[Bent])

    mine = orn.Denoiser(Mine(5), orn.VP(), "noise")
    with pytest.raises(ValueError, match=r"net of this model.*or orn.load\(path, net=Mine\(\.\.\.\)\)"):
        save(mine, path)
    save(mine, path, classes=[Mine])
    with pytest.raises(orn.CheckpointError, match="only who has the Mine"):
        orn.load(path, classes=[Mine])
    with pytest.raises(orn.CheckpointError, match=r"'net.layer.weight' has shape \(5, 2\), and the model \(6, 2\)"):
        orn.load(path, net=Mine(6))
    assert torch.equal(orn.load(path, net=Mine(5))(x, 0.4).x0, mine(x, 0.4).x0)


def test_what_would_not_come_back_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    process = orn.DiscreteTime(TABLE)
    cut, told = orn.Denoiser(mlp(), orn.Flow()), orn.Denoiser(mlp(), orn.Flow(), timestep=lambda level: level.t * 1000)
    cut.net.blocks = nn.ModuleList()
    other = orn.Denoiser(mlp(), process, "noise", timestep=orn.DiscreteTime(TABLE.square()).timestep)
    whole = orn.Denoiser(mlp(labels=2), orn.Flow(), null={"label": -1})
    for model, options, message in (
        (orn.CFG(whole, 2.0), {}, r"this is a CFG: save the model inside, \.model"),
        (orn.exact.GaussianMixture(torch.zeros(1, 2), torch.ones(1)).denoiser(orn.Flow()), {}, "save_weights"),
        (cut, {}, r"not what it was made as: .*blocks"),
        (told, {}, r"timestep of this model.*code never travels"),
        (other, {}, r"timestep of this model.*code never travels"),
        (whole, {"card": {"when": object()}}, "JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            save(model, path, **options)
        assert not path.exists()


# --- what strangers write ---


@pytest.fixture
def good(tmp_path: Path) -> Path:
    net = mlp(labels=3)
    model = orn.Denoiser(net, orn.VP(), "noise", null={"label": -1}, scaling=orn.Scaling(0.5, 2.0))
    save(model, tmp_path / "good.safetensors")
    return tmp_path / "good.safetensors"


class Largest(TorchFunctionMode):
    """The most numbers in one tensor that has memory."""

    numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.device.type != "meta":
            self.numbers = max(self.numbers, made.numel())
        return made


def at(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def change(metadata: dict[str, Any]) -> None:
        *places, last = path
        for place in places:
            metadata = metadata[place]
        metadata[last] = value

    return change


NET, PROCESS = ("model", "net"), ("model", "process")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            at("Linear", *NET, "class"),
            "class 'Linear' is not one of MLP, UNet, DiT, Joined, Probability, SetTransformer$",
        ),
        (at("__import__", *NET, "class"), "class '__import__' is not one of"),
        (at("os.system", *PROCESS, "class"), "class 'os.system' is not one of"),
        (at("VP", *NET, "class"), "class 'VP' is not one of MLP"),
        (at(["MLP"], *NET, "class"), "is not one of"),
        (at(None, *NET), "a recipe is a class and its arguments, not None"),
        (at({"class": "MLP"}, *NET), "a recipe is a class and its arguments"),
        (at(None, *NET, "arguments"), "only who has the MLP"),
        (at([1], *NET, "arguments"), "arguments of MLP are"),
        (at("Payload()", *NET, "arguments", "__class__"), "MLP takes no '__class__'"),
        (at("x", *NET, "arguments", "__init__"), "MLP takes no '__init__'"),
        (at("8", *NET, "arguments", "width"), r"MLP\(width=...\) is int: got '8'"),
        (at(8.5, *NET, "arguments", "width"), r"MLP\(width=...\) is int: got 8.5"),
        (at(True, *NET, "arguments", "depth"), r"MLP\(depth=...\) is int: got True"),
        (at({"tuple": "ab"}, *NET, "arguments", "features"), "is no value of a recipe"),
        (at({"tensor": "nobody"}, *NET, "arguments", "features"), "is no value of a recipe"),
        (at({"class": "MLP", "arguments": {}}, *NET, "arguments", "features"), "MLP cannot be made of"),
        (at("two", *NET, "arguments", "features"), "MLP cannot be made of"),
        (at(-4, *NET, "arguments", "width"), "MLP cannot be made of"),
        (at(10**30, *NET, "arguments", "width"), "MLP cannot be made of"),
        (at(10**9, *NET, "arguments", "width"), "larger than its weights"),
        (at(9, *NET, "arguments", "width"), r"has shape \(.*8.*\), and the model \(.*9"),
        (at(2_000, *NET, "arguments", "depth"), "larger than its weights"),
        (at(0, *NET, "arguments", "labels"), "'net.label.table' is not among the names of such a model"),
        (at({"dict": {"a": 10**8}}, *NET, "arguments", "conditions"), "larger than its weights"),
        (at("many", *PROCESS, "arguments", "beta_min"), r"VP\(beta_min=...\) is float: got 'many'"),
        (at(-1.0, *PROCESS, "arguments", "beta_min"), "VP cannot be made of .*need 0 < beta_min"),
        (at(float("nan"), *PROCESS, "arguments", "beta_max"), "need 0 < beta_min"),
        (at("everything", "model", "predicts"), "is no view: there are x0"),
        (at(["noise"], "model", "predicts"), "is no view: there are x0"),
        (at("eval", "model", "timestep"), "timestep is 'eval'"),
        (at("process", "model", "timestep"), "which VP.* does not have"),
        (at({"dict": {"label": "x"}}, "model", "null"), "null is"),
        (at({"dict": {"extra": 3}}, "model", "heads"), "3 is no view"),
        (at("Scaling", "model", "scaling"), "a recipe is"),
        (at({"class": "VP", "arguments": {}}, "model", "precondition"), "class 'VP' is not one of EDMPrecondition"),
        (at(1, "model", "more"), "does not say how its model was made"),
        (at(3, "model"), "does not say how its model was made"),
        (at("me", "card"), "card is 'me'"),
        (lambda metadata: metadata.pop("model"), "holds weights alone.*load_weights"),
    ],
)
def test_crafted_recipes_are_refused_before_anything_large_is_made(
    good: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Each has a checksum that is right: only what it says is not. The file has 1,300 numbers, and no more than a few
    thousand (frequencies, a table of what is compared) ever stand in memory at once."""
    tensors, metadata = load_tensors(good, kind="model")
    change(metadata)
    save_tensors(good, tensors, metadata, kind="model")
    with Largest() as seen, pytest.raises(orn.CheckpointError, match=message) as caught:
        orn.load(good)
    assert str(caught.value).startswith(str(good))
    assert len(str(caught.value)) < 600
    assert seen.numbers < 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("net.first.bias"), "'net.first.bias' is not among the weights"),
        (lambda t: t.update(more=torch.zeros(2)), "'more' is not among the names"),
        (lambda t: t.update({"buffer/net.none": torch.zeros(2)}), "'buffer/net.none' is not among the names"),
        (lambda t: t.update({"buffer/net.time.frequencies": torch.zeros(2)}), "frequencies' has shape"),
        (lambda t: t.update({"net.first.bias": torch.zeros(7)}), r"'net.first.bias' has shape \(7,\)"),
        (lambda t: t.update({"net.first.bias": torch.zeros(8, dtype=torch.int64)}), "net.first.bias is of torch.int64"),
        (lambda t: t.update({"scaling.std": torch.tensor(-1.0)}), "std is positive"),
        (lambda t: t.update({"scaling.mean": torch.tensor(torch.nan)}), "mean is finite"),
    ],
)
def test_crafted_tensors_are_refused(good: Path, change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    tensors, metadata = load_tensors(good, kind="model")
    change(tensors)
    save_tensors(good, tensors, metadata, kind="model")
    with pytest.raises(orn.CheckpointError, match=message):
        orn.load(good)


def test_codecs_take_no_memory_that_the_file_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for codec, name, large in (
        (SeriesCodec(3), "channels", 10**9),
        (TableCodec([("number", 1, True)]), "knots", 10**9),
    ):
        event = (3, 4) if name == "channels" else (2,)
        save(orn.Denoiser(orn.nets.MLP(event, width=8, depth=1), orn.Flow(), scaling=codec), path)
        tensors, metadata = load_tensors(path, kind="model")
        metadata["model"]["scaling"]["arguments"][name] = large
        save_tensors(path, tensors, metadata, kind="model")
        with Largest() as seen, pytest.raises(orn.CheckpointError, match="refused"):
            orn.load(path)
        assert seen.numbers < 10_000


def test_any_bit_changed_any_byte_missing(good: Path, tmp_path: Path) -> None:
    whole = good.read_bytes()
    path = tmp_path / "bad.safetensors"
    g = np.random.default_rng(0)
    for place in g.choice(len(whole), 60, replace=False):
        bad = bytearray(whole)
        bad[place] ^= 1 << int(g.integers(8))
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"bad\.safetensors"):
            orn.load(path)
    for length in (0, 5, 9, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(orn.CheckpointError, match=r"bad\.safetensors"):
            orn.load(path)
    for text in (b"[" * 100_000, b'{"a":' * 100_000, b"\x80\x04cos\nsystem\n(S'true'\ntR."):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(ValueError, match=r"bad\.safetensors"):
            orn.load(path)


def test_other_files_and_options_are_told_apart(good: Path, tmp_path: Path) -> None:
    model = orn.Denoiser(mlp(), orn.Flow())
    orn.save_weights(model, tmp_path / "weights.safetensors")
    with pytest.raises(orn.CheckpointError, match=r"holds weights alone.*load_weights"):
        orn.load(tmp_path / "weights.safetensors")
    save_tensors(tmp_path / "run.safetensors", {}, {}, kind="checkpoint")
    with pytest.raises(orn.CheckpointError, match="holds a 'checkpoint', not a 'model'"):
        orn.load(tmp_path / "run.safetensors")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent\.safetensors"):
        orn.load(tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match="knows its process: revision is for other models"):
        orn.load(good, revision="main")
    with pytest.raises(ValueError, match="net and classes are for files"):
        orn.load(tmp_path, net=mlp())
    assert orn.load(good, null={"label": 0}).null == {"label": 0}


def test_a_run_is_exported_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ornstein.report.run import Run

    g = np.random.default_rng(0)
    y = np.arange(40) % 2
    np.savez(tmp_path / "points.npz", x=g.normal(size=(40, 2)) + 6 * y[:, None], y=y)
    fields = {"data": str(tmp_path / "points.npz"), "steps": 3, "batch_size": 8, "net": {"width": 8, "depth": 1}}
    run = Run.create(tmp_path / "run", fields)
    run.train(progress=False)
    assert cli(["export", str(tmp_path / "run")]) == 0
    target = tmp_path / "run" / "model.safetensors"
    assert str(target) in capsys.readouterr().out
    model = orn.load(str(target))
    x, cond = torch.randn(4, 2), {"label": torch.tensor([0, 1, 0, -1])}
    assert torch.equal(model(x, 0.5, cond).x0, run.model()(x, 0.5, cond).x0)
    assert torch.equal(model.scaling.mean, run.model().scaling.mean)
    card = read_card(target)
    assert (card["data"], card["event"], card["training"]["steps"]) == ("points.npz", [2], 3)
    assert str(tmp_path) not in json.dumps(card)  # a stranger learns no paths
    assert cli(["export", str(tmp_path / "run"), "--out", "model.pt"]) == 2
    assert "a model is written as .safetensors" in capsys.readouterr().err
