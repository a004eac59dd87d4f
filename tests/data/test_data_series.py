"""Series: gaps are told from values, long tables become a grid and come back, and states know nothing of a gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ornstein.data import Data, SeriesCodec, SeriesSpace, Space, load_data
from ornstein.denoiser import Scaling


def walks(n: int = 20, length: int = 12) -> torch.Tensor:
    """Random walks about 100 and 5000, a fifth of their values missing."""
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(n, 2, length)), -1) * [[1], [50]] + [[100], [5000]]
    x[rng.random(x.shape) < 0.2] = np.nan
    return torch.tensor(x, dtype=torch.float32)


def long(x: torch.Tensor, step: str = "1D") -> pd.DataFrame:
    """The same as rows (who, day, heat, mass), without rows that hold nothing."""
    n, _, length = x.shape
    days = pd.date_range("2021-01-01", periods=length, freq=step)
    table = pd.DataFrame(
        {
            "who": np.repeat([f"s{i}" for i in range(n)], length),
            "day": np.tile(days, n),
            "heat": x[:, 0].flatten().double(),
            "mass": x[:, 1].flatten().double(),
        }
    )
    return table[table["heat"].notna() | table["mass"].notna()].reset_index(drop=True)


def tensor(data: Data) -> torch.Tensor:
    assert isinstance(data.samples, torch.Tensor)
    return data.samples


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(x.nan_to_num(-1), y.nan_to_num(-1))


def test_an_array_with_gaps(tmp_path: Path) -> None:
    x = walks()
    np.savez(tmp_path / "x.npz", x=x.numpy(), y=np.arange(20) % 2)
    data = load_data(tmp_path / "x.npz")
    assert data.space.kind == "series"
    assert same(tensor(data), x)
    assert data.space.conditions == {"observed": 2}
    observed = data.space.cond(x)["observed"]
    assert torch.equal(observed == 1, ~x.isnan())
    assert torch.equal(observed == 0, x.isnan())
    _, cond = data.feed()
    assert cond is not None
    assert set(cond) == {"label", "observed"}
    assert torch.equal(data.space.complete(3)["observed"], torch.ones(3, 2, 12))
    whole = load_data(torch.rand(12, 2, 5), kind="series")
    assert whole.space.complete(3) == {}
    assert whole.space.conditions == {}
    assert whole.space.cond(tensor(whole)) == {}


def test_the_codec_scales_channels_by_what_was_observed() -> None:
    x = walks()
    codec = load_data(x).codec()
    state = codec.encode(x)
    expected = state.clone()
    for row, gap in zip(expected.flatten(0, 1), x.isnan().flatten(0, 1), strict=True):
        known = np.flatnonzero(~gap.numpy())
        if len(known):  # in gaps the line between the values beside them, which no gap's own content can change
            row[:] = torch.tensor(np.interp(np.arange(len(row)), known, row.numpy()[known]))
        else:
            row[:] = 0
    assert torch.allclose(state, expected, atol=1e-6)
    assert not bool(state.isnan().any())
    never = x.clone()
    never[0, 0] = torch.nan
    assert torch.equal(codec.encode(never)[0, 0], torch.zeros(x.shape[2]))
    # the rival: the mean in every gap
    assert not torch.allclose(state, torch.where(x.isnan(), 0.0, state), atol=0.1)
    for c in range(2):
        held = state[:, c][~x[:, c].isnan()].double()
        assert abs(float(held.mean())) < 1e-4
        assert float(held.std(correction=0)) == pytest.approx(1, abs=1e-4)
    back = codec.decode(state)
    assert torch.allclose(back[~x.isnan()], x[~x.isnan()], rtol=1e-5)
    assert not bool(back.isnan().any())  # samples are complete
    again = SeriesCodec(2)
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.encode(x), state)
    # the rival: one scale for both channels, and NaN where there was nothing
    rival = Scaling.of(x[~x.isnan()])
    assert bool(rival.encode(x).isnan().any())
    assert float(rival.encode(x)[:, 0][~x[:, 0].isnan()].std()) < 0.1


def test_a_long_table_is_the_same_series(tmp_path: Path) -> None:
    x = walks()
    long(x).to_csv(tmp_path / "x.csv", index=False)
    data = load_data(tmp_path / "x.csv", kind="series")
    assert same(tensor(data), x)
    shuffled = long(x).sample(frac=1, random_state=0)
    named = load_data(shuffled[["mass", "day", "heat", "who"]], kind="series", series="who", time="day", drop=["mass"])
    order = [int(name[1:]) for name in pd.unique(shuffled["who"])]  # series stay in the order in which they come
    assert same(tensor(named), x[order, :1])
    space = Space.from_json(json.loads(json.dumps(data.space.to_json())))
    assert space == data.space
    # out again in the same format, complete, with dates for dates
    made = x.nan_to_num(7.5)
    space.save(tmp_path / "out.csv", made)
    table = pd.read_csv(tmp_path / "out.csv", parse_dates=["day"])
    assert list(table.columns) == ["who", "day", "heat", "mass"]
    assert len(table) == 20 * 12
    assert (table["day"][:12] == pd.date_range("2021-01-01", periods=12)).all()
    assert np.allclose(table["mass"].to_numpy().reshape(20, 12), made[:, 1])
    assert same(tensor(load_data(tmp_path / "out.csv", kind="series")), made)
    space.save(tmp_path / "out.parquet", made)
    assert pd.read_parquet(tmp_path / "out.parquet")["day"].dtype.kind == "M"
    space.save(tmp_path / "out.npz", made)
    assert np.array_equal(np.load(tmp_path / "out.npz")["x"], made.numpy())


def test_a_grid_of_a_given_step_averages() -> None:
    table = pd.DataFrame(
        {"series": [0, 0, 0, 0, 1, 1], "time": [0.0, 0.4, 1.1, 3.0, 0.9, 2.9], "v": [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]}
    )
    data = load_data(table, step=1)
    nan = float("nan")
    assert same(tensor(data), torch.tensor([[[2.0, 5.0, nan, 7.0]], [[nan, 9.0, nan, 11.0]]]))
    assert isinstance(data.space, SeriesSpace)
    assert data.space.times == (0, 1, 2, 3)
    half = load_data(table.assign(time=[0, 1, 2, 6, 0, 5]), step=0.5)
    assert half.space.to_user(half.samples)["time"][:3].tolist() == [0, 0.5, 1]
    dates = table.assign(time=pd.Timestamp("2021-01-01") + pd.to_timedelta([0, 20, 60, 190, 50, 170], "min"))
    hours = load_data(dates, step="1h")
    assert same(tensor(hours), tensor(data))
    assert hours.space.to_user(hours.samples)["time"][3] == pd.Timestamp("2021-01-01 03:00")


def test_labels_of_series() -> None:
    table = long(walks())
    table["sort"] = np.where(table["who"].str[1:].astype(int) % 3 == 0, "b", "a")
    data = load_data(table, kind="series", label="sort")
    assert data.labels is not None
    assert data.labels.tolist() == [int(i % 3 == 0) for i in range(20)]
    assert data.space.labels == ("a", "b")
    back = data.space.to_user(tensor(data), data.labels)
    assert back["sort"][:24].tolist() == ["b"] * 12 + ["a"] * 12
    table.loc[5, "sort"] = "a"
    with pytest.raises(ValueError, match="'sort' changes within a series"):
        load_data(table, kind="series", label="sort")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({}, {"series": "whom"}, "no column 'whom'"),
        ({"heat": "warm"}, {}, "'heat' holds no numbers"),
        ({"day": "monday"}, {}, "'day' are neither numbers nor dates"),
        ({"day": pd.Timestamp("2021-01-01")}, {}, "time 2021-01-01 00:00:00 twice, again in row 1"),
        ({"mass": np.nan}, {}, "'mass' has no value"),
        ({"who": None}, {}, "'who' is missing in row 0"),
        ({}, {"step": -1}, "step is a duration"),
        ({}, {"step": "soon"}, "step is a duration"),
        ({}, {"step": "1s"}, "more than 10000"),
        ({}, {"drop": ["heat", "mass"]}, "a series, a time and values"),
        ({}, {"size": 3}, "no option size"),
    ],
)
def test_bad_long_tables_are_refused(change: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_data(long(walks()).assign(**change), kind="series", **options)


def test_times_that_never_meet_are_refused() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"series": np.repeat(np.arange(200), 3), "time": rng.random(600), "v": rng.random(600)})
    with pytest.raises(ValueError, match="600 different times and hardly ever the same: give step="):
        load_data(table)
    assert load_data(table, step=0.25).event == (1, 5)


def test_empty_series_are_refused() -> None:
    x = walks()
    x[4] = torch.nan
    with pytest.raises(ValueError, match="series 4 has no value"):
        load_data(x)
    x = walks()
    x[:, 1] = torch.nan
    with pytest.raises(ValueError, match="channel 1 has no value"):
        load_data(x)
    x = walks()
    x[3, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite, first in sample 3"):
        load_data(x)
    with pytest.raises(ValueError, match=r"series are \(n, channels, length\)"):
        load_data(torch.rand(12, 5), kind="series")


def test_channels_keep_their_types_and_decimals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "series": np.repeat(np.arange(12), 5),
            "time": np.tile(np.arange(5), 12),
            "count": rng.integers(0, 9, 60),
            "byte": rng.integers(-100, 100, 60).astype("int8"),
            "price": np.round(rng.normal(size=60), 2),
        }
    )
    data = load_data(table)
    x = data.rows()[0]
    back = data.space.to_user(x + 0.001)
    pd.testing.assert_frame_equal(back, table)
    assert Space.from_json(json.loads(json.dumps(data.space.to_json()))) == data.space
    assert data.space.to_user(torch.full_like(x, 300.0))["byte"].unique().tolist() == [127]
    gaps = load_data(table.drop(index=7))
    filled = gaps.space.to_user(gaps.rows()[0])
    assert str(filled["count"].dtype) == "Int64"
    assert filled["count"].isna().sum() == 1
    means = load_data(table, step=2)
    assert means.space.to_user(means.rows()[0])["count"].dtype == np.float64
