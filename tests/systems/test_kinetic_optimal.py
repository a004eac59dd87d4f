"""Kinetic-optimal paths: the least energy for the data, against every other path and against the definition."""

import dataclasses
import itertools
import math

import pytest
import torch

import ornstein as orn
from ornstein.density import kinetic_energy, separation
from ornstein.processes import KineticOptimal, Separation
from worlds import F64, normal, ring

POINTS = normal(8, 2, seed=3)
SEPARATION = Separation.of(POINTS, draws=2**13)


@dataclasses.dataclass(frozen=True)
class Bent(orn.GaussianProcess):
    """A path plus `size` times bumps that vanish at both ends: alpha + sum_k a_k sin(pi k t), sigma + sum_k b_k ..."""

    base: orn.GaussianProcess
    bumps: tuple[tuple[float, ...], tuple[float, ...]]
    size: float

    def _bump(self, which, t):
        return self.size * sum(c * torch.sin(math.pi * (k + 1) * t) for k, c in enumerate(self.bumps[which]))

    def alpha(self, t):
        return self.base.alpha(t) + self._bump(0, t)

    def sigma(self, t):
        return self.base.sigma(t) + self._bump(1, t)


def bumps(seed, modes=3):
    rows = normal(2, modes, seed=seed) / torch.arange(1, modes + 1)
    return tuple(tuple(row.tolist()) for row in rows)


@pytest.mark.system("kinetic-optimal", rival="the conditional optimal transport path, optimal for one point alone")
def test_kinetic_optimal():
    best, oracle = KineticOptimal(SEPARATION), orn.exact.Empirical(POINTS)
    least, second = SEPARATION.energy(best), SEPARATION.second_moment
    # a closed form: the squared chord of a flat cone (the floor is not reached by these points)
    assert least == pytest.approx(second + 1 - 2 * math.sqrt(second) * math.cos(best.turn), rel=1e-8)
    assert least == pytest.approx(best.energy, rel=1e-8)

    # the energy is what the definition says, E |E[velocity | x_t]|^2/d of the exact denoiser of the data; the
    # separation's own error is that of 2^13 Sobol points, below 0.5 % of the energy
    for process in (best, orn.Flow(), orn.Cosine()):
        drawn = kinetic_energy(oracle.denoiser(process), POINTS.repeat(150, 1), seed=0)
        error = float(drawn.std()) / math.sqrt(len(drawn))
        assert float(drawn.mean()) == pytest.approx(SEPARATION.energy(process), abs=4 * error + 5e-3 * least), process

    # less than published paths, VP even without its infinite beginning, and less than paths drawn at random
    others = {"cond-ot": orn.Flow(), "cosine": orn.Cosine(), "sub-vp": orn.processes.SubVP()}
    energies = {name: SEPARATION.energy(process) for name, process in others.items()}
    energies["vp"] = SEPARATION.energy(orn.VP(), start=1e-3)
    assert min(energies.values()) > 1.1 * least, (least, energies)
    t, tried = torch.linspace(0.0, 1.0, 400, dtype=F64)[1:-1], 0
    for seed in range(32):
        rival = Bent((orn.Flow(), orn.Cosine())[seed % 2], bumps(seed), 0.15)
        if bool((rival.log_snr(t).diff() < 0).all()):  # which NaN of a negative alpha or sigma fails too
            tried += 1
            assert SEPARATION.energy(rival, count=60) > 1.02 * least, rival
    assert tried >= 12

    # Euler-Lagrange: the first variation is zero, to the square of the size, and the second is positive; not so the
    # first of the rival, whose slope is of the size of the energy
    for seed in range(4):
        energy = {
            (base, side): SEPARATION.energy(Bent(base, bumps(100 + seed), side * 1e-3), count=200)
            for base in (best, orn.Flow())
            for side in (-1, 1)
        }
        slope = {base: abs(energy[base, 1] - energy[base, -1]) / 2e-3 for base in (best, orn.Flow())}
        assert energy[best, 1] + energy[best, -1] > 2 * least
        assert slope[best] < 1e-3, (seed, slope)
        assert slope[orn.Flow()] > 1e-2, (seed, slope)


