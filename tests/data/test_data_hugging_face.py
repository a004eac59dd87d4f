"""Hugging Face data sets: images with classes, tables, splits; only what is stored in them is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_iris

from ornstein.data import ImageSpace, TableSpace, load_data

datasets.disable_progress_bars()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Thirty digits saved by `save_to_disk`, in colours, with their classes."""
    found = load_digits()
    images = [Image.fromarray(np.rint(image * 255 / 16).astype("uint8")) for image in found.images[:30]]
    held = datasets.Dataset.from_dict({"image": images, "digit": found.target[:30], "page": list(range(30))})
    held = held.cast_column("digit", datasets.ClassLabel(names=[f"d{k}" for k in range(10)]))
    held.save_to_disk(str(tmp_path / "pictures"))
    return tmp_path / "pictures"


def test_images_with_classes(pictures: Path) -> None:
    found = load_digits()
    data = load_data(pictures)
    assert data.space == ImageSpace((1, 8, 8), tuple(f"d{k}" for k in range(10)), (0.0, 1.0))
    assert data.labels is not None
    assert data.labels.tolist() == found.target[:30].tolist()
    assert torch.equal(
        (data.rows()[0] * 255).round(), torch.tensor(np.rint(found.images[:30, None] * 255 / 16)).float()
    )
    lazy = load_data(pictures, memory=10, size=4, channels=3)
    assert not isinstance(lazy.samples, torch.Tensor)
    assert torch.equal(lazy.rows()[0], load_data(str(pictures), size=4, channels=3).rows()[0])
    by_page = load_data(datasets.load_from_disk(str(pictures)), label="page")
    assert by_page.space.labels == tuple(str(k) for k in range(30))
    assert load_data(datasets.load_from_disk(str(pictures)), drop=["digit"]).labels is None


def test_tables_and_splits(tmp_path: Path) -> None:
    frame = load_iris(as_frame=True).frame
    held = datasets.Dataset.from_pandas(frame).cast_column("target", datasets.ClassLabel(names=["s", "ve", "vi"]))
    held.train_test_split(0.2, seed=0).save_to_disk(str(tmp_path / "iris"))
    data = load_data(tmp_path / "iris", label="target")
    assert isinstance(data.space, TableSpace)
    assert data.space.labels == ("s", "ve", "vi")
    assert len(data) == 120
    assert len(load_data(tmp_path / "iris", split="test", label="target")) == 30
    back = data.space.to_user(data.rows()[0], data.labels)
    assert list(back.columns) == list(frame.columns)
    with pytest.raises(ValueError, match="no split 'valid': choose split= from train, test"):
        load_data(tmp_path / "iris", split="valid")
    with pytest.raises(ValueError, match="no column 'colour'"):
        load_data(tmp_path / "iris", label="colour")
    with pytest.raises(ValueError, match="size is of images"):
        load_data(tmp_path / "iris", size=8)


def test_a_path_in_a_data_set_is_not_followed(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "private.png")
    held = datasets.Dataset.from_dict({"image": [{"path": str(tmp_path / "private.png"), "bytes": None}] * 20})
    with pytest.raises(ValueError, match=r"row 0 .*a path in its place"):
        load_data(held.cast_column("image", datasets.Image()))


def test_what_is_no_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="is no data set that `save_to_disk` wrote"):
        load_data(tmp_path)
    with pytest.raises(ValueError, match="column 'x' is List, no single value"):
        load_data(datasets.Dataset.from_dict({"x": [[1.0], [2.0]]}))
    with pytest.raises(ValueError, match="the data set is empty"):
        load_data(datasets.Dataset.from_dict({"x": []}))

    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def unreachable(*args: Any, **options: Any) -> None:
        asked.append((args, options))
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match="'owner/name' cannot be loaded: ConnectionError: no route to the hub"):
        load_data("hf:owner/name")
    assert asked == [(("owner/name",), {})]  # by name alone: no script is trusted
    for name in ("../secrets", "/etc", "a/b/c", "", "csv:x"):
        with pytest.raises(ValueError, match="NAME or OWNER/NAME"):
            load_data(f"hf:{name}")
    assert len(asked) == 1
