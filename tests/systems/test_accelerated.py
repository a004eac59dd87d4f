"""Accelerated DDIM and DDPM: the rates of Li et al., measured."""

import math

import pytest
import torch

import ornstein as orn
from orders import GRID, PROCESSES, WORLDS, check_order, errors, slopes
from ornstein.solvers import AcceleratedDDIM, AcceleratedDDPM
from ornstein.solvers.table import Gaussian, Output, Register
from worlds import F64

LINE = orn.exact.GaussianMixture(
    torch.tensor([[-1.0], [1.5]], dtype=F64),
    torch.tensor([0.3, 0.5], dtype=F64),
    torch.tensor([0.3, 0.7], dtype=F64),
)
POINTS = torch.linspace(-5.0, 5.0, 401, dtype=F64)
SHORT = orn.LogSNR(start=-2.0, end=2.0, to_data=False)


def density(level):
    alpha, sigma = level.alpha, level.sigma
    means, variances = LINE.means * alpha, alpha**2 * torch.tensor([0.09, 0.25], dtype=F64) + sigma**2
    z = (POINTS[None] - means) ** 2 / variances[:, None]
    return LINE.weights @ (torch.exp(-z / 2) / torch.sqrt(2 * math.pi * variances)[:, None])


def total_variation(solver, steps):
    """Of the law at the end of a run from the exact law of the start, carried through the rows of the solver's own
    table by quadrature: each row is a map of the last state (and its score) and a Gaussian of known width."""
    process = orn.VP()
    table = solver.compile(process, SHORT(process, steps=steps))
    oracle, dx = LINE.denoiser(process), float(POINTS[1] - POINTS[0])
    p, scores = density(table.start), {}
    for kind, index in table.order:
        if kind == "evaluate":
            e = table.evaluations[index]
            scores[index] = oracle(POINTS[:, None], e.level.t).score[:, 0]
            continue
        mean, variance = torch.zeros_like(POINTS), 0.0
        for atom, c in table.rows[index].terms.items():
            if isinstance(atom, Register):
                assert atom.index == index - 1
                mean = mean + c * POINTS
            elif isinstance(atom, Output):
                mean = mean + c * scores[atom.evaluation]
            elif isinstance(atom, Gaussian):
                variance += c**2
        if variance == 0:  # the register of a plain step, the state itself
            assert torch.equal(mean, POINTS)
            continue
        kernel = torch.exp(-((POINTS[:, None] - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        p = kernel @ p * dx
    return float((p - density(table.end)).abs().sum()) * dx / 2


@pytest.mark.system("accelerated-sampling", rival="DDIM and DDPM, the same methods without the acceleration")
def test_accelerated():
    """Deterministic: error against steps to the power -2, without the correction -1. Stochastic: total variation to the
    exact law, computed, to the power -1 as the paper proves, a third of DDPM's. But DDPM has the power -1 too, the -1/2
    that it is compared with is a bound: on this mixture what is left is a smaller constant, on Gaussians (below) an
    order."""
    process, steps = orn.VP(), (80, 160, 320)
    check_order("ring", process, AcceleratedDDIM(), 2, steps)
    check_order("ring", process, AcceleratedDDIM(plain=True), 1, steps)
    fast, plain = (errors("ring", process, AcceleratedDDIM(plain=p), (n,))[0] for p, n in ((False, 80), (True, 160)))
    assert fast < plain / 5  # at equal evaluations

    steps = (20, 40, 80)
    fast, plain = ([total_variation(AcceleratedDDPM(plain=p), n) for n in steps] for p in (False, True))
    assert slopes(fast) == pytest.approx([1, 1], abs=0.2)
    assert slopes(plain) == pytest.approx([1, 1], abs=0.2)
    assert fast[-1] < plain[-1] / 2.5


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_order_two(process, world):
    check_order(world, process, AcceleratedDDIM(), 2, (80, 160, 320))


@pytest.mark.parametrize("process", [orn.VP(), orn.EDM(), orn.Flow()], ids=repr)
def test_weak_order(process):
    """The variance on Gaussian data, propagated exactly: slope 2, and 1 with all noise after the evaluation."""
    c, found = 0.7, dict[bool, list[float]]()
    for plain in (False, True):
        defects = []
        for n in (50, 100, 200):
            table = AcceleratedDDPM(plain=plain).compile(process, GRID(process, steps=n))
            start, end = (float(v.alpha**2 * c + v.sigma**2) for v in (table.start, table.end))
            out = orn.response(table, 0.3, c)
            defects.append(abs(float(out.variance(start)) - end) / end)
            assert float(out.mean(table.start.alpha * 0.3)) == pytest.approx(float(table.end.alpha) * 0.3, rel=0.2)
        found[plain] = defects
    assert slopes(found[False]) == pytest.approx([2, 2], abs=0.2)
    assert slopes(found[True]) == pytest.approx([1, 1], abs=0.2)


def test_the_noise_is_split_in_halves():
    """Per step of variance b the early and the late noise have sqrt(b/2) each, of different numbers."""
    process = orn.VP()
    grid = orn.LogSNR(start=-2.0, end=2.0, to_data=False)(process, steps=3)
    table = AcceleratedDDPM().compile(process, grid)
    for n in range(3):
        a = float((grid.alpha[n] / grid.alpha[n + 1]) ** 2)
        early, late = table.rows[2 * n + 1].terms, table.rows[2 * n + 2].terms
        assert early[Gaussian(2 * n)] == pytest.approx(math.sqrt((1 - a) / 2))
        assert late[Gaussian(2 * n + 1)] == pytest.approx(math.sqrt((1 - a) / 2 / a))
        assert late[Output(n, "score")] == pytest.approx((1 - a) / math.sqrt(a))


def test_from_the_end_law_to_data():
    """Both ends infinite: the deterministic one ends near the flow, the ancestral one in the right law."""
    process, world = orn.Flow(), WORLDS["ring"]
    x = process.prior((32, 2), seed=0, dtype=F64)
    truth = world.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    out = orn.sample(world.denoiser(process), x_init=x, solver=AcceleratedDDIM(), steps=150)
    ddim = orn.sample(world.denoiser(process), x_init=x, solver=orn.DDIM(), steps=150)
    assert float((out.x - truth).norm(dim=1).median()) < float((ddim.x - truth).norm(dim=1).median()) / 2
    gaussian = orn.response(AcceleratedDDPM().compile(process, orn.LogSNR()(process, steps=200)), 0.0, 0.5)
    assert float(gaussian.variance(1.0)) == pytest.approx(0.5, rel=0.01)
