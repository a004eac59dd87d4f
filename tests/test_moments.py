"""Laws of solvers on Gaussian data, computed exactly by propagating the table, in float64."""

import itertools
import math

import pytest
import torch

import ornstein as orn
from worlds import F64, normal

PROCESSES = [orn.VP(), orn.SubVP(), orn.VE(), orn.Cosine(), orn.EDM(), orn.Flow()]
SOLVERS = [
    orn.Euler(),
    orn.Heun(),
    orn.DDIM(),
    orn.DDIM(eta=0.5),
    orn.DDIM(eta=1.0),
    orn.DDPM(),
    orn.DDPM(variance="forward"),
    *(orn.DPMSolverPP(order=k) for k in (1, 2, 3)),
]
GRID = orn.LogSNR(start=-4.0, end=6.0, to_data=False)


def law(process, solver, grid, mean, variance):
    """Mean and variance at the end of a table started from the exact law at its first level."""
    table = solver.compile(process, grid)
    out = orn.response(table, mean, variance)
    a, s = float(table.start.alpha), float(table.start.sigma)
    return float(out.mean(a * mean)), float(out.variance(a**2 * variance + s**2))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.exact_for_constant], ids=repr)
def test_no_defect_on_a_point_mass(process, solver):
    """x0 is constant: the exact law at level s is N(alpha_s m, sigma_s^2), and at data it is m, with 3 steps."""
    for grid in (GRID(process, steps=3), orn.LogSNR()(process, steps=3), orn.Karras()(process, steps=3)):
        mean, variance = law(process, solver, grid, 1.7, 0.0)
        a, s = float(grid.alpha[-1]), float(grid.sigma[-1])
        assert mean == pytest.approx(a * 1.7, rel=1e-12)
        assert variance == pytest.approx(s**2, rel=1e-11, abs=1e-14)


def test_a_point_mass_at_data_has_a_response():
    """Inversion by Euler starts at sigma = 0, where x is the mass itself: no 0/0."""
    out = orn.response(orn.Euler().compile(orn.Flow(), orn.Flow().level([0.0, 0.5, 1.0])), 1.7, 0.0)
    assert float(out.mean(1.7)) == pytest.approx(0.0, abs=1e-14)


def test_solvers_that_do_not_declare_it_have_a_defect():
    for solver in SOLVERS:
        if not solver.exact_for_constant:
            grid = GRID(orn.VP(), steps=3)
            mean, variance = law(orn.VP(), solver, grid, 1.7, 0.0)
            error = abs(mean - float(grid.alpha[-1]) * 1.7) + abs(variance - float(grid.sigma[-1]) ** 2)
            assert error > 1e-3, solver


WEAK_ORDER = {
    orn.Euler(): 1, orn.Heun(): 2, orn.DDIM(): 1, orn.DDIM(eta=0.5): 1, orn.DDIM(eta=1.0): 1,
    orn.DDPM(): 1, orn.DDPM(variance="forward"): 1,
    orn.DPMSolverPP(order=2): 2, orn.DPMSolverPP(order=3): 3,
}  # fmt: skip


@pytest.mark.parametrize("solver", WEAK_ORDER, ids=repr)
@pytest.mark.parametrize("process", [orn.VP(), orn.Flow(), orn.EDM()], ids=repr)
def test_weak_order_of_the_variance(process, solver):
    """The variance converges to alpha^2 c + sigma^2 with the solver's order: the slope over the two finest halvings is
    at least that less 0.2 (a Gaussian is kinder than most laws to order 3). A table whose noise has half the standard
    deviation stays a constant away."""
    c = 0.7
    steps = (200, 400, 800) if WEAK_ORDER[solver] == 1 else (50, 100, 200)
    defects = []
    for n in steps:
        grid = GRID(process, steps=n)
        truth = float(grid.alpha[-1] ** 2 * c + grid.sigma[-1] ** 2)
        defects.append(abs(law(process, solver, grid, 0.3, c)[1] - truth))
    for coarse, fine in itertools.pairwise(defects):
        assert math.log2(coarse / fine) > WEAK_ORDER[solver] - 0.2
    table = solver.compile(process, GRID(process, steps=steps[-1]))
    if table.noises:
        out = orn.response(table, 0.3, c)
        start = float(table.start.alpha**2 * c + table.start.sigma**2)
        halved = float((out.gain**2 * start + (out.gains**2).sum(0) / 4).item())
        assert abs(halved - truth) > 100 * defects[-1]


