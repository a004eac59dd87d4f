"""Eight Gaussians to two moons by class: random pairs, optimal transport, and transport that minds the class."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import ornstein as orn
from ornstein.processes import TwoSided
from ornstein.training import C2OT, MinibatchOT, Objective, Shuffled

SEEDS = (0, 1)
STEPS = (1, 2, 4, 40)


def gaussians(n: int, seed: int) -> torch.Tensor:
    """Eight on a circle of radius 5, of standard deviation 0.3."""
    source = torch.Generator().manual_seed(seed)
    angle = torch.randint(8, (n,), generator=source) * math.pi / 4
    return 5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(n, 2, generator=source)


def moons(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two half circles of radius 3, one in the hollow of the other, with their class; standard deviation 0.2."""
    source = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (n,), generator=source)
    angle = math.pi * torch.rand(n, generator=source)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    x = 3 * torch.where(label[:, None] == 0, upper, lower) - torch.tensor([1.5, 0.75])
    return x + 0.2 * torch.randn(n, 2, generator=source), label


@pytest.mark.proof("c2ot-training")
def test_c2ot_training(proof: Callable[..., None]) -> None:
    """Networks trained alike but for the pairs, two seeds. w2: squared distance of 1,000 samples of a class to 1,000 of
    the truth, less that of two sets of the truth, mean over classes and seeds, in 1, 2, 4 and 40 Euler steps. What
    must come out: with few steps (1, 2, 4) C2OT lies below random pairs, which are curved, and below plain transport,
    whose noise depends on the class; with 40 it is below plain transport still.
    """
    x0, label = moons(20_000, 1)
    cond = {"label": label, "x1": gaussians(20_000, 2)}
    start = gaussians(2000, 99)
    asked = torch.arange(2000) % 2
    truth, kind = moons(4500, 77)
    sets = [(truth[kind == k][:1000], truth[kind == k][1000:2000]) for k in (0, 1)]
    floor = sum(orn.metrics.wasserstein2(*pair) ** 2 for pair in sets) / 2

    def judge(objective: Objective, seed: int) -> list[float]:
        torch.manual_seed(seed)
        model = orn.Denoiser(orn.nets.MLP(2, labels=2, width=64, depth=3), TwoSided(), "velocity")
        options = {"steps": 1500, "batch_size": 256, "lr": 2e-3, "ema": 0.99, "seed": seed, "progress": False}
        orn.fit(model, x0, cond=cond, objective=objective, **options)
        row = []
        for steps in STEPS:
            grid = torch.linspace(1, 0, steps + 1)
            out = orn.sample(model, x_init=start, cond={"label": asked}, solver=orn.Euler(), grid=grid).x
            far = [orn.metrics.wasserstein2(out[asked == k], sets[k][0]) ** 2 for k in (0, 1)]
            row.append(sum(far) / 2 - floor)
        return row

    arms = {"random": Shuffled(), "ot": MinibatchOT(), "c2ot": C2OT()}
    rows = {
        name: torch.tensor([judge(objective, seed) for seed in SEEDS], dtype=torch.float64).mean(0)
        for name, objective in arms.items()
    }
    figures = {f"w2_{name}_{steps}": float(row[i]) for name, row in rows.items() for i, steps in enumerate(STEPS)}
    figures["floor"] = floor
    proof(
        figures=figures,
        thresholds={
            **{f"w2_c2ot_{n}": (None, min(figures[f"w2_random_{n}"], figures[f"w2_ot_{n}"])) for n in (1, 2, 4)},
            "w2_c2ot_40": (None, figures["w2_ot_40"]),
        },
        seed=SEEDS,
    )
