"""Jacobi and Gauss-Seidel iteration of a sampler's triangular system: exact after T rounds, right after far fewer."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import sample_parallel
from worlds import F64, ring


def jacobi_over_states(oracle, process, levels, x, tol):
    """The rival: every state from the state before it in the last round, s_i <- h_i(s_(i-1)), rows not eliminated."""
    states, n = torch.stack([x] * len(levels)), len(x)
    t, s = levels[list(range(len(levels) - 1))], levels[list(range(1, len(levels)))]
    kept = (s.sigma / t.sigma)[:, None, None]
    weight = s.alpha[:, None, None] - t.alpha[:, None, None] * kept
    rounds, moved = 0, math.inf
    while moved > tol:
        rounds += 1
        x0 = oracle(states[:-1].flatten(0, 1), t.t.repeat_interleave(n)).x0.reshape(states[:-1].shape)
        new = torch.cat([x[None], kept * states[:-1] + weight * x0])
        moved = float((new - states).square().mean(2).sqrt().max())
        states = new
    return states[-1], rounds


@pytest.mark.system("jacobi", rival="Jacobi iteration over the states, whose linear part is not eliminated")
def test_jacobi():
    """DDIM with T = 40: Jacobi over the network's answers meets the sequential answer exactly within T rounds and to
    1e-3 within T/2; over the states (news travels one state a round) it needs half as many rounds again and more.
    Blocks (Gauss-Seidel within a sweep) need fewer evaluations for more rounds, and block 1 is the sequential run."""
    world, process, T = ring(), orn.VP(), 40
    oracle, x = world.denoiser(process), process.prior((16, 2), seed=0, dtype=F64)
    options = {"x_init": x, "solver": orn.DDIM(), "steps": T}
    truth = orn.sample(oracle, **options).x
    exact = sample_parallel(oracle, tol=0.0, **options)
    torch.testing.assert_close(exact.x, truth, rtol=1e-11, atol=1e-11)
    assert exact.rounds < T
    near = sample_parallel(oracle, tol=1e-3, **options)
    assert near.rounds <= T / 2
    assert float((near.x - truth).norm(dim=1).median()) < 1e-2

    levels = orn.LogSNR()(process, steps=T)
    rival, rounds = jacobi_over_states(oracle, process, levels, x, 1e-3)
    torch.testing.assert_close(rival, truth, rtol=1e-2, atol=1e-2)
    assert rounds > 1.5 * near.rounds

    blocks = sample_parallel(oracle, tol=1e-3, block=8, **options)
    sequence = sample_parallel(oracle, tol=1e-3, block=1, **options)
    assert near.rounds < blocks.rounds < sequence.rounds == T
    assert near.nfe > blocks.nfe > sequence.nfe == T
