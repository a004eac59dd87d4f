"""Files that were cut, flipped or filled at random: each is read, or is one error of one line that names it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ornstein.data import load_data

OPTIONS: tuple[dict[str, Any], ...] = ({}, {}, {"kind": "series"}, {"label": "b"}, {"drop": ["t"]}, {"kind": "images"})


def spoil(content: bytes, rng: random.Random) -> bytes:
    """Up to five bytes changed, put in, or everything after one of them lost."""
    spoilt = bytearray(content)
    for _ in range(rng.choice([1, 2, 5])):
        at = rng.randrange(len(spoilt) or 1)
        how = rng.choice(["change", "change", "lose", "put"])
        if how == "lose":
            del spoilt[at + 1 :]
        else:
            spoilt[at : at + (how == "change")] = bytes([rng.randrange(256)])
    return bytes(spoilt)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One file of each format, all in good order."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": np.arange(30), "b": [f"{i % 3}x" for i in range(30)], "v": rng.random(30)})
    table["t"] = pd.date_range("2020-01-01", periods=30)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    np.savez(tmp_path / "a.npz", x=rng.random((30, 3)), y=np.arange(30) % 2)
    np.savez_compressed(tmp_path / "b.npz", x=rng.random((30, 3)))
    np.save(tmp_path / "a.npy", rng.random((30, 3)))
    pixels = rng.integers(0, 256, (12, 12, 3), dtype="uint8")
    for suffix in ("png", "jpg", "gif", "bmp", "webp", "tiff"):
        (tmp_path / suffix).mkdir()
        Image.fromarray(pixels).save(tmp_path / suffix / f"i.{suffix}")
        Image.fromarray(pixels).save(tmp_path / suffix / f"j.{suffix}")
    return sorted(path for path in tmp_path.rglob("[ab]*.*")) + sorted(tmp_path.rglob("i.*"))


@pytest.mark.filterwarnings("ignore")
def test_damage_is_one_error_or_none(files: list[Path]) -> None:
    rng = random.Random(0)
    whole = {path: path.read_bytes() for path in files}
    read, refused = 0, list[ValueError]()
    for _ in range(400):
        path = rng.choice(files)
        path.write_bytes(spoil(whole[path], rng))
        try:
            data = load_data(path.parent) if path.stem == "i" else load_data(path, **rng.choice(OPTIONS))
            x, _ = data.rows()
            codec = data.codec()
            data.space.to_user(codec.decode(codec.encode(x)))
            read += 1
        except ValueError as error:
            refused.append(error)
        finally:
            path.write_bytes(whole[path])
    assert {type(error) for error in refused} == {ValueError}
    assert not [error for error in refused if "\n" in str(error)]
    assert min(read, len(refused)) >= 50  # it did both: damage to a pixel or a digit cannot be seen
