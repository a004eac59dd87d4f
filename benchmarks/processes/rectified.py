"""Rectified flow: cost, straightness and few steps, by reflow.

Claim: each rectification costs no more by any convex measure, and one reflow makes paths straight, so that a single
Euler step is enough (Liu, Gong, Liu 2022, 2209.03003). Baseline: the first rectified flow, of the independent coupling
of two lumps with a ring; and the same network distilled into one step, at t = 1 alone (`one_step`).

Figures, lists over the number of rectifications 0 (the coupling given, where it applies), 1, 2, 3: `cost_<c>` the mean
cost of 2,000 held-out pairs, `straightness` S, `w2` the exact distance of 1,000 samples of one Euler step to fresh data
(`w2_floor`: of two sets of data), `nfe_<distance>`: the least Euler steps whose median distance to the model's own
whole path is below it, and `mmd` of the whole path to fresh data (kernel of width
0.5), which shows what a reflow loses.
"""

from __future__ import annotations

import copy

import torch

import ornstein as orn
from ornstein.exact import GaussianMixture, TwoSidedMixture
from ornstein.processes import TwoSided
from ornstein.training import Objective, OneStep, Shuffled, reflow_pairs

REFLOWS = 3


def run() -> dict[str, float | list[float]]:
    angles = torch.arange(6, dtype=torch.float64) * torch.pi / 3
    means = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    data = GaussianMixture(means, 0.2, torch.tensor([1.0, 2, 3, 1, 2, 3]))
    lumps = GaussianMixture(torch.tensor([[-1.0, 0.5], [1.5, -0.5]], dtype=torch.float64), 0.5)
    world, process = TwoSidedMixture(data, lumps), TwoSided()
    x0, x1 = world.sample(10_000, seed=1, dtype=torch.float32)
    held0, held1 = world.sample(2_000, seed=2, dtype=torch.float32)
    truth = world.sample(2_000, seed=3, dtype=torch.float32)[0]
    times, heun = torch.linspace(1, 0, 31), orn.Heun(variable="t")

    def fitted(model: orn.Denoiser, x0: torch.Tensor, x1: torch.Tensor, steps: int, how: Objective) -> orn.Denoiser:
        options = {"steps": steps, "batch_size": 256, "lr": 2e-3, "seed": 0, "progress": False}
        orn.fit(model, x0, cond={"x1": x1}, objective=how, **options)
        return model

    def euler(model: orn.BaseDenoiser, steps: int) -> torch.Tensor:
        out: torch.Tensor = orn.sample(
            model, x_init=held1, solver=orn.Euler(), grid=orn.Uniform(), steps=steps, progress=False
        ).x
        return out

    def costs(end: torch.Tensor) -> dict[str, float]:
        apart = held1 - end
        square = apart.square().sum(1)
        return {
            "l1": float(apart.abs().sum(1).mean()),
            "square": float(square.mean()),
            "fourth": float((square**2).mean()),
        }

    torch.manual_seed(0)
    model = fitted(orn.Denoiser(orn.nets.MLP(features=2, width=64, depth=3), process), x0, x1, 2000, Shuffled())
    lists: dict[str, list[float]] = {f"cost_{name}": [cost] for name, cost in costs(held0).items()}
    lists |= {name: [] for name in ("straightness", "w2", "mmd", "nfe_0.1", "nfe_0.03")}
    figures: dict[str, float | list[float]] = {"w2_floor": orn.metrics.wasserstein2(held0[:1000], truth[:1000])}
    for k in range(1, REFLOWS + 1):
        out = orn.sample(model, x_init=held1, solver=heun, grid=times, trajectory=True)
        for name, cost in costs(out.x).items():
            lists[f"cost_{name}"].append(cost)
        lists["straightness"].append(orn.metrics.straightness(out.trajectory, times))
        lists["w2"].append(orn.metrics.wasserstein2(euler(model, 1)[:1000], truth[:1000]))
        lists["mmd"].append(orn.metrics.mmd(out.x, truth, [0.5]))
        for distance in (0.1, 0.03):
            steps = 1
            while steps < 128 and float((euler(model, steps) - out.x).norm(dim=1).median()) >= distance:
                steps = steps + 1 if steps < 8 else steps + steps // 4
            lists[f"nfe_{distance}"].append(float(steps))
        if k == REFLOWS:
            break
        pairs = reflow_pairs(model, x1=x1, solver=heun, grid=orn.Uniform(), steps=20)
        model = fitted(copy.deepcopy(model), pairs.x0, pairs.noise, 1500, Objective())
        if k == 1:
            student = fitted(copy.deepcopy(model), pairs.x0, pairs.noise, 1500, OneStep())
            figures["one_step"] = orn.metrics.wasserstein2(euler(student, 1)[:1000], truth[:1000])
    return {**figures, **lists}
