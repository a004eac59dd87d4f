"""Exposure bias: how far the states of a sampler drift from those that the network was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import GaussianProcess
from ..random import derive
from ..solvers import Moment, sample


@dataclass(frozen=True)
class ExposureBias:
    """One value for each level at which the sampler evaluated, first to last, in float64.

    t: times. std_training, std_sampling: standard deviation of the states, root mean square over the event.
    noise_training, noise_sampling: root mean square of the predicted noise. variance_error: their difference of
    standard deviations squared.
    """

    t: Tensor
    std_training: Tensor
    std_sampling: Tensor
    noise_training: Tensor
    noise_sampling: Tensor

    @property
    def variance_error(self) -> Tensor:
        """delta_t = (std_sampling - std_training)^2."""
        return (self.std_sampling - self.std_training) ** 2

    @property
    def noise_gap(self) -> Tensor:
        """noise_sampling / noise_training - 1: above 0 where the sampler's states are too noisy."""
        return self.noise_sampling / self.noise_training - 1


def exposure_bias(
    denoiser: BaseDenoiser, data: Tensor, *, cond: Cond = None, seed: int = 0, **options: Any
) -> ExposureBias:
    """Compare a sampler's states with noised data of the same levels.

        delta_t = (std of x_t along sampling - std of alpha x0 + sigma noise)^2

    at the points of the grid, and the root mean square of the noise that the network predicts at both.

    Args:
        denoiser: as in `sample`.
        data: (n, *event), n >= 2, in the user's units; n samples are drawn.
        options: for `sample`: solver, grid, steps.

    Source: Ning et al. 2023 (2308.15321): the variance error and the norms of the predicted noise.
    """
    process = denoiser.process
    if not isinstance(process, GaussianProcess):
        raise ValueError(f"exposure_bias is for one GaussianProcess: got {process!r}")
    if len(data) < 2:
        raise ValueError(f"a standard deviation needs at least 2 samples: got {len(data)}")
    x0 = data if denoiser.scaling is None else denoiser.scaling.encode(data)
    start = process.prior(x0.shape, seed=derive(seed, "start"), cond=cond, dtype=x0.dtype, device=x0.device)
    states: list[tuple[Any, Tensor]] = []

    def keep(moment: Moment) -> None:
        if moment.on_grid:
            states.append((moment.level, moment.x))

    out = sample(denoiser, x_init=start, cond=cond, seed=derive(seed, "path"), hooks=[keep], progress=False, **options)
    assert out.table is not None
    (table,) = out.table.components
    columns: list[list[Tensor]] = []
    with torch.no_grad():
        for i, (level, own) in enumerate([(table.start, start), *states]):
            if bool((level.sigma == 0).any()):
                continue
            true = process.corrupt(x0, level, cond=cond, seed=derive(seed, "forward", i)).x
            both = (true, own)
            noise = [denoiser(x, level, cond).noise.double().square().mean().sqrt() for x in both]
            shift = process.shift(level.t, cond)
            centred = [x if shift is None else x - shift for x in both]
            columns.append([level.t.mean(), *(x.double().var(0).mean().sqrt() for x in centred), *noise])
    return ExposureBias(*(torch.stack([value.cpu() for value in column]) for column in zip(*columns, strict=True)))
