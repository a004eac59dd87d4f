"""Tables: checks, printing, saving, refusals."""

import json
import math
from typing import NamedTuple

import mpmath
import pytest
import torch

import ornstein as orn
from ornstein.solvers import Writer
from ornstein.solvers.exponential import moments
from ornstein.solvers.table import Output, Register
from worlds import F64, normal, ring

GRID = orn.LogSNR(start=-4.0, end=6.0, to_data=False)


class Pair(NamedTuple):
    a: object
    b: object


def table(solver=None, process=None, steps=4):
    process = process or orn.VP()
    return (solver or orn.DPMSolverPP(order=3)).compile(process, GRID(process, steps=steps))


def test_the_coefficients_are_those_of_the_paper():
    """DPM-Solver++(2M), written out by hand for the third step."""
    grid = GRID(orn.VP(), steps=3)
    row = table(orn.DPMSolverPP(order=2), steps=3).rows[3]
    lam = (grid.log_snr / 2).tolist()
    h, r = lam[3] - lam[2], (lam[2] - lam[1]) / (lam[3] - lam[2])
    total = -float(grid.alpha[3]) * torch.expm1(torch.tensor(-h, dtype=F64)).item()
    assert row.terms[Register(2)] == pytest.approx(float(grid.sigma[3] / grid.sigma[2]), rel=1e-14)
    assert row.terms[Output(2, "x0")] == pytest.approx(total * (1 + 1 / (2 * r)), rel=1e-13)
    assert row.terms[Output(1, "x0")] == pytest.approx(-total / (2 * r), rel=1e-13)


def test_the_exponential_integrals_against_high_precision():
    """I_k = h^-k int_{-h}^0 e^u u^k du, by mpmath, on both sides of the switch at h = 1."""
    for h in (1e-8, 1e-3, 0.3, 0.999999, 1.0, 2.5, 30.0):
        found = moments(torch.tensor(h, dtype=F64), 4).tolist()
        for k, value in enumerate(found):
            with mpmath.workdps(40):
                hp = mpmath.mpf(h)
                truth = mpmath.quad(lambda u, k=k: mpmath.exp(u) * u**k, [-hp, -min(hp, 3), 0]) / hp**k
            assert value == pytest.approx(float(truth), rel=2e-14)
    assert moments(torch.tensor(torch.inf, dtype=F64), 1).tolist() == [1.0]


def test_a_table_prints_its_equations():
    text = str(table(orn.DDIM(eta=1.0), steps=2))
    assert text.startswith("DDIM(eta=1.0): 2 steps, 2 evaluations")
    assert "e0 = evaluate(r0" in text
    assert "x0(e1)" in text
    assert "z1" in text


@pytest.mark.parametrize("solver", [orn.DPMSolverPP(order=3), orn.DDIM(eta=0.5), orn.Heun()], ids=repr)
def test_saving_is_exact(solver, tmp_path):
    own = table(solver)
    own.save(tmp_path / "table.json")
    again = orn.Table.load(tmp_path / "table.json")
    assert again.order == own.order
    assert again.noises == own.noises
    assert [row.terms for row in again.rows] == [row.terms for row in own.rows]
    oracle, x = ring().denoiser(orn.VP()), normal(3, 2)
    first, second = (orn.sample(oracle, x_init=x, table=t, seed=1).x for t in (own, again))
    assert torch.equal(first, second)
    assert str(again) == str(own)


def test_a_grid_with_infinite_levels_and_per_sample_times_is_saved(tmp_path):
    times = torch.tensor([[1.0, 1.0], [0.5, 0.7], [0.0, 0.0]], dtype=F64)
    own = orn.DDIM().compile(orn.Flow(), orn.Flow().level(times))
    own.save(tmp_path / "t.json")
    again = orn.Table.load(tmp_path / "t.json")
    x = normal(2, 2)
    first, second = (orn.sample(ring().denoiser(orn.Flow()), x_init=x, table=t).x for t in (own, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b'{"format": "else"}', b'{"format": "ornstein-table", "version": 1}']
)
def test_foreign_and_damaged_tables_are_refused(content, tmp_path):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(orn.TableError, match=r"bad\.json"):
        orn.Table.load(tmp_path / "bad.json")


def test_a_newer_format_is_refused(tmp_path):
    data = {**table().to_json(), "version": 99}
    (tmp_path / "new.json").write_text(json.dumps(data))
    with pytest.raises(orn.TableError, match="99"):
        orn.Table.load(tmp_path / "new.json")


