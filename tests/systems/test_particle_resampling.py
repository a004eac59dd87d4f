"""Resampling particles by a density ratio corrects a sampler whose score is wrong."""

import math

import pytest
import torch

import ornstein as orn
from ornstein.metrics import sliced_wasserstein
from ornstein.solvers import ParticleFilter, particle_filter
from worlds import F64

PROCESS = orn.VP()
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]], dtype=F64)
STDS = torch.full((3,), 0.4, dtype=F64)
WEIGHTS = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
TRUTH = orn.exact.GaussianMixture(MEANS, STDS, WEIGHTS)
MODEL = orn.exact.GaussianMixture(MEANS, STDS, torch.tensor([0.2, 0.2, 0.6], dtype=F64))  # deliberately wrong


def discriminator(moment):
    """log p_t/q_t: the logit of an ideal discriminator between noised data and the model's states at t."""
    return TRUTH.log_prob(moment.x, PROCESS, moment.level) - MODEL.log_prob(moment.x, PROCESS, moment.level)


def mode_weights(x, weights):
    near = torch.cdist(x, MEANS).argmin(1)
    return torch.stack([weights[near == k].sum() for k in range(3)])


@pytest.mark.system("particle-resampling", rival="the same sampler without resampling")
def test_particle_resampling():
    groups, count, steps = 20, 100, 80
    oracle, n = MODEL.denoiser(PROCESS), 2000
    plain = orn.sample(oracle, (n, 2), solver=orn.DDIM(eta=1.0), steps=steps, seed=2, dtype=F64).x
    rule = ParticleFilter(discriminator, count, threshold=0.7, seed=1)
    out = particle_filter(oracle, (n, 2), particles=rule, solver=orn.DDIM(eta=1.0), steps=steps, seed=2, dtype=F64)

    # the weights of the modes: a group's are shares of 100 particles, spread by sqrt(w (1 - w)/ESS) at worst, so the
    # mean of 20 groups has a standard error of 0.5/sqrt(20 * 40) = 0.018; 3 of them and the sampler's own bias of 0.02
    repaired = mode_weights(out.samples.x, out.weights.flatten() / groups)
    off = mode_weights(plain, torch.full((n,), 1 / n, dtype=F64))
    assert float((repaired - WEIGHTS).abs().max()) < 3 * 0.018 + 0.02
    assert float((off - WEIGHTS).abs().max()) > 0.35

    # and the distance: repaired samples are as near the truth as a second draw of it is, up to that shift of weights
    truth = TRUTH.sample(n, seed=5).to(F64)
    near, far = (sliced_wasserstein(x, truth, projections=32, seed=0) for x in (out.resampled(), plain))
    assert far > 1.0
    assert near < far / 3

    # the normaliser is E_q[p/q] = 1 under the sampler's law, whose weights are 0.03 off
    z = out.log_normalizer.exp()
    assert float(z.mean()) == pytest.approx(1, abs=4 * float(z.std()) / math.sqrt(groups) + 0.06)

    # what is logged: the share that counts falls to 70 and is brought back, in each group on its own
    assert out.ess.shape == (steps, groups)
    assert float(out.ess.min()) > 30
    moved = (out.ancestors != torch.arange(count)).any(2)
    assert bool((out.ess[moved] < 70).all())
    assert bool((out.ess[~moved] >= 70).all())
    assert 1 <= int(moved.sum(0).min()) <= int(moved.sum(0).max()) <= 8
