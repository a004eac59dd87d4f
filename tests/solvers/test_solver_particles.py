"""The particle filter: unbiased resampling, an unbiased normaliser, and what it refuses."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

import ornstein as orn
from ornstein.errors import TableError
from ornstein.solvers import Churn, EulerMaruyama, ParticleFilter, Restart, particle_filter, resample
from ornstein.solvers.particles import _inverse
from worlds import F64

SCHEMES = ("systematic", "stratified", "multinomial", "residual")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resampling_is_unbiased(scheme):
    """E[copies of i] = K w_i. Over n draws the mean of the counts has a standard error below sqrt(K w_i/n) (that of
    multinomial); 4.5 of them. A particle of weight 0 is never drawn."""
    weights = torch.tensor([0.05, 0.0, 0.4, 0.13, 0.3, 0.12], dtype=F64)
    n, count = 40_000, 6
    chosen = resample(weights.expand(n, count), scheme, seed=3)
    counts = torch.nn.functional.one_hot(chosen, count).sum(1).to(F64)
    error = (counts.mean(0) - count * weights).abs()
    assert bool((error <= 4.5 * (count * weights / n).sqrt()).all())
    assert int(counts[:, 1].max()) == 0
    spread = counts.var(0)
    multinomial = count * weights * (1 - weights)
    if scheme == "multinomial":
        torch.testing.assert_close(spread, multinomial, rtol=0.05, atol=1e-3)
    else:  # less noise, and the whole part of K w_i for sure (stratified may fall one short)
        assert float(spread.sum()) < 0.7 * float(multinomial.sum())
        short = 1 if scheme == "stratified" else 0
        assert bool((counts >= torch.floor(count * weights) - short).all())
    if scheme == "systematic":
        assert bool((counts <= torch.ceil(count * weights)).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_are_resampled_apart(scheme):
    weights = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0], [0.25, 0.25, 0.25, 0.25]])
    chosen = resample(weights, scheme, seed=0)
    assert chosen[:2].tolist() == [[0] * 4, [3] * 4]
    if scheme in ("systematic", "residual"):
        assert chosen[2].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="choose from systematic"):
        resample(weights, "branching")
    edges = _inverse(torch.tensor([[0.0, 0.5, 0.0, 0.5]]), torch.tensor([[0.0, 0.5]]))
    assert edges.tolist() == [[1, 3]]  # a weight of 0 is passed over where u is exactly at its edge


GRID = orn.LogSNR(start=-4.0, end=4.0, to_data=False)
WORLD = orn.exact.Gaussian(torch.tensor([0.3], dtype=F64), std=0.8)


def run(solver, *, threshold, scheme="systematic", groups=3000, count=5, process=None, tilt=0.9, seed=2):
    """A filter whose potential is exp(tilt x) at the end and something else on the way, and the sampler's exact law."""
    process = process or orn.VP()
    table = solver.compile(process, GRID(process, steps=12))

    def potential(moment):
        warped = tilt if moment.level.t == table.end.t else 0.5 * tilt + 0.3 * float(moment.level.alpha)
        return warped * moment.x[:, 0]

    rule = ParticleFilter(potential, count, resampling=scheme, threshold=threshold, seed=seed)
    start = table.start
    x = start.alpha * 0.3 + torch.sqrt(start.alpha**2 * 0.64 + start.sigma**2) * torch.randn(
        groups * count, 1, generator=torch.Generator().manual_seed(seed), dtype=F64
    )
    out = particle_filter(WORLD.denoiser(process), x_init=x, particles=rule, table=table, seed=seed)
    law = orn.response(table, 0.3, 0.64)
    mean = float(law.mean(start.alpha * 0.3))
    variance = float(law.variance(start.alpha**2 * 0.64 + start.sigma**2))
    return out, mean, variance


