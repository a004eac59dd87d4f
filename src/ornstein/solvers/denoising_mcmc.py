"""Denoising MCMC: a chain over states and noise levels, whose states are then denoised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..numerics.tree import check_batch, tree_map
from ..processes import GaussianProcess, Level
from ..random import Seed, as_noise, derive, fresh_seed
from .sample import Samples, evaluation, sample
from .solver import Solver

LogPosterior = Callable[[Tensor], Tensor]
"""log p(level | x) up to a constant of each sample, (batch, L) for states (batch, *event): a classifier's logits."""


@dataclass(frozen=True)
class Chain:
    """States of `langevin_gibbs`: x (kept, batch, *event) and index (kept, batch), the level of each in `levels`.

    nfe: evaluations of the denoiser for each of the batch's chains; those of the log-posterior are not counted.
    """

    x: Tensor
    index: Tensor
    levels: Level
    nfe: int


def langevin_gibbs(
    denoiser: BaseDenoiser,
    log_posterior: LogPosterior,
    levels: Level | Tensor | Sequence[float],
    x_init: Tensor,
    *,
    keep: int,
    every: int = 1,
    burn: int = 0,
    step: float = 0.1,
    cond: Cond = None,
    seed: Seed = None,
) -> Chain:
    """The chain on (x, level) with the law p(level) p_level(x), moving in turns by

        x <- x + h score(x, level) + sqrt(2h) z,  h = step sigma^2,        level ~ p(level | x)

    Large noise carries the chain between modes, small noise is near the data. p(level) is whatever prior the
    log-posterior was made with, p(level | x) proportional to p(level) p_level(x); the first level is drawn from it.
    The chain is a Langevin one, without rejection: its law is off by order `step`.

    levels: L times or their levels, sigma > 0. x_init: (batch, *event), one state a chain. `burn` steps are
    forgotten, then every `every`-th of `keep * every` is kept.

    Source: Kim, Ye 2022, "Denoising MCMC for Accelerating Diffusion-Based Generative Models" (2209.14593).
    """
    process = denoiser.process
    if not isinstance(process, GaussianProcess):
        raise ValueError(f"denoising MCMC runs on a process of one component: got {process!r}")
    levels = process.level(levels)
    if levels.t.dim() != 1 or not bool((levels.sigma > 0).all()):
        raise ValueError(f"levels are (L,) with sigma > 0: got the times {levels.t.tolist()}")
    if keep < 1 or every < 1 or burn < 0 or not 0 < step < 1:
        raise ValueError(
            f"keep={keep}, every={every}, burn={burn}, step={step}: 1 or more, twice; 0 or more; in (0, 1)"
        )
    check_batch(cond, len(x_init))
    batch, wide = len(x_init), (-1, *(1,) * (x_init.dim() - 1))
    noise = as_noise(seed, batch=batch, dtype=x_init.dtype, device=x_init.device)
    # an accelerator keeps the times in its own precision; on the host they stay in float64
    times = levels.t if x_init.device.type == "cpu" else levels.t.to(x_init)
    sigma2 = (levels.sigma**2).to(x_init)

    def draw(x: Tensor) -> Tensor:
        """A level from p(level | x), by the first of L exponential clocks: no sum to round, no cumulative table."""
        logits = log_posterior(x)
        if logits.shape != (batch, len(levels)):
            raise ValueError(f"the log-posterior returned {tuple(logits.shape)}, expected {(batch, len(levels))}")
        clock = (noise.normal((batch, len(levels), 2)) ** 2).sum(-1) / 2
        return (clock.log() - logits.to(clock)).argmin(1)

    x, kept = x_init, list[tuple[Tensor, Tensor]]()
    with evaluation(denoiser), torch.no_grad():
        index = draw(x)
        for i in range(1, burn + keep * every + 1):
            h = step * sigma2[index].reshape(wide)
            x = x + h * denoiser(x, times[index], cond).score + torch.sqrt(2 * h) * noise.normal(x.shape)
            index = draw(x)
            if i > burn and (i - burn) % every == 0:
                kept.append((x, index))
    states, indices = zip(*kept, strict=True)
    nfe = (burn + keep * every) * max(denoiser.cost(levels))
    return Chain(torch.stack(states), torch.stack(indices).cpu(), levels, nfe)


def denoising_mcmc(
    denoiser: BaseDenoiser,
    log_posterior: LogPosterior,
    levels: Level | Tensor | Sequence[float],
    x_init: Tensor,
    *,
    solver: Solver,
    steps: int,
    seed: Seed = None,
    cond: Cond = None,
    rho: float = 3.0,
    **chain: Any,
) -> Samples:
    """Every state that `langevin_gibbs` keeps, carried to data from its own level by a few steps of a solver.

        s_j = s (1 - j/steps)^rho,   s = sigma/alpha of the state's level

    x: (keep * batch, *event), the states of one chain `batch` apart. nfe: those of a sample, its share of the chain
    rounded up. chain: the options of `langevin_gibbs`.

    Source: Kim, Ye 2022 (2209.14593).
    """
    seed = fresh_seed() if seed is None else seed
    if not isinstance(seed, (int, torch.Generator)):
        raise ValueError("denoising MCMC takes one seed, an int or a generator: a chain gives many samples")
    later = derive(seed, "denoising") if isinstance(seed, int) else seed
    run = langevin_gibbs(denoiser, log_posterior, levels, x_init, cond=cond, seed=seed, **chain)
    process: Any = denoiser.process
    log_snr = run.levels.log_snr[run.index.reshape(-1)]
    ramp = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps
    times = process.time(log_snr - 2 * rho * ramp.log()[:, None])
    times[0], times[-1] = run.levels.t[run.index.reshape(-1)], 0.0
    keep = len(run.x)
    repeated = tree_map(lambda leaf: leaf.repeat(keep, *(1,) * (leaf.dim() - 1)), cond)
    states = run.x.reshape(-1, *x_init.shape[1:])
    out = sample(denoiser, x_init=states, solver=solver, grid=process.level(times), cond=repeated, seed=later)
    return Samples(out.x, out.nfe - (-run.nfe // keep), seed, out.table)
