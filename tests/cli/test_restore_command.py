"""`ornstein restore`: what is named is what is made, trials and real measurements, files that are never overwritten."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein import inverse, linops
from ornstein.cli.app import run as cli
from ornstein.data.images import ImageSpace
from ornstein.linops import GaussianNoise
from ornstein.random import derive
from ornstein.report import names, restored
from ornstein.report.operators import OPERATORS, damaged, listed, method_named, methods, operator_named
from ornstein.report.run import Run

EVENT = (1, 8, 8)
QUICK = ["--method", "ddrm", "--steps", "3", "--samples", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small runs: images with labels in bytes, the same always labelled, and points in the plane."""
    folder = tmp_path_factory.mktemp("restore")
    rng, y = np.random.default_rng(0), np.arange(60) % 2
    x = np.zeros((60, 8, 8), np.uint8)
    x[y == 0, 2:6, 2:6], x[y == 1, :, 3:5] = 200, 255
    x += rng.integers(0, 40, x.shape, dtype=np.uint8) * (x == 0)
    np.savez(folder / "images.npz", x=x, y=y)
    np.savez(folder / "points.npz", x=rng.normal(size=(40, 2)))
    net = {"kind": "mlp", "width": 32, "depth": 1}
    common = {"steps": 60, "batch_size": 32, "net": net, "watch": 0, "lr": 3e-3}
    for name, more in (
        ("images", {}),
        ("labelled", {"drop": 0.0, "steps": 2}),
        ("points", {"data": str(folder / "points.npz"), "steps": 2}),
    ):
        Run.create(folder / name, {"data": str(folder / "images.npz"), **common, **more}).train()
    return folder


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """A copy of the run of images."""
    return Path(shutil.copytree(runs / "images", tmp_path / "run"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command line refuses these arguments."""
    capsys.readouterr()
    assert cli(["restore", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    return err


def test_names_are_those_of_the_help() -> None:
    assert set(names.OPERATORS) == set(OPERATORS)
    every = {kind for kind in map(inverse.__dict__.get, inverse.__all__) if isinstance(kind, type)}
    found = {kind for kind in every if issubclass(kind, inverse.Method) and kind is not inverse.Method}
    made = set(methods().values())
    assert made <= found
    assert {inverse.DPS, inverse.MMPS, inverse.DDRM, inverse.DDNM} <= made
    for kind in found - made:  # what is left out cannot be made without arguments
        with pytest.raises(TypeError):
            kind()
    for name in methods():
        assert isinstance(method_named(name), inverse.Method)
    assert all(len(row) == 3 and row[2] for row in [*listed(OPERATORS), *listed(methods())])


@pytest.mark.parametrize("event", [EVENT, (3, 6, 8), (1, 12, 12)])
def test_every_operator_is_right(event: tuple[int, ...], tmp_path: Path) -> None:
    """Adjoint, pseudo-inverse and SVD of each, where the event allows it."""
    np.save(tmp_path / "mask.npy", np.arange(event[1] * event[2]).reshape(event[1:]) % 3 > 0)
    for name in OPERATORS:
        if (name == "colour" and event[0] == 1) or (name == "fourier" and event[0] == 3):
            with pytest.raises(ValueError, match=r"colour needs|an event is"):
                operator_named(name, event)
            continue
        made = operator_named(f"mask:{tmp_path}/mask.npy" if name == "mask" else name, event)
        assert made.event == event
        assert linops.check(made).passed


def test_operators_are_what_their_options_say() -> None:
    x = torch.rand(2, *EVENT, generator=torch.Generator().manual_seed(0))
    seen = operator_named("box", EVENT)(torch.ones(1, *EVENT))[0, 0]
    assert (seen[2:6, 2:6] == 0).all()
    assert seen.sum() == 64 - 16
    seen = operator_named("box:size=3,top=0,left=5", EVENT)(torch.ones(1, *EVENT))[0, 0]
    assert (seen[:3, 5:] == 0).all()
    assert seen.sum() == 64 - 9
    assert operator_named("random:0.25", EVENT)(torch.ones(1, *EVENT)).sum() == 16
    masks = [operator_named(f"random:seed={seed}", (3, 8, 8))(torch.ones(1, 3, 8, 8)) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(masks[0][:, 0], masks[0][:, 2])  # a pixel is seen in all of its channels
    assert torch.equal(operator_named("downsample:4", EVENT)(x), linops.Downsample(4, EVENT)(x))
    torch.testing.assert_close(operator_named("blur:0.7", EVENT)(x), linops.Blur.gaussian(0.7, EVENT)(x))
    limited = operator_named("radon:views=3,degrees=90", EVENT)
    assert isinstance(limited, linops.Radon)
    torch.testing.assert_close(limited.angles, torch.tensor([0, 30, 60]).double().deg2rad())
    assert operator_named("hadamard:keep=0.5", EVENT).measured == (32,)
    assert operator_named("hadamard:keep=0.5", (1, 6, 7)).measured == (21,)  # a share of the pixels, not of the padding
    for event in (EVENT, (1, 6, 7)):  # the first number is the sum of the pixels, over the root of the padded number
        sums = operator_named("hadamard", event)(torch.ones(1, *event))[0, 0]
        assert float(sums) == pytest.approx(event[1] * event[2] / 8, rel=1e-5)
    assert torch.equal(operator_named("denoise", EVENT)(x), x)


def test_frequencies_are_kept_with_their_mirror_images() -> None:
    """A share `keep` of all, the lowest ones among them; (-k) with every k, or one would tell the other's value."""
    for event, keep in (((1, 8, 8), 0.3), ((1, 7, 10), 0.5)):
        made = operator_named(f"fourier:keep={keep}", event)
        assert isinstance(made, linops.Fourier)
        mask = made.mask
        assert abs(float(mask.sum()) - keep * mask.numel()) <= 1.5
        assert torch.equal(mask, mask.flip(0, 1).roll((1, 1), (0, 1)))
        assert mask[0, 0]
        assert mask[0, 1]
        assert mask[1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bx", "unknown operator 'bx'; did you mean 'box'?"),
        ("box:siz=3", "box has no option 'siz'; did you mean 'size'?"),
        ("denoise:2", "denoise has no option '2'; it has none"),
        ("box:size=a", "box:size is a whole number: got 'a'"),
        ("box:size=9", r"a box of 9 pixels .* is not in an image of 8 x 8"),
        ("box:size=3,top=6", r"a box of 3 pixels at row 6"),
        ("random:1.5", r"a share that is kept is above 0"),
        ("random:nan", r"random:keep is a number: got 'nan'"),
        ("mask", "mask needs file"),
        ("mask:absent.npy", "No such file"),
        ("downsample:3", "factors that divide"),
        ("radon:views=0", "radon has at least 1 view"),
        ("colour", "colour needs images with colours"),
    ],
)
def test_wrong_operators(text: str, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        operator_named(text, EVENT)


def test_wrong_methods_and_masks(tmp_path: Path) -> None:
    assert method_named("dps:zeta=0.3") == inverse.DPS(zeta=0.3)
    assert method_named("mmps:2,eta=0.5") == inverse.MMPS(iterations=2, eta=0.5)
    for text, message in (("dpps", "did you mean 'dps'"), ("dps:zeta=-1", "positive"), ("mmps:0.5", "a whole number")):
        with pytest.raises(ValueError, match=message):
            method_named(text)
    for value in (np.full((8, 8), 0.5), np.ones((3, 3))):
        np.save(tmp_path / "mask.npy", value)
        with pytest.raises(ValueError, match=r"mask\.npy is no mask"):
            operator_named(f"mask:{tmp_path / 'mask.npy'}", EVENT)
    (tmp_path / "mask.npy").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"mask\.npy is no mask"):
        operator_named(f"mask:{tmp_path / 'mask.npy'}", EVENT)


def test_damage_is_noise_where_something_is_measured() -> None:
    """y - A x is the noise of the seed, and 0 where nothing is measured: what is there would count as a misfit."""
    x = torch.rand(2, *EVENT, generator=torch.Generator().manual_seed(0))
    for name in ("box", "random", "fourier", "blur", "hadamard", "radon"):
        operator = operator_named(name, EVENT)
        y, noisy = damaged(operator, x, 0.5, [1, 2]), GaussianNoise(0.5).sample(operator(x), [1, 2])
        blind = (operator(torch.rand(1, *EVENT)) == 0).expand_as(y)
        assert torch.equal(y, torch.where(blind, 0, noisy))
        assert torch.equal(damaged(operator, x, 0.0, 1), operator(x))
        sizes = {"box": 16, "random": 32, "fourier": 2 * 45, "blur": 0, "hadamard": 0}
        assert int(blind[0].sum()) == sizes.get(name, int(blind[0].sum()))


def test_a_trial_is_restored_as_the_library_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The samples are those of orn.restore of the damaged held-out data, without a label; the figures are theirs; what
    is there is not overwritten without --force, and the same command makes the same files."""
    asked = [str(folder), "--operator", "downsample:2", "--noise", "10", "--rows", "1-2,5", *QUICK, "--seed", "3"]
    assert cli(["restore", *asked, "--check"]) == 0
    assert not (folder / "restored").exists()
    assert cli(["restore", *asked]) == 0
    said, err = capsys.readouterr()
    assert err == ""  # no bar: this is no terminal
    out = folder / "restored" / "downsample_2-ddrm"
    assert {path.name for path in out.iterdir()} == {"samples.npz", "picture.png", "restored.json"}
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    run = Run.open(folder)
    model, operator = run.model(), linops.Downsample(2, EVENT)
    truth = run.split.held_out.rows(torch.tensor([1, 2, 5]))[0]
    y = damaged(operator, truth, 10.0, [derive(3, "damage", i) for i in range(3)])
    cond = {"label": torch.full((3,), orn.nets.NULL)}
    options = {"method": inverse.DDRM(), "noise": 10.0, "samples": 2, "steps": 3, "seed": 3}
    alone = orn.restore(model, operator, y, cond=cond, **options)
    with np.load(out / "samples.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    for name, value in (
        ("x", alone.samples), ("mean", alone.mean), ("std", alone.std), ("y", y), ("truth", truth),
    ):  # fmt: skip
        torch.testing.assert_close(arrays[name], value, rtol=1e-5, atol=1e-3)
    found = json.loads((out / "restored.json").read_text())
    cut = alone.mean.clamp(0, 255)
    psnr = float((20 * np.log10(255) - 10 * (cut - truth).square().flatten(1).mean(1).log10()).mean())
    assert found["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert found["ssim"] == pytest.approx(float(orn.metrics.ssim(cut, truth, (0, 255)).mean()), abs=1e-3)
    cut, again = alone.samples.clamp(0, 255).flatten(0, 1), truth.repeat_interleave(2, 0)
    assert found["psnr_of_a_sample"] == pytest.approx(float(orn.metrics.psnr(cut, again, (0, 255)).mean()), abs=1e-3)
    assert found["residual"] == pytest.approx(float(alone.residual.square().mean().sqrt()), rel=1e-4)
    assert (found["nfe"], found["measurements"], found["samples"], found["seed"]) == (3, 3, 2, 3)
    assert f"{found['psnr']:.3f} of the mean" in said
    assert "3 network evaluations a sample" in said

    before = (out / "samples.npz").read_bytes()
    assert "is there already: choose another --out, or give --force" in refused(capsys, *asked)
    assert (out / "samples.npz").read_bytes() == before
    assert cli(["restore", *asked, "--force"]) == 0
    with np.load(out / "samples.npz") as file:
        assert np.array_equal(file["x"], arrays["x"].numpy())


def test_what_was_measured_is_restored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of a trial is a measurement too (its y), and so are its arrays alone: the same samples, no PSNR."""
    drawn = []
    monkeypatch.setattr(restored.Restoration, "_picture", lambda self, found: drawn.append(self.truth) or b"a picture")
    common = ["--operator", "radon:views=4", "--noise", "20", *QUICK]
    assert cli(["restore", str(folder), *common, "--rows", "0-1", "--out", str(tmp_path / "trial")]) == 0
    with np.load(tmp_path / "trial" / "samples.npz") as file:
        x, y = file["x"], file["y"]
    assert y.shape[1:] == (1, 4, 12)
    np.savez(tmp_path / "y.npz", x=y)
    np.save(tmp_path / "y.npy", y[:, 0])  # without its channel
    capsys.readouterr()
    for i, name in enumerate((str(tmp_path / "trial" / "samples.npz"), "y.npz", "y.npy")):
        out = tmp_path / f"out{i}"
        asked = ["restore", str(folder), *common, "--input", str(tmp_path / name), "--measured", "--out", str(out)]
        method = ["--method", "dds"]  # a view has no SVD here
        assert cli([*asked, *method]) == 0
        assert "PSNR" not in capsys.readouterr().out
        with np.load(out / "samples.npz") as file:
            assert "truth" not in file.files
            assert np.array_equal(file["y"], y)
            x = file["x"] if i == 0 else x
            np.testing.assert_array_equal(file["x"], x)
        assert (out / "picture.png").read_bytes() == b"a picture"
    assert [truth is None for truth in drawn] == [False, True, True, True]
    # one of them, alone, is restored the same: nothing depends on what else is there
    np.save(tmp_path / "one.npy", y[0])
    one = ["--input", str(tmp_path / "one.npy"), "--measured", "--out", str(tmp_path / "one"), "--method", "dds"]
    assert cli(["restore", str(folder), *common, *one]) == 0
    with np.load(tmp_path / "one" / "samples.npz") as file:
        np.testing.assert_allclose(file["x"], x[:1], rtol=1e-4, atol=1e-2)


def test_the_usual_method_does_without_noise_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restored.Restoration, "_picture", lambda self, found: b"")
    asked = ["--steps", "2", "--samples", "2", "--rows", "0", "--out", str(tmp_path / "out")]
    assert cli(["restore", str(folder), "--operator", "box", *asked]) == 0
    assert json.loads((tmp_path / "out" / "restored.json").read_text())["method"].startswith("MMPS")
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert np.isfinite(file["x"]).all()
        assert (file["y"][0, 0, 2:6, 2:6] == 0).all()