@dataclass(frozen=True)
class TwoSteps(orn.Solver):
    """A linear stochastic program that reads what is older than the last point: an answer, a noise or a state."""

    read: str

    def write(self, table, grid):
        x, last = table.state, None
        for i in range(len(grid) - 1):
            old = x
            p, z = table.evaluate(x, grid[i]), table.noise(grid[i], grid[i + 1])
            value = 0.5 * x + 0.1 * p.x0 + 0.4 * z
            if last is not None:
                value = value + 0.5 * {"output": last[0].x0, "noise": last[1], "register": last[2]}[self.read]
            x, last = table.step(value, grid[i + 1]), (p, z, old)


STOCHASTIC = [
    *(orn.DDIM(eta=1.0), orn.DDPM(), EulerMaruyama(), Churn(6.0), orn.solvers.SDEDPMSolverPP()),
    *(TwoSteps(read) for read in ("output", "noise", "register")),
]


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_the_normaliser_is_unbiased(solver, threshold):
    """The sampler's last law on a Gaussian is N(m, v), computed from the table, so E[exp(a x)] = exp(a m + a^2 v/2); 5
    particles a group estimate it without bias, if they never resample, sometimes or always, also where the solver
    remembers more than the state. The mean of 3000 groups is within 4 standard errors, and the mean of log Z (the
    rival) lies below, by Jensen."""
    out, m, v = run(solver, threshold=threshold)
    exact = math.exp(0.9 * m + 0.81 * v / 2)
    z = out.log_normalizer.exp()
    error = float(z.std()) / math.sqrt(len(z))
    assert error < 0.03 * exact
    assert float(z.mean()) == pytest.approx(exact, abs=4 * error)
    assert math.exp(float(out.log_normalizer.mean())) < exact - 4 * error


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_weighted_particles_have_the_tilted_law(scheme):
    """Tilting N(m, v) by exp(a x) gives N(m + a v, v), by weights as by copies."""
    out, m, v = run(orn.DDIM(eta=1.0), threshold=0.6, scheme=scheme, groups=20, count=2000)
    x, w = out.samples.x[:, 0], out.weights.flatten() / 20
    mean = float(w @ x)
    assert mean == pytest.approx(m + 0.9 * v, abs=0.03)
    assert float(w @ (x - mean) ** 2) == pytest.approx(v, rel=0.06)
    assert float(out.resampled(scheme).mean()) == pytest.approx(mean, abs=0.02)
    assert m + 0.9 * v - m > 0.3  # the sampler without particles is this far


def test_a_run_can_be_repeated_and_a_filter_used_again():
    rule = ParticleFilter(lambda moment: moment.x[:, 0], 4, seed=1)
    options = {"solver": orn.DDIM(eta=1.0), "steps": 6, "seed": 0, "dtype": F64}
    first = particle_filter(WORLD.denoiser(orn.VP()), (12, 1), particles=rule, **options)
    again = particle_filter(WORLD.denoiser(orn.VP()), (12, 1), particles=rule, **options)
    torch.testing.assert_close(first.samples.x, again.samples.x, rtol=0, atol=0)
    torch.testing.assert_close(first.log_normalizer, again.log_normalizer, rtol=0, atol=0)
    assert first.ess.shape == again.ess.shape == (6, 3)


class Remembering(ParticleFilter):
    """A weighting with a memory: the first coordinate's sum over the particle's own past."""

    def increment(self, moment):
        if not hasattr(self, "past") or len(self._ess) == 0:
            self.past = torch.zeros_like(moment.x)
        self.past = self.past + moment.x
        return super().increment(moment)

    def permute(self, indices):
        super().permute(indices)
        self.past = self.past[indices]


