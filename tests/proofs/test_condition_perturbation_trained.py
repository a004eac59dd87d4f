"""Condition perturbation in a trained network: entropy and W2 of a class-conditional model over data sets."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import ornstein as orn
from ornstein.training import ConditionPerturbation

WIDTH = 64
GAMMAS = (0.0, 0.1, 0.3, 1.0, 3.0)
SEEDS = (0, 1, 2, 3)


@pytest.mark.proof("condition-perturbation-training")
def test_condition_perturbation_training(proof: Callable[..., None]) -> None:
    """Two classes N(m_k, I) in four dimensions, 12 samples each, as in the theorem; a network, not a linear map.

    gamma is in units of the embedding's norm, sqrt(width): gamma = 1 perturbs a label by as much as it is. Per class
    the Gaussian W2 to the truth and the Gaussian entropy of 2,000 samples, means over classes and four data sets,
    as changes against gamma = 0 with their standard errors over the data sets.

    A negative: that W2 falls at gamma = 1 was asserted before the first run, and failed (+0.054, error 0.026, in W2^2
    of 0.88). The thresholds are what was found instead: entropy rises, and at no gamma does W2 fall by two errors.
    """
    process, n, d = orn.Flow(), 12, 4
    means = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    y, asked = torch.arange(2 * n) % 2, torch.arange(4000) % 2

    def judge(seed: int, gamma: float) -> tuple[float, float]:
        x = means[y] + torch.randn(2 * n, d, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        model = orn.Denoiser(orn.nets.MLP(d, labels=2, width=WIDTH, depth=2), process)
        objective = ConditionPerturbation(gamma=gamma * math.sqrt(WIDTH))
        options = {"steps": 400, "batch_size": 128, "lr": 1e-3, "ema": 0.98, "seed": seed, "progress": False}
        orn.fit(model, x, cond={"label": y}, objective=objective, **options)
        out = orn.sample(model, (4000, d), cond={"label": asked}, steps=12, seed=seed).x.double()
        rows = []
        for k in (0, 1):
            mine = out[asked == k]
            cov = torch.cov(mine.mT)
            far = orn.metrics.frechet_from_moments(mine.mean(0), cov, means[k].double(), torch.eye(d).double())
            rows.append((float(far), float(torch.logdet(cov)) / 2))
        return tuple(sum(column) / 2 for column in zip(*rows, strict=True))

    table = {gamma: torch.tensor([judge(seed, gamma) for seed in SEEDS]) for gamma in GAMMAS}
    figures = {"w2_squared_plain": float(table[0.0][:, 0].mean()), "entropy_plain": float(table[0.0][:, 1].mean())}
    for gamma in GAMMAS[1:]:
        change = table[gamma] - table[0.0]
        error = change.std(0) / math.sqrt(len(SEEDS))
        for i, what in enumerate(("w2_squared", "entropy")):
            figures |= {f"{what}_change_{gamma}": float(change[:, i].mean()), f"{what}_error_{gamma}": float(error[i])}
    proof(
        figures=figures,
        thresholds={
            "entropy_change_1.0": (0.0, None),
            **{f"w2_squared_change_{g}": (-2 * figures[f"w2_squared_error_{g}"], None) for g in GAMMAS[1:]},
        },
        seed=SEEDS,
    )
