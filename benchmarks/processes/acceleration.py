"""Constant acceleration flow: how far samples land from their pairs, by evaluations.

Claim: told an initial velocity, one step of constant acceleration keeps the pairs of a flow better than rectified flow,
from noise to data and back (Park et al. 2024, 2411.00322). Baselines: rectified flow on the same pairs, as many steps
of training in all, with as many weights as one of the two networks ("rf") and as both ("wide").

Figures, lists over network evaluations `nfe` of a sample: `made_<model>`, the coupling error of the sample made from
the noise of 2,000 held-out pairs (0 where pairs are kept, 1 for others of the same law), and `found_<model>`, that of
the noise found for the data. Constant acceleration takes one evaluation for the velocity, so it begins at 2; lists over
`h`, the published hyperparameter, are `made_caf_<h>` and `found_caf_<h>`, from nfe 2 on.
"""

from __future__ import annotations

from itertools import pairwise

import torch

import ornstein as orn
from ornstein.metrics import coupling_error
from ornstein.processes import ConstantAcceleration, GivenVelocity
from ornstein.solvers import initial_velocity
from ornstein.training import Coupled, reflow_pairs

NFE = (1, 2, 3, 5)
HS = (0.5, 1.0, 1.5)


def run() -> dict[str, float | list[float]]:
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.8], [-1.0, -1.8], [0.0, 0.0]], dtype=torch.float64)
    teacher = orn.exact.GaussianMixture(means, 0.2).denoiser(orn.Flow())
    pairs, held = (reflow_pairs(teacher, (n, 2), steps=30, seed=seed) for n, seed in ((20_000, 2), (2000, 99)))
    figures: dict[str, float | list[float]] = {"nfe": [float(n) for n in NFE], "h": list(HS)}

    def fitted(model: orn.Denoiser, cond: dict[str, torch.Tensor], steps: int) -> orn.Denoiser:
        options = {"steps": steps, "batch_size": 256, "lr": 2e-3, "ema": 0.99, "seed": 0, "progress": False}
        orn.fit(model, pairs.x0, cond=cond, objective=Coupled(), **options)
        return model

    def net(width: int, **conditions: int) -> orn.nets.MLP:
        torch.manual_seed(0)
        return orn.nets.MLP(features=2, width=width, depth=3, conditions=conditions or None)

    @torch.no_grad()
    def walk(model: orn.BaseDenoiser, steps: int, cond: dict[str, torch.Tensor] | None, back: bool) -> torch.Tensor:
        times, x = torch.linspace(1, 0, steps + 1), held.noise
        if back:
            times, x = times.flip(0), held.x0
        for t, s in pairwise(times):
            answer = model(x, t, cond)
            if cond is None:
                x = x + (s - t) * answer.velocity
                continue
            v0, u, w = cond["velocity"], 1 - t, 1 - s
            x = x + v0 * (w - u) + (answer.x0 - answer.noise - v0) * (w**2 - u**2)
        return x

    for name, width in (("rf", 64), ("wide", 92)):
        model = fitted(orn.Denoiser(net(width), orn.Flow(), "velocity"), pairs.cond, 2000)
        figures[f"made_{name}"] = [coupling_error(walk(model, n, None, False), held.x0) for n in NFE]
        figures[f"found_{name}"] = [coupling_error(walk(model, n, None, True), held.noise) for n in NFE]
    for h in HS:
        first = fitted(orn.Denoiser(net(64), ConstantAcceleration(h), "v"), pairs.cond, 1000)
        v0 = initial_velocity(first, pairs.noise)
        second = fitted(orn.Denoiser(net(64, velocity=2), GivenVelocity(), "v"), {**pairs.cond, "velocity": v0}, 1000)
        there = {"velocity": initial_velocity(first, held.noise, 1.0)}
        back = {"velocity": initial_velocity(first, held.x0, 0.0)}
        figures[f"made_caf_{h:g}"] = [coupling_error(walk(second, n - 1, there, False), held.x0) for n in NFE[1:]]
        figures[f"found_caf_{h:g}"] = [coupling_error(walk(second, n - 1, back, True), held.noise) for n in NFE[1:]]
    return figures