def test_a_weighting_may_carry_a_memory():
    """After the run each particle's memory is the sum along its own line of ancestors, traced back by hand."""
    rule = Remembering(lambda moment: 2 * moment.x[:, 0], 8, threshold=0.9, seed=1)
    seen = []
    out = particle_filter(
        WORLD.denoiser(orn.VP()), (16, 1), particles=rule, solver=orn.DDIM(eta=1.0), steps=6, seed=0, dtype=F64,
        hooks=(lambda moment: seen.append(moment.x) if moment.on_grid else None,),
    )  # fmt: skip
    total, at = torch.zeros(16, 1, dtype=F64), torch.arange(16).reshape(2, 8)
    offset = torch.tensor([[0], [8]])
    for i in reversed(range(6)):
        at = (out.ancestors[i] + offset).reshape(-1)[at.reshape(-1)].reshape(2, 8)
        total = total + seen[i][at.reshape(-1)]
    torch.testing.assert_close(rule.past, total)
    assert int((out.ancestors != torch.arange(8)).any(2).sum()) > 2


class Pair(NamedTuple):
    a: Any
    b: Any


class Both(orn.BaseDenoiser):
    """x0 = x/2 in both components."""

    predicts = "x0"

    def __init__(self, process):
        super().__init__()
        self.process = process

    def bind(self, levels, x, cond):
        return [lambda x: Pair(0.5 * x.a, 0.5 * x.b)] * len(levels)


def test_several_components_are_resampled_together():
    """Copies of one ancestor, chosen by the first component, are copies in both."""
    process = orn.Product(Pair(orn.VP(), orn.VP()))
    rule = ParticleFilter(lambda moment: 3 * moment.x.a[:, 0], 4, threshold=1.0, seed=1)
    shape = Pair((8, 1), (8, 2))
    out = particle_filter(Both(process), shape, particles=rule, solver=orn.DDIM(eta=1.0), steps=4, seed=0, dtype=F64)
    assert out.resampled().b.shape == (8, 2)
    last = out.ancestors[-1] + torch.tensor([[0], [4]])
    copies = [(i, j) for i in range(8) for j in range(i) if last.reshape(-1)[i] == last.reshape(-1)[j]]
    assert copies
    for i, j in copies:
        assert torch.equal(out.samples.x.a[i], out.samples.x.a[j])
        assert torch.equal(out.samples.x.b[i], out.samples.x.b[j])


@pytest.mark.parametrize(
    ("solver", "what"),
    [
        (orn.DDIM(), "draws no noise"),
        (orn.DPMSolverPP(), "draws no noise"),
    ],
    ids=repr,
)
def test_solvers_that_would_go_wrong_are_refused(solver, what):
    rule = ParticleFilter(lambda moment: moment.x[:, 0], 4)
    with pytest.raises(TableError, match=what):
        particle_filter(WORLD.denoiser(orn.VP()), (8, 1), particles=rule, solver=solver, steps=6)


def test_stages_between_the_points_are_allowed():
    rule = ParticleFilter(lambda moment: moment.x[:, 0], 4, seed=0)
    for solver in (Churn(6.0), Restart(orn.DDIM(eta=1.0)), orn.solvers.StochasticHeun()):
        out = particle_filter(
            WORLD.denoiser(orn.VP()), (8, 1), particles=rule, solver=solver, steps=9, seed=0, dtype=F64
        )
        assert bool(out.samples.x.isfinite().all())


def test_options_are_checked():
    potential, oracle = (lambda moment: moment.x[:, 0]), WORLD.denoiser(orn.VP())
    with pytest.raises(ValueError, match="particles=1"):
        ParticleFilter(potential, 1)
    with pytest.raises(ValueError, match="threshold=2"):
        ParticleFilter(potential, 4, threshold=2.0)
    with pytest.raises(ValueError, match="resampling='best'"):
        ParticleFilter(potential, 4, resampling="best")
    with pytest.raises(ValueError, match="give a stochastic solver"):
        particle_filter(oracle, (8, 1), particles=ParticleFilter(potential, 4))
    options = {"solver": orn.DDIM(eta=1.0), "steps": 3, "seed": 0}
    with pytest.raises(ValueError, match="batch of 6"):
        particle_filter(oracle, (6, 1), particles=ParticleFilter(potential, 4), **options)
    with pytest.raises(ValueError, match=r"a log-potential is \(8,\)"):
        particle_filter(oracle, (8, 1), particles=ParticleFilter(lambda moment: moment.x, 4), **options)
