"""Folders of images: sizes, modes, labels, laziness; pictures written are pictures read; damaged ones are named."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from ornstein.data import ImageSpace, Space, load_data
from ornstein.data import images as module
from ornstein.random import derive, generator


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Forty of scikit-learn's digits as PNG of 8 x 8, in a folder for each class, 0 to 9 and then 10."""
    found = load_digits()
    for i in range(40):
        folder = tmp_path / "digits" / str(found.target[i] or 10)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(found.images[i] * 255 / 16).astype("uint8")).save(folder / f"{i:02d}.png")
    return tmp_path / "digits"


def tensor(data: object) -> torch.Tensor:
    assert isinstance(data, torch.Tensor)
    return data


def test_a_folder_is_its_pixels_and_its_labels(digits: Path) -> None:
    found = load_digits()
    data = load_data(digits)
    assert data.space == ImageSpace((1, 8, 8), (*"123456789", "10"), (0.0, 1.0))  # 10 after 9
    assert data.labels is not None
    paths = sorted(digits.rglob("*.png"), key=lambda path: (int(path.parent.name), path.name))
    for x, label, path in zip(tensor(data.samples), data.labels.tolist(), paths, strict=True):
        i = int(path.stem)
        assert torch.equal((x[0] * 255).round(), torch.tensor(np.rint(found.images[i] * 255 / 16)).float())
        assert data.space.labels[label] == str(found.target[i] or 10)
    assert data.notes == ()


def test_what_does_not_fit_in_memory_is_decoded_on_demand(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, lazy = load_data(digits), load_data(digits, memory=100)
    assert not isinstance(lazy.samples, torch.Tensor)
    decoded = []
    real = module._decode
    monkeypatch.setattr(module, "_decode", lambda source, i, event: decoded.append(i) or real(source, i, event))
    apart, held = lazy.split(0.25), whole.split(0.25)
    assert decoded == []
    for one, other in ((apart.train, held.train), (apart.held_out, held.held_out)):
        assert torch.equal(one.rows()[0], tensor(other.samples))
        assert torch.equal(tensor(one.labels), tensor(other.labels))
    decoded.clear()
    x, y = apart.train.rows(slice(2, 5))
    assert len(decoded) == 3
    assert torch.equal(x, tensor(held.train.samples)[2:5])
    assert torch.equal(tensor(y), tensor(held.train.labels)[2:5])
    items, cond = apart.train.feed()
    assert cond is None
    assert torch.equal(items[1][0], tensor(held.train.samples)[1])
    assert items[1][1]["label"] == tensor(held.train.labels)[1]
    codec, other_codec = apart.train.codec(), held.train.codec()
    assert torch.equal(codec.encode(x), other_codec.encode(x))


def test_odd_sizes_are_cut_to_their_centre(tmp_path: Path) -> None:
    """A disc in the centre stays in the centre, whatever is around it, and a scale keeps its colours."""
    rows, columns = np.mgrid[:40, :90]
    disc = (((rows - 19.5) ** 2 + (columns - 44.5) ** 2) < 15**2).astype("uint8") * 255
    Image.fromarray(disc).save(tmp_path / "wide.png")
    Image.fromarray(disc.T).save(tmp_path / "high.png")
    Image.fromarray(disc[:, 25:65]).save(tmp_path / "square.png")
    data = load_data(tmp_path, size=20)
    x = tensor(data.samples)
    assert x.shape == (3, 1, 20, 20)
    high, square, wide = x
    assert float((wide - square).abs().max()) < 2 / 255  # the sides of the wide one are empty
    assert float((square - high.transpose(1, 2)).abs().max()) < 2 / 255
    # the disc covers pi 7.5^2 of 400 pixels; its edge is 47 pixels long, each right to a tenth
    assert abs(float(x[0].sum()) - np.pi * 7.5**2) < 4.7
    assert "40 x 90" in data.notes[0]
    assert "resized to 20 x 20" in data.notes[0]
    # by default a square of the shortest side
    assert load_data(tmp_path).event == (1, 40, 40)
    assert load_data(tmp_path, size=(10, 30)).event == (1, 10, 30)


def test_modes_are_mixed_and_stated(tmp_path: Path) -> None:
    flower = Image.fromarray(load_sample_image("flower.jpg")).resize((64, 64))
    flower.save(tmp_path / "a.jpg", quality=95)
    flower.convert("L").save(tmp_path / "b.png")
    flower.convert("P").save(tmp_path / "c.gif")
    clear = flower.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "d.png")
    Image.fromarray((np.arange(64 * 64, dtype="uint16") * 16).reshape(64, 64)).save(tmp_path / "e.png")  # 16 bits
    flower.convert("CMYK").save(tmp_path / "f.jpg")
    data = load_data(tmp_path)
    x = tensor(data.samples)
    assert x.shape == (6, 3, 64, 64)
    assert data.labels is None
    assert torch.equal(x[1, 0], x[1, 2])
    assert bool((x[3] == 1).all())  # what is transparent shows white
    assert float((x[0] - x[5]).abs().mean()) < 0.03
    ramp = torch.arange(64 * 64).reshape(64, 64) * 16 / 65535
    assert float((x[4, 0] - ramp).abs().max()) <= 0.5 / 255 + 1e-6
    notes = " ".join(data.notes)
    assert "2 of 6 images are grey" in notes
    assert "1 images have transparency" in notes
    grey = load_data(tmp_path, channels=1)
    assert tensor(grey.samples).shape == (6, 1, 64, 64)
    assert "4 of 6 images are in colour" in " ".join(grey.notes)


