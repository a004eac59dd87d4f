"""Quantiles and the codec of tables: margins keep their atoms, values come back, and simpler codecs do not do it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ornstein.data import Quantiles, TableCodec
from ornstein.denoiser import Scaling


def inflated(n: int = 4000, share: float = 0.6) -> Tensor:
    """A column that is 0 for a share of its rows, and lognormal above 0.5 for the others."""
    rng = np.random.default_rng(0)
    value = 0.5 + rng.lognormal(size=n)
    value[: round(share * n)] = 0
    return torch.tensor(value, dtype=torch.float32)[:, None]


def test_middle_ranks_by_hand() -> None:
    # 2, 2, 2, 5: F at mid-rank is 1.5/4 at 2 and 3.5/4 at 5
    v = torch.tensor([[2.0], [2.0], [5.0], [2.0]])
    z = Quantiles(1).fit(v).encode(v)[:, 0].double()
    expected = torch.special.ndtri(torch.tensor([1.5, 1.5, 3.5, 1.5], dtype=torch.float64) / 4)
    assert torch.allclose(z, expected, atol=1e-6)


def test_an_atom_keeps_its_mass_under_the_normal_law() -> None:
    """z ~ N(0, 1) decodes to 0 with probability 0.6: of 40,000 draws the share has std sqrt(.24/4e4) = 0.00245."""
    v = inflated()
    quantiles = Quantiles(1).fit(v)
    z = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0))
    made = quantiles.decode(z)
    assert abs(float((made == 0).double().mean()) - 0.6) < 5 * 0.00245
    assert float(made[made > 0].min()) >= float(v[v > 0].min())  # and nothing lies in the gap
    # the rival: mean and standard deviation give the atom no mass at all
    assert float((Scaling.of(v).decode(z) == 0).double().mean()) == 0


def test_an_atom_survives_an_error_of_the_model() -> None:
    """States that are off by 0.05 still mean the atom: its edges are 0.25 and more away from its middle.

    z of the atom is Phi^-1(0.3) = -0.524, of its upper edge Phi^-1(0.6) = 0.253; its standard deviation is below 1, so
    that in states the distance is larger still: 15 deviations of the error.
    """
    v = inflated()
    codec = TableCodec([["number", None, False]]).fit(v)
    error = 0.05 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.decode(codec.encode(v) + error)[v == 0], torch.zeros(2400))
    rival = Scaling.of(v)
    assert float((rival.decode(rival.encode(v) + error)[v == 0] == 0).double().mean()) == 0


def test_continuous_columns_become_normal() -> None:
    """The encoded column is the normal scores: against a normal sample its moments are right to O(log n / n)."""
    v = torch.tensor(np.random.default_rng(1).gamma(0.7, size=(20_000, 1)), dtype=torch.float32)
    z = Quantiles(1).fit(v).encode(v).double()
    ranks = torch.special.ndtri((v[:, 0].argsort().argsort().double() + 0.5) / len(v))[:, None]
    # 256 knots, linear between: within the interpolation error h^2/8 max|d2z/dv2 (dv/dk)^2| of the ranks
    assert float((z - ranks).abs().max()) < 0.05
    assert abs(float(z.square().mean()) - 1) < 0.01
    assert abs(float(z.pow(4).mean()) - 3) < 0.1


def test_samples_of_a_continuous_column_are_not_its_rows() -> None:
    v = torch.tensor(np.random.default_rng(2).normal(size=(100, 1)), dtype=torch.float32)
    made = Quantiles(1).fit(v).decode(torch.randn(1000, 1, generator=torch.Generator().manual_seed(0)))
    inside = (made > v.min()) & (made < v.max())
    assert not bool(torch.isin(made[inside], v).any())
    assert float(made.min()) == float(v.min())  # and none lies beyond them
    assert float(made.max()) == float(v.max())


def test_more_values_than_knots_keep_atoms_ends_and_tails() -> None:
    rng = np.random.default_rng(3)
    v = torch.tensor(np.concatenate([rng.standard_cauchy(20_000), np.full(5_000, 7.0)]), dtype=torch.float32)[:, None]
    quantiles = Quantiles(1, knots=64).fit(v)
    assert quantiles.value.shape == (1, 64)
    assert torch.equal(quantiles.decode(quantiles.encode(v))[20_000:], v[20_000:])
    normal = torch.randn(50_000, 1, generator=torch.Generator().manual_seed(0))
    made = quantiles.decode(normal)
    # 0.2 of all: the std of the share is sqrt(.16/5e4) = 0.0018
    assert abs(float((made == 7).double().mean()) - 0.2) < 5 * 0.0018
    assert float(quantiles.decode(torch.full((1, 1), -9.0))) == float(v.min())
    assert float(quantiles.decode(torch.full((1, 1), 9.0))) == float(v.max())
    for q in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999):  # ranks to within the 1/32 of a knot's share, and noise
        value = v.double().quantile(q).float()
        rank, q = (float((x <= value).double().mean()) for x in (made, v))
        assert abs(rank - q) < q * (1 - q) * 0.15 + 5 * math.sqrt(q * (1 - q) / 50_000)


def test_float64_meets_the_knots_of_float32() -> None:
    v = torch.tensor([[0.1], [0.1], [0.7], [0.7]], dtype=torch.float64)
    quantiles = Quantiles(1).fit(v)
    assert torch.allclose(quantiles.encode(v), quantiles.encode(v.float()).double())
    assert quantiles.encode(v).dtype == torch.float64


@settings(max_examples=60)
@given(
    st.lists(st.one_of(st.integers(-50, 50), st.sampled_from([0, 0, 0, 9]), st.none()), min_size=2, max_size=60),
    st.lists(st.integers(0, 4), min_size=2, max_size=60),
    st.integers(8, 64),
)
def test_whole_numbers_categories_and_gaps_come_back_exactly(
    numbers: list[int | None], codes: list[int], knots: int
) -> None:
    n = min(len(numbers), len(codes))
    value = torch.tensor([math.nan if v is None else float(v) for v in numbers[:n]])
    code = torch.tensor(codes[:n]).float()
    some = torch.where(code == 4, torch.nan, code)
    if bool(value.isnan().all()):
        value[0] = 3.0
    x = torch.stack([value, some, torch.where(code == 4, 0, code)], 1)
    codec = TableCodec([["number", 0, True], ["category", 4, True], ["category", 4, False]], knots).fit(x)
    assert torch.equal(codec.decode(codec.encode(x)).nan_to_num(-99), x.nan_to_num(-99))
    # and the codec made again from its arguments and its state does the same
    again = TableCodec(codec.columns, knots)
    again.load_state_dict(codec.state_dict())
    assert torch.equal(again.encode(x), codec.encode(x))


def test_states_have_unit_variance_and_equal_cells() -> None:
    rng = np.random.default_rng(0)
    city = torch.tensor(rng.choice(3, 5000, p=[0.7, 0.2, 0.1]), dtype=torch.float32)
    x = torch.stack([torch.tensor(rng.normal(3, 9, 5000), dtype=torch.float32), city], 1)
    codec = TableCodec([["number", None, False], ["category", 3, False]]).fit(x)
    state = codec.encode(x)
    assert state.shape == (5000, *codec.event)
    assert float(state.mean(0).abs().max()) < 1e-5
    assert float(state[:, 0].std()) == pytest.approx(1, abs=0.01)
    assert float(state[:, 1:].var(0).mean()) == pytest.approx(1, abs=0.01)
    # any two categories are equally far apart, though one is seven times as frequent
    corners = torch.stack([state[city == k][0, 1:] for k in range(3)])
    distances = torch.nn.functional.pdist(corners)
    assert torch.allclose(distances, distances[:1].expand(3), rtol=1e-5)


def test_a_missing_number_is_told_by_its_indicator_alone() -> None:
    x = torch.tensor([[1.0], [math.nan], [2.0], [4.0]])
    codec = TableCodec([["number", None, True]]).fit(x)
    state = codec.encode(x)
    assert float(state[1, 0]) == 0
    assert codec.decode(state).isnan().flatten().tolist() == [False, True, False, False]
    halfway = state.clone()
    halfway[:, 1] = (0.5 - codec.mean[1]) / codec.std[1]
    assert not bool(codec.decode(halfway - 0.01).isnan().any())
    assert bool(codec.decode(halfway + 0.01).isnan().all())


def test_numbers_are_rounded_as_the_column_is() -> None:
    x = torch.tensor(np.random.default_rng(0).integers(0, 10_000, (50, 2)), dtype=torch.float32)
    x[:, 1] /= 10
    codec = TableCodec([["number", 0, False], ["number", 1, False]]).fit(x)
    made = codec.decode(torch.randn(500, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(made[:, 0], made[:, 0].round())
    assert torch.equal(made[:, 1], (10 * made[:, 1]).round() / 10)
    assert len(made[:, 0].unique()) > 100  # between the rows' own values too


def test_constant_columns_come_back() -> None:
    x = torch.full((5, 2), 7.25)
    x[:, 1] = 0
    codec = TableCodec([["number", None, False], ["category", 1, False]]).fit(x)
    assert torch.equal(codec.encode(x), torch.zeros(5, 2))
    assert torch.equal(codec.decode(torch.randn(5, 2)), x)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="'number' or 'category'"):
        TableCodec([["word", None, False]])
    with pytest.raises(ValueError, match=r"a table of 1 columns is \(n, 1\): got \(3, 2\)"):
        TableCodec([["number", None, False]]).encode(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="row 1 is"):
        TableCodec([["number", None, False]]).fit(torch.tensor([[1.0], [math.nan]]))