def test_an_exact_measurement_is_met(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without noise, and all seen, DDNM gives back what was measured; JSON has no infinity."""
    assert cli(["restore", str(folder), "--operator", "denoise", "--method", "ddnm", "--steps", "2", "--samples", "1",
                "--rows", "0", "--out", str(tmp_path / "out")]) == 0  # fmt: skip
    found = json.loads((tmp_path / "out" / "restored.json").read_text(), parse_constant=pytest.fail)
    assert found["psnr"] is None or found["psnr"] > 100
    assert found["ssim"] == pytest.approx(1, abs=1e-4)
    assert found["residual"] < 1e-3
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert "std" not in file.files
        np.testing.assert_allclose(file["x"][:, 0], file["truth"], atol=1e-3)


def test_pictures_are_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture's white is the data's 255, and grey stays what it is; another size is cut when clean, refused when it
    was measured."""
    run = Run.open(folder)
    value = torch.zeros(1, 1, 8, 8)
    value[..., :4] = 255
    value[..., 0, 0] = 51
    space = run.space
    assert isinstance(space, ImageSpace)
    space.save(tmp_path / "one.png", value)
    torch.testing.assert_close(restored.read_events(tmp_path / "one.png", EVENT, space), value)
    torch.testing.assert_close(restored.read_events(tmp_path / "one.png", EVENT, space, True), value)
    space.save(tmp_path / "many", value.repeat(3, 1, 1, 1))
    assert restored.read_events(tmp_path / "many", EVENT, space).shape == (3, *EVENT)
    ImageSpace((1, 4, 4), (), (0.0, 1.0)).save(tmp_path / "small.png", torch.ones(1, 1, 4, 4))
    assert restored.read_events(tmp_path / "small.png", EVENT, space).shape == (1, *EVENT)
    asked = [str(folder), "--operator", "box", *QUICK, "--check", "--input"]
    assert cli(["restore", *asked, str(tmp_path / "one.png")]) == 0
    assert "resized to 8 x 8" in refused(capsys, *asked, str(tmp_path / "small.png"), "--measured")
    radon = [str(folder), "--operator", "hadamard", "--measured", "--input", str(tmp_path / "one.png")]
    assert "pictures are no samples of shape (16,)" in refused(capsys, *radon)


def test_arrays_are_input(tmp_path: Path) -> None:
    """With their channel, without, colours last, one alone."""
    space, colours = ImageSpace(EVENT, (), (0.0, 1.0)), ImageSpace((3, 4, 5), (), (0.0, 1.0))
    x = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32)
    for value, n in ((x[:, None], 4), (x, 4), (x[0], 1), (x[:1], 1)):
        np.save(tmp_path / "x.npy", value)
        found = restored.read_events(tmp_path / "x.npy", EVENT, space)
        np.testing.assert_array_equal(found.numpy(), x[:n, None])
    rgb = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    for value in (rgb, np.moveaxis(rgb, 1, -1)):
        np.save(tmp_path / "x.npy", value)
        np.testing.assert_array_equal(restored.read_events(tmp_path / "x.npy", (3, 4, 5), colours).numpy(), rgb)


