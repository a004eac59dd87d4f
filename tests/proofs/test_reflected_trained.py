"""Reflected diffusion, trained: the likelihood in a box, and guidance, against diffusion without walls."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import ornstein as orn
from ornstein.density import log_likelihood
from ornstein.exact import FoldedMixture
from ornstein.processes import Reflected


@pytest.mark.proof("reflected")
def test_reflected_trained(proof: Callable[..., None]) -> None:
    """One network and training on data that reach the walls. In the box: the likelihood of held-out points lies within
    a tenth of a nat of the world's own entropy, and no sample is outside, guided at scale 5 or not. Without walls (VE
    on the line): part of the model's mass lies outside, and guided it is much more. Published: thresholding repairs
    what reflection never breaks.
    """
    world = FoldedMixture(
        torch.tensor([[0.15, 0.95], [0.8, 0.1], [0.5, 0.5]], dtype=torch.float64), torch.tensor([0.15, 0.1, 3.0])
    )
    (x, y), held = world.sample(20_000, seed=0), world.sample(200, seed=1)[0]
    figures = {"entropy": -float(world.log_prob(held.double()).mean())}
    for name, process in (("box", Reflected()), ("line", orn.VE(0.01, 10.0))):
        torch.manual_seed(0)
        net = orn.nets.MLP(2, width=96, depth=2, labels=3)
        predicts = "score" if name == "box" else "noise"
        model = orn.Denoiser(net, process, predicts=predicts, null={"label": orn.nets.NULL})
        options = {"steps": 2_000, "batch_size": 256, "lr": 2e-3, "seed": 0, "progress": False}
        orn.fit(model, x, cond={"label": y}, drop={"label": 0.2}, **options)
        for kind, denoiser in (("plain", model), ("guided", orn.CFG(model, 5.0))):
            cond = {"label": world.sample(1_000, seed=2)[1]}
            grid = orn.Uniform(end=0.0 if name == "box" else 1e-3)
            made = orn.sample(
                denoiser, (1_000, 2), solver=orn.EulerMaruyama(), grid=grid, steps=100, cond=cond, seed=3
            ).x
            figures[f"{name}_{kind}_outside"] = float(((made < 0) | (made > 1)).any(1).double().mean())
        if name == "box":
            none = {"label": torch.full((200,), orn.nets.NULL)}
            found = log_likelihood(model, held, cond=none, start=1e-3, rtol=1e-3, atol=1e-3)
            gap = -found.log_prob - -world.log_prob(held.double())
            figures["gap"], figures["gap_error"] = float(gap.mean()), float(gap.std()) / math.sqrt(len(gap))
    proof(
        figures=figures,
        thresholds={
            "gap": (-3 * figures["gap_error"], 0.1),
            "box_plain_outside": (0.0, 0.0),
            "box_guided_outside": (0.0, 0.0),
            "line_plain_outside": (0.01, None),
            "line_guided_outside": (0.05, None),
        },
        seed=0,
    )