def test_a_program_that_is_not_causal_is_refused():
    grid = GRID(orn.VP(), steps=1)
    writer = Writer("ahead", grid[0])
    writer.step(Register(5) * 1.0, grid[1])
    with pytest.raises(orn.TableError, match=r"reads r5 before"):
        writer.table()
    writer = Writer("ahead", grid[0])
    writer.evaluate(Register(1), grid[0])
    with pytest.raises(orn.TableError, match="not made yet"):
        writer.table()


def test_a_coefficient_that_is_not_finite_is_refused():
    grid = GRID(orn.VP(), steps=1)
    writer = Writer("broken", grid[0])
    p = writer.evaluate(writer.state, grid[0])
    writer.step(writer.state + float("inf") * p.noise, grid[1])
    with pytest.raises(orn.TableError, match=r"broken: the coefficient of noise\(e0\) in r1 is inf"):
        writer.table()


def test_another_process_is_refused_by_its_levels():
    own = table(process=orn.VP())
    own.check_process(orn.VP())
    for other in (orn.VP(beta_max=20.001), orn.Flow(), orn.EDM()):
        with pytest.raises(orn.TableError, match="compiled for another process"):
            orn.sample(ring().denoiser(other), x_init=normal(2, 2), table=own)
    with pytest.raises(orn.TableError, match="several"):
        own.check_process(orn.Product(Pair(orn.VP(), orn.VP())))


def test_components_must_share_their_evaluations():
    product = orn.Product(Pair(orn.VP(), orn.Flow()))
    grid = product.level(torch.tensor([0.9, 0.5, 0.1]))
    both = orn.solvers.compile_table([orn.DDIM(), orn.DPMSolverPP(order=2)], product, grid)
    assert both.nfe == 2
    with pytest.raises(orn.TableError, match="cannot share"):
        orn.solvers.compile_table([orn.DDIM(), orn.Heun()], product, grid)
    with pytest.raises(ValueError, match="3 solvers"):
        orn.solvers.compile_table([orn.DDIM()] * 3, product, grid)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, 0.5, 0.5, 0.0], r"t\[1\] = 0.5 is followed by t\[2\] = 0.5"),
        ([1.0, 0.5, 0.6, 0.0], r"t\[1\] = 0.5 is followed by t\[2\] = 0.6"),
        ([1.0], "at least two"),
        ([1.0, -0.1], r"t = -0.1 lies outside"),
    ],
)
def test_bad_grids_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        orn.sample(ring().denoiser(orn.Flow()), (2, 2), grid=times)


@pytest.mark.parametrize("grid", [orn.Uniform(), orn.Quadratic(), orn.LogSNR(), orn.Karras()], ids=repr)
@pytest.mark.parametrize("process", [orn.VP(), orn.VE(), orn.EDM(), orn.Flow(), orn.Cosine(), orn.SubVP()], ids=repr)
def test_grids_run_from_the_end_law_to_data_exactly(grid, process):
    for steps in (1, 2, 3, 17):
        levels = grid(process, steps=steps)
        assert len(levels) == steps + 1
        assert float(levels.t[0]) == 1
        assert float(levels.t[-1]) == 0
        assert float(levels.sigma[-1]) == 0
        assert bool((levels.t.diff() < 0).all())
    with pytest.raises(ValueError, match="steps=0"):
        grid(process, steps=0)


def test_grids_are_what_they_are_called():
    edm = orn.EDM()
    s = orn.Karras()(edm, steps=5).sigma[:-1]
    ramp = torch.linspace(0, 1, 5, dtype=F64)
    torch.testing.assert_close(s, (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7)
    levels = orn.LogSNR(start=-3.0, end=5.0, to_data=False)(orn.Flow(), steps=4).log_snr
    torch.testing.assert_close(levels, torch.linspace(-3, 5, 5, dtype=F64))
    inner = orn.LogSNR()(orn.Flow(), steps=5).log_snr[1:-1]
    torch.testing.assert_close(inner, torch.linspace(-0.4 - 2 * math.log(5), 2.4 + 2 * math.log(5), 5, dtype=F64)[1:])
    torch.testing.assert_close(orn.Quadratic()(edm, steps=2).t, torch.tensor([1, 0.25, 0], dtype=F64))
    # in the frame x/alpha a Karras grid is one grid, whatever process carries it
    vp, flow = (orn.Karras(sigma_max=50.0)(p, steps=4) for p in (orn.VP(), orn.Flow()))
    torch.testing.assert_close((vp.sigma / vp.alpha)[:-1], (flow.sigma / flow.alpha)[:-1])