def test_many_dimensions():
    """Points far apart: the optimum tends to the straight path, at the rate d^(-1/2) for a fixed number of points.

    The Gram matrix of n normal points tends to d I, so lambda tends to a function of d SNR alone, and the stretch is
    below 1 where tan(pi/2 - phi)^2 = SNR is of the order of log(n)/d: pi/2 - Theta = int (1 - stretch) ~ d^(-1/2).
    Slopes of the last two steps of a factor of 4 within 0.1 of it; the Gram matrix is off by 1/sqrt(d) < 0.07.
    """
    t, gaps, bends = torch.linspace(0.0, 1.0, 101, dtype=F64), [], []
    for d in (64, 256, 1024, 4096):
        path = KineticOptimal.of(normal(10, d, seed=1), draws=1024)
        flow = path.separation.energy(orn.Flow())
        # E |x0|^2/d is 1 but for chance, 1/sqrt(10 d) in each set
        gaps.append(math.pi / 2 - path.turn)
        bends.append(float((path.alpha(t) - (1 - t)).abs().max()))
        assert path.energy < flow
    for values in (gaps, bends):
        rates = [math.log(a / b) / math.log(4) for a, b in itertools.pairwise(values[1:])]
        assert all(abs(rate - 0.5) < 0.1 for rate in rates), (values, rates)
    assert bends[-1] < 0.03

    # a single point is known at every level: the straight path itself, whatever its size
    alone = KineticOptimal.of(normal(1, 5, seed=2))
    torch.testing.assert_close(alone.alpha(t), 1 - t, rtol=0, atol=1e-14)
    torch.testing.assert_close(alone.sigma(t), t, rtol=0, atol=1e-14)


def test_gaussian_separation():
    """N(0, diag(c^2)): 1 - lambda = sum c^2/(1 + c^2 u) / sum c^2, u = SNR; no path has less than W2^2/d.

    For c alike the bound is reached: the optimal path of a Gaussian is its optimal transport, but for the floor, whose
    energy is that of a turn of floor pi/2: 4 c sin(floor pi/4)^2.
    """
    width = torch.tensor([2.0, 1.0, 0.5, 0.1], dtype=F64)
    world = orn.exact.Gaussian(torch.zeros(4, dtype=F64), torch.diag(width**2))
    data = world.sample(8_000, seed=0)
    found = separation(world.denoiser(orn.Cosine()), data, seed=1)
    u, c2 = torch.tensor(found.log_snr, dtype=F64).exp(), width**2
    exact = 1 - (c2 / (1 + c2 * u[:, None])).sum(1) / c2.sum()
    # a mean of 8,000 squares of Gaussians, the widest 3/4 of all: 4 sqrt(2/8000) of it
    torch.testing.assert_close(torch.tensor(found.values, dtype=F64), exact, rtol=0, atol=0.06)
    truth = Separation(found.log_snr, exact, float(c2.mean()))
    best, optimal = KineticOptimal(truth), float(((width - 1) ** 2).mean())
    assert optimal < truth.energy(best) < truth.energy(orn.Cosine()) < truth.energy(orn.Flow())
    # what samples of the world tell of it is as good but for their error in E |x0|^2, 4 sqrt(2 3/4 / 8000) at most
    assert truth.energy(KineticOptimal(found)) < 1.02 * truth.energy(best)
    for process in (best, orn.Cosine()):
        drawn = kinetic_energy(world.denoiser(process), data, seed=2)
        error = 4 * float(drawn.std()) / math.sqrt(len(drawn))
        assert float(drawn.mean()) == pytest.approx(truth.energy(process), abs=error)

    alike = Separation((-20.0, 20.0), [1.5**2 * math.exp(s) / (1 + 1.5**2 * math.exp(s)) for s in (-20, 20)], 1.5**2)
    path = KineticOptimal(alike, floor=0.1)
    assert path.energy == pytest.approx(0.5**2 + 4 * 1.5 * math.sin(0.1 * math.pi / 4) ** 2, rel=1e-9)
    assert alike.energy(path) == pytest.approx(0.5**2, rel=2e-3)


