"""Tensors, .npy and .npz: what they are taken for, how they leave, what is refused; nothing is unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ornstein.data import ArraySpace, ImageSpace, SeriesSpace, Space, load_data
from ornstein.random import derive, generator


def test_digits_are_those_of_old_and_so_is_their_split() -> None:
    """The first held-out digits, by the algorithm written out: randomness that runs already made rest on."""
    found = load_digits()
    data = load_data("digits")
    assert data.space == ImageSpace((1, 8, 8), tuple("0123456789"), (0.0, 1.0))
    x, y = data.rows()
    assert y is not None
    assert torch.equal(x.flatten(1).double() * 16, torch.tensor(found.data))
    split = data.split(0.2)
    order = torch.randperm(1797, generator=generator(derive(0, "split")))
    groups = [order[y[order] == k] for k in range(10)]
    train = torch.cat([group[round(0.2 * len(group)) :] for group in groups])
    train = train[torch.randperm(len(train), generator=generator(derive(0, "mix")))]
    assert torch.equal(split.train.rows()[0], x[train])
    assert float(split.train.codec().get_buffer("mean")) == float(x[train].mean())
    assert (split.event, split.labels, split.space) == ((1, 8, 8), 10, data.space)


@pytest.mark.parametrize(
    ("array", "kind", "expected"),
    [
        (np.zeros((12, 3)), None, ArraySpace((3,), dtype="float64")),
        (np.zeros((12, 3, 5, 5), "float32"), None, ImageSpace((3, 5, 5))),
        (np.zeros((12, 2, 5, 5), "float32"), None, ArraySpace((2, 5, 5))),
        (np.zeros((12, 5, 7), "uint8"), None, ImageSpace((1, 5, 7), bounds=(0.0, 255.0), dtype="uint8")),
        (np.zeros((12, 5, 7, 3), "uint8"), None, ImageSpace((3, 5, 7), bounds=(0.0, 255.0), dtype="uint8")),
        (np.zeros((12, 5, 7), "float32"), None, ArraySpace((5, 7))),
        (np.zeros((12, 5, 7), "float32"), "images", ImageSpace((1, 5, 7))),
        (np.zeros((12, 5, 7, 3), "float32"), "images", ImageSpace((3, 5, 7))),
        (np.zeros((12, 1, 5, 5), "float32"), "array", ArraySpace((1, 5, 5))),
        (np.zeros((12, 4), "bool"), None, ArraySpace((4,), dtype="bool")),
        (torch.zeros(12, 4, dtype=torch.bfloat16), None, ArraySpace((4,))),
    ],
)
def test_what_an_array_is_taken_for(array: Any, kind: Any, expected: Space) -> None:
    data = load_data(array, kind=kind)
    assert data.space == expected
    assert data.rows()[0].shape == (12, *expected.event)
    assert Space.from_json(json.loads(json.dumps(expected.to_json()))) == expected


def test_numbers_leave_in_the_type_they_came_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for dtype in ("uint8", "int16", "int64", "float64", "float16", "bool"):
        x = rng.integers(0, 2 if dtype == "bool" else 200, (12, 3)).astype(dtype)
        np.save(tmp_path / "x.npy", x)
        data = load_data(tmp_path / "x.npy")
        back = data.space.to_user(data.rows()[0] + 0.3 * (dtype not in ("float64", "float16")))
        assert back.dtype == x.dtype
        assert (back == x).all()
        data.space.save(tmp_path / "y.npy", data.rows()[0])
        assert (np.load(tmp_path / "y.npy") == x).all()
    space = ArraySpace((1,), dtype="int8")
    assert space.to_user(torch.tensor([[300.0], [-300.0]])).tolist() == [[127], [-128]]
    assert ArraySpace((1,), dtype="int64").to_user(torch.tensor([[1e30]]))[0, 0] > 0


def test_names_of_an_npz(tmp_path: Path) -> None:
    x, y = np.zeros((12, 4, 4), "uint8"), np.arange(12) % 3
    np.savez(tmp_path / "m.npz", train_images=x, train_labels=y, test_images=x[:2], test_labels=y[:2])
    data = load_data(tmp_path / "m.npz")
    assert data.space.labels == ("0", "1", "2")
    assert data.labels is not None
    assert data.labels.tolist() == y.tolist()
    assert "train_images was read" in data.notes[0]
    labelled = load_data(torch.rand(12, 2), labels=y)
    assert labelled.feed()[1] is not None
    assert load_data(torch.rand(12, 2)).feed()[1] is None


def test_constant_data_have_a_codec() -> None:
    x = torch.full((12, 3), 4.0)
    codec = load_data(x).codec()
    assert torch.equal(codec.encode(x), torch.zeros(12, 3))
    assert torch.equal(codec.decode(torch.zeros(12, 3)), x)


class Trap:
    """Pickled, it writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "sprung")


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    objects = np.empty((12, 2), dtype=object)
    objects[:] = Trap(sprung)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", x=objects)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Trap(sprung)))
    (tmp_path / "d.npz").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("a.npy", "b.npz", "c.npy", "d.npz"):
        with pytest.raises(ValueError, match="plain arrays"):
            load_data(tmp_path / name)
    for name in ("e.pkl", "e.pt", "e.pickle", "e.joblib"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap(sprung)))
        with pytest.raises(ValueError, match="an ending that is not read"):
            load_data(tmp_path / name)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))  # the trap itself works
    assert sprung.exists()


