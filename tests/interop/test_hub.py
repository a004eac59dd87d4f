"""Models on the hub: the real calls of huggingface_hub, with the network replaced by folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, RepoUrl

import ornstein as orn
from ornstein.data import SeriesSpace
from ornstein.interop import from_hub, model_card, push_to_hub, read_card, save_folder
from worlds import shaken


def labelled() -> orn.Denoiser:
    net = shaken(orn.nets.MLP((1, 4), 3, width=8, depth=1, conditions={"mean": 4}))
    return orn.Denoiser(net, orn.MeanReverting(), "noise", null={"label": -1}, scaling=orn.Scaling(0.5, 2.0))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub of folders. `create_autospec` holds the calls to the signatures of the installed huggingface_hub."""
    root = tmp_path / "hub"

    def create(api: HfApi, repo_id: str, **options: Any) -> RepoUrl:
        (root / repo_id).mkdir(parents=True, exist_ok=options["exist_ok"])
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(api: HfApi, *, repo_id: str, folder_path: str, **options: Any) -> None:
        shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    def download(repo_id: str, filename: str, **options: Any) -> str:
        place = root / repo_id / (options.get("revision") or "") / filename
        if not place.exists():
            raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find the requested files in the cache")
        return str(place)

    for name, replaced in (("create_repo", create), ("upload_folder", upload)):
        monkeypatch.setattr(HfApi, name, mock.create_autospec(getattr(HfApi, name), side_effect=replaced))
    real = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", mock.create_autospec(real, side_effect=download))
    return root


def test_what_is_pushed_comes_back(hub: Path) -> None:
    model = labelled()
    card = {"license": "mit", "tags": ["points"], "training": {"steps": 7}, "figures": {"frechet_ratio": 1.23456}}
    address = push_to_hub(model, "ann/points", card=card, private=True, token="t", message="first")
    assert address == "https://huggingface.co/ann/points"
    assert HfApi.create_repo.call_args.kwargs["private"] is True  # type: ignore[attr-defined]
    assert HfApi.upload_folder.call_args.kwargs["commit_message"] == "first"  # type: ignore[attr-defined]
    assert sorted(path.name for path in (hub / "ann/points").iterdir()) == ["README.md", "model.safetensors"]
    x, cond = torch.randn(3, 1, 4), {"label": torch.tensor([0, 2, -1]), "mean": torch.zeros(3, 1, 4)}
    for again in (
        orn.load("hub:ann/points"),
        from_hub("ann/points"),
        orn.load(hub / "ann/points"),
        orn.load(hub / "ann/points" / "model.safetensors"),
    ):
        assert torch.equal(again(x, 0.5, cond).x0, model(x, 0.5, cond).x0)
    assert read_card(hub / "ann/points" / "model.safetensors") == card
    shutil.copytree(hub / "ann/points", hub / "ann/points" / "v1")
    assert orn.load("hub:ann/points", revision="v1").predicts == "noise"
    assert huggingface_hub.hf_hub_download.call_args.kwargs["revision"] == "v1"  # type: ignore[attr-defined]


def test_the_card_is_one_of_the_hub_and_its_code_runs(hub: Path) -> None:
    figures = {"frechet_ratio": 1.23456, "by | class": [1, 2], "note": "two\nlines: |"}
    push_to_hub(labelled(), "ann/points", card={"license": "mit", "tags": ["a: b"], "training": 7, "figures": figures})
    text = (hub / "ann/points" / "README.md").read_text()
    data = ModelCard(text).data.to_dict()
    assert data == {
        "library_name": "ornstein",
        "tags": ["ornstein", "diffusion", "meanreverting", "a: b"],
        "license": "mit",
    }
    assert "| process | MeanReverting(" in text
    assert "| frechet_ratio | 1.235 |" in text
    assert "| by \\| class | [1, 2] |" in text
    assert "| note | two lines: \\| |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["x"].shape == (4, 1, 4)
    assert torch.equal(
        names["x"],
        orn.sample(
            labelled(),
            (4, 1, 4),
            cond={"label": torch.zeros(4, dtype=torch.long), "mean": torch.zeros(4, 1, 4)},
            steps=20,
            seed=0,
        ).x,
    )


@pytest.mark.parametrize(
    ("net", "card"),
    [
        (lambda: orn.nets.MLP(3, width=8, depth=1), {}),
        (lambda: orn.nets.DiT(2, (4, 8), 3, patch=2, width=8, depth=1, heads=2, conditions={"mask": 1}), {}),
        (lambda: orn.nets.UNet(2, width=8, levels=(1, 2), blocks=1, conditions={"mask": 1}), {"event": [2, 6, 4]}),
    ],
)
def test_three_lines_run_for_every_network(hub: Path, net: Any, card: dict[str, Any]) -> None:
    model = orn.Denoiser(shaken(net()), orn.Flow())
    push_to_hub(model, "ann/one", card=card)
    (code,) = re.findall(r"```python\n(.*?)```", (hub / "ann/one" / "README.md").read_text(), re.S)
    lines = code.strip().splitlines()
    assert len([line for line in lines if line != "import torch"]) == 3
    names: dict[str, Any] = {}
    exec(code.replace("steps=20", "steps=2"), names)
    assert names["x"].isfinite().all()


def test_nothing_is_sent_of_what_would_not_come_back(hub: Path, tmp_path: Path) -> None:
    guided: Any = orn.CFG(labelled(), 2.0)
    unet = orn.Denoiser(orn.nets.UNet(1, width=8, levels=(1,), blocks=1), orn.Flow())
    for model, message in ((guided, r"save the model inside, \.model"), (unet, r"card=\{'event': \[1, 8, 8\]\}")):
        with pytest.raises(ValueError, match=message):
            push_to_hub(model, "ann/none")
    assert not hub.exists()
    with pytest.raises(ValueError, match="event"):
        model_card(unet, "ann/none")
    save_folder(labelled(), tmp_path / "folder", "ann/points")
    assert json.loads((tmp_path / "folder" / "README.md").read_text().splitlines()[1].partition(": ")[2]) == "ornstein"


def test_a_hub_out_of_reach_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """huggingface_hub itself, told that there is no network, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"ann/points was not found: .*Is there a connection.*orn.load\('model"):
        orn.load("hub:ann/points")
    with pytest.raises(ConnectionError, match=r"a b/c d was not found"):
        from_hub("a b/c d")
    with pytest.raises(ConnectionError, match=r"ann/points could not be sent: .*offline"):
        push_to_hub(labelled(), "ann/points")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'ornstein\[hub\]'"):
        orn.load("hub:ann/points")


def test_the_card_of_series_with_gaps_asks_for_whole_ones_and_gives_a_table(hub: Path) -> None:
    """observed = 1 everywhere; with zeros, the rival, the model is asked for series of which nothing was seen."""
    space = SeriesSpace((2, 8), gaps=True, times=tuple(map(float, range(8))), channels=("u", "v"))
    net = orn.nets.UNet(2, width=8, levels=(1, 2), blocks=1, conditions=space.conditions, axes=1)
    push_to_hub(orn.Denoiser(shaken(net), orn.Flow()), "ann/gaps", card={"event": [2, 8], "space": space.to_json()})
    (code,) = re.findall(r"```python\n(.*?)```", (hub / "ann/gaps" / "README.md").read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    cond = space.complete(4)
    assert torch.equal(names["x"], orn.sample(names["model"], (4, 2, 8), cond=cond, steps=20, seed=0).x)
    assert list(names["table"].columns) == ["series", "time", "u", "v"]
    assert len(names["table"]) == 32
