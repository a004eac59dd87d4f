"""A start that serves every condition: x_T chosen once, used everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..numerics.tree import check_batch, tree_map
from ..random import Seed
from .sample import sample


@dataclass(frozen=True)
class Start:
    """The chosen x_T (*event) in model units, and the mean score of every candidate (K,) on the reference set."""

    x: Tensor
    scores: Tensor

    def expand(self, batch: int) -> Tensor:
        """x_init for a batch: the same start for every sample."""
        return self.x.expand(batch, *self.x.shape).contiguous()


def select_start(
    denoiser: BaseDenoiser,
    score: Callable[[Tensor], Tensor],
    event: Sequence[int],
    *,
    reference: Cond,
    candidates: int = 32,
    seed: Seed = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Start:
    """x_T = argmax over K draws z_k of the end law of mean_r score(sample from z_k under condition r).

    A deterministic sampler is a function of x_T and the condition. For restoration the good x_T hardly depend on the
    condition, so one that is good on a few references is good on others, and runs repeat without a seed:

        start = select_start(model, lambda x: psnr(x, clean), (1, 8, 8), reference=cond, steps=10)
        orn.sample(model, x_init=start.expand(n), cond=other, steps=10)

    Args:
        denoiser: a conditional denoiser.
        score: gets the samples (R, *event) in the user's units, in the order of `reference`; returns (R,), higher is
            better.
        event: the shape of one sample.
        reference: the conditions of the reference set, any nest of tensors (R, ...).
        candidates: K.
        options: for `sample`: solver, grid, steps. The solver must be deterministic.

    Source: Ma, Yang, Yang, Fu, Liu 2023, "Solving Diffusion ODEs with Optimal Boundary Conditions for Better
    Image Super-Resolution" (2305.15357).
    """
    sizes: list[int] = []
    tree_map(lambda leaf: sizes.append(len(leaf)), reference)
    if not sizes:
        raise ValueError("reference holds no tensor: give the conditions of the reference set")
    size = sizes[0]
    check_batch(reference, size)
    if candidates < 1:
        raise ValueError(f"candidates={candidates}: at least one")
    first = next(iter(denoiser.parameters()), None)
    dtype = dtype or (torch.get_default_dtype() if first is None else first.dtype)
    device = device or ("cpu" if first is None else first.device)
    starts = denoiser.process.prior((candidates, *event), seed=seed, dtype=dtype, device=device)
    scores = []
    for z in starts:
        out = sample(
            denoiser, x_init=z.expand(size, *event).contiguous(), cond=reference, seed=0, progress=False, **options
        )
        assert out.table is not None
        tables = out.table.components
        if any(table.noises for table in tables):
            raise ValueError(
                f"{out.table.solver} draws noise: a start decides the sample only for a deterministic solver"
            )
        quality = score(out.x)
        if quality.shape != (size,):
            raise ValueError(f"score must return one number a sample, ({size},): got {tuple(quality.shape)}")
        scores.append(quality.mean())
    mean = torch.stack(scores)
    return Start(starts[int(mean.argmax())], mean)
