"""Zeros and ones, learned rates, and a box: what each claims, on worlds whose models are exact.

Claims: the bound of binomial diffusion tends to the entropy of the data, and the rates of a chain are better learned
through it (Sohl-Dickstein et al. 2015, 1503.03585); reflected diffusion keeps guided samples in the box (Lou, Ermon
2023, 2304.04740). Baselines: one step, which draws each bin on its own; the linear rates that learning begins at; the
same model, guidance and steps without reflection.

Figures: over `steps`, the mean bound of heartbeats in bits, `heartbeat_bits` (their entropy is log2(5) = 2.322), and
the share of samples that are none, `heartbeat_strays`. Over `chain`, numbers of steps, what the bound of a mixture of
six Gaussians lies above its entropy in nats, with the posterior's variance: `gap_fixed` and `gap_learned`. Over
`scale` of guidance, the share of samples outside the box, `outside_reflected` and `outside_free`, in 50 steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein.density import binomial_bound, variational_bound
from ornstein.exact import Enumerable, FoldedMixture
from ornstein.processes import Binomial, LearnedRates, Reflected
from ornstein.training import VLB

STEPS = (1, 5, 10, 20, 40, 80, 160)
CHAIN = (4, 8, 16)
SCALES = (1.0, 2.0, 5.0, 10.0)


class Unwalled(Reflected):
    """The box without its walls."""

    def reflect(self, x: Tensor) -> Tensor:
        return x


class Free(orn.BaseDenoiser):
    """A model of the box, asked at the reflection of states that are not reflected."""

    def __init__(self, model: orn.BaseDenoiser) -> None:
        super().__init__()
        self.model, self.process, self.predicts = model, Unwalled(), model.predicts

    def bind(self, levels: Any, x: Tensor, cond: Any) -> Sequence[Callable[[Tensor], Any]]:
        def answer(call: Callable[[Tensor], Any], x: Tensor) -> Any:
            return call(Reflected().reflect(x))

        return [partial(answer, call) for call in self.model.bind(levels, x, cond)]


def run() -> dict[str, float | list[float]]:
    figures: dict[str, float | list[float]] = {
        "steps": [float(n) for n in STEPS], "chain": [float(n) for n in CHAIN], "scale": list(SCALES),
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

    means = torch.tensor([[0.15, 0.95], [0.8, 0.1], [0.5, 0.5]], dtype=torch.float64)
    box = FoldedMixture(means, torch.tensor([0.15, 0.1, 3.0])).denoiser(Reflected())
    cond = {"label": torch.arange(999) % 3}
    for name in ("reflected", "free"):
        shares = []
        for scale in SCALES:
            guided = orn.CFG(box, scale)
            x = orn.sample(
                guided if name == "reflected" else Free(guided), (999, 2), cond=cond, seed=0, dtype=torch.float64,
                solver=orn.EulerMaruyama(), grid=orn.Uniform(), steps=50,
            ).x  # fmt: skip
            shares.append(float(((x < 0) | (x > 1)).any(1).double().mean()))
        figures[f"outside_{name}"] = shares
    return figures
