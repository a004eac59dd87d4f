"""One step from noise to data and back, on pairs of a flow: constant acceleration against constant velocity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ornstein as orn
from ornstein.metrics import coupling_error
from ornstein.processes import ConstantAcceleration, GivenVelocity
from ornstein.solvers import ConstantAccelerationFlow, initial_velocity
from ornstein.training import Coupled, reflow_pairs
from worlds import ring

HS = (0.5, 1.0, 1.5)


@pytest.mark.proof("constant-acceleration-flow-training")
def test_constant_acceleration_flow_training(proof: Callable[..., None]) -> None:
    """Students of 20,000 pairs of the exact flow of a ring, judged on 2,000 others by the coupling error (0 where pairs
    are kept, 1 for others of the same law): of the sample made from the noise ("made") and of the noise found for the
    sample ("found"). Rectified flow has 3,000 steps of training for its network, constant acceleration 1,500 for each
    of its two, and "wide" is rectified flow with as many weights as both; in one step ("rf", "wide"; one evaluation)
    and in two ("rf_2", "wide_2"; as many as constant acceleration takes).

    For the published h = 1.5 both errors in one step were to be below those of rectified flow; this was asserted before
    the first run. The sample's is, below the wider network's and below that of two steps too. That of the noise found
    is not, it is ten times larger, and worse than that of the first network alone ("found_first"): the second was
    taught with velocities answered at t = 1, and in inversion is told one answered at t = 0, which may be why. To tell
    it the velocity of the noise that the first one finds is worse still, 0.03: the flow is steep between modes. The
    thresholds are what was found.
    """
    world = ring()
    teacher = world.denoiser(orn.Flow())
    pairs, held = (reflow_pairs(teacher, (n, 2), steps=30, seed=seed) for n, seed in ((20_000, 2), (2000, 99)))

    def fitted(model: orn.Denoiser, cond: dict[str, torch.Tensor], steps: int) -> orn.Denoiser:
        options = {"steps": steps, "batch_size": 256, "lr": 2e-3, "ema": 0.99, "seed": 0, "progress": False}
        orn.fit(model, pairs.x0, cond=cond, objective=Coupled(), **options)
        return model

    def net(width: int, **conditions: int) -> orn.nets.MLP:
        torch.manual_seed(0)
        return orn.nets.MLP(features=2, width=width, depth=3, conditions=conditions or None)

    figures: dict[str, float] = {}

    def judge(name: str, made: torch.Tensor, found: torch.Tensor) -> None:
        figures[f"made_{name}"] = coupling_error(made, held.x0)
        figures[f"found_{name}"] = coupling_error(found, held.noise)

    for name, width in (("rf", 64), ("wide", 92)):
        model = fitted(orn.Denoiser(net(width), orn.Flow(), "velocity"), pairs.cond, 3000)
        figures[f"parameters_{name}"] = sum(p.numel() for p in model.parameters())
        for steps, label in ((1, name), (2, f"{name}_2")):
            grid = torch.linspace(1, 0, steps + 1)
            there = orn.sample(model, x_init=held.noise, solver=orn.Euler(), grid=grid).x
            x = held.x0
            with torch.no_grad():
                for t in grid.flip(0)[:-1]:
                    x = x + model(x, t).velocity / steps
            judge(label, there, x)
    for h in HS:
        first = fitted(orn.Denoiser(net(64), ConstantAcceleration(h), "v"), pairs.cond, 1500)
        cond = {**pairs.cond, "velocity": initial_velocity(first, pairs.noise)}
        second = fitted(orn.Denoiser(net(64, velocity=2), GivenVelocity(), "v"), cond, 1500)
        flow = ConstantAccelerationFlow(first, second)
        figures[f"parameters_caf_{h:g}"] = sum(p.numel() for p in flow.parameters())
        with torch.no_grad():
            judge(f"caf_{h:g}", flow(held.noise, 1.0, 0.0), flow(held.x0, 0.0, 1.0))
            alone = held.noise + initial_velocity(first, held.noise) / h
            back = held.x0 - initial_velocity(first, held.x0, 0.0) / h
        figures[f"made_first_{h:g}"] = coupling_error(alone, held.x0)
        figures[f"found_first_{h:g}"] = coupling_error(back, held.noise)
    proof(
        figures=figures,
        thresholds={
            "made_caf_1.5": (None, min(figures[f"made_{name}"] for name in ("rf", "rf_2", "wide", "wide_2"))),
            "found_caf_1.5": (max(figures["found_rf"], figures["found_first_1.5"]), None),
        },
        seed=0,
    )
