"""A coupling learned with the flow: curvature against its weight, and what few steps gain by it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

import ornstein as orn
from ornstein.processes import LearnedCoupling
from ornstein.training import MinimumCurvature
from worlds import ring

BETAS = (10.0, 3.0, 1.0, 0.3)


@pytest.mark.proof("trajectory-curvature-training")
def test_trajectory_curvature_training(proof: Callable[..., None]) -> None:
    """A ring of six modes, networks trained alike, with the independent coupling and with learned ones of falling
    weight beta. straightness: S of the model's own flow from N(0, I), in 40 steps of Heun's method. mmd: squared,
    kernel of width 0.5, 2,000 samples of each, in 4 Euler steps and in 40 of Heun's. What must come out: S falls from
    each beta to the next and from the independent coupling to the first; of four steps a learned coupling makes the
    better samples (beta = 3). What small beta costs in 40 steps is recorded.
    """
    world = ring()
    x, truth = world.sample(20_000, seed=1).float(), world.sample(2000, seed=77)
    z = orn.Flow().prior((2000, 2), seed=5)

    def judge(beta: float | None) -> tuple[float, float, float]:
        torch.manual_seed(0)
        net = orn.nets.MLP(features=2, width=64, depth=3)
        model = orn.Denoiser(net, orn.Flow(), "velocity")
        objective = None
        if beta is not None:
            encoder = orn.nets.MLP(features=2, width=64, depth=2, outputs=("main", "log_std"))
            model = orn.Denoiser(net, LearnedCoupling(encoder), "velocity")
            objective = MinimumCurvature(beta=beta)
        options = {"steps": 2000, "batch_size": 256, "lr": 2e-3, "ema": 0.99, "seed": 0, "progress": False}
        orn.fit(model, x, objective=objective, **options)
        four = orn.sample(model, x_init=z, solver=orn.Euler(), grid=torch.linspace(1, 0, 5)).x
        times = torch.linspace(1, 0, 41)
        fine = orn.sample(model, x_init=z, solver=orn.Heun(variable="t"), grid=times, trajectory=True)
        straight = orn.metrics.straightness(fine.trajectory, times)
        return straight, orn.metrics.mmd(four, truth, [0.5]), orn.metrics.mmd(fine.x, truth, [0.5])

    rows = {"independent": judge(None), **{f"beta_{beta:g}": judge(beta) for beta in BETAS}}
    names = list(rows)
    figures = {}
    for name, row in rows.items():
        figures |= {f"{what}_{name}": row[i] for i, what in enumerate(("straightness", "mmd_4", "mmd_40"))}
    proof(
        figures=figures,
        thresholds={
            **{
                f"straightness_{later}": (None, figures[f"straightness_{earlier}"])
                for earlier, later in pairwise(names)
            },
            "mmd_4_beta_3": (None, figures["mmd_4_independent"]),
        },
        seed=0,
    )