def test_schedule():
    """One function: derivatives, inverse and ends agree to rounding, log-SNR falls, the floor bounds the slopes."""
    t = torch.linspace(0.0, 1.0, 2_001, dtype=F64)
    for data in (POINTS, 3 * POINTS + 1, normal(300, 3, seed=4), 0.01 * normal(20, 40, seed=5)):
        path = KineticOptimal.of(data, draws=512)
        level, inner = path.level(t), t[1:-1]
        assert level.alpha[[0, -1]].tolist() == [1, 0]
        assert level.sigma[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-15)
        assert level.log_snr[[0, -1]].tolist() == [math.inf, -math.inf]
        assert bool((level.log_snr.diff() < 0).all())
        for f, slope in ((path.alpha, level.d_alpha), (path.sigma, level.d_sigma)):
            tangent = torch.func.jvp(f, (inner,), (torch.ones_like(inner),))[1]
            torch.testing.assert_close(slope[1:-1], tangent, rtol=1e-10, atol=1e-10)
        wronskian = level.alpha * level.d_sigma - level.sigma * level.d_alpha
        torch.testing.assert_close(path.wronskian(t), wronskian, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(path.time(level.log_snr), t, rtol=0, atol=1e-13)
        far = torch.tensor([-20.0, 60.0], dtype=F64)  # 1 - t keeps half its digits at -20
        torch.testing.assert_close(path.log_snr(path.time(far)), far, rtol=1e-9, atol=0)
        root = math.sqrt(path.separation.second_moment)
        assert float(torch.hypot(root * level.d_alpha, level.d_sigma).max()) < (root + 1) / path.floor


def test_embedded():
    """What is told apart does not depend on the space around: 6 points of unlike size in 4 dimensions, and in 30.

    The seconds are theirs in the span of 6 dimensions; lambda is the same function of SNR to 2^13 Sobol points' error.
    """
    few = normal(6, 4, seed=7) * torch.arange(1, 7)[:, None]
    around = few @ torch.linalg.qr(normal(30, 4, seed=8)).Q.mT
    flat, embedded = Separation.of(few, draws=2**13), Separation.of(around, draws=2**13)
    assert embedded.second_moment == pytest.approx(flat.second_moment * 4 / 30, rel=1e-12)
    shift = math.log(30 / 4)
    assert embedded.log_snr == pytest.approx([level + shift for level in flat.log_snr], rel=0, abs=1e-12)
    step = round(shift / 0.25)  # 2.01: eight levels apart to 0.06 of a level
    a, b = torch.tensor(flat.values[step:]), torch.tensor(embedded.values[:-step])
    torch.testing.assert_close(a, b, rtol=0, atol=0.02)


def test_samples_and_refusals():
    world = ring()
    found = separation(world.denoiser(orn.Flow()), world.sample(2_000, seed=0), seed=1)
    path = KineticOptimal(found)
    assert found.energy(path) < 0.9 * found.energy(orn.Flow())
    out = orn.sample(world.denoiser(path), (2_000, 2), steps=30, seed=3, dtype=F64)
    # DDIM's angle is solved by UniPC to 1e-3 in 30 steps; what is left is chance
    share = world.posterior_mean(out.x, orn.EDM(1.0), 1e-3)
    assert float((share - out.x).norm(dim=1).mean()) < 1e-3
    mean, cov = world.moments()
    sampled = out.x.mean(0), torch.cov(out.x.T)
    error = 4 * torch.diagonal(cov).sqrt() / math.sqrt(len(out.x))
    assert bool(((sampled[0] - mean).abs() < error).all())
    torch.testing.assert_close(sampled[1], cov, rtol=0, atol=4 * math.sqrt(2 / 2_000) * float(cov.max()))

    with pytest.raises(ValueError, match="rising list"):
        Separation([0.0, 0.0], [0.1, 0.2], 1.0)
    with pytest.raises(ValueError, match=r"\[0, 1\], one value a level"):
        Separation([0.0, 1.0], [0.1, 1.2], 1.0)
    with pytest.raises(ValueError, match="second_moment=0"):
        Separation([0.0, 1.0], [0.1, 0.2], 0.0)
    with pytest.raises(ValueError, match="all data are 0"):
        Separation.of(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="finite and not empty"):
        KineticOptimal.of(torch.tensor([[math.nan]]))
    with pytest.raises(ValueError, match=r"floor=0.0"):
        KineticOptimal(found, floor=0.0)
    with pytest.raises(ValueError, match="take times a little inside"):
        found.energy(orn.VP())
    with pytest.raises(ValueError, match="two times"):
        kinetic_energy(world.denoiser(orn.Flow()), world.sample(2), start=0.5, end=0.5)
