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

HS = (1.0, 1.5)


@pytest.mark.proof("constant-acceleration-flow-training")
def test_constant_acceleration_flow_training(proof: Callable[..., None]) -> None:
    """Students of 20,000 pairs of the exact flow of a ring, judged on 2,000 others by the coupling error (0 where pairs
    are kept, 1 for others of the same law): of the sample made from the noise ("made"), of the noise found for the
    sample ("found"), and of the sample made again from that ("back"). Rectified flow has 3,000 steps of training for
    its network, constant acceleration 1,500 for each of its two, and "wide" is rectified flow with as many weights as
    both; in one step ("rf", "wide"; one evaluation) and in two ("rf_2", "wide_2"; as many as constant acceleration
    takes).

    For the published h = 1.5 made and found in one step were to be below those of rectified flow; this was asserted
    before the first run. The sample's is, below the wider network's and below that of two steps too. That of the noise
    found is not, it is ten times larger, and worse than that of the first network alone ("found_first"): as published,
    the second is taught with velocities answered at t = 1, and in inversion is told one answered at t = 0. Taught with
    the answers at both ends, on twice the steps ("both"), the error of the noise falls to less than half, with no loss
    in the sample's, but not below that of rectified flow: the flow is steep between modes, and what the first network
    misses there is in the velocity that the second trusts. To tell it the velocity of the noise that the first one
    finds is worse still, 0.03.

    The authors' code judges inversion by the sample made again, with the velocity of the inversion told a second time
    ("back_told"): by that its error is a fiftieth of rectified flow's. But that velocity is a second answer about the
    sample, beside the noise: rectified flow that keeps its own is back at the sample exactly, and with a velocity asked
    of the noise ("back") constant acceleration is the worse of the two here as well. The thresholds are what was found.
    """
    world = ring()
    teacher = world.denoiser(orn.Flow())
    pairs, held = (reflow_pairs(teacher, (n, 2), steps=30, seed=seed) for n, seed in ((20_000, 2), (2000, 99)))

    def fitted(
        model: orn.Denoiser, cond: dict[str, torch.Tensor], steps: int, x0: torch.Tensor = pairs.x0
    ) -> orn.Denoiser:
        options = {"steps": steps, "batch_size": 256, "lr": 2e-3, "ema": 0.99, "seed": 0, "progress": False}
        orn.fit(model, x0, cond=cond, objective=Coupled(), **options)
        return model

    def net(width: int, **conditions: int) -> orn.nets.MLP:
        torch.manual_seed(0)
        return orn.nets.MLP(features=2, width=width, depth=3, conditions=conditions or None)

    figures: dict[str, float] = {}

    def judge(name: str, made: torch.Tensor, found: torch.Tensor, back: torch.Tensor) -> None:
        figures[f"made_{name}"] = coupling_error(made, held.x0)
        figures[f"found_{name}"] = coupling_error(found, held.noise)
        figures[f"back_{name}"] = coupling_error(back, held.x0)

    def jumps(flow: ConstantAccelerationFlow, name: str) -> None:
        """Judge a flow map, the way back once with the velocity of the inversion and once with one of its own."""
        with torch.no_grad():
            found = flow(held.x0, 0.0, 1.0)
            judge(name, flow(held.noise, 1.0, 0.0), found, flow(found, 1.0, 0.0))
        told = {"velocity": initial_velocity(flow.first, held.x0, 0.0)}
        grid = torch.tensor([1.0, 0.0])
        back = orn.sample(flow.second, x_init=found, cond=told, solver=orn.DDIM(), grid=grid).x
        figures[f"back_told_{name}"] = coupling_error(back, held.x0)

    for name, width in (("rf", 64), ("wide", 92)):
        model = fitted(orn.Denoiser(net(width), orn.Flow(), "velocity"), pairs.cond, 3000)
        figures[f"parameters_{name}"] = sum(p.numel() for p in model.parameters())
        for steps, label in ((1, name), (2, f"{name}_2")):
            grid = torch.linspace(1, 0, steps + 1)

            def euler(x: torch.Tensor, grid: torch.Tensor, model: orn.Denoiser = model) -> torch.Tensor:
                return orn.sample(model, x_init=x, solver=orn.Euler(), grid=grid).x

            found = euler(held.x0, grid.flip(0))
            judge(label, euler(held.noise, grid), found, euler(found, grid))
    for h in HS:
        first = fitted(orn.Denoiser(net(64), ConstantAcceleration(h), "v"), pairs.cond, 1500)
        cond = {**pairs.cond, "velocity": initial_velocity(first, pairs.noise)}
        second = fitted(orn.Denoiser(net(64, velocity=2), GivenVelocity(), "v"), cond, 1500)
        flow = ConstantAccelerationFlow(first, second)
        figures[f"parameters_caf_{h:g}"] = sum(p.numel() for p in flow.parameters())
        jumps(flow, f"caf_{h:g}")
        alone = held.noise + initial_velocity(first, held.noise) / h
        found = held.x0 - initial_velocity(first, held.x0, 0.0) / h
        judge(f"first_{h:g}", alone, found, found + initial_velocity(first, found) / h)
    ends = [cond["velocity"], initial_velocity(first, pairs.x0, 0.0)]
    twice = {"noise": pairs.noise.repeat(2, 1), "velocity": torch.cat(ends)}
    second = fitted(orn.Denoiser(net(64, velocity=2), GivenVelocity(), "v"), twice, 3000, pairs.x0.repeat(2, 1))
    jumps(ConstantAccelerationFlow(first, second), f"both_{HS[-1]:g}")
    proof(
        figures=figures,
        thresholds={
            "made_caf_1.5": (None, min(figures[f"made_{name}"] for name in ("rf", "rf_2", "wide", "wide_2"))),
            "made_both_1.5": (None, min(figures[f"made_{name}"] for name in ("rf", "rf_2", "wide", "wide_2"))),
            "found_caf_1.5": (max(figures["found_rf"], figures["found_first_1.5"]), None),
            "found_both_1.5": (figures["found_rf"], figures["found_caf_1.5"] / 2),
            "back_told_caf_1.5": (None, figures["back_rf"] / 10),
            "back_caf_1.5": (figures["back_rf"], None),
            "back_both_1.5": (figures["back_rf"], None),
        },
        seed=0,
    )