@pytest.mark.parametrize(
    ("array", "options", "words"),
    [
        (np.zeros(12), {}, r"two or more axes: got float64 \(12,\); numbers without features are x\[:, None\]"),
        (np.zeros((12, 0)), {}, "holds no number"),
        (np.zeros((1, 3)), {}, "holds 1 samples"),
        (np.zeros((12, 2), complex), {}, "real"),
        (np.full((12, 2), np.nan), {}, "not finite, first in sample 0"),
        (np.full((12, 2, 3), np.inf), {}, "not finite, first in sample 0"),
        (np.full((12, 2, 3), np.nan), {"kind": "array"}, "kind='series'"),
        (np.zeros((12, 2)), {"labels": [0] * 11}, "y must be 12 integers"),
        (np.zeros((12, 2)), {"labels": [0.5] * 12}, "y must be 12 integers"),
        (np.zeros((12, 2)), {"labels": [*range(11), 99]}, "99 in sample 11"),
        (np.zeros((12, 2)), {"kind": "table"}, "have no names"),
        (np.zeros((12, 2)), {"kind": "tables"}, "kind 'tables' is unknown"),
        (np.zeros((12, 2)), {"kind": "images"}, "an image is"),
        (np.zeros((12, 2)), {"label": "a"}, "no option label"),
        ([1, 2, 3], {}, "got list"),
        ("digit", {}, "'digits'"),
        ("a.txt", {}, "there is no folder or file"),
    ],
)
def test_what_is_no_data_is_refused(array: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_data(array, **options)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        load_data(tmp_path / "absent.csv")


def test_a_split_needs_enough_of_both() -> None:
    with pytest.raises(ValueError, match="9 samples: at least 10"):
        load_data(torch.rand(9, 2)).split(0.2)
    with pytest.raises(ValueError, match="leaves 12 to train and 0 to judge"):
        load_data(torch.rand(12, 2)).split(0.01)
    with pytest.raises(ValueError, match="share between 0 and 1"):
        load_data(torch.rand(12, 2)).split(1.0)


def test_series_by_their_gaps() -> None:
    x = torch.rand(12, 2, 5)
    assert isinstance(load_data(x).space, ArraySpace)
    x[3, 1, 2] = torch.nan
    assert isinstance(load_data(x).space, SeriesSpace)


def test_labels_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no sample of class 0, 1, 2, 4, 5, \.\.\.: .*np\.unique"):
        load_data(np.zeros((20, 2)), labels=np.array([3, 7] * 10))
    with pytest.raises(ValueError, match="no sample of class 1: "):
        load_data(np.zeros((20, 2)), labels=np.array([0, 2] * 10))
    recoded = np.unique(np.array([3, 7] * 10), return_inverse=True)[1]
    assert load_data(np.zeros((20, 2)), labels=recoded).space.labels == ("0", "1")


def test_repeated_samples_are_counted_and_others_not() -> None:
    """Forty points twice: without a pair that fell to one side, all held-out ones are in training too."""
    x = np.random.default_rng(0).normal(size=(40, 2)).astype("float32")
    assert load_data(x).split(0.25).held_out.notes == ()
    split = load_data(np.concatenate((x, x))).split(0.25)
    train, held = ({tuple(row.tolist()) for row in part.rows()[0]} for part in (split.train, split.held_out))
    again = sum(tuple(row.tolist()) in train for row in split.held_out.rows()[0])
    assert again > 0
    assert held & train
    for part in (split.train, split.held_out):
        assert part.notes == (f"{again} of 20 held-out samples are in training too: they repeat in the data",)


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).integers(0, 10, (50, 2)) + 1e12,
        np.random.default_rng(0).normal(size=(50, 2)) * 1e-3 + 1e6,
        np.random.default_rng(0).integers(0, 10, (50, 2)) + 2**60,  # float64 does not hold them either
        -np.random.default_rng(0).integers(0, 10, (50, 2)) - 10**12,
        np.random.default_rng(0).integers(0, 10, (50, 2)).astype("uint64") + np.uint64(2**63),
    ],
)
def test_variation_that_float32_drowns_is_refused(x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot tell apart: subtract an offset"):
        load_data(x)
    load_data(x - x.min())


@pytest.mark.parametrize(
    "x",
    [
        np.full((50, 2), 0.1),
        np.full((50, 2), 1e12 + 1),
        np.full((50, 2), 0.1) + np.arange(100).reshape(50, 2) % 2 * 2e-17,  # constant, to rounding
        np.random.default_rng(0).normal(size=(50, 2)) + 1e3,  # float32 errs by 3e-5, 1e-3 are let pass
        np.random.default_rng(0).integers(-(2**62), 2**62, (50, 2)),
        np.random.default_rng(0).standard_cauchy((500, 2)) * 1e8,
    ],
)
def test_variation_that_float32_holds_is_taken(x: np.ndarray) -> None:
    assert len(load_data(x)) == len(x)


def test_every_channel_of_series_is_looked_at() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2, 6))
    x[:, 0] *= 1e6
    x[0, 0, 0] = np.nan
    load_data(x)
    x[:, 1] += 1e6  # small beside the other channel's deviation, but of 0.03 of its own
    with pytest.raises(ValueError, match="channel 1 varies by"):
        load_data(x)


def test_statistics_of_huge_values_do_not_overflow() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (100, 2)).astype("float32") * np.float32(9e36)
    x = np.abs(x)  # 200 of about 4.5e36: their float32 sum is infinite
    codec = load_data(x).codec()
    assert float(codec.get_buffer("mean")) == pytest.approx(x.astype(np.float64).mean(), rel=1e-6)
    assert float(codec.get_buffer("std")) == pytest.approx(x.astype(np.float64).std(ddof=1), rel=1e-6)
    with pytest.raises(ValueError, match="data has values beyond 1e\\+37, near the end of float32"):
        load_data(x * np.float32(20))


def test_a_fingerprint_is_of_samples_order_and_labels() -> None:
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
    prints = [load_data(a, labels=b).fingerprint() for a, b in ((x, y), (x, 1 - y), (x[::-1].copy(), y), (x, None))]
    assert len(set(prints)) == 4
    assert load_data(x.copy(), labels=y).fingerprint() == prints[0]
