"""Couplings: what pairs made within a batch, or learned with the model, are worth in few steps.

Claim 1: with conditions, C2OT's pairs make better samples in few Euler steps than random pairs, and than optimal
transport that does not see the condition, which makes the noise depend on it (Cheng, Schwing 2025, 2503.10636).
Baselines: random pairs and plain minibatch transport, trained alike, eight Gaussians to two moons by class.
Figures, lists over the Euler steps in `steps`: `w2_random`, `w2_ot`, `w2_c2ot`, the squared W2 of 600 samples of a
class to the class, less that of two sets of the truth (`floor`), mean over classes.

Claim 2: a learned coupling lowers the curvature of the flow, the more the less its KL counts, and four steps gain by it
(Lee, Kim, Ye 2023, 2301.12003). Baseline: the independent coupling, the first entry of each list; `betas` follow.
Figures: `straightness`, S of the model's flow from N(0, I); `mmd_4` and `mmd_40`, squared MMD (kernel of width 0.5) of
1,500 samples to the data in 4 Euler steps and in 40 of Heun's method.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import ornstein as orn
from ornstein.processes import LearnedCoupling, TwoSided
from ornstein.training import C2OT, MinibatchOT, MinimumCurvature, Shuffled

STEPS = (1, 2, 4, 8, 40)
BETAS = (math.inf, 10.0, 3.0, 1.0)
OPTIONS = {"steps": 1000, "batch_size": 256, "lr": 2e-3, "ema": 0.99, "seed": 0, "progress": False}


def run() -> dict[str, float | list[float]]:
    return {**by_class(), **learned()}


def by_class() -> dict[str, float | list[float]]:
    """Claim 1."""
    x0, label = moons(20_000, 1)
    cond = {"label": label, "x1": gaussians(20_000, 2)}
    start, asked = gaussians(1200, 99), torch.arange(1200) % 2
    truth, kind = moons(3000, 77)
    sets = [(truth[kind == k][:600], truth[kind == k][600:1200]) for k in (0, 1)]
    floor = sum(orn.metrics.wasserstein2(*pair) ** 2 for pair in sets) / 2
    figures: dict[str, float | list[float]] = {"steps": [float(n) for n in STEPS], "floor": floor}
    for name, objective in (("random", Shuffled()), ("ot", MinibatchOT()), ("c2ot", C2OT())):
        torch.manual_seed(0)
        model = orn.Denoiser(orn.nets.MLP(2, labels=2, width=64, depth=3), TwoSided(), "velocity")
        orn.fit(model, x0, cond=cond, objective=objective, **OPTIONS)
        row = []
        for steps in STEPS:
            grid = torch.linspace(1, 0, steps + 1)
            out = orn.sample(model, x_init=start, cond={"label": asked}, solver=orn.Euler(), grid=grid).x
            row.append(sum(orn.metrics.wasserstein2(out[asked == k], sets[k][0]) ** 2 for k in (0, 1)) / 2 - floor)
        figures[f"w2_{name}"] = row
    return figures


def learned() -> dict[str, float | list[float]]:
    """Claim 2."""
    angle = torch.arange(6, dtype=torch.float64) * math.pi / 3
    world = orn.exact.GaussianMixture(2 * torch.stack([angle.cos(), angle.sin()], 1), 0.15)
    x, truth = world.sample(20_000, seed=1).float(), world.sample(1500, seed=77)
    z = orn.Flow().prior((1500, 2), seed=5)
    rows = []
    for beta in BETAS:
        torch.manual_seed(0)
        net, objective, process = orn.nets.MLP(2, width=64, depth=3), None, orn.Flow()
        if beta < math.inf:
            objective = MinimumCurvature(beta=beta)
            process = LearnedCoupling(orn.nets.MLP(2, width=64, depth=2, outputs=("main", "log_std")))
        model = orn.Denoiser(net, process, "velocity")
        orn.fit(model, x, objective=objective, **OPTIONS)
        four = orn.sample(model, x_init=z, solver=orn.Euler(), grid=torch.linspace(1, 0, 5)).x
        times = torch.linspace(1, 0, 41)
        fine = orn.sample(model, x_init=z, solver=orn.Heun(variable="t"), grid=times, trajectory=True)
        straight = orn.metrics.straightness(fine.trajectory, times)
        rows.append((straight, orn.metrics.mmd(four, truth, [0.5]), orn.metrics.mmd(fine.x, truth, [0.5])))
    columns = zip(("straightness", "mmd_4", "mmd_40"), zip(*rows, strict=True), strict=True)
    return {"betas": list(BETAS[1:]), **{name: list(column) for name, column in columns}}


def gaussians(n: int, seed: int) -> Tensor:
    """Eight on a circle of radius 5, of standard deviation 0.3."""
    source = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=source) * math.pi / 4
    return 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(n, 2, generator=source)


def moons(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two half circles of radius 3, one in the hollow of the other, with their class; standard deviation 0.2."""
    source = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (n,), generator=source)
    angle = math.pi * torch.rand(n, generator=source)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    x = 3 * torch.where(label[:, None] == 0, upper, lower) - torch.tensor([1.5, 0.75])
    return x + 0.2 * torch.randn(n, 2, generator=source), label
