"""ParaDiGMS: Picard iteration over a sliding window gives the sequential sample in far fewer calls."""

import pytest
import torch

import ornstein as orn
from ornstein.solvers import sample_parallel
from worlds import F64, ring


@pytest.mark.system("paradigms", rival="one window after another, with no sliding")
def test_paradigms():
    """100 steps of DDIM, of ancestral sampling and 50 of DPM-Solver++: to tolerance 1e-3 within a fourth (ancestral: a
    third) of the sequential calls, the samples within 1e-2 of the sequential ones in the median. At tol = 0 they are
    equal to rounding. The rival settles each window of 20 whole before it begins the next, and needs more rounds."""
    world, process = ring(), orn.VP()
    oracle, x = world.denoiser(process), process.prior((24, 2), seed=0, dtype=F64)
    cases = ((orn.DDIM(), 100, 4), (orn.DDIM(eta=1.0), 100, 3), (orn.DPMSolverPP(order=2), 50, 3))
    for solver, steps, factor in cases:
        options = {"x_init": x, "solver": solver, "steps": steps, "seed": 1}
        truth = orn.sample(oracle, **options)
        out = sample_parallel(oracle, window=20, tol=1e-3, **options)
        assert out.rounds <= truth.nfe / factor
        assert out.nfe <= 20 * out.rounds  # no call is larger than the window
        assert float((out.x - truth.x).norm(dim=1).median()) < 1e-2
    exact = sample_parallel(oracle, window=20, tol=0.0, **options)
    torch.testing.assert_close(exact.x, truth.x, rtol=1e-11, atol=1e-11)
    assert exact.rounds < truth.nfe

    options = {"x_init": x, "solver": orn.DDIM(), "steps": 100}
    sliding = sample_parallel(oracle, window=20, tol=1e-3, **options).rounds
    levels, state, rounds = orn.LogSNR()(process, steps=100), x, 0
    for low in range(0, 100, 20):
        table = orn.DDIM().compile(process, levels[list(range(low, low + 21))])
        part = sample_parallel(oracle, x_init=state, table=table, tol=1e-3)
        state, rounds = part.x, rounds + part.rounds
    assert rounds > 1.2 * sliding
