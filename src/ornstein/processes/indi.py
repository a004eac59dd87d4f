"""Inversion by direct iteration: a straight path from the data to its damaged version."""

from __future__ import annotations

import math

from .residual import Powers, Residual


def indi(noise_level: float = 0.01, *, brownian: bool = False, mean: str = "end") -> Residual:
    """x_t = (1 - t) x0 + t y + t eps_t noise,    y = cond[mean]: `Residual` with the schedule of InDI.

    eps_t = noise_level, a path to the end y + noise_level noise; or, `brownian`, eps_t = noise_level/sqrt(t), a
    Brownian bridge to the same end. Both start from N(y, noise_level^2 I), their exact end law, and the sampler of both
    is `inverse.DirectBridge`, which draws noise for the second only. Without noise the path is that of `TwoSided`. From
    y = E[x0 | a measurement] the first is the rectified flow of `inverse.PMRF`.

    Source: Delbracio, Milanfar 2023, "Inversion by Direct Iteration: An Alternative to Denoising Diffusion for Image
    Restoration" (2303.11435).
    """
    if not 0 < noise_level < math.inf:
        raise ValueError(f"noise_level={noise_level}: positive and finite; without noise it is the path of TwoSided()")
    return Residual(Powers(residual=1.0, noise=0.5 if brownian else 1.0, noise_level=noise_level), mean=mean)
