"""CDDB on digits: trained bridges from blurred and from shrunken digits, with and without the measurement."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import ornstein as orn
from ornstein import linops
from ornstein.inverse import CDDB, DirectBridge, restore
from ornstein.metrics import frechet_distance
from ornstein.processes import I2SB

STD, EVENT = 0.02, (1, 8, 8)
TASKS = {"blur": linops.Blur.gaussian(1.0, EVENT), "shrunken": linops.Downsample(2, EVENT)}


def features(x: Tensor, label: Tensor) -> Callable[[Tensor], Tensor]:
    """The last layer but one, of 32, of a classifier of noisy digits."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 32), nn.SiLU())
    whole = nn.Sequential(body, nn.Linear(32, 10))
    optimizer = torch.optim.Adam(whole.parameters(), 2e-3)
    for _ in range(1500):
        rows = torch.randint(len(x), (128,))
        noisy = x[rows] + 0.05 * torch.randn(128, *EVENT)
        loss = nn.functional.cross_entropy(whole(noisy), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return lambda z: body(z).detach()


@pytest.mark.proof("cddb-training")
def test_cddb_training(proof: Callable[..., None]) -> None:
    """1,400 digits to train on, 397 held out; Gaussian blur, and means of 2 by 2 pixels lifted by A^+, noise 0.02; an
    I2SB bridge for each, sampled in 5 and 20 evaluations by the bridge itself, by CDDB, and by CDDB through the network
    (twice the evaluations). psnr: mean over images; gain: of PSNR over the bridge, image by image, in standard errors.
    feature: mean squared distance of the features of restored and true digits, frechet: the Fréchet distance of the
    two sets of features. residual: rms of y - A x. What must come out, as published: CDDB is better in all of them.
    """
    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data / 16, dtype=torch.float32).reshape(-1, *EVENT)[order]
    label = torch.tensor(data.target)[order]
    train, truth = x[:1400], x[1400:]
    see = features(train, label[:1400])
    figures: dict[str, float] = {}
    thresholds: dict[str, tuple[float | None, float | None]] = {}

    for task, operator in TASKS.items():
        rng = torch.Generator().manual_seed(3)

        def measure(x: Tensor, operator: linops.LinearOperator = operator, rng: torch.Generator = rng) -> Tensor:
            y = operator(x)
            return y + STD * torch.randn(y.shape, generator=rng)

        def lift(y: Tensor, operator: linops.LinearOperator = operator) -> Tensor:
            return operator.pinv(y) if operator.measured != operator.event else y

        given, seen = measure(train), measure(truth)
        torch.manual_seed(0)
        net = orn.nets.MLP(EVENT, width=256, depth=3, conditions={"end": 0})  # sees the state alone, as I2SB's does
        model = orn.Denoiser(net, I2SB(beta_min=0.01, beta_max=0.0187), "x0")
        options = {"steps": 2000, "batch_size": 256, "lr": 1e-3, "seed": 0, "progress": False}
        orn.fit(model, train, cond={"end": lift(given)}, **options)

        for steps in (5, 20):
            cond = {"end": lift(seen)}
            grid = {"grid": orn.Uniform(), "steps": steps}
            found = {"bridge": orn.sample(model, truth.shape, solver=DirectBridge(), cond=cond, seed=0, **grid).x}
            for name, method in (("cddb", CDDB()), ("deep", CDDB(deep=True))):
                out = restore(model, operator, seen, method=method, noise=STD, cond=cond, steps=steps, seed=0)
                found[name] = out.samples[:, 0]
            psnr = {name: -10 * (z - truth).square().flatten(1).mean(1).log10() for name, z in found.items()}
            for name, z in found.items():
                key = f"{task}_{name}_{steps}"
                figures[f"psnr_{key}"] = float(psnr[name].mean())
                figures[f"feature_{key}"] = float((see(z) - see(truth)).square().sum(1).mean())
                figures[f"frechet_{key}"] = float(frechet_distance(z, truth, see))
                figures[f"residual_{key}"] = float((seen - operator(z)).square().mean().sqrt())
                if name != "bridge":
                    gain = psnr[name] - psnr["bridge"]
                    figures[f"gain_{key}"] = float(gain.mean() / (gain.std() / math.sqrt(len(gain))))
                    thresholds[f"gain_{key}"] = (5.0, None)
                    for what in ("feature", "frechet", "residual"):
                        thresholds[f"{what}_{key}"] = (None, figures[f"{what}_{task}_bridge_{steps}"])
    proof(figures=figures, thresholds=thresholds, seed=0)
