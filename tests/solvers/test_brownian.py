"""One Brownian path on the clock SNR: its law exactly, its independence of what is asked, and what solvers do on it."""

import itertools
import math
import random

import pytest
import torch

import ornstein as orn
from ornstein.random import Interval
from ornstein.solvers import DDPM, BrownianPath, EulerMaruyama
from ornstein.solvers.brownian import _increment
from worlds import F64, at, ring


def increment(path, a, b, event=(3,)):
    return path.increment((path.batch, *event), Interval("snr", a, b))


def fresh(seed=0, batch=4, **options):
    return BrownianPath(seed, batch=batch, **{"dtype": F64, **options})


def test_the_law_of_overlapping_increments_is_exact():
    """Increments are sums of independent normals with known coefficients, so covariances are sums of products: over
    [a, b] and [c, d] the overlap's length divided by the root of both lengths. Terms below 1e-10 are left out, at most
    50 of them: 1e-9. The clock covers all that a process can have."""
    draw = random.Random(0)
    for width in (1.0, 8.0, 40.0):
        for _ in range(300):
            a, b, c, d = (math.exp(draw.uniform(-width, width)) for _ in range(4))
            (a, b), (c, d) = sorted((a, b)), sorted((c, d))
            one, two = _increment(a, b), _increment(c, d)
            covariance = sum(k * two[node] for node, k in one.items() if node in two)
            overlap = max(0.0, min(b, d) - max(a, c))
            assert covariance == pytest.approx(overlap / math.sqrt((b - a) * (d - c)), abs=1e-9)
            assert sum(k * k for k in one.values()) == pytest.approx(1, abs=1e-9)


def test_what_is_drawn_has_that_law():
    """20,000 samples: moments within 5 standard errors, of a covariance r at most sqrt((1 + r^2)/n)."""
    n = 20_000
    intervals = [(0.5, 2.0), (1.0, 4.0), (0.0, 1e-7), (3.0, 1e9), (2.0, math.inf)]
    drawn = []
    for a, b in intervals:
        path = fresh(7, n)
        drawn.append(increment(path, a, b, (1,)).flatten())
    bound = 5 * math.sqrt(2 / n)
    for (i, z), (j, w) in itertools.combinations_with_replacement(enumerate(drawn), 2):
        (a, b), (c, d) = intervals[i], intervals[j]
        overlap = max(0.0, min(b, d) - max(a, c))
        expected = 1.0 if i == j else overlap / math.sqrt((b - a) * (d - c)) if b + d < math.inf else 0.0
        assert float((z * w).mean()) == pytest.approx(expected, abs=bound), (i, j)
    assert float(drawn[0].mean()) == pytest.approx(0, abs=5 / math.sqrt(n))


def test_the_path_does_not_depend_on_what_was_asked():
    """W(c) - W(a) is the same in one piece, in two, and in many: a path that draws anew fails the sum."""
    points = [0.0, 1e-20, 3e-4, 0.3, 1.0, 1.7, 250.0, 1e6, 3e17]
    pieces = fresh()
    total = torch.zeros(4, 3, dtype=F64)
    for a, b in itertools.pairwise(points):
        total += math.sqrt(b - a) * increment(pieces, a, b)
        whole = math.sqrt(b) * increment(fresh(), 0.0, b)
        torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-5 * math.sqrt(b))  # drawn in float32
        alone = increment(fresh(), a, b)
        pieces_again = fresh()
        increment(pieces_again, a / 2, a) if a else None
        assert torch.equal(alone, increment(pieces_again, a, b))


def test_batch_invariance_is_bit_for_bit():
    seeds = [5, 9, 2**40, 11]
    whole, part = fresh(seeds), fresh(seeds[2:3], 1)
    for a, b in ((0.1, 0.4), (0.4, 7.0), (7.0, 1e5)):
        assert torch.equal(increment(whole, a, b)[2:3], increment(part, a, b))
    assert not torch.equal(increment(fresh([5, 9, 3, 11]), 0.1, 0.4)[2], increment(fresh(seeds), 0.1, 0.4)[2])
    x = torch.zeros(4, 2, dtype=F64)
    options = {"solver": DDPM(), "steps": 8}
    oracle = ring().denoiser(orn.VP())
    all_ = orn.sample(oracle, x_init=x, seed=fresh(seeds), **options).x
    one = orn.sample(oracle, x_init=x[2:3], seed=fresh(seeds[2:3], 1), **options).x
    torch.testing.assert_close(all_[2:3], one, rtol=1e-12, atol=1e-12)


