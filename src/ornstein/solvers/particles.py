"""Sequential Monte Carlo along a sampler: the one implementation in the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import State
from ..denoiser import BaseDenoiser
from ..errors import TableError
from ..numerics.tree import like, parts
from ..random import derive, fresh_seed, generator
from .grids import LogSNR, as_grid
from .loop import Moment, Resample
from .sample import Samples, sample
from .solver import compile_table

Potential = Callable[[Moment], Tensor]
"""log G(x_t, t), (batch,), of the state at a point of the grid; `moment.x` and `moment.level` say where."""

SCHEMES = ("systematic", "stratified", "multinomial", "residual")


def resample(
    weights: Tensor, scheme: str = "systematic", seed: int | torch.Generator | Sequence[torch.Generator] = 0
) -> Tensor:
    """Ancestors a (groups, K) with E[#{j: a_j = i}] = K w_i, for normalised weights w (groups, K).

        systematic    a_j = F^-1((j + u)/K), one u for all j        stratified    the same, a u_j for each
        multinomial   a_j = F^-1(u_j)                               residual      floor(K w_i) of each, the rest drawn

    F is the cumulative sum of w. The variance of the counts is that of multinomial or less; systematic and residual
    leave floor(K w_i) at least. Of several generators each group has its own, and then depends on no other group.

    Source: Douc, Cappe, Moulines 2005, "Comparison of Resampling Schemes for Particle Filtering" (cs/0507025).
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r}: choose from {', '.join(SCHEMES)}")
    count = weights.shape[1]
    if isinstance(seed, Sequence):
        u = torch.stack([torch.rand(count, generator=own, device=own.device) for own in seed]).to(weights)
    else:
        rng = generator(seed)
        u = torch.rand(weights.shape, generator=rng, device=rng.device).to(weights)
    slots = torch.arange(count, dtype=weights.dtype, device=weights.device)
    if scheme == "systematic":
        return _inverse(weights, (slots + u[:, :1]) / count)
    if scheme == "stratified":
        return _inverse(weights, (slots + u) / count)
    if scheme == "multinomial":
        return _inverse(weights, u)
    copies = torch.floor(count * weights)
    sure = copies.cumsum(1)
    rest = count * weights - copies
    fixed = torch.searchsorted(sure, slots.expand_as(sure).contiguous(), right=True)
    return torch.where(slots < sure[:, -1:], fixed, _inverse(rest, u)).clamp(max=count - 1)


def _inverse(weights: Tensor, u: Tensor) -> Tensor:
    """The first index whose cumulative weight exceeds u of the total: never one of weight 0."""
    total = weights.cumsum(1)
    return torch.searchsorted(total, u * total[:, -1:], right=True).clamp(max=weights.shape[1] - 1)


