"""Adaptive steps: the tolerance is kept for every process and view, samples are independent, failures are told."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.solvers import AdaptiveRungeKutta, GottaGoFast, sample_adaptive
from ornstein.solvers.adaptive import _PAIRS, Increments
from worlds import F64, at, normal, ring

WORLD = ring()
MEAN = {"mean": normal(12, 2, seed=4)}


@pytest.mark.parametrize("order", [3, 5])
def test_the_pairs_have_their_orders(order):
    """sum b_i phi_i(tree) = 1/gamma(tree) for every rooted tree up to the order, and for the lower solution, whose
    weights are b - difference, up to one less; there it is not of the full order. Trees by their elementary weights:
    the products of A-sums, built recursively."""
    nodes, stages, difference = _PAIRS[order]
    size = len(nodes)
    a = torch.zeros(size, size, dtype=F64)
    for i, row in enumerate(stages):
        a[i, : len(row)] = torch.tensor(row, dtype=F64)
    assert torch.allclose(a.sum(1), torch.tensor(nodes, dtype=F64))
    high = a[-1]
    low = high - torch.tensor(difference, dtype=F64)
    trees = {1: [(torch.ones(size, dtype=F64), 1)]}  # (elementary weight of the tree above a stage, its density)
    for n in range(2, order + 1):
        trees[n] = []
        for split in _partitions(n - 1):
            for children in itertools.product(*(trees[m] for m in split)):
                weight = math.prod((a @ w for w, _ in children), start=torch.ones(size, dtype=F64))
                trees[n].append((weight, n * math.prod(density for _, density in children)))
    for n, found in trees.items():
        gaps = [abs(float(b @ w) - 1 / density) for w, density in found for b in ([high, low] if n < order else [high])]
        assert max(gaps) < 1e-14, n
    assert max(abs(float(low @ w) - 1 / density) for w, density in trees[order]) > 1e-4


def _partitions(n, most=None):
    if n == 0:
        yield ()
        return
    for first in range(min(n, most or n), 0, -1):
        for rest in _partitions(n - first, first):
            yield (first, *rest)


@pytest.mark.parametrize("process", [orn.VP(), orn.EDM(), orn.Flow(), orn.Cosine(), orn.MeanReverting()], ids=repr)
def test_the_tolerance_is_kept_from_noise_to_data(process):
    """Errors of about 10 to 20 accepted steps add up, and the flow stretches some: the median over samples stays below
    10 tol, and a tolerance a hundred times smaller brings an error at least ten times smaller."""
    cond = MEAN if isinstance(process, orn.MeanReverting) else None
    x = process.prior((12, 2), seed=0, dtype=F64, cond=cond)
    truth = WORLD.flow(process, x, 1.0, 0.0, rtol=1e-10, atol=1e-11, cond=cond)
    views = ("x0", "velocity") if process == orn.Flow() else ("x0",)
    for predicts, order in itertools.product(views, (3, 5)):
        errors = []
        for tol in (1e-3, 1e-5):
            solver = AdaptiveRungeKutta(rtol=tol, atol=tol, order=order)
            oracle = WORLD.denoiser(process, predicts=predicts)
            out = sample_adaptive(oracle, x_init=x, solver=solver, cond=cond)
            assert out.reason is None
            assert bool((out.t == 0).all())
            errors.append(float((out.x - truth).norm(dim=1).median()))
            assert errors[-1] < 10 * tol
        assert errors[1] < errors[0] / 10


def test_the_last_jump_does_not_stand_in_the_way():
    """Data at points, where the flow ends in a corner: the jump by E[x0 | x] is exact there."""
    points = torch.tensor([[0.0, 1.0], [2.0, -1.0], [-1.0, -1.0]], dtype=F64)
    world = orn.exact.Empirical(points)
    out = sample_adaptive(world.denoiser(orn.Flow()), (20, 2), seed=0, dtype=F64)
    assert float((out.x[:, None] - points).norm(dim=2).min(1).values.max()) < 1e-3


def test_inversion_and_back():
    process, tight = orn.VP(), AdaptiveRungeKutta(rtol=1e-9, atol=1e-9)
    x = at(process, process.level(0.05), WORLD, 12)
    up = sample_adaptive(WORLD.denoiser(process), x_init=x, start=0.05, end=0.8, solver=tight)
    torch.testing.assert_close(up.x, WORLD.flow(process, x, 0.05, 0.8), rtol=1e-6, atol=1e-6)
    down = sample_adaptive(WORLD.denoiser(process), x_init=up.x, start=0.8, end=0.05, solver=tight)
    torch.testing.assert_close(down.x, x, rtol=1e-4, atol=1e-4)


class Counting(orn.Denoiser):
    """Counts the samples that its network sees."""

    def bind(self, levels, x, cond):
        self.seen = getattr(self, "seen", 0) + len(levels) * len(x)
        return super().bind(levels, x, cond)


@pytest.mark.parametrize("solver", [AdaptiveRungeKutta(), GottaGoFast(rtol=0.2)], ids=repr)
def test_every_evaluation_of_every_sample_is_counted(solver):
    net = Counting(lambda x, t, c: x * (1 - t[:, None]) + c["y"][:, None], orn.VP(), predicts="x0")
    cond = {"y": torch.linspace(-2, 2, 7, dtype=F64)}
    out = sample_adaptive(net, (7, 2), solver=solver, cond=cond, seed=0, dtype=F64)
    assert net.seen == int(out.evaluations.sum())
    assert out.nfe == int(out.evaluations.max())
    attempts = out.steps + out.rejected
    if isinstance(solver, AdaptiveRungeKutta):
        assert torch.equal(out.evaluations, 1 + 6 * attempts + 1)  # the first slope, and the jump to data
    else:
        assert torch.equal(out.evaluations, 2 * out.steps + out.rejected + 1)


@pytest.mark.parametrize("solver", [AdaptiveRungeKutta(), GottaGoFast(rtol=0.2)], ids=repr)
def test_a_sample_does_not_depend_on_the_others(solver):
    oracle = WORLD.denoiser(orn.Flow())
    options = {"solver": solver, "dtype": F64}
    whole = sample_adaptive(oracle, (6, 2), seed=[1, 2, 3, 4, 5, 6], **options)
    part = sample_adaptive(oracle, (2, 2), seed=[3, 6], **options)
    torch.testing.assert_close(whole.x[[2, 5]], part.x, rtol=1e-9, atol=1e-9)
    assert torch.equal(whole.steps[[2, 5]], part.steps)
    assert len(set(whole.steps.tolist())) > 1


def test_a_tolerance_that_cannot_be_met_stops_and_says_why():
    """Where evaluations run out: the state on the exact flow at the time reached. Where the network jumps to NaN: the
    state before."""
    process, oracle = orn.VP(), WORLD.denoiser(orn.VP())
    x = process.prior((6, 2), seed=0, dtype=F64)
    tight = AdaptiveRungeKutta(rtol=1e-9, atol=1e-9)
    out = sample_adaptive(oracle, x_init=x, solver=tight, max_nfe=90)
    assert "6 of 6 samples stopped before the end: max_nfe=90" in out.reason
    assert bool((out.t > 0).all())
    truth = WORLD.flow(process, x, 1.0, out.t)
    torch.testing.assert_close(out.x, truth, rtol=1e-6, atol=1e-6)
    assert 90 <= out.nfe < 97

    def broken(x, t):
        return torch.where((t < 0.5)[:, None] & (x[:, :1] > 0), torch.nan, 0 * x)

    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=F64)
    for solver in (AdaptiveRungeKutta(), GottaGoFast(rtol=0.2, h=0.001)):
        out = sample_adaptive(orn.Denoiser(broken, process, predicts="x0"), x_init=x, solver=solver, seed=0)
        if isinstance(solver, AdaptiveRungeKutta):
            assert "1 of 2 samples stopped before the end: no step is short enough" in out.reason
            assert out.t.tolist() == [pytest.approx(0.5, abs=1e-4), 0.0]
        assert bool(out.x.isfinite().all())


def test_the_known_increments_of_a_brownian_path():
    """Taken in three parts after being shown whole: the parts add up to the whole and each is N(0, h), uncorrelated."""
    n, rows = 20_000, torch.arange(20_000)
    memory = Increments(torch.zeros(n, 1, dtype=F64))
    h, whole = memory.take(rows, torch.full((n,), 0.9, dtype=F64), normal(n, 1, seed=1))
    memory.give_back(rows, h, whole)
    parts = []
    for seed, length in ((2, 0.5), (3, 0.1)):
        h, dw = memory.take(rows, torch.full((n,), length, dtype=F64), normal(n, 1, seed=seed))
        parts.append(dw)
    memory.give_back(rows, h, parts.pop())  # rejected again
    for seed, length in ((4, 0.05), (5, 9.0), (6, 9.0)):  # cut at the end of what is known: 0.05, 0.05, 0.3
        h, dw = memory.take(rows, torch.full((n,), length, dtype=F64), normal(n, 1, seed=seed))
        parts.append(dw)
    torch.testing.assert_close(sum(parts), whole)
    for (i, z), (j, w) in itertools.combinations_with_replacement(enumerate(parts), 2):
        expected = (0.5, 0.05, 0.05, 0.3)[i] if i == j else 0.0
        scale = math.sqrt((0.5, 0.05, 0.05, 0.3)[i] * (0.5, 0.05, 0.05, 0.3)[j])
        assert float((z * w).mean()) == pytest.approx(expected, abs=5 * math.sqrt(2 / n) * scale)
    assert int(memory.depth.sum()) == 0


def test_gotta_go_fast_samples_gaussian_data():
    """Means and variances of 2,000 samples within 5 standard errors and the tolerance's own error of 2 per cent, for
    processes with and without an ancestral first step and a shift."""
    mean, var, n = torch.tensor([0.4, -1.0], dtype=F64), torch.tensor([0.3, 1.2], dtype=F64), 2000
    world = orn.exact.Gaussian(mean, cov=torch.diag(var))
    for process in (orn.VP(), orn.Flow(), orn.MeanReverting(noise_level=1.0)):
        cond = {"mean": normal(n, 2, seed=4)} if isinstance(process, orn.MeanReverting) else None
        solver = GottaGoFast(rtol=0.1)
        out = sample_adaptive(world.denoiser(process), (n, 2), solver=solver, seed=0, dtype=F64, cond=cond)
        assert out.reason is None
        assert bool(((out.x.mean(0) - mean).abs() < 5 * (var / n).sqrt() + 0.02).all())
        assert bool(((out.x.var(0) / var - 1).abs() < 5 * math.sqrt(2 / n) + 0.02).all())


def test_what_it_refuses():
    oracle, x = WORLD.denoiser(orn.VP()), normal(3, 2)
    for bad, match in (
        ({"solver": orn.DDIM()}, "AdaptiveRungeKutta"),
        ({"end": 1.0}, "two times"),
        ({"max_nfe": 0}, "max_nfe=0"),
        ({"start": 0.5, "x_init": None, "shape": (3, 2)}, r"starts at t = 0\.5"),
        ({"start": 0.2, "end": 0.5, "solver": GottaGoFast()}, "noise to data"),
        ({"x_init": x.float(), "solver": AdaptiveRungeKutta(rtol=1e-8, atol=1e-8)}, "rounding of torch.float32"),
    ):
        with pytest.raises(ValueError, match=match):
            sample_adaptive(oracle, **{"x_init": x, **bad})
    for make, match in (
        (lambda: AdaptiveRungeKutta(order=4), "order=4"),
        (lambda: AdaptiveRungeKutta(rtol=0, atol=0), "no step meets"),
        (lambda: GottaGoFast(atol=-1), "atol is a tolerance"),
        (lambda: GottaGoFast(theta=0), "theta must be positive"),
    ):
        with pytest.raises(ValueError, match=match):
            make()