def test_points_are_restored(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Arrays too, with operators that are not of images; the picture is of lines."""
    asked = ["restore", str(runs / "points"), "--operator", "random:0.5", "--rows", "0-1", *QUICK]
    assert cli([*asked, "--out", str(tmp_path / "out")]) == 0
    assert "PSNR" in capsys.readouterr().out
    assert "SSIM" not in (tmp_path / "out" / "restored.json").read_text().upper()
    assert (tmp_path / "out" / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "box is for images" in refused(capsys, str(runs / "points"), "--operator", "box")
    assert "without labels" in refused(capsys, str(runs / "points"), "--operator", "denoise", "--label", "1")


def test_labels(runs: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A label is given to the model, for all; a model that never did without needs one."""
    made = {}
    for label in (None, "0", "1"):
        made[label] = restored.restoration(Run.open(folder), "box", label=label, rows="0-2").cond
    values = [cond["label"].tolist() for cond in made.values() if cond is not None]
    assert values == [[orn.nets.NULL] * 3, [0] * 3, [1] * 3]
    assert "give --label" in refused(capsys, str(runs / "labelled"), "--operator", "box")
    assert cli(["restore", str(runs / "labelled"), "--operator", "box", "--label", "1", "--check"]) == 0
    assert "one class" in refused(capsys, str(folder), "--operator", "box", "--label", "held-out")
    assert "unknown label" in refused(capsys, str(folder), "--operator", "box", "--label", "seven")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--operator", "bx"], "unknown operator 'bx'"),
        (["--operator", "box", "--method", "dpps"], "did you mean 'dps'"),
        (["--operator", "box", "--method", "ddnm", "--noise", "1"], "takes the measurement as exact"),
        (["--operator", "box", "--method", "diffpir"], "without any choose DDNM"),
        (["--operator", "radon", "--method", "ddrm", "--noise", "-1"], "noise is a standard deviation"),
        (["--operator", "box", "--samples", "0"], "at least 1 sample"),
        (["--operator", "box", "--steps", "0"], "at least 1 sample and 1 step"),
        (["--operator", "box", "--rows", "3-1"], "--rows 3-1: give numbers"),
        (["--operator", "box", "--rows", "0,x"], "give numbers from 0"),
        (["--operator", "box", "--rows", "0-99"], "there are 12 held-out samples, 0 to 11"),
        (["--operator", "box", "--measured"], "give --input"),
        (["--operator", "box", "--input", "absent.npz"], "no such file or folder"),
        (["--operator", "box", "--input", "x.csv"], "give .npz, .npy, an image"),
        (["--operator", "box", "--input", "wrong.npz"], "a sample of the run is (1, 8, 8), and the file holds (3, 5)"),
        (["--operator", "box", "--input", "torn.npz"], "is no .npz file"),
        (["--operator", "box", "--input", "nan.npz"], "not finite, first in sample 1"),
        (
            ["--operator", "downsample", "--measured", "--input", "nan.npz"],
            "measurement by this operator is (1, 4, 4)",
        ),
        (["--operator", "box", "--out", "x.csv"], "x.csv is a file: give a folder"),
        (["--operator", "box", "--averag", "raw"], "did you mean '--average'"),
        ([], "--operator"),
    ],
)
def test_refusals(
    words: list[str], message: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez("wrong.npz", x=np.zeros((3, 5)))
    x = np.zeros((2, 8, 8), np.float32)
    x[1, 0, 0] = np.nan
    np.savez("nan.npz", x=x)
    Path("torn.npz").write_bytes(Path("nan.npz").read_bytes()[:40])
    Path("x.csv").write_text("")
    there = sorted(tmp_path.iterdir())
    assert message in refused(capsys, str(runs / "images"), *words)
    assert sorted(tmp_path.iterdir()) == there
    assert not (runs / "images" / "restored").exists()


def test_list_and_help_teach(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["restore", "--list"]) == 0
    said = capsys.readouterr().out
    for name in (*OPERATORS, *methods()):
        assert re.search(rf"^{name} ", said, re.MULTILINE)
    assert "zeta=0.5" in said
    assert cli(["restore", "--help"]) == 0
    assert "  ornstein restore " in capsys.readouterr().out
