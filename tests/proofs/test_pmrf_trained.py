"""PMRF by two fits: digits of a known law from blocks of their pixels, beside the exact posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import ornstein as orn
from ornstein import linops
from ornstein.inverse import PMRF, restore
from ornstein.metrics import frechet_distance
from ornstein.processes import indi
from ornstein.training import LogitNormal, Objective
from worlds import F64

STD, HELD = 0.1, 500


def digits() -> orn.exact.GaussianMixture:
    """A Gaussian for each class of the digits, 8 by 8."""
    data = load_digits()
    x, label = torch.from_numpy(data.data).to(F64) / 16, torch.from_numpy(data.target)
    parts = [x[label == k] for k in range(10)]
    return orn.exact.GaussianMixture(
        torch.stack([part.mean(0) for part in parts]),
        covs=torch.stack([torch.cov(part.T) + 0.03**2 * torch.eye(64, dtype=F64) for part in parts]),
        weights=torch.tensor([float(len(part)) for part in parts]),
    )


@pytest.mark.proof("pmrf-training")
def test_pmrf_training(proof: Callable[..., None]) -> None:
    """Means of 2 by 2 pixels with noise of 0.1, 20,000 pairs, 500 held out. error: squared, of an image; frechet: of
    the pixels to 5,000 others of the law. Stage 1 is a bridge from the lifted measurement, trained at its end alone,
    where its x0 is E[x0 | y]; stage 2 the flow from there. What must come out: the error of PMRF lies below that of
    exact samples of the posterior, 2 MMSE; its Fréchet distance within a factor 2 of that of the held-out data
    themselves, where that of the posterior mean, the best in error, is far above.
    """
    world = digits()
    block = torch.kron(torch.eye(4, dtype=F64), torch.full((1, 2), 0.5, dtype=F64))
    a = torch.kron(block, block)
    operator = linops.Matrix(a)

    def pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, rng = world.sample(n, seed=seed).to(F64), torch.Generator().manual_seed(seed + 1)
        return x.float(), (x @ a.T + STD * torch.randn(n, 16, generator=rng, dtype=F64)).float()

    (x, y), (truth, seen), (law, _) = pairs(20_000, 1), pairs(HELD, 5), pairs(5000, 77)
    posteriors = [world.posterior(row.double(), a, STD) for row in seen]
    options: dict[str, Any] = {"batch_size": 256, "lr": 1e-3, "seed": 0, "progress": False}

    def net() -> orn.nets.MLP:
        return orn.nets.MLP(64, width=192, depth=3, conditions={"end": 0})  # which it does not read

    torch.manual_seed(0)
    first = orn.Denoiser(net(), indi(0.01), "x0")
    end = Objective(time=LogitNormal(8.0, 0.1))  # t > 0.999
    orn.fit(first, x, cond={"end": operator.pinv(y)}, objective=end, steps=1000, **options)

    def mean(y: Tensor) -> Tensor:
        lifted = operator.pinv(y)
        answer: Tensor = first(lifted, 1.0, {"end": lifted}).x0
        return answer.detach()

    flow = orn.Denoiser(net(), indi(0.05), "velocity")
    orn.fit(flow, x, cond={"end": mean(y)}, steps=2000, **options)

    found = {
        "mean": mean(seen),
        "exact_mean": torch.stack([law.moments()[0] for law in posteriors]).float(),
        "posterior": torch.stack([law.sample(1, seed=i)[0] for i, law in enumerate(posteriors)]).float(),
        "truth": truth,
    }
    for steps in (5, 25):
        out = restore(flow, operator, seen, method=PMRF(mean), noise=STD, steps=steps, seed=0)
        assert out.nfe == steps + 1
        found[f"pmrf_{steps}"] = out.samples[:, 0]
    figures = {f"error_{name}": float((v - truth).square().sum(1).mean()) for name, v in found.items()}
    figures |= {f"frechet_{name}": float(frechet_distance(v, law)) for name, v in found.items()}
    proof(
        figures=figures,
        thresholds={
            "error_pmrf_25": (None, 0.9 * figures["error_posterior"]),
            "error_pmrf_5": (None, figures["error_pmrf_25"]),
            "frechet_pmrf_25": (None, 2 * figures["frechet_truth"]),
            "frechet_mean": (4 * figures["frechet_truth"], None),
        },
        seed=0,
    )
