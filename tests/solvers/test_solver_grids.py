"""Closed-form grids: formulas, ends, per-sample times in every one of them; and what calibrated grids share."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers.grids import CosineGrid, Polynomial
from ornstein.solvers.schedule_search import Calibrated, cheapest_paths, coordinate_descent
from worlds import F64, ring

PROCESSES = [orn.VP(), orn.SubVP(), orn.VE(), orn.Cosine(), orn.EDM(), orn.Flow(), orn.MeanReverting()]
CLOSED = [orn.Uniform(), orn.Quadratic(), orn.LogSNR(), orn.Karras(), Polynomial(3.0), CosineGrid(), CosineGrid(0.5)]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_polynomial(process):
    times = Polynomial(3.0, start=0.9, end=0.1)(process, steps=5).t
    roots = times ** (1 / 3)
    torch.testing.assert_close(roots.diff(), torch.full((5,), float(roots[-1] - roots[0]) / 5, dtype=F64))
    assert (float(times[0]), float(times[-1])) == (0.9, 0.1)
    for power, same in ((1.0, orn.Uniform()), (2.0, orn.Quadratic())):
        torch.testing.assert_close(Polynomial(power)(process, 7).t, same(process, 7).t, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_cosine_steps_are_equal_in_the_angle(process, scale):
    """Both ends are reached exactly; at scale 1 alpha/rho = cos(phi) is the cosine schedule of any process."""
    grid = CosineGrid(scale)(process, steps=9)
    assert (float(grid.t[0]), float(grid.t[-1])) == (1.0, 0.0)
    phi = torch.atan2(grid.sigma, grid.alpha * scale)
    torch.testing.assert_close(phi.diff(), torch.full((9,), -float(phi[0] - phi[-1]) / 9, dtype=F64), rtol=1e-9, atol=0)
    if scale == 1 and float(grid.alpha[0]) == 0:
        alpha = grid.alpha / torch.hypot(grid.alpha, grid.sigma)
        wanted = torch.cos(math.pi / 2 * (1 - torch.arange(10, dtype=F64) / 9))
        torch.testing.assert_close(alpha, wanted, rtol=0, atol=1e-12)


def test_the_exponential_grid_is_log_snr():
    """Geometric sigma/alpha from 80 to 0.02, then data: equal steps of log-SNR, so no class of its own."""
    grid = orn.LogSNR(start=-2 * math.log(80), end=-2 * math.log(0.02))(orn.Flow(), steps=8)
    level = (grid.sigma / grid.alpha)[:-1]
    torch.testing.assert_close(level, 80 * (0.02 / 80) ** (torch.arange(8, dtype=F64) / 7), rtol=1e-12, atol=0)
    assert float(grid.t[-1]) == 0


@pytest.mark.parametrize("solver", [orn.DDIM(), orn.DPMSolverPP(order=2), orn.Heun()], ids=repr)
def test_every_sample_may_have_the_times_of_another_grid(solver):
    """Grid (N + 1, batch): column b is grid b, and sample b is what it is alone. Only rounding differs: 1e-12."""
    process, world = orn.VP(), ring()
    x = process.prior((len(CLOSED), 2), seed=0, dtype=F64)
    columns = torch.stack([grid(process, 6).t for grid in CLOSED], 1)
    assert len({tuple(column.tolist()) for column in columns.T}) == len(CLOSED)
    together = orn.sample(world.denoiser(process), x_init=x, solver=solver, grid=columns).x
    for b, grid in enumerate(CLOSED):
        alone = orn.sample(world.denoiser(process), x_init=x[b : b + 1], solver=solver, grid=grid, steps=6).x
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-11, atol=1e-12)
    shuffled = orn.sample(world.denoiser(process), x_init=x, solver=solver, grid=columns.flip(1)).x
    assert float((shuffled - together).abs().max()) > 1e-3


def test_every_sample_may_start_at_a_time_of_its_own():
    """States on one exact trajectory at three times, each sent on from its own: all arrive where the flow goes."""
    process, world = orn.VP(), ring()
    x = process.prior((1, 2), seed=3, dtype=F64).expand(3, 2).contiguous()
    start = torch.tensor([1.0, 0.7, 0.4], dtype=F64)
    states = torch.cat([x[:1], world.flow(process, x[1:], 1.0, start[1:], rtol=1e-9, atol=1e-10)])
    grid = torch.stack([Polynomial(2.0, start=float(t), end=0.02)(process, 160).t for t in start], 1)
    out = orn.sample(world.denoiser(process), x_init=states, solver=orn.Heun(), grid=grid).x
    truth = world.flow(process, x[:1], 1.0, 0.02, rtol=1e-9, atol=1e-10)
    error = float((out - truth).norm(dim=1).max())
    assert error < 1e-3  # 160 steps of order 2
    one = orn.sample(world.denoiser(process), x_init=states, solver=orn.Heun(), grid=grid[:, :1].expand(-1, 3)).x
    assert float((one - truth).norm(dim=1).max()) > 10 * error  # the first sample's times do not serve the others


def test_a_calibrated_grid_is_for_one_process_and_the_steps_it_knows():
    grid = Calibrated(orn.VP(), ((1.0, 0.4, 0.0), (1.0, 0.6, 0.2, 0.0)))
    assert grid(orn.VP(), 3).t.tolist() == [1.0, 0.6, 0.2, 0.0]
    with pytest.raises(ValueError, match=r"no schedule of 4 steps was calibrated: choose from \[2, 3\]"):
        grid(orn.VP(), 4)
    with pytest.raises(ValueError, match=r"calibrated for VP.*not for Flow"):
        grid(orn.Flow(), 3)


def test_coordinate_descent_finds_a_minimum_and_keeps_order():
    """(x - 0.1)^2 + (y - 0.8)^2 with fixed ends: reached to the last reach 2^-k, never worse than the start."""
    seen = []

    def objective(p):
        value = (p[1] - 0.1) ** 2 + (p[2] - 0.8) ** 2
        seen.append((value, p))
        return value

    points, least = coordinate_descent(objective, [0.0, 0.3, 0.5, 1.0], sweeps=60)
    assert points == pytest.approx([0.0, 0.1, 0.8, 1.0], abs=1e-3)
    assert least == min(value for value, _ in seen)
    assert all(p[0] == 0 < p[1] < p[2] < p[3] == 1 for _, p in seen)


def test_refusals():
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="power="):
            Polynomial(bad)
        with pytest.raises(ValueError, match="sigma_data="):
            CosineGrid(bad)
    with pytest.raises(ValueError, match=r"start=1\.5"):
        Polynomial(start=1.5)
    with pytest.raises(ValueError, match=r"3 points allow 1 to 2 jumps"):
        cheapest_paths(torch.zeros(3, 3), 3)
