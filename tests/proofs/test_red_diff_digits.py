"""RED-diff and DAPS restore digits: inpainting beside DPS, with an exact prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

import ornstein as orn
from ornstein import linops
from ornstein.inverse import DPS, REDDiff, restore

STEPS = 200


@pytest.mark.proof("red-diff-digits")
def test_red_diff_restores_digits(proof: Callable[..., None]) -> None:
    """The middle half of 24 held-out digits in [-1, 1], hidden, by a prior of deviation 0.25 about 800 others.

    psnr_<method>: the mean peak signal-to-noise ratio in dB. RED-diff at one setting is above DPS at the best of three,
    with half its passes, by more than 0.5 dB. plain: without the weight by the signal-to-noise ratio; spread: levels in
    mixed order, which does not anneal; low, high: other weights.
    """
    images = torch.tensor(load_digits().images / 8 - 1, dtype=torch.float32)[:, None]
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    model, truth = orn.exact.GaussianMixture(images[:800], 0.25).denoiser(orn.VP()), images[-24:]
    mask = torch.ones(1, 8, 8)
    mask[:, 2:6, 2:6] = 0
    operator = linops.Mask(mask)

    def psnr(method: Any) -> float:
        out = restore(model, operator, operator(truth), method=method, steps=STEPS, seed=3)
        error = (out.samples[:, 0] - truth).flatten(1).square().mean(1)
        return float((10 * torch.log10(4 / error)).mean())

    methods = {
        "red": REDDiff(lr=0.03),
        "plain": REDDiff(lr=0.03, power=0.0),
        "spread": REDDiff(lr=0.03, order="spread"),
        "low": REDDiff(0.05, lr=0.03),
        "high": REDDiff(1.0, lr=0.03),
        **{f"dps_{zeta}": DPS(zeta) for zeta in (0.3, 0.5, 1.0)},
    }
    figures = {f"psnr_{name}": psnr(method) for name, method in methods.items()}
    best = max(value for name, value in figures.items() if "dps" in name)
    proof(figures=figures, thresholds={"psnr_red": (best + 0.5, None)}, seed=3)
