"""Tables: checks, printing, saving, refusals."""

import itertools
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
    "content", [b"", b"{", b"[1, 2]", b'{"format": "else"}', b'{"format": "ornstein-table", "version": 1}',
     b'{"format": "ornstein-table"}', b'{"format": "ornstein-table", "version": "1"}']
)  # fmt: skip
def test_foreign_and_damaged_tables_are_refused(content, tmp_path):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(orn.TableError, match=r"bad\.json"):
        orn.Table.load(tmp_path / "bad.json")


@pytest.mark.parametrize("key", ["noises", "order", "level"])
def test_a_table_with_something_cut_off_is_refused(key, tmp_path):
    data = table(orn.DDIM(eta=1.0)).to_json()
    if key == "level":
        data["rows"][-1]["level"] = None
    else:
        data[key] = data[key][:-1]
    (tmp_path / "cut.json").write_text(json.dumps(data))
    with pytest.raises(orn.TableError, match=r"cut\.json is a damaged table"):
        orn.Table.load(tmp_path / "cut.json")


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
    writer.step(writer.state + 1.0 * Output(0, "x0"), grid[1])
    writer.evaluate(writer.state, grid[0])
    with pytest.raises(orn.TableError, match=r"reads x0\(e0\) before"):
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
    with pytest.raises(orn.TableError, match="it has sigma"):
        table(process=orn.EDM()).check_process(orn.EDM(sigma_max=81.0))
    with pytest.raises(orn.TableError, match="several"):
        own.check_process(orn.Product(Pair(orn.VP(), orn.VP())))


def test_components_must_share_their_evaluations():
    product = orn.Product(Pair(orn.VP(), orn.Flow()))
    grid = product.level(torch.tensor([0.9, 0.5, 0.1]))
    both = orn.solvers.compile_table([orn.DDIM(), orn.DPMSolverPP(order=2)], product, grid)
    assert both.nfe == 2

    class Stale(orn.Solver):
        """DDIM's order of rows and evaluations, each at the first state."""

        def write(self, table, grid):
            for t, s in itertools.pairwise(grid):
                table.step(s.alpha * table.evaluate(table.state, t).x0, s)

    with pytest.raises(orn.TableError, match="cannot share"):
        orn.solvers.compile_table([orn.DDIM(), Stale()], product, grid)
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
    torch.testing.assert_close(orn.Quadratic(end=0.25)(edm, steps=2).t, torch.tensor([1, 0.5625, 0.25], dtype=F64))
    # a process whose own range is narrower than the grid's: equal steps from its own first level
    narrow = orn.LogSNR()(orn.EDM(sigma_max=2.0), steps=20).log_snr[:-1]
    torch.testing.assert_close(narrow, torch.linspace(-2 * math.log(2), 2.4 + 2 * math.log(20), 20, dtype=F64))


def test_a_process_that_begins_noisy_ends_at_its_own_level():
    class Noisy(orn.GaussianProcess):
        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return 0.1 + 0.9 * t

    levels = orn.LogSNR()(Noisy(), steps=20)
    assert len(levels) == 21
    assert float(levels.t[-1]) == 0
    steps = levels.log_snr.diff()[1:]
    torch.testing.assert_close(steps, steps[:1].expand(19))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: orn.LogSNR(start=-20.0)(orn.VP(), steps=3), r"LogSNR\(start=-20.0.*falls from inf to -10.05"),
        (lambda: orn.Karras(sigma_max=1000.0)(orn.VP(), steps=3), r"Karras.*falls from inf to -10.05"),
        (lambda: orn.LogSNR(end=math.inf)(orn.VP(), steps=3), "reaches outside"),
        (lambda: orn.Karras(rho=0.0), "rho must be positive"),
        (lambda: orn.DDIM().compile(orn.Flow(), GRID(orn.VP(), steps=3)), "another process"),
        (lambda: orn.DDIM(eta=2.0).compile(orn.VP(), GRID(orn.VP(), steps=3)), "more noise than the level holds"),
    ],
)
def test_what_a_grid_or_a_solver_cannot_do_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_noise_is_drawn_only_where_there_is_some_and_knows_its_interval():
    grid = orn.Uniform()(orn.VP(), steps=3)
    for solver in (orn.DDIM(eta=1.0), orn.DDPM()):
        noises = solver.compile(orn.VP(), grid).noises
        snr = (grid.alpha / grid.sigma) ** 2
        for noise, start, end in zip(noises, snr[:2], snr[1:3], strict=True):
            assert noise.clock == "snr"
            assert (noise.start, noise.end) == pytest.approx((float(start), float(end)), rel=1e-12)
        assert len(noises) == 2  # the step to data draws none


def test_pure_noise_does_not_count_as_a_past_evaluation():
    """Order 3 makes its matched start after the step from infinite log-SNR, which carries no slope: one register more
    than steps, the predicted state, and its evaluation serves the next step."""
    for process in (orn.VP(), orn.Flow()):
        table = orn.DPMSolverPP(order=3).compile(process, orn.LogSNR(deepest=-11.0)(process, steps=30))
        assert (len(table.rows), table.nfe) == (1 + 30 + 1, 30)


def test_grids_of_a_process_whose_data_end_has_noise_stop_there():
    """sigma(0) > 0: no jump to data is needed, the last level is t = 0 and no time repeats."""

    class Noisy(orn.GaussianProcess):
        def alpha(self, t):
            return torch.ones_like(t)

        def sigma(self, t):
            return 0.05 + 10 * t

    for grid in (orn.Karras(), orn.LogSNR(), orn.Uniform()):
        for steps in (1, 2, 9, 40):
            levels = grid(Noisy(), steps=steps)
            assert len(levels) == steps + 1
            assert float(levels.t[0]) == 1
            assert float(levels.t[-1]) == 0


def test_a_process_that_returns_a_number_is_named():
    class Constant(orn.GaussianProcess):
        def alpha(self, t):
            return 1.0

        def sigma(self, t):
            return t

    with pytest.raises(ValueError, match=r"alpha\(t\) must return a tensor .* got float"):
        Constant().level(0.5)


def test_text_is_no_coefficient():
    with pytest.raises(TypeError):
        "0.5" * Register(0)
