"""DPM-Solver-v3: linear statistics of the model move what is linear out of the integral."""

import pytest
import torch

import ornstein as orn
from ornstein.solvers import DPMSolver, DPMSolverPP, DPMSolverV3, ModelStatistics, UniPC
from worlds import F64, at, normal, ring

PROCESS = orn.VP()


@pytest.mark.system("dpm-solver-v3", rival="UniPC and DPM-Solver++, whose parameterisation is fixed")
def test_dpm_solver_v3():
    """On Gaussian data with a diagonal covariance f = -l mean exactly, so any number of steps is exact once l is known:
    by calibration through an opaque denoiser, to the error of splines through its 32 levels (h = 0.16; below 1e-3, and
    16 times less for each halving of h, of which a quarter is asked). The rivals make errors of 1e-2 and more.
    On the ring: a smaller error than DPM-Solver++ 2M at 5, 10 and 20 evaluations and than UniPC at 5."""
    variances, mean = torch.tensor([0.04, 1.5], dtype=F64), torch.tensor([1.0, -0.5], dtype=F64)
    world = orn.exact.Gaussian(mean, cov=torch.diag(variances))
    grid = orn.LogSNR(start=-4.0, end=6.0, to_data=False)
    ends = grid(PROCESS, steps=1)
    x = at(PROCESS, ends[0], world, 16)
    truth = world.flow(PROCESS, x, ends[0], ends[1], rtol=1e-11, atol=1e-12)
    data = world.sample(64, seed=3).to(F64)

    def error(solver, steps=3):
        out = orn.sample(world.denoiser(PROCESS), x_init=x, solver=solver, grid=grid, steps=steps)
        return float((out.x - truth).norm(dim=1).median())

    plain = DPMSolverV3(order=1, corrector=False)
    calibrated = {n: plain.calibrate(world.denoiser(PROCESS), data, log_snr=(-4.0, 6.0), points=n) for n in (16, 32)}
    errors = {n: error(solver) for n, solver in calibrated.items()}
    assert errors[32] < 1e-3
    assert errors[32] < errors[16] / 4
    for rival in (UniPC(order=2), UniPC(order=1), DPMSolverPP(order=2), DPMSolver(order=2), orn.DDIM()):
        assert error(rival) > 20 * errors[32], rival

    # the statistics against the closed form l = sigma^2/(alpha^2 c + sigma^2), m = -l mean
    known = calibrated[32].statistics
    level = PROCESS.level(PROCESS.time(2 * known.points))
    noise = (level.sigma**2)[:, None]
    linear = noise / ((level.alpha**2)[:, None] * variances + noise)
    torch.testing.assert_close(known.linear, linear, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(known.mean, -linear * mean, rtol=1e-6, atol=1e-9)

    for fixed, same in (((1, 0), UniPC(order=2, variant="vary_coeff")),
                        ((0, -1), UniPC(order=2, variant="vary_coeff", predicts="noise"))):  # fmt: skip
        runs = [
            orn.sample(world.denoiser(PROCESS), x_init=x, solver=s, grid=grid, steps=6).x
            for s in (DPMSolverV3(order=2, statistics=ModelStatistics.constant(*fixed)), same)
        ]
        torch.testing.assert_close(runs[0], runs[1], rtol=1e-11, atol=1e-11)

    target = ring()
    oracle = target.denoiser(PROCESS)
    start = PROCESS.prior((32, 2), seed=0, dtype=F64)
    flow = target.flow(PROCESS, start, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    own = DPMSolverV3(order=2).calibrate(oracle, target.sample(200, seed=3).to(F64), log_snr=(-10.1, 9.0), points=32)

    def budget(solver, nfe):
        out = orn.sample(oracle, x_init=start, solver=solver, steps=nfe)
        assert out.nfe == nfe
        return float((out.x - flow).norm(dim=1).median())

    for nfe in (5, 10, 20):
        assert budget(own, nfe) < budget(DPMSolverPP(order=2), nfe) / 1.5
    assert budget(own, 5) < budget(UniPC(order=2), 5) / 1.5
    assert budget(own, 20) > budget(UniPC(order=2), 20)  # later UniPC is ahead


def test_the_slope_is_the_regression_of_the_derivative_along_the_flow():
    """s and the mean against finite differences along the exact flow, from which calibration saw nothing.

    f(lambda + d) - f(lambda - d) over 2d at the states that the flow visits, regressed on f: the same numbers up to
    sampling (other draws, n = 2000: a tenth) and the difference quotient."""
    target, n, d = ring(), 2000, 1e-3
    known = (
        DPMSolverV3()
        .calibrate(target.denoiser(PROCESS), target.sample(n, seed=3).to(F64), log_snr=(-8.0, 8.0), points=48)
        .statistics
    )
    for place in (14, 24, 34):
        lam = known.points[place]
        around = [PROCESS.level(PROCESS.time(2 * v)) for v in (lam - d, lam, lam + d)]
        x = at(PROCESS, around[1], target, n, seed=9)
        y = x / around[1].alpha
        f = []
        for level, sign in zip(around, (-1, 0, 1), strict=True):
            linear = known.at(known.linear, (lam + sign * d)[None])
            x0 = target.denoiser(PROCESS)(x, around[1].t).x0
            moved = y + sign * d * (x0 - y)  # dy/d lambda = x0 - y
            f.append((1 - linear) * moved - target.denoiser(PROCESS)(moved * level.alpha, level.t).x0)
        change = (f[2] - f[0]) / (2 * d)
        spread = f[1] - f[1].mean(0)
        s = (spread * change).mean(0) / (spread**2).mean(0)
        torch.testing.assert_close(known.slope[place], s, rtol=0.1, atol=0.1)


def test_a_shift_and_a_condition_are_calibrated_in_centred_coordinates():
    """On a mean-reverting process the centred world is the same, so l does not depend on the mean."""
    process, world = orn.MeanReverting(), orn.exact.Gaussian(torch.zeros(2, dtype=F64), cov=torch.eye(2, dtype=F64))
    found = []
    for shift in (0.0, 3.0):
        data = world.sample(64, seed=3).to(F64)
        cond = {"mean": shift + 0 * data}
        found.append(DPMSolverV3().calibrate(world.denoiser(process), data, cond, points=8).statistics)
    torch.testing.assert_close(found[0].linear, found[1].linear, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0].slope, found[1].slope, rtol=1e-4, atol=1e-4)


def test_a_grid_beyond_the_calibration_is_refused():
    solver = DPMSolverV3().calibrate(ring().denoiser(PROCESS), normal(8, 2), log_snr=(-2.0, 2.0), points=4)
    with pytest.raises(ValueError, match="calibrate with log_snr"):
        solver.compile(PROCESS, orn.LogSNR()(PROCESS, steps=10))
    with pytest.raises(ValueError, match="lower end first"):
        DPMSolverV3().calibrate(ring().denoiser(PROCESS), normal(8, 2), log_snr=(2.0, -2.0))
