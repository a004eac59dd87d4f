"""One reflow is enough to go straight, and what each of RF++'s changes adds."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

import ornstein as orn
from ornstein.guidance import ChangeOfProcess
from ornstein.training import Coupled, PseudoHuber, UniformTime, UShapedTime, reflow_pairs
from worlds import ring

SEEDS = (0, 1)
FLOW = orn.Flow()


@pytest.mark.proof("rectified-flow-pp-training")
def test_rectified_flow_pp_training(proof: Callable[..., None]) -> None:
    """Students of one diffusion model's pairs, equal steps, two seeds: one Euler step from the noise of held-out pairs.

    rms: the distance of that step's end to the end of the teacher's own path, root mean square: what a 1-step student
    is for, and free of the sampling noise of two-sample distances. Relative to the same student without the changes
    it is 1.00; a change that helps lies below. mmd: squared, kernel of width 0.5, against fresh samples of the truth,
    whose own standard error at 2,000 a side is about 1e-4. straightness: S of `orn.metrics.straightness`.

    "Near zero" means 1 % of what the path had before reflow: S of the teacher read as a flow, and its one-step MMD.
    """
    world, steps = ring(), 1500
    torch.manual_seed(0)
    teacher = orn.Denoiser(orn.nets.MLP(features=2, width=64, depth=3), orn.VP(), "v")
    orn.fit(teacher, world.sample(20_000, seed=1).float(), steps=3000, batch_size=256, lr=2e-3, seed=0, progress=False)
    pairs, held = (reflow_pairs(teacher, (n, 2), steps=30, seed=seed) for n, seed in ((20_000, 2), (2_000, 99)))
    truth = world.sample(2_000, seed=77)

    def judge(model: orn.BaseDenoiser) -> tuple[float, float, float]:
        one = orn.sample(model, x_init=held.noise, solver=orn.Euler(), grid=[1.0, 0.0]).x
        times = torch.linspace(1, 0, 31)
        path = orn.sample(model, x_init=held.noise, solver=orn.Heun(), grid=times, trajectory=True).trajectory
        rms = float((one - held.x0).square().sum(1).mean().sqrt())
        return rms, orn.metrics.mmd(one, truth, [0.5]), orn.metrics.straightness(path, times)

    def student(seed: int, u: bool, huber: bool, init: bool) -> tuple[float, float, float]:
        torch.manual_seed(seed)
        model: orn.BaseDenoiser = orn.Denoiser(orn.nets.MLP(features=2, width=64, depth=3), FLOW, "velocity")
        if init:
            model = ChangeOfProcess(copy.deepcopy(teacher), FLOW)
        law, penalty = (UShapedTime() if u else UniformTime()), (PseudoHuber() if huber else None)
        objective = Coupled(time=law, penalty=penalty)
        options = {"steps": steps, "batch_size": 256, "lr": 1e-3, "seed": seed, "progress": False}
        orn.fit(model, pairs.x0, cond=pairs.cond, objective=objective, **options)
        return judge(model)

    before = judge(ChangeOfProcess(teacher, FLOW))
    switches = {
        "plain": (False, False, False),
        "u": (True, False, False),
        "huber": (False, True, False),
        "init": (False, False, True),
        "u_init": (True, False, True),
        "all": (True, True, True),
    }
    rows = {
        key: torch.tensor([student(seed, *on) for seed in SEEDS], dtype=torch.float64).mean(0)
        for key, on in switches.items()
    }
    plain, best = rows["plain"], rows["u_init"]
    proof(
        figures={
            "rms_plain": float(plain[0]),
            **{f"rms_{key}_over_plain": float(row[0] / plain[0]) for key, row in rows.items() if key != "plain"},
            **{f"mmd_{key}": float(row[1]) for key, row in rows.items()},
            "mmd_before": before[1],
            "straightness_before": before[2],
            **{f"straightness_{key}": float(row[2]) for key, row in rows.items()},
        },
        thresholds={
            "straightness_before": (1.0, None),
            "straightness_plain": (None, before[2] / 100),
            "straightness_all": (None, before[2] / 100),
            "mmd_plain": (None, before[1] / 100),
            "rms_u_over_plain": (None, 1.0),
            "rms_init_over_plain": (None, 1.0),
            "rms_u_init_over_plain": (None, 1.0),
            "mmd_all": (None, before[1] / 100),
        },
        seed=SEEDS,
    )
    assert float(best[2]) < before[2] / 100