def test_a_turned_photograph_stands_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.repeat(np.arange(0, 240, 8, dtype="uint8")[:, None], 20, 1))  # dark above, 30 x 20
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter to the left
    picture.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    x = tensor(load_data(tmp_path).samples)
    assert x.shape == (1, 1, 30, 20)
    assert torch.equal((x[0, 0] * 255).round(), torch.tensor(np.asarray(picture)).float())


def test_pictures_written_are_pictures_read(digits: Path, tmp_path: Path) -> None:
    data = load_data(digits)
    x = tensor(data.samples)
    space = Space.from_json(json.loads(json.dumps(data.space.to_json())))
    assert space == data.space
    space.save(tmp_path / "again", x, data.labels)
    again = load_data(tmp_path / "again")
    assert again.space == data.space
    order = tensor(data.labels).argsort(stable=True)
    assert torch.equal(tensor(again.samples), x[order])
    space.save(tmp_path / "sheet.png", x)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (7 * 9 - 1, 6 * 9 - 1)
    assert (sheet[9:17, 0:8] == np.rint(x[6, 0].numpy() * 255)).all()
    space.save(tmp_path / "x.npz", 2 * x, data.labels)
    arrays = np.load(tmp_path / "x.npz")
    assert arrays["x"].max() == 1  # within the bounds
    assert (arrays["y"] == tensor(data.labels).numpy()).all()
    with pytest.raises(ValueError, match=r"written as \.npz or \.npy or \.png or a folder"):
        space.save(tmp_path / "x.csv", x)


def test_labels_cannot_leave_their_folder(tmp_path: Path) -> None:
    space = ImageSpace((1, 2, 2), ("../../up", "..", "/root", "a/b"), (0.0, 1.0))
    space.save(tmp_path / "deep" / "out", torch.zeros(4, 1, 2, 2), torch.arange(4))
    written = {p.relative_to(tmp_path) for p in tmp_path.rglob("*.png")}
    assert {len(p.parts) for p in written} == {4}
    assert all(p.parts[:2] == ("deep", "out") for p in written)