class ParticleFilter:
    """A hook that weighs particles at the points of the grid and resamples them:

        w <- w G(x_s, s)/G(x_t, t),    ESS = (sum w)^2 / sum w^2,    where ESS < threshold K:  a ~ resample(w),  w <- 1

    so that the law of the weighted particles is that of the sampler times G(x, 0) at the end, whatever G is on the way
    (G = 1 at the start). With G_t = p_t/q_t, what an ideal discriminator of data noised to t says of the sampler's
    states, samples of q become samples of p.

        log_normalizer = sum log mean w, at every resampling and at the end

    has exp(log_normalizer) unbiased for E[G(x, 0)] under the sampler.

    The batch is in groups of `particles` (K), each a population of its own, side by side; its members share their
    condition. Randomness comes from `seed` and the group, or from the seed of each group alone. `threshold=0` never
    resamples (importance sampling), 1 at every point. `log_weights` (groups, K), `log_normalizer` (groups,), `ess`
    (points, groups) and `ancestors` (points, groups, K) tell of the run; a new run starts afresh.

    A weighting with a memory or a proposal of its own (twisted particles, weights from a rate) overrides `increment`,
    which returns the log of the factor on w, `permute`, which carries what it remembers to the particles' new places,
    and `weighs`, if the rows at which it knows that factor are not the points of the grid.

    Source: Liu et al. 2023, "Correcting Diffusion Generation through Resampling" (2312.06038), algorithm 1;
    Gordon, Salmond, Smith 1993; the normaliser: Del Moral 2004.
    """

    log_weights: Tensor
    _log_g: Tensor
    _log_normalizer: Tensor

    def __init__(
        self,
        potential: Potential,
        particles: int,
        *,
        resampling: str = "systematic",
        threshold: float = 0.5,
        seed: int | Sequence[int] | None = None,
    ) -> None:
        if particles < 2:
            raise ValueError(f"particles={particles}: a group has at least two")
        if resampling not in SCHEMES:
            raise ValueError(f"resampling={resampling!r}: choose from {', '.join(SCHEMES)}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold} is a part of the particles, between 0 and 1")
        self.potential, self.particles = potential, particles
        self.resampling, self.threshold = resampling, threshold
        self.seed = fresh_seed() if seed is None else seed
        self._row = -1

    def weighs(self, moment: Moment) -> bool:
        """Whether the particles are weighed after this row."""
        return moment.on_grid

    def increment(self, moment: Moment) -> Tensor:
        """log of the factor on the weights at this point, (batch,)."""
        log_g = self.potential(moment)
        increment: Tensor = log_g - self._log_g
        self._log_g = log_g
        return increment

    def permute(self, indices: Tensor) -> None:
        """Particle i is now a copy of the one that was at indices[i], both of the whole batch."""
        self._log_g = self._log_g[indices]

    def __call__(self, moment: Moment) -> Resample | None:
        if moment.row <= self._row or self._row < 0:
            self._begin(moment)
        self._row = moment.row
        if not self.weighs(moment):
            return None
        increment = self.increment(moment)
        if increment.shape != (self._batch,):
            raise ValueError(f"a log-potential is ({self._batch},), one a particle: got {tuple(increment.shape)}")
        self.log_weights = self.log_weights + increment.reshape(-1, self.particles)
        weights = self.log_weights.softmax(1)
        ess = 1 / (weights**2).sum(1)
        now = (ess < self.threshold * self.particles)[:, None]
        own = torch.arange(self.particles, device=weights.device).expand_as(weights)
        chosen = torch.where(now, resample(weights, self.resampling, self._rng), own)
        self._log_normalizer = torch.where(now[:, 0], self.log_normalizer, self._log_normalizer)
        self.log_weights = torch.where(now, 0.0, self.log_weights)
        self._ess.append(ess)
        self._ancestors.append(chosen)
        flat = (chosen + self.particles * torch.arange(len(chosen), device=chosen.device)[:, None]).reshape(-1)
        self.permute(flat)
        return Resample(flat)

    def _begin(self, moment: Moment) -> None:
        x = parts(moment.x)[0]
        self._batch = len(x)
        if self._batch % self.particles:
            raise ValueError(f"a batch of {self._batch} is no number of groups of {self.particles} particles")
        groups = self._batch // self.particles
        self._rng: torch.Generator | list[torch.Generator]
        if isinstance(self.seed, int):
            self._rng = generator(derive(self.seed, "resampling"))
        elif len(self.seed) == groups:
            self._rng = [generator(derive(own, "resampling")) for own in self.seed]
        else:
            raise ValueError(f"{len(self.seed)} seeds for {groups} groups of particles: give one, or one a group")
        self.log_weights = x.new_zeros(groups, self.particles)
        self._log_normalizer = self.log_weights[:, 0]
        self._log_g = x.new_zeros(self._batch)
        self._ess: list[Tensor] = []
        self._ancestors: list[Tensor] = []

    @property
    def log_normalizer(self) -> Tensor:
        mean: Tensor = self.log_weights.logsumexp(1) - math.log(self.particles)
        return self._log_normalizer + mean

    @property
    def ess(self) -> Tensor:
        return torch.stack(self._ess)

    @property
    def ancestors(self) -> Tensor:
        return torch.stack(self._ancestors)


@dataclass(frozen=True)
class Particles:
    """Weighted samples: `samples.x` (groups * K, *event), in the user's units, and weights (groups, K), summing to one.

    log_normalizer (groups,), ess (points, groups) and ancestors (points, groups, K): see `ParticleFilter`.
    """

    samples: Samples
    weights: Tensor
    log_normalizer: Tensor
    ess: Tensor
    ancestors: Tensor

    def resampled(self, scheme: str = "systematic", seed: int = 0) -> State:
        """The samples, each as often as its weight asks: equal weights."""
        chosen = resample(self.weights, scheme, seed)
        groups, count = chosen.shape
        flat = (chosen + count * torch.arange(groups, device=chosen.device)[:, None]).reshape(-1)
        return like(self.samples.x, [part[flat] for part in parts(self.samples.x)])


def particle_filter(
    denoiser: BaseDenoiser, shape: Any = None, *, particles: ParticleFilter, **options: Any
) -> Particles:
    """`orn.sample` with its options, and a `ParticleFilter` at work on it.

    The solver must be stochastic, such as `DDIM(eta=1)`, `EulerMaruyama()` or `SDEDPMSolverPP()`: copies of a particle
    would stay copies in another, which is refused. What a multistep solver remembers moves with the particles.
    """
    table = options.pop("table", None)
    if table is None:
        solver, grid, steps = (options.pop(name, None) for name in ("solver", "grid", "steps"))
        if solver is None:
            raise ValueError("give a stochastic solver, such as orn.DDIM(eta=1)")
        make = as_grid(LogSNR() if grid is None else grid, denoiser.process)
        table = compile_table(solver, denoiser.process, make(steps))
    if not all(component.noises for component in table.components):
        raise TableError(f"{table.solver} draws no noise, and copies of a particle would stay copies: DDIM(eta=1) does")
    options["hooks"] = (*options.get("hooks", ()), particles)
    out = sample(denoiser, shape, table=table, **options)
    weights = particles.log_weights.softmax(1)
    return Particles(out, weights, particles.log_normalizer, particles.ess, particles.ancestors)
