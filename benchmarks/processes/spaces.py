"""Zeros and ones, and learned rates: what the first diffusion model claims, on worlds whose models are exact.

Claims: the bound of binomial diffusion tends to the entropy of the data, and the rates of a chain are better learned
through it (Sohl-Dickstein et al. 2015, 1503.03585). Baselines: one step, which draws each bin on its own; the linear
rates that learning begins at.

Figures: over `steps`, the mean bound of heartbeats in bits, `heartbeat_bits` (their entropy is log2(5) = 2.322), and
the share of samples that are none, `heartbeat_strays`. Over `chain`, numbers of steps, what the bound of a mixture of
six Gaussians lies above its entropy in nats, with the posterior's variance: `gap_fixed` and `gap_learned`.
"""

from __future__ import annotations

import math

import torch

import ornstein as orn
from ornstein.density import binomial_bound, variational_bound
from ornstein.exact import Enumerable
from ornstein.processes import Binomial, LearnedRates
from ornstein.training import VLB

STEPS = (1, 5, 10, 20, 40, 80, 160)
CHAIN = (4, 8, 16)


def run() -> dict[str, float | list[float]]:
    figures: dict[str, float | list[float]] = {
        "steps": [float(n) for n in STEPS], "chain": [float(n) for n in CHAIN],
    }  # fmt: skip

    world, n = Enumerable.heartbeat(), 2_000
    model, x = world.denoiser(Binomial()), world.sample(n, seed=0, dtype=torch.float64)
    bounds = [binomial_bound(model, x, steps=steps, seed=1).total for steps in STEPS]
    figures["heartbeat_bits"] = [float(bound.mean()) / math.log(2) for bound in bounds]
    made = [orn.sample(model, (n, 20), steps=steps, seed=2, dtype=torch.float64).x for steps in STEPS]
    figures["heartbeat_strays"] = [float((world.log_prob(x) == -math.inf).double().mean()) for x in made]

    angles = torch.arange(6, dtype=torch.float64) * math.pi / 3
    ring = orn.exact.GaussianMixture(2 * torch.stack([angles.cos(), angles.sin()], 1), 0.3)
    data, held = (ring.sample(4_000, seed=seed).double() for seed in (0, 1))
    for name in ("fixed", "learned"):
        gaps = []
        for steps in CHAIN:
            times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            rates = LearnedRates(-torch.expm1(2 * orn.VP(0.1, 10.0).log_alpha(times).diff()))
            own = ring.denoiser(rates)
            objective = VLB(steps=steps, variance="posterior")
            if name == "learned":
                orn.fit(own, data, steps=200, lr=0.1, objective=objective, ema=None, seed=0, progress=False)
            bound = variational_bound(own, held, grid=orn.Uniform(), steps=steps, variance="posterior", seed=2)
            gaps.append(float((bound.total + ring.log_prob(held)).mean()))
        figures[f"gap_{name}"] = gaps
    return figures
