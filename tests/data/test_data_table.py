"""Tables: every kind of column comes back as it was, through the codec and through files, and bad ones are refused."""

from __future__ import annotations

import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from sklearn.datasets import load_diabetes, load_iris, load_wine

from ornstein.data import Data, Space, TableCodec, TableSpace, load_data
from ornstein.denoiser import Scaling


def people(n: int = 300) -> pd.DataFrame:
    """Every kind of column there is, six of them with missing values."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": rng.integers(18, 90, n),
            "price": np.round(rng.gamma(2, 10, n), 2),
            "vip": rng.random(n) < 0.3,
            "city": rng.choice(["Paris", "Rome", "Oslo"], n),
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), "D"),
            "second": pd.Timestamp("2020-01-01", tz="Europe/Paris")
            + pd.to_timedelta(rng.integers(0, 9_000_000, n), "s"),
            "grade": pd.Categorical(rng.choice(["lo", "mid", "hi"], n), ["lo", "mid", "hi"], ordered=True),
            "account": rng.integers(10**12, 10**12 + 1000, n),
            "always": 7,
            "small": rng.integers(-5, 5, n).astype("int8"),
            "count": pd.array(rng.integers(0, 9, n), dtype="Int64"),
            "took": pd.to_timedelta(rng.integers(0, 60, n), "h"),
            "known": pd.array(rng.random(n) < 0.5, dtype="boolean"),
        }
    )
    for name in ("price", "city", "day", "count", "grade", "known"):
        table.loc[rng.random(n) < 0.1, name] = None
    return table


def through(data: Data) -> Any:
    """The table after a journey through the codec."""
    assert isinstance(data.samples, torch.Tensor)
    codec = data.codec()
    return data.space.to_user(codec.decode(codec.encode(data.samples)))


def test_every_kind_of_column_comes_back_exactly() -> None:
    table = people()
    data = load_data(table)
    assert isinstance(data.samples, torch.Tensor)
    assert data.samples.dtype == torch.float32
    assert_frame_equal(data.space.to_user(data.samples), table)
    assert_frame_equal(through(data), table)
    # and through a space and a codec that were written and read
    space = Space.from_json(json.loads(json.dumps(data.space.to_json())))
    assert space == data.space
    codec = space.codec()
    codec.load_state_dict(data.codec().state_dict())
    assert_frame_equal(space.to_user(codec.decode(codec.encode(data.samples))), table)


def test_dates_survive_float32_only_because_of_their_offset() -> None:
    """Microseconds since 1970 are 1.6e15: a float32 keeps 1 in 2^24 of them, which is 9 minutes and more."""
    times = pd.Series(pd.to_datetime(["2021-03-01 12:00:00", "2021-03-01 12:00:01", "2021-03-02 00:00:00"] * 4))
    back = through(load_data(pd.DataFrame({"t": times, "x": np.arange(12.0)})))["t"]
    assert (back == times).all()
    plain = times.astype("int64").to_numpy().astype(np.float32).astype(np.int64)
    assert np.abs(plain - times.astype("int64").to_numpy()).max() > 1_000_000  # the rival, off by more than a second


def test_floats_come_back_to_rounding() -> None:
    table = load_diabetes(as_frame=True).frame
    back = through(load_data(table))
    assert list(back.columns) == list(table.columns)
    assert (back.dtypes == table.dtypes).all()
    spread = table.max() - table.min()
    # the value is rounded to float32, its state too: eps |z| over the slope of the knots, at most the whole range
    assert float(((back - table).abs() / spread).max().max()) < 1e-5


def test_real_tables_with_labels() -> None:
    for frame, label in ((load_iris(as_frame=True).frame, "target"), (load_wine(as_frame=True).frame, "target")):
        data = load_data(frame, label=label)
        assert data.labels is not None
        assert isinstance(data.samples, torch.Tensor)
        assert data.labels.tolist() == frame[label].tolist()
        assert data.space.labels == ("0", "1", "2")
        assert data.event == (frame.shape[1] - 1,)
        back = data.space.to_user(data.samples, data.labels)
        assert_frame_equal(back, frame, rtol=1e-6)
        assert back[label].dtype == frame[label].dtype


def test_labels_keep_their_place_and_type() -> None:
    table = people()[["age", "grade", "vip", "small"]]
    for label in ("vip", "small"):
        data = load_data(table, label=label, drop=["grade"])
        assert_frame_equal(data.space.to_user(data.samples, data.labels), table.drop(columns="grade"))
    ordered = load_data(table.dropna(), label="grade")
    assert ordered.space.labels == ("lo", "mid", "hi")
    back = ordered.space.to_user(ordered.samples, ordered.labels)
    assert_frame_equal(back, table.dropna().reset_index(drop=True))


def test_files_hold_names_and_types(tmp_path: Path) -> None:
    table = people()
    data = load_data(table)
    assert isinstance(data.samples, torch.Tensor)
    for name in ("a.csv", "b.parquet", "c.npz"):
        data.space.save(tmp_path / name, data.samples)
    assert_frame_equal(pd.read_parquet(tmp_path / "b.parquet"), table)
    assert_frame_equal(load_data(tmp_path / "b.parquet").space.to_user(data.samples), table)
    arrays = np.load(tmp_path / "c.npz")
    space = Space.from_json(json.loads(str(arrays["space"])))
    assert_frame_equal(space.to_user(torch.tensor(arrays["x"])), table)
    # a CSV knows no types but those that show: what it holds is what was written, and is written the same again
    again = load_data(tmp_path / "a.csv")
    assert isinstance(again.samples, torch.Tensor)
    again.space.save(tmp_path / "d.csv", again.samples)
    read = [pd.read_csv(tmp_path / name) for name in ("a.csv", "d.csv")]
    assert_frame_equal(read[0].drop(columns="second"), read[1].drop(columns="second"))
    assert (pd.to_datetime(read[0]["second"], utc=True) == pd.to_datetime(read[1]["second"], utc=True)).all()
    kinds = {c.name: c.kind for c in again.space.columns} if isinstance(again.space, TableSpace) else {}
    assert [name for name, kind in kinds.items() if kind == "time"] == ["day", "second", "took"]


def test_paths_and_separators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.csv").write_bytes("\ufeffage;café\n1;2.5\n2;3.5\n3;1.5\n".encode())
    (tmp_path / "b.tsv").write_text("age\tcafé\n1\t2.5\n2\t3.5\n3\t1.5\n")
    (tmp_path / "c.csv").write_text(",age,café\n0,1,2.5\n1,2,3.5\n2,3,1.5\n")
    expected = torch.tensor([[1, 2.5], [2, 3.5], [3, 1.5]])
    for source in ("~/a.csv", tmp_path / "b.tsv", str(tmp_path / "c.csv")):
        data = load_data(source)
        assert isinstance(data.samples, torch.Tensor)
        assert torch.equal(data.samples, expected)
        assert isinstance(data.space, TableSpace)
        assert [c.name for c in data.space.columns] == ["age", "café"]


def hour(after: int) -> pd.Timestamp:
    return pd.Timestamp("1990-01-01") + pd.Timedelta(after, "h")


@settings(max_examples=40)
@given(st.data())
def test_any_table_comes_back(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 25))
    cells = {
        "i": st.integers(-(2**40), 2**40),
        "f": st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)),
        "b": st.booleans(),
        "s": st.one_of(st.none(), st.sampled_from(["a", "b", "ü", "1", ""])),
        "t": st.one_of(st.none(), st.integers(0, 10_000).map(hour)),
    }
    table = pd.DataFrame(
        {
            name: pd.Series(data.draw(st.lists(cell, min_size=n, max_size=n)), dtype={"f": float, "s": "str"}.get(name))
            for name, cell in cells.items()
        }
    )
    table["t"] = pd.to_datetime(table["t"])
    table = table.drop(columns=[name for name in table if table[name].isna().all()])
    loaded = load_data(table)
    assert isinstance(loaded.samples, torch.Tensor)
    assert Space.from_json(json.loads(json.dumps(loaded.space.to_json()))) == loaded.space
    whole = loaded.space.to_user(loaded.samples)
    held = through(loaded)
    exact = [name for name in table if name not in ("i", "f")]
    for made in (whole, held):
        assert (made.dtypes == table.dtypes).all()
        assert_frame_equal(made[exact], table[exact])
        assert_frame_equal(made[["i"]], table[["i"]], check_exact=False, rtol=0, atol=2**41 * 2**-20)
        if "f" in table:
            assert (made["f"].isna() == table["f"].isna()).all()
            spread = float(table["f"].max() - table["f"].min())
            assert float((made["f"] - table["f"]).abs().max()) <= 1e-4 * spread + 1e-6 * float(table["f"].abs().max())


def csv(text: str) -> bytes:
    return text.encode()


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"", {}, ["empty"]),
        (csv("a,b\n"), {}, ["0 rows"]),
        (csv("a,b\n1,2\n"), {}, ["1 rows"]),
        (csv("a,b\n1,\n2,\n"), {}, ["'b'", "no value", "drop"]),
        (csv("a,a\n1,2\n2,3\n"), {}, ["two columns", "'a'"]),
        (csv("a,,b\n1,2,3\n2,3,4\n"), {}, ["column 1", "no name"]),
        (csv("a,b\n1,2\n2,3,4\n"), {}, ["2 columns"]),
        (csv("a,b\n1,inf\n2,3\n"), {}, ["'b'", "infinite", "line 2"]),
        (
            csv("a\n" + "".join(f"{i}\n" for i in range(120)) + "many\n"),
            {},
            ["'a'", "numbers and text", "'many'", "122"],
        ),
        (csv("who,b\n" + "".join(f"p{i},1\n" for i in range(30))), {}, ["'who'", "30 categories", "drop"]),
        (csv("a,b\n1,2\n2,3\n"), {"label": "c"}, ["no column 'c'", "a, b"]),
        (csv("a,b\n1,2\n2,3\n"), {"drop": ["c"]}, ["no column 'c'"]),
        (csv("a,b\n1,2\n2,3\n"), {"label": "a", "drop": ["a"]}, ["'a'", "dropped"]),
        (csv("a,b\n1,x\n2,\n3,y\n"), {"label": "b"}, ["label 'b'", "line 3"]),
        (csv("a,b\n1,2020-01-01\n2,2020-01-02\n"), {"label": "b"}, ["dates"]),
        (csv("a,b\n1,2\n2,3\n"), {"size": 8}, ["no option size"]),
        (csv("a,b\n1,2\n2,3\n"), {"kind": "images"}, ["'table' or 'series'"]),
        ("a,b\n1,é\n2,ü\n".encode("latin-1"), {}, ["UTF-8"]),
        (csv("a,b\n1,2e300\n2,3\n"), {}, ["'b'", "float32"]),
    ],
)
def test_bad_csv_is_one_clear_error(content: bytes, options: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_data(path, **options)
    for word in ["bad.csv", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame({"a": [1, "x", 2.5]}), ["'a'", "float, int, str", "row 1"]),
        (pd.DataFrame({"a": [[1], [2]]}), ["'a'", "list"]),
        (pd.DataFrame({"a": [1j, 2j]}), ["'a'", "complex128"]),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), ["two columns", "'a'"]),
        (pd.DataFrame({"a": [1.0, np.inf]}), ["'a'", "infinite", "row 1"]),
        (pd.DataFrame({"a": np.array([2**63, 1], dtype="uint64")}), ["'a'", "2^63"]),
        (pd.DataFrame(), ["0 rows of 0 columns"]),
    ],
)
def test_bad_frames_are_refused(table: pd.DataFrame, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load_data(table)
    for word in ["the DataFrame", *words]:
        assert word in str(caught.value)


def test_objects_of_dates_and_decimals_are_dates_and_numbers(tmp_path: Path) -> None:
    days = [date(2021, 3, 1 + i) for i in range(5)]
    table = pd.DataFrame(
        {"day": days, "price": [Decimal("1.5")] * 4 + [None], "n": pd.Series([1, 2.5, 3, None, 4], dtype=object)}
    )
    table.to_parquet(tmp_path / "a.parquet")
    data = load_data(table)
    back = through(data)
    assert back["day"].dt.date.tolist() == days
    assert back["price"][:4].tolist() == [1.5] * 4
    assert back["n"].isna().tolist() == [False, False, False, True, False]


def test_a_label_of_many_values_is_no_label() -> None:
    with pytest.raises(ValueError, match="'target' has 214 categories in 442 rows"):
        load_data(load_diabetes(as_frame=True).frame, label="target")


def test_torn_parquet_names_the_file(tmp_path: Path) -> None:
    people()[["age"]].to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet is no Parquet file"):
        load_data(tmp_path / "a.parquet")


def test_a_space_from_a_stranger_is_checked() -> None:
    good = load_data(people()).space.to_json()
    for change, words in (
        ({"kind": "os.system"}, "has a kind"),
        ({"columns": [{"name": "a", "kind": "number", "dtype": "object; import os"}]}, "dtype"),
        ({"columns": [{"name": "a", "kind": "run", "dtype": "int64"}]}, "kind"),
        ({"columns": [{"name": "a", "kind": "number", "dtype": "int64", "code": "x"}]}, "fields"),
        ({"columns": [{"name": "a", "kind": "number", "dtype": "int64", "unit": 2**70}]}, "64 bits"),
        ({"columns": "abc"}, "columns"),
        ({"event": [3]}, "event"),
        ({"event": ["13"]}, "event"),
        ({"colour": 1}, "fields"),
    ):
        with pytest.raises(ValueError, match=words):
            Space.from_json(good | change)
    for value in (None, [], {}, {"kind": ["table"]}):
        with pytest.raises(ValueError, match="kind"):
            Space.from_json(value)


def test_a_column_that_training_rows_lack_is_named() -> None:
    data = load_data(pd.DataFrame({"a": np.arange(20.0), "b": [1.0] + [np.nan] * 19}))
    with pytest.raises(ValueError, match="column 'b' has no value in the 19 rows"):
        data.take(torch.arange(1, 20)).codec()


def test_a_scaling_is_no_codec_of_a_table() -> None:
    """The rival: mean and standard deviation lose every category but for errors below half a code, and missing ones."""
    data = load_data(people()[["city", "vip"]].dropna())
    assert isinstance(data.samples, torch.Tensor)
    noise = 0.4 * torch.randn(1, generator=torch.Generator().manual_seed(0)).item()
    codec, rival = data.codec(), Scaling.of(data.samples)
    assert isinstance(codec, TableCodec)
    state = codec.encode(data.samples)
    assert torch.equal(codec.decode(state + noise), data.samples)  # an error common to all features moves no argmax
    assert bool(rival.decode(torch.full((1, 2), torch.nan)).isnan().all())
    assert not torch.equal(rival.decode(rival.encode(data.samples) + noise), data.samples)


def test_saved_text_is_what_a_spreadsheet_shows(tmp_path: Path) -> None:
    table = pd.read_csv(io.StringIO("n,price,ok\n1,0.1,True\n2,,False\n3,2.35,True\n4,0.1,True\n"))
    data = load_data(table)
    assert isinstance(data.samples, torch.Tensor)
    data.space.save(tmp_path / "a.csv", data.codec().decode(data.codec().encode(data.samples)))
    assert (tmp_path / "a.csv").read_text() == "n,price,ok\n1,0.1,True\n2,,False\n3,2.35,True\n4,0.1,True\n"
    with pytest.raises(ValueError, match=r"written as \.csv or \.parquet or \.npz"):
        data.space.save(tmp_path / "a.png", data.samples)


def test_nullable_integers_beyond_float64_come_back(tmp_path: Path) -> None:
    """2^60 + 3 is no float64, whose neighbours there are 256 apart."""
    values = [2**60 + 3, None, 2**60 + 5, 2**60 + 11] * 5
    table = pd.DataFrame({"id": pd.array(values, "Int64"), "x": np.arange(20.0)})
    data = load_data(table)
    assert_frame_equal(data.space.to_user(data.rows()[0]), table)
    table.to_csv(tmp_path / "t.csv", index=False)
    data = load_data(tmp_path / "t.csv")
    assert_frame_equal(data.space.to_user(data.rows()[0])[["id"]], table[["id"]])


def csv(tmp_path: Path, text: str, name: str = "t.csv") -> pd.DataFrame:
    (tmp_path / name).write_text(text)
    data = load_data(tmp_path / name)
    back: pd.DataFrame = data.space.to_user(data.rows()[0])
    return back


def test_decimal_commas(tmp_path: Path) -> None:
    back = csv(tmp_path, "a;b;c\n" + "1,5;x,y;3\n-0,25;z;4\n;x,y;5\n2;z;6\n" * 5)
    assert back["a"].dtype == np.float64
    assert back["a"][:3].tolist()[:2] == [1.5, -0.25]
    assert np.isnan(back["a"][2])
    assert back["b"][0] == "x,y"
    assert back["c"].tolist()[:2] == [3, 4]
    quoted = csv(tmp_path, "a,b\n" + '"1,5",1\n"2,5",2\n' * 6)  # where commas separate, they are no decimal ones
    assert quoted["a"][0] == "1,5"


def test_leading_zeros_are_kept(tmp_path: Path) -> None:
    back = csv(tmp_path, "zip,share,n\n" + "01234,0.5,0\n98765,0.25,10\n,0.5,20\n" * 5)
    assert back["zip"].tolist()[:2] == ["01234", "98765"]
    assert back["zip"].isna()[2]
    assert back["share"].dtype == np.float64
    assert back["n"].dtype == np.int64


def test_words_are_no_gaps_among_words(tmp_path: Path) -> None:
    back = csv(tmp_path, "land,x,day,n\n" + "NA,NA,2020-01-01,1\nDE,1.5,NA,\nNone,2.5,2020-01-03,3\n,3.5,,5\n" * 5)
    assert back["land"].tolist()[:3] == ["NA", "DE", "None"]
    assert back["land"].isna().tolist()[:4] == [False, False, False, True]
    assert back["x"].isna().tolist()[:4] == [True, False, False, False]
    assert back["day"].isna().tolist()[:4] == [False, True, False, True]
    assert back["day"].dtype.kind == "M"
    assert str(back["n"].dtype) == "Int64"
    assert back.to_csv(index=False).splitlines()[1].endswith(",1")


def test_a_tsv_is_separated_by_tabs(tmp_path: Path) -> None:
    back = csv(tmp_path, "a,b,c\td\n" + "1\t2\n3\t4\n" * 6, "t.tsv")
    assert back.columns.tolist() == ["a,b,c", "d"]
