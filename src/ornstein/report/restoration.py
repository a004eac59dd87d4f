"""Restoration as generation: damaged digits, a mean-reverting process, and solvers on a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ornstein.data import Split
from ornstein.denoiser import Denoiser, EDMPrecondition, Scaling
from ornstein.nets import MLP
from ornstein.processes import MeanReverting
from ornstein.random import derive, generator
from ornstein.report.run import SOLVERS, Run
from ornstein.solvers import Grid, LogSNR, Uniform, sample
from ornstein.training import LogNormalSigma, Objective, fit

FAST = ("ddim", "dpmpp", "dpmpp3")
REFERENCE = "Euler, 100 steps"


@dataclass(frozen=True)
class Restoration:
    """truth, damaged, restored (n, 1, height, width) in the data's units; a row (solver, nfe, psnr, distance) a run.

    psnr is in dB against the truth; distance is the root mean square difference to the reference run, same noise.
    """

    truth: Tensor
    damaged: Tensor
    restored: dict[str, Tensor]
    rows: list[dict[str, Any]]
    damaged_psnr: float


def damage(x: Tensor, seed: int, size: int = 3, noise: float = 0.05) -> Tensor:
    """x with a square of size x size pixels erased, at a place of its own in each image, and noise on the rest."""
    rng = generator(seed)
    n, _, height, width = x.shape
    top = torch.randint(1, height - size, (n, 1, 1, 1), generator=rng)
    left = torch.randint(1, width - size, (n, 1, 1, 1), generator=rng)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return torch.where(inside, torch.zeros_like(x), x + noise * torch.randn(x.shape, generator=rng)).clamp(0, 1)


def psnr(x: Tensor, truth: Tensor) -> float:
    """10 log10(1 / mean squared error) in dB, for values in [0, 1]."""
    return -10 * math.log10(float((x - truth).square().mean()))


def restore(
    run: Run, split: Split, *, steps: int, budgets: tuple[int, ...], progress: bool | None = None
) -> Restoration:
    """Train on pairs of digits and damaged digits, and restore held-out ones by several solvers and budgets."""
    (train, _), (held_out, _) = split.train.rows(), split.held_out.rows()
    seed, scaling = run.config.seed, Scaling.of(train)
    spoilt = torch.cat([damage(train, derive(seed, "damage", k)) for k in range(8)])
    clean = train.repeat(8, 1, 1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MLP(
            split.event,
            width=run.config.net.width or 256,
            depth=run.config.net.depth or 3,
            conditions={"mean": split.event},
        )
    model = Denoiser(net, MeanReverting(), precondition=EDMPrecondition(1.0), scaling=scaling)
    fit(
        model,
        clean,
        cond={"mean": scaling.encode(spoilt)},
        steps=steps,
        batch_size=run.config.batch_size,
        lr=run.config.lr,
        seed=seed,
        ema=run.config.ema,
        objective=Objective(LogNormalSigma(-0.5, 1.2)),
        checkpoint=run.place("restoration.safetensors"),
        every=max(steps // 5, 1),
        progress=progress,
    )
    truth = held_out[:256]
    damaged = damage(truth, derive(seed, "damage", "held-out"))

    def run_solver(solver: str, count: int, grid: Grid) -> tuple[Tensor, int]:
        cond = {"mean": scaling.encode(damaged)}
        out = sample(
            model,
            tuple(truth.shape),
            cond=cond,
            solver=SOLVERS[solver],
            nfe=count,
            grid=grid,
            seed=seed,
            progress=False,
        )
        return out.x.clamp(0, 1), out.nfe

    reference, nfe = run_solver("euler", 100, Uniform())
    rows = [{"solver": REFERENCE, "nfe": nfe, "psnr": psnr(reference, truth), "distance": 0.0}]
    restored = {REFERENCE: reference}
    for solver, grid in [("euler", Uniform()), *((name, LogSNR()) for name in FAST)]:
        for budget in budgets:
            x, nfe = run_solver(solver, budget, grid)
            distance = float((x - reference).square().mean().sqrt())
            rows.append({"solver": solver, "nfe": nfe, "psnr": psnr(x, truth), "distance": distance})
            restored[f"{solver}, {nfe}"] = x
    return Restoration(truth, damaged, restored, rows, psnr(damaged, truth))