def bomb(path: Path, side: int) -> None:
    """A PNG that says it has side x side pixels, in a few bytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    data = zlib.compress(b"\0" * 100)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_bad_images_are_named(digits: Path, tmp_path: Path) -> None:
    first = min(digits.rglob("*.png"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=f"{first.name} is no image, or a damaged one"):
        load_data(digits)
    with pytest.raises(
        ValueError, match=f"{first.name} is no image, or a damaged one"
    ):  # on demand: when it is asked for
        load_data(digits, memory=100).rows(slice(0, 1))
    first.write_bytes(b"GIF89a, or so it says")
    with pytest.raises(ValueError, match=f"{first.name} is no image, or a damaged one"):
        load_data(digits)
    Image.new("L", (8, 8)).save(tmp_path / "x.eps")
    first.write_bytes((tmp_path / "x.eps").read_bytes())  # whose decoder would start Ghostscript
    with pytest.raises(ValueError, match=f"{first.name} is no image, or a damaged one: cannot identify"):
        load_data(digits)
    first.write_bytes(whole)
    Image.fromarray(np.ones((8, 8), "float32")).save(digits / "1" / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff is no image.*32 bits"):
        load_data(digits)
    (digits / "1" / "float.tiff").unlink()
    for side in (11_000, 60_000):
        bomb(first, side)
        with pytest.raises(ValueError, match=f"{first.name} would unpack to more than 100,000,000 pixels"):
            load_data(digits)
    first.write_bytes(whole)
    (digits / "loose.png").write_bytes(whole)
    with pytest.raises(ValueError, match=r"loose\.png has no label"):
        load_data(digits)
    (digits / "loose.png").unlink()
    (digits / ".hidden.png").write_bytes(b"?")  # not ours to judge
    load_data(digits)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        load_data(tmp_path / "empty")
    for options, words in (
        ({"channels": 2}, "channels is 1"),
        ({"size": 0}, "size is a side"),
        ({"size": 20_000}, "size is a side"),
        ({"label": "x"}, "no option label"),
        ({"kind": "table"}, "is a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            load_data(digits, **options)


def test_the_split_of_images_is_by_class(digits: Path) -> None:
    data = load_data(digits)
    split = data.split(0.25)
    labels, held = tensor(data.labels), tensor(split.held_out.labels)
    for k in range(10):
        assert int((held == k).sum()) == round(0.25 * int((labels == k).sum()))
    assert len(split.train) + len(split.held_out) == 40
    # the algorithm that runs before this room existed used, step by step
    order = torch.randperm(40, generator=generator(derive(0, "split")))
    groups = [order[labels[order] == k] for k in range(10)]
    test = torch.cat([group[: round(0.25 * len(group))] for group in groups])
    test = test[torch.randperm(len(test), generator=generator(derive(0, "mix")))]
    assert torch.equal(tensor(split.held_out.samples), tensor(data.samples)[test])
    assert not torch.equal(tensor(data.split(0.25, seed=1).held_out.samples), tensor(split.held_out.samples))


def test_names_of_equal_numbers_have_one_order(tmp_path: Path) -> None:
    """ "1", "01" and "001" are one number: what a set gives first, which hangs on the hash's seed, must not count."""
    folders = ["001", "01", "1", "a01", "a1", "b"]
    for folder in folders:
        for name in ("7.png", "07.png"):
            path = tmp_path / "ties" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2), 9).save(path)
    for names in (folders, folders[::-1]):
        assert sorted(names, key=module._natural) == folders
    assert load_data(tmp_path / "ties").space.labels == tuple(folders)
    assert sorted(["a10", "a9", "a09"], key=module._natural) == ["a09", "a9", "a10"]


def test_a_fingerprint_of_what_is_not_decoded(digits: Path) -> None:
    before = load_data(digits, memory=100).fingerprint()
    assert before == load_data(digits, memory=100).fingerprint()
    first = min(digits.rglob("*.png"))
    pixels = Image.open(first).resize((9, 9))
    kept = first.read_bytes()
    pixels.save(first)
    assert load_data(digits, size=8, memory=100).fingerprint() != before
    first.write_bytes(kept)
    assert load_data(digits, memory=100).fingerprint() == before
    first.rename(first.with_name("zz.png"))
    assert load_data(digits, memory=100).fingerprint() != before
