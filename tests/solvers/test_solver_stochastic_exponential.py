"""SDE-DPM-Solver++ and SA-Solver: weak orders by exact propagation, laws by samples; and UniPC against its rivals."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import DPMSolverPP, SASolver, SDEDPMSolverPP, UniPC
from worlds import F64, ring

GRID = orn.LogSNR(start=-4.0, end=6.0, to_data=False)
C = 0.7


VP = orn.VP()


def defect(solver, steps, process=VP, scale=1.0):
    """|variance - (alpha^2 c + sigma^2)| at the end for data N(0.3, c), the noise scaled; the mean is exact."""
    table = solver.compile(process, GRID(process, steps=steps))
    out, first, last = orn.response(table, 0.3, C), table.start, table.end
    variance = out.gain**2 * (first.alpha**2 * C + first.sigma**2) + scale**2 * (out.gains**2).sum(0)
    assert float(out.mean(first.alpha * 0.3)) == pytest.approx(float(last.alpha) * 0.3, abs=1e-12)
    return abs(float(variance - last.alpha**2 * C - last.sigma**2))


WEAK = [
    (SDEDPMSolverPP(order=1), 1),
    (SDEDPMSolverPP(order=2), 2),
    (SDEDPMSolverPP(order=2, predicts="noise"), 2),
    (SASolver(predictor=1, corrector=0), 1),
    (SASolver(predictor=2, corrector=0), 2),
    (SASolver(predictor=3, corrector=0), 2),
    (SASolver(predictor=1, corrector=1), 2),
    (SASolver(predictor=3, corrector=3), 2),
    (SASolver(predictor=2, corrector=0, tau=0.3), 2),
]


@pytest.mark.parametrize(("solver", "order"), WEAK, ids=repr)
def test_weak_order_of_the_variance(solver, order):
    """1 for one evaluation, 2 for more, whatever their number. Noise of half the size stays a constant away."""
    coarse, fine = (defect(solver, n) for n in (50, 100))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)
    assert defect(solver, 50, scale=0.5) > 5 * coarse


def test_weak_order_on_other_processes():
    for process in (orn.EDM(), orn.Flow()):
        coarse, fine = (defect(SDEDPMSolverPP(), n, process) for n in (40, 80))
        assert math.log2(coarse / fine) == pytest.approx(2, abs=0.2)


def test_more_evaluations_do_not_pass_order_two_until_the_noise_vanishes():
    """Two evaluations and a corrector of two are of order 3 at tau = 0; at tau = 1 of order 2, by an error that falls
    with tau: in between the slope passes from 3 to 2 as steps shrink."""
    slopes = {}
    for tau in (0.0, 0.1, 1.0):
        solver = SASolver(predictor=2, corrector=2, tau=tau)
        slopes[tau] = math.log2(defect(solver, 80) / defect(solver, 160))
    assert slopes[0.0] == pytest.approx(3, abs=0.1)
    assert slopes[1.0] < 2.4
    assert slopes[0.1] > 2.4


def test_the_corrector_uses_the_noise_of_the_predictor():
    """One noise a step: the predictor draws it, and the corrector, which is a change of the predicted state by answers
    alone, keeps it. With fresh noise in the corrector the evaluation would see another path."""
    table = SASolver().compile(orn.VP(), GRID(orn.VP(), steps=6))
    assert (len(table.noises), table.nfe, len(table.rows)) == (6, 6, 1 + 6 + 5)
    drawn = [[str(atom) for atom in row.terms if str(atom).startswith("z")] for row in table.rows[1:]]
    assert drawn == [["z0"], [], ["z1"], [], ["z2"], [], ["z3"], [], ["z4"], [], ["z5"]]
    for m, row in enumerate(table.rows[1:], 1):
        if not drawn[m - 1]:
            states = {str(atom): c for atom, c in row.terms.items() if str(atom).startswith("r")}
            assert states == {f"r{m - 1}": 1.0}


def test_tau_may_depend_on_the_level():
    """Noise only while the log-SNR is below 1: the later rows are those of tau = 0."""
    process = orn.VP()
    some = SASolver(tau=lambda level: (level.log_snr < 1.0).double()).compile(process, GRID(process, steps=8))
    assert len(some.noises) == sum(bool(level.log_snr < 1.0) for level in list(GRID(process, steps=8))[1:])
    last, none = some.rows[-1].terms, SASolver(tau=0.0).compile(process, GRID(process, steps=8)).rows[-1].terms
    assert list(last.values()) == pytest.approx(list(none.values()), rel=1e-12)


def test_samples_follow_the_mixture():
    """Kolmogorov-Smirnov against the mixture at data: below sqrt(ln(2/1e-3)/2n) + 0.01 for the bias of 60 steps."""
    n, means, stds, shares = 4000, [-1.0, 1.5], [0.3, 0.5], [0.3, 0.7]
    m, s, w = (torch.tensor(v, dtype=F64) for v in (means, stds, shares))
    oracle = orn.exact.GaussianMixture(m[:, None], s, w).denoiser(orn.Flow())
    bound = math.sqrt(math.log(2 / 1e-3) / (2 * n)) + 0.01
    for solver in (SDEDPMSolverPP(), SASolver(), SASolver(predictor=2, corrector=1, tau=0.5)):
        x = orn.sample(oracle, (n, 1), solver=solver, steps=60, seed=0, dtype=F64).x.flatten().sort().values
        cdf = (torch.special.ndtr((x[:, None] - m) / s) * w).sum(1)
        ranks = torch.arange(n + 1, dtype=F64) / n
        statistic = float(torch.maximum((cdf - ranks[:-1]).abs(), (cdf - ranks[1:]).abs()).max())
        assert statistic < bound, solver


def test_unipc_against_its_rivals_at_a_budget():
    """UniPC-2 with bh2 makes a fraction of the error of DPM-Solver++ 2M, its predictor alone, at 10 to 40 evaluations
    (at 5 it does not): the correction is free."""
    process, world = orn.VP(), ring()
    x = process.prior((32, 2), seed=0, dtype=F64)
    flow = world.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)

    def error(solver, nfe):
        out = orn.sample(world.denoiser(process), x_init=x, solver=solver, steps=nfe)
        assert out.nfe == nfe
        return float((out.x - flow).norm(dim=1).median())

    for nfe in (10, 20, 40):
        assert error(UniPC(order=2), nfe) < error(DPMSolverPP(order=2), nfe) / 3
    assert error(UniPC(order=2), 5) > error(DPMSolverPP(order=2), 5)


def test_one_noise_serves_all_step_counts():
    """Strong convergence on a shared path: halving the steps of SDE-DPM-Solver++ 2M halves the distance to a fine run,
    while runs on independent noise stay apart."""
    path = pytest.importorskip("ornstein.solvers.brownian").BrownianPath
    process, world = orn.VP(), ring()
    grid = orn.LogSNR(start=0.0, end=5.0, to_data=False)
    x0 = world.sample(64, seed=0).to(F64)
    x = process.corrupt(x0, grid(process, steps=1)[0], seed=1).x

    def run(steps, seed):
        noise = path(seed, batch=64, dtype=F64)
        return orn.sample(
            world.denoiser(process), x_init=x, solver=SDEDPMSolverPP(), grid=grid, steps=steps, seed=noise
        ).x

    fine = run(160, 7)
    errors = [float((run(n, 7) - fine).norm(dim=1).median()) for n in (10, 20, 40)]
    for coarse, better in itertools.pairwise(errors):
        assert math.log2(coarse / better) > 0.8
    assert float((run(40, 8) - fine).norm(dim=1).median()) > 5 * errors[-1]