def test_ddim_at_eta_one_is_ancestral_and_at_half_is_neither():
    grid = GRID(orn.VP(), steps=5)
    ddpm, one, half = (s.compile(orn.VP(), grid) for s in (orn.DDPM(), orn.DDIM(eta=1.0), orn.DDIM(eta=0.5)))
    for row, other, different in zip(ddpm.rows[1:], one.rows[1:], half.rows[1:], strict=True):
        for atom, c in row.terms.items():
            assert other.terms[atom] == pytest.approx(c, rel=1e-12)
            assert different.terms[atom] != pytest.approx(c, rel=1e-3)


def test_the_two_variances_of_ddpm_are_right_for_their_data():
    """ "posterior" is exact for a point, "forward" for standard normal data under VP, in any number of steps."""
    grid = GRID(orn.VP(), steps=4)
    for variance, c in (("posterior", 0.0), ("forward", 1.0)):
        truth = float(grid.alpha[-1] ** 2 * c + grid.sigma[-1] ** 2)
        assert law(orn.VP(), orn.DDPM(variance=variance), grid, 0.0, c)[1] == pytest.approx(truth, rel=1e-12)
        other = "forward" if variance == "posterior" else "posterior"
        assert law(orn.VP(), orn.DDPM(variance=other), grid, 0.0, c)[1] != pytest.approx(truth, rel=1e-2)


class Langevin(orn.Solver):
    """One step of x + h score + sqrt(2h) z at each level: a solver that reads the score."""

    def write(self, table, grid):
        x = table.state
        for t, s in itertools.pairwise(grid):
            x = table.step(x + 0.05 * table.evaluate(x, t).score + 0.1**0.5 * table.noise(t, s), s)


SOME = [orn.Euler(), orn.Heun(), orn.DDIM(), orn.DPMSolverPP(order=3), orn.DDIM(eta=1.0), Langevin()]


@pytest.mark.parametrize("solver", SOME, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("predicts", ["x0", "noise", "score", "velocity", "v"])
def test_the_response_is_what_the_loop_does(solver, predicts):
    """The affine response of each direction of an anisotropic Gaussian, against running the table on its denoiser."""
    variances, mean = torch.tensor([0.2, 1.5], dtype=F64), torch.tensor([0.4, -1.0], dtype=F64)
    world = orn.exact.Gaussian(mean, cov=torch.diag(variances))
    table = solver.compile(orn.VP(), GRID(orn.VP(), steps=6))
    out = orn.response(table, mean, variances)
    x, noise = normal(5, 2), orn.Noise(3, batch=5, dtype=F64)
    z = [noise.normal((5, 2)) for _ in table.noises]
    expected = out.constant + out.gain * x + sum(g * zl for g, zl in zip(out.gains, z, strict=True))
    run = orn.sample(world.denoiser(orn.VP(), predicts=predicts), x_init=x, table=table, seed=3)
    torch.testing.assert_close(run.x, expected, rtol=1e-10, atol=1e-12)


def test_ddim_with_noise_samples_the_mixture():
    """Kolmogorov-Smirnov in one dimension against the exact law at the last level: a fine ancestral run passes at 1e-3
    (statistic below sqrt(ln(2/1e-3)/2n) plus its computed weak error), one with the noise left out does not."""
    n = 4000
    world = orn.exact.GaussianMixture(
        torch.tensor([[-1.0], [1.5]], dtype=F64),
        torch.tensor([0.3, 0.5], dtype=F64),
        torch.tensor([0.3, 0.7], dtype=F64),
    )
    oracle = world.denoiser(orn.Flow())

    def statistic(solver):
        x = orn.sample(oracle, (n, 1), solver=solver, steps=200, seed=0, dtype=F64).x.flatten().sort().values
        z = (x[:, None] - torch.tensor([-1.0, 1.5], dtype=F64)) / torch.tensor([0.3, 0.5], dtype=F64)
        cdf = (torch.special.ndtr(z) * torch.tensor([0.3, 0.7], dtype=F64)).sum(1)
        ranks = torch.arange(n + 1, dtype=F64) / n
        return float(torch.maximum((cdf - ranks[:-1]).abs(), (cdf - ranks[1:]).abs()).max())

    bound = math.sqrt(math.log(2 / 1e-3) / (2 * n)) + 0.01
    for solver in (orn.DDIM(eta=1.0), orn.DDIM(eta=0.5), orn.DDPM(), orn.DDIM()):
        assert statistic(solver) < bound, solver

    class Noiseless(orn.DDPM):
        def write(self, table, grid):
            super().write(table, grid)
            table._rows = [
                type(row)({a: c for a, c in row.terms.items() if not str(a).startswith("z")}, row.level, row.on_grid)
                for row in table._rows
            ]

    assert statistic(Noiseless()) > 2 * bound
