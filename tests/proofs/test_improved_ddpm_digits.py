"""Improved DDPM on digits: code length and few-step samples by learned variances; quieter gradients of the bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import ornstein as orn
from ornstein.density import Quantised, variational_bound
from ornstein.metrics import frechet_distance
from ornstein.training import VLB, HybridLoss, LossSecondMoment

VALUES = Quantised(0.0, 1.0, 17)


def data() -> tuple[Tensor, Tensor]:
    x = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1400]], x[order[1400:]]


def noise_of_gradients(model: orn.Denoiser, x: Tensor, law: orn.training.TimeLaw, batches: int = 60) -> float:
    """E |g - mean g|^2 over batches of 32, g the gradient of L_vlb at these weights."""
    objective, slopes = VLB(time=law, steps=200, values=VALUES), []
    rows = torch.Generator().manual_seed(5)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for batch in range(batches):
        index = torch.randint(len(x), (32,), generator=rows)
        loss = objective(model, x[index], seed=batch)
        slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return float(torch.stack(slopes).var(0).sum())


@pytest.mark.proof("improved-ddpm")
def test_improved_ddpm_digits(proof: Callable[..., None]) -> None:
    """Held-out digits of 17 values, at 10, 25 and 100 steps of one network: fewer bits with its own variances than with
    the better of the two fixed ones; and the gradient of L_vlb has less noise where steps are drawn by their losses.
    """
    seed = 0
    train, held_out = data()
    process = orn.Cosine(offset=0.008)
    torch.manual_seed(seed)
    net = orn.nets.MLP(64, width=256, depth=4, outputs=("main", "variance"))
    model = orn.Denoiser(net, process, predicts="v", scaling=orn.Scaling(0.5, 0.5))
    objective = HybridLoss(steps=1000, values=VALUES)
    orn.fit(model, train, steps=3_000, batch_size=256, lr=1e-3, seed=seed, objective=objective, progress=False)
    figures: dict[str, float] = {}
    for steps in (10, 25, 100):
        for variance in ("learned", "posterior", "forward"):
            bound = variational_bound(model, held_out, steps=steps, variance=variance, values=VALUES, seed=1)
            figures[f"bits_{variance}_{steps}"] = float(bound.bits_per_dim.mean())
        fixed = min(figures[f"bits_posterior_{steps}"], figures[f"bits_forward_{steps}"])
        figures[f"bits_saved_{steps}"] = fixed - figures[f"bits_learned_{steps}"]
    for variance in ("learned", "posterior", "forward"):
        out = orn.sample(model, (1000, 64), solver=orn.DDPM(variance), grid=orn.Uniform(), steps=10, seed=2)
        figures[f"frechet_{variance}_10"] = float(frechet_distance(out.x, held_out))
    figures["frechet_train"] = float(frechet_distance(train, held_out))
    encoded = 2 * train - 1
    law = LossSecondMoment(bins=200)
    told = VLB(time=law, steps=200, values=VALUES)
    for batch in range(20):
        told(model, encoded, seed=1000 + batch)
    figures["gradient_noise_over_uniform"] = noise_of_gradients(model, encoded, law) / noise_of_gradients(
        model, encoded, orn.training.UniformTime()
    )
    proof(
        figures=figures,
        thresholds={
            "bits_saved_10": (0.0, None),
            "bits_saved_25": (0.0, None),
            "bits_saved_100": (0.0, None),
            "gradient_noise_over_uniform": (None, 1.0),
        },
        seed=seed,
    )
