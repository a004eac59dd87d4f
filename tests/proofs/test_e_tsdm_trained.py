"""E-TSDM, trained: what a shared timestep does to the network's ratio in time and to samples in few steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ornstein as orn
from ornstein.density import time_lipschitz
from ornstein.training import SharedTimestep
from worlds import ring

WORLD, PROCESS = ring(0.15), orn.VP()


def squared_mmd(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased MMD^2 with a Gaussian kernel of width 0.5, written out so that the judge is independent."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp(-(torch.cdist(a, b) ** 2) / (2 * 0.5**2))

    n, m = len(x), len(y)
    within = (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1))
    return float(within - 2 * kernel(x, y).mean())


@pytest.mark.proof("e-tsdm")
def test_e_tsdm_trained(proof: Callable[..., None]) -> None:
    """Three networks of each kind. The ratio in time is that on what the network is told; samples are judged by MMD^2
    to the world, with no threshold: whether sharing helps is what is measured.
    """
    seeds, figures = (0, 1, 2), {}
    train, truth = WORLD.sample(20_000, seed=1).float(), WORLD.sample(4_000, seed=2).float()
    near = 0.001 * torch.arange(1, 21, dtype=torch.float64)
    clocks = {"plain": None, "shared": SharedTimestep()}
    rows: dict[str, list[float]] = {}
    for name, clock in clocks.items():
        for seed in seeds:
            torch.manual_seed(seed)
            net = orn.nets.MLP(2, width=128, depth=3)
            model = orn.Denoiser(net, PROCESS, predicts="noise", timestep=clock)
            orn.fit(model, train, steps=2_500, batch_size=512, lr=2e-3, seed=seed, progress=False)
            rows.setdefault(f"{name}_ratio", []).append(
                float(time_lipschitz(model, train[:500], near, clock=clock, seed=3).max())
            )
            level = PROCESS.level((torch.arange(4_000).double() + 0.5) / 40_000)
            x = PROCESS.corrupt(truth, level, seed=4).x
            with torch.no_grad():
                error = model(x, level).noise - WORLD.denoiser(PROCESS)(x, level).noise
            rows.setdefault(f"{name}_noise_error", []).append(float(error.square().mean()))
            for solver in (orn.DDIM(), orn.DPMSolver(order=2)):
                for nfe in (10, 20):
                    # uniform timesteps, as the paper samples; from the last one a step to data
                    out = orn.sample(model, (4_000, 2), solver=solver, grid=orn.Uniform(), nfe=nfe, seed=5)
                    key = f"{name}_{type(solver).__name__.lower()}_{nfe}"
                    rows.setdefault(key, []).append(squared_mmd(out.x, truth))
    for key, values in rows.items():
        figures[key] = sum(values) / len(values)
        figures[f"{key}_spread"] = max(values) - min(values)
    proof(figures=figures, thresholds={"shared_ratio": (None, figures["plain_ratio"])}, seed=seeds)
