"""Parallel sampling: the limit is the sequential answer, the rounds are few, and every evaluation is counted."""

import pytest
import torch
from torch import nn

import ornstein as orn
from ornstein.solvers import DDIM, Heun, sample_parallel
from worlds import F64, name, normal, ring

WORLD = ring()


class Moved(orn.solvers.Solver):
    """DDIM whose second half of each step is an adaptive row: coefficients that depend on the data."""

    def write(self, table, grid):
        x = table.state
        for i in range(len(grid) - 1):
            t, s = grid[i], grid[i + 1]
            x0 = table.evaluate(x, t).x0
            k = s.sigma / t.sigma
            base = table.register(k * x + (s.alpha - k * t.alpha) * x0)
            x = table.apply(lambda y: y * (1 + 0.01 * y.tanh()), base, level=s, on_grid=True)


SOLVERS = [DDIM(), DDIM(eta=1.0), DDIM(eta=0.5), orn.DPMSolverPP(order=3), Heun(), orn.solvers.UniPC(), Moved()]


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("way", [{}, {"window": 5}, {"window": 6, "block": 2}, {"block": 1}], ids=name)
def test_the_limit_is_the_sequential_answer(solver, way):
    """tol = 0: equal to rounding for every table, stochastic and adaptive ones too, in at most one round for each
    evaluation; one sweep of block 1 is sampling in sequence, with as many rounds and evaluations."""
    oracle = WORLD.denoiser(orn.VP(), predicts="noise" if isinstance(solver, Heun) else "x0")
    x = orn.VP().prior((6, 2), seed=0, dtype=F64)
    options = {"solver": solver, "steps": 14, "x_init": x, "seed": 3}
    truth = orn.sample(oracle, **options)
    out = sample_parallel(oracle, tol=0.0, **options, **way)
    torch.testing.assert_close(out.x, truth.x, rtol=1e-11, atol=1e-11)
    if way.get("block", 99) == 1:
        assert out.rounds == out.nfe == truth.nfe
    elif "block" not in way:
        assert out.rounds <= truth.nfe


def test_the_tolerance_is_kept_and_saves_rounds():
    """The distance to the sequential answer falls with tol; a tolerance says how far a state may have moved when its
    answer is kept, the flow may stretch that: within 10 tol in the median."""
    oracle, x = WORLD.denoiser(orn.EDM()), orn.EDM().prior((32, 2), seed=0, dtype=F64)
    truth = orn.sample(oracle, x_init=x, solver=DDIM(), steps=60).x
    before = 60
    for tol in (1e-8, 1e-4, 1e-2):
        out = sample_parallel(oracle, x_init=x, solver=DDIM(), steps=60, tol=tol, window=30)
        assert float((out.x - truth).norm(dim=1).median()) < 10 * tol
        assert out.rounds < before
        before = out.rounds
    assert float((out.x - truth).norm(dim=1).median()) > 1e-8


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = []
        self.scale = nn.Parameter(torch.tensor(0.3, dtype=F64))

    def forward(self, x, t, cond=None):
        self.rows.append(len(x))
        shift = 0 if cond is None else cond["y"][:, None]
        return self.scale * x + shift + t[:, None]


def test_calls_are_batched_and_counted():
    """One network call a round, of at most window times the batch; nfe is what was run; conditions follow their rows;
    the same as in sequence for a network with a condition, a scaling and times of its own."""
    net = Counting()
    cond = {"y": torch.arange(4, dtype=F64)}
    model = orn.Denoiser(net, orn.Flow(), predicts="velocity", scaling=orn.Scaling(2.0, 3.0))
    model = model.to(F64)
    x = normal(4, 3)
    out = sample_parallel(model, x_init=x, cond=cond, solver=orn.Euler(), steps=12, window=5, tol=1e-6)
    assert len(net.rows) == out.rounds < 12
    assert max(net.rows) == 20
    assert sum(net.rows) == 4 * out.nfe
    truth = orn.sample(model, x_init=x, cond=cond, solver=orn.Euler(), steps=12)
    torch.testing.assert_close(out.x, truth.x, rtol=1e-4, atol=1e-4)
    assert out.x.dtype == F64
    assert out.nfe > truth.nfe == 12


def test_shifts_products_and_times_of_each_sample():
    process = orn.MeanReverting()
    cond = {"mean": normal(5, 2, seed=4)}
    oracle = WORLD.denoiser(process, predicts="velocity")
    grid = process.level(torch.linspace(0.9, 0.05, 11, dtype=F64)[:, None] * torch.linspace(0.9, 1, 5, dtype=F64))
    options = {"x_init": normal(5, 2), "cond": cond, "solver": DDIM(eta=1.0), "grid": grid, "seed": [3, 4, 5, 6, 7]}
    out = sample_parallel(oracle, tol=0.0, **options)
    torch.testing.assert_close(out.x, orn.sample(oracle, **options).x, rtol=1e-10, atol=1e-10)


def test_the_noise_is_drawn_once_and_in_order():
    """A path or a plain seed gives the sequential run's noise, in windows too; other numbers give another answer."""
    oracle, x = WORLD.denoiser(orn.VP()), normal(6, 2)
    options = {"x_init": x, "solver": DDIM(eta=1.0), "steps": 9}
    for seed in (4, orn.solvers.BrownianPath(4, batch=6, dtype=F64)):
        out = sample_parallel(oracle, window=3, tol=0.0, seed=seed, **options)
        torch.testing.assert_close(out.x, orn.sample(oracle, seed=seed, **options).x, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(out.x, orn.sample(oracle, seed=5, **options).x)
    drawn = sample_parallel(oracle, (6, 2), tol=0.0, seed=5, dtype=F64, solver=DDIM(eta=1.0), steps=9).x
    torch.testing.assert_close(drawn, orn.sample(oracle, (6, 2), seed=5, dtype=F64, solver=DDIM(eta=1.0), steps=9).x)


def test_what_it_refuses():
    oracle, x = WORLD.denoiser(orn.VP()), normal(3, 2)
    for bad, match in (
        ({"window": 0}, "window=0"),
        ({"block": 0}, "block=0"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"table": DDIM().compile(orn.VP(), orn.LogSNR()(orn.VP(), steps=3)), "steps": 3}, "not both"),
        ({"grid": [0.5, 0.2], "x_init": None, "shape": (3, 2)}, r"starts at t = 0\.5"),
        ({"table": DDIM().compile(orn.Flow(), orn.LogSNR()(orn.Flow(), steps=3))}, "another process"),
    ):
        with pytest.raises(ValueError, match=match):
            sample_parallel(oracle, **{"x_init": x, **bad})
    broken = orn.Denoiser(lambda x, t: x / 0, orn.VP(), predicts="x0")
    with pytest.raises(orn.NonFiniteError, match="debug=True"):
        sample_parallel(broken, x_init=x, steps=3)
