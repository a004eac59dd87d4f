"""Methods whose samples of a measurement are a population: weighted on the way, resampled, equal at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..linops import GaussianNoise
from ..processes import Level
from ..random import derive, fresh_seed, generator
from ..solvers import ParticleFilter, Samples, resample
from ..solvers.loop import Moment
from .measurement import Measurement
from .method import Method


@dataclass(frozen=True)
class Population(Samples):
    """Samples of equal weight, in no order within a population, and what is known of the weights they had.

    ess: (populations,), the smallest effective sample size (sum w)^2/sum w^2 on the way: near 1 a population has been
    the copies of one particle. log_evidence: (populations,), an estimate of log p(y) in the model's units; its exp is
    unbiased. It is the normaliser of `ParticleFilter`. Entries that are not measured (hidden by a `Mask`) count as
    measured zeros, log p(0 | 0) each.
    """

    ess: Tensor | None = None
    log_evidence: Tensor | None = None


class Weighed(ParticleFilter):
    """A filter whose weights a solver computes: the entries of a row without a level sum to the log of the factor."""

    def __init__(self, particles: int, **options: Any) -> None:
        super().__init__(lambda moment: moment.x, particles, **options)

    def weighs(self, moment: Moment) -> bool:
        return moment.level is None

    def increment(self, moment: Moment) -> Tensor:
        factor: Tensor = self.potential(moment).flatten(1).sum(1)
        return factor


@dataclass(frozen=True)
class Populated(Method):
    """A method whose solver writes weights as `Weighed` reads them; at the end a population is resampled and shuffled.

    particles: K of a population. resampling, threshold: see `ParticleFilter`.
    """

    particles: int = 64
    resampling: str = "systematic"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        Weighed(self.particles, resampling=self.resampling, threshold=self.threshold, seed=0)  # refuses what is wrong

    def run(
        self, model: BaseDenoiser, measurement: Measurement, cond: Cond, *, seed: Any = None, **options: Any
    ) -> Samples:
        groups = len(measurement) // self.particles
        if isinstance(seed, Sequence):  # of every sample: a population takes the first one's
            own = [derive(s, "population") for s in seed[:: self.particles]]
        else:
            seed = fresh_seed() if seed is None else seed
            own = [derive(seed, "population", g) for g in range(groups)]
        rule = Weighed(self.particles, resampling=self.resampling, threshold=self.threshold, seed=own)
        out = super().run(model, measurement, cond, seed=seed, hooks=(rule,), **options)
        if not bool(rule.log_normalizer.isfinite().all()):
            lost = (~rule.log_normalizer.isfinite()).nonzero().flatten().tolist()
            raise ValueError(
                f"none of {self.particles} particles can have made its measurement with {measurement.noise!r}, in "
                f"populations {lost[:8]} of {groups}: take more of them, or noise that makes it possible"
            )
        streams = [generator(derive(s, "end")) for s in own]
        chosen = resample(rule.log_weights.softmax(1), self.resampling, streams)
        order = torch.stack([torch.randperm(self.particles, generator=stream) for stream in streams])
        chosen = chosen.gather(1, order.to(chosen.device))
        flat = (chosen + self.particles * torch.arange(groups, device=chosen.device)[:, None]).reshape(-1)
        x: Any = out.x
        plain = replace(out, x=x[flat])
        return Population(**vars(plain), ess=rule.ess.amin(0), log_evidence=rule.log_normalizer)


def believed(level: Level, prior: float) -> tuple[Tensor, Tensor]:
    """(k, r^2): x0 given x_t is N(k x_t, r^2 I) for data N(0, prior^2 I), with r^2 = (sigma^2/alpha) k."""
    spread = (level.alpha * prior) ** 2 + level.sigma**2
    return level.alpha * prior**2 / spread, (prior * level.sigma) ** 2 / spread


def share(measurement: Measurement, level: Level, prior: float) -> Tensor:
    """The power of p(y | A(x0)) in a guess at p(y | x_t), x0 given x_t being known to r: std^2/(std^2 + r^2) for normal
    noise, as if A A^T = I, and 1 - r^2/prior^2 for others."""
    r2, noise = believed(level, prior)[1], measurement.noise
    if not isinstance(noise, GaussianNoise):
        return 1 - r2 / prior**2
    variance = torch.as_tensor(noise.std).to(r2) ** 2
    return variance / (variance + r2)


def at_least(log_p: Tensor) -> Tensor:
    """log p, and something finite for p = 0: of a guess that is only to be positive."""
    return torch.where(log_p == -torch.inf, -1e30, log_p)


def spread_out(value: Tensor, like: Tensor) -> Tensor:
    """(batch,) as (batch, *event) whose entries sum to it, as rows of a table are."""
    return (value / like[0].numel()).reshape(-1, *(1,) * (like.dim() - 1)).expand_as(like)