def test_a_sample_may_have_an_interval_of_its_own():
    starts, ends = (0.2, 1.0, 3.0, 0.2), (0.5, 2.0, 1e4, 0.7)
    for seed in (3, [5, 6, 7, 8]):
        together = increment(fresh(seed), starts, ends)
        for i, (a, b) in enumerate(zip(starts, ends, strict=True)):
            torch.testing.assert_close(together[i], increment(fresh(seed), a, b)[i], rtol=1e-6, atol=1e-6)


def test_what_is_passed_twice_is_another_path():
    """A second noise of an interval, a restart and noise added back are independent of the first pass (correlation
    within 5/sqrt(n)), and the next steps of each pass go on along its own path."""
    n, pair = 20_000, lambda z, w: float((z * w).mean())
    path = fresh(1, n)
    first = increment(path, 1.0, 2.0, (1,))
    second = increment(path, 1.0, 2.0, (1,))
    back = increment(path, 2.0, 1.0, (1,))
    again = increment(path, 1.0, 2.0, (1,))
    for z, w in itertools.combinations((first, second, back, again), 2):
        assert abs(pair(z, w)) < 5 / math.sqrt(n)
    assert pair(first, increment(fresh(1, n), 1.0, 2.0, (1,))) == pytest.approx(1, abs=0.05)
    # the first path goes on: its next increment completes W(3) - W(1) of a path asked once
    path.rewind()
    parts = []
    for a, b in ((1.0, 2.0), (2.0, 3.0)):
        parts.append(increment(path, a, b, (1,)))
        increment(path, a, b, (1,))
    whole = math.sqrt(2) * increment(fresh(1, n), 1.0, 3.0, (1,))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)


def test_two_times_in_one_cell_and_beyond_the_range():
    """Where the tree does not reach, increments are still normal: variance within 5 standard errors."""
    n = 20_000
    for a, b in ((1.0 + 1e-9, 1.0 + 3e-9), (2.0**130, 2.0**131), (1e-45, 3e-45), (1e-60, 1.0)):
        z = increment(fresh(2, n), a, b, (1,))
        assert float(z.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / n))


def test_the_end_law_and_the_seed_are_those_of_a_stream():
    path = fresh(4)
    assert torch.equal(path.normal((4, 3)), orn.Noise(4, batch=4, dtype=F64).normal((4, 3)))
    drawn = BrownianPath(torch.Generator().manual_seed(3), batch=4)
    assert isinstance(drawn.seed, int)
    again = increment(BrownianPath(drawn.seed, batch=4), 0.1, 0.2)
    assert torch.equal(increment(drawn, 0.1, 0.2), again)
    single = increment(fresh(4, dtype=torch.float32), 0.1, 0.2)
    assert torch.equal(single.double(), increment(fresh(4), 0.1, 0.2))


def test_what_a_path_refuses():
    with pytest.raises(ValueError, match="clock 'snr', this noise on 't'"):
        fresh().increment((4, 3), Interval("t", 0.0, 1.0))
    with pytest.raises(ValueError, match="batch of 4"):
        fresh().increment((5, 3), Interval("snr", 0.0, 1.0))
    for a, b in ((1.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="two different SNR"):
            increment(fresh(), a, b)


@pytest.mark.parametrize("process", [orn.VP(), orn.Flow()], ids=repr)
def test_solvers_converge_strongly_to_one_limit(process):
    """The noise of the reverse SDE does not depend on x, so Euler-Maruyama, in t as in SNR (DDPM, which is DDIM with
    eta = 1), is of strong order 1: on one path the median distance to DDPM's finest run halves with the step (slope of
    two halvings together within 0.2; single ones scatter; the limit's own error adds 0.07), and all methods have that
    one limit. With a plain seed nothing converges: the runs are different samples, a mode's distance apart."""
    world, n = ring(), 96
    grid = orn.LogSNR(start=-4.0, end=4.0, to_data=False)
    x = at(process, grid(process, steps=1)[0], world, n)

    def run(solver, steps, seed):
        return orn.sample(world.denoiser(process), x_init=x, solver=solver, grid=grid, steps=steps, seed=seed).x

    path = BrownianPath(3, batch=n, dtype=F64)
    limit = run(DDPM(), 512, path)
    for solver in (DDPM(), orn.DDIM(eta=1.0), EulerMaruyama()):
        error = [float((run(solver, steps, path) - limit).norm(dim=1).median()) for steps in (16, 32, 64)]
        assert math.log2(error[0] / error[-1]) / 2 == pytest.approx(1.07, abs=0.2), solver
        assert error[-1] < 0.02
        alone = float((run(solver, 64, 5) - limit).norm(dim=1).median())
        assert alone > 0.5, solver
