"""Constrained diffusion implicit models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..linops import LinearOperator
from ..processes import Level, broadcast
from ..solvers import Solver
from ..solvers.table import Writer
from .measurement import Measurement
from .method import Method, check_to_data
from .repeated import Repeated

_PROBES, _LAST = 32, 20


@dataclass(frozen=True)
class CDIM(Method):
    """x <- x + eta J^T A^T (y - A x0(x)) after each DDIM step, until |y - A x|^2 is what noise explains

        y - A x_s = (1 - alpha) A x0 + e - sigma A z,      e ~ N(0, std^2 I)

        E |y - A x_s|^2 = (1 - alpha)^2 |A x0|^2 + std^2 rank A + sigma^2 tr A A^T

    and its variance are known at every level but for |A x0|^2 = |y|^2 - std^2 rank A, roughly. A state moves only while
    |y - A x|^2 is above that mean by more than `excess` standard deviations, each sample alone, each time by the
    smallest eta that gets it there, or nearest: at high noise seldom, at the end until the residual is as large as the
    noise, and no smaller. Of an exact measurement the last step is the limit of such moves, x + A^+ (y - A x), and it
    is met to rounding.

    It is a constraint, not the posterior: every residual ends at its bound, where the posterior's have a chi-square
    law, and a constraint that high noise hides comes too late to choose between modes (docs/inverse.md has figures).

    Args:
        projections: at most so many moves a level, each an evaluation and a gradient pass; more gain little.
        excess: standard deviations above the mean that the residual may have; the published 0.2.

    Source: Jayaram, Kemelmacher-Shlizerman, Seitz, Thickstun 2024, "Linearly Constrained Diffusion Implicit Models"
    (2411.00359), algorithm 1.
    """

    projections: int = 1
    excess: float = 0.2

    def __post_init__(self) -> None:
        if self.projections < 1:
            raise ValueError(f"projections={self.projections}: at least one at a level")
        if not self.excess >= 0:
            raise ValueError(f"excess={self.excess}: standard deviations above the mean, not negative")

    @property
    def steps(self) -> int:
        return 25

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        operator = measurement.linear(self)

        def pull(x0: Tensor, level: Level) -> Tensor:
            return operator.adjoint(measurement.residual(x0))

        return Repeated(model, measurement, pull, self.projections)

    def solver(self, measurement: Measurement) -> Solver:
        operator, std = measurement.linear(self), measurement.std(self)
        y = measurement.y if operator.svd is None else operator(operator.pinv(measurement.y))
        return Constrained(repr(self), operator, y, std, self.projections, self.excess)


class _Traces(NamedTuple):
    """rank A (without an SVD, how many numbers are measured), tr A A^T and tr (A A^T)^2: numbers, or one a sample."""

    rank: Tensor
    square: Tensor
    fourth: Tensor

    @classmethod
    def of(cls, operator: LinearOperator) -> _Traces:
        """From the singular values; without them by probes, whose error is a sixth of the deviation that they set."""
        if operator.svd is not None:
            s2 = operator.svd.s**2
            return cls((s2 > 0).sum(-1).to(s2), s2.sum(-1), (s2**2).sum(-1))
        seed = torch.Generator().manual_seed(0)
        square, fourth = list[Tensor](), list[Tensor]()
        rank = torch.ones(1)
        for _ in range(_PROBES):
            z = torch.randn(operator.batch or 1, *operator.event, generator=seed, dtype=torch.float64)
            seen = operator(z.to(operator.dtype).to(operator.device))
            rank = operator.seen(seen).flatten(1).sum(1).cpu().to(torch.float64)
            square.append(seen.flatten(1).square().sum(1))
            fourth.append(operator.adjoint(seen).flatten(1).square().sum(1))
        means = [torch.stack(part).mean(0).cpu().to(torch.float64) for part in (square, fourth)]
        if operator.batch is None:
            rank, *means = (part[0] for part in (rank, *means))
        return cls(rank, *means)


@dataclass(frozen=True)
class Constrained(Solver):
    """DDIM's steps, each followed by `projections` moves along the head "pull" of a `Repeated` denoiser."""

    name: str
    operator: LinearOperator
    y: Tensor
    std: float
    projections: int
    excess: float

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        check_to_data(self, grid)
        x = table.state
        for t, s in pairwise(grid):
            left = s.sigma / t.sigma
            value = left * x + (s.alpha - left * t.alpha) * table.evaluate(x, t).x0
            move = partial(self.move, self.bound(s))
            if not bool((s.sigma > 0).any()):
                x = table.apply(self.finish(move), value, level=s, on_grid=True)
                continue
            x = table.register(value, s)
            for k in range(self.projections):
                pull = table.evaluate(x, s).head("pull").raw
                x = table.apply(move, x, pull, level=s, on_grid=k + 1 == self.projections)

    @cached_property
    def _known(self) -> tuple[Tensor, ...]:
        """The traces, and |A x0|^2 and |A^T A x0|^2 as y tells them: no level enters."""
        rank, square, fourth = (part.to(self.y.device, self.y.dtype) for part in _Traces.of(self.operator))
        signal = (_square(self.y) - self.std**2 * rank).clamp_min(0)
        turned = (_square(self.operator.adjoint(self.y)) - self.std**2 * square).clamp_min(0)
        return rank, square, fourth, signal, turned

    def bound(self, level: Level) -> Tensor:
        """What |y - A x|^2 may be, (batch,): its mean, and `excess` of its standard deviations.

        Of v ~ N(m, C), |v|^2 has variance 2 tr C^2 + 4 <m, C m>; here C = std^2 I + sigma^2 A A^T in the range of A.
        """
        rank, square, fourth, signal, turned = self._known
        noise, spread, less = self.std**2, (level.sigma**2).to(self.y), ((1 - level.alpha) ** 2).to(self.y)
        mean = less * signal + noise * rank + spread * square
        variance = 2 * (noise**2 * rank + 2 * noise * spread * square + spread**2 * fourth)
        return mean + self.excess * (variance + 4 * less * (noise * signal + spread * turned)).sqrt()

    def move(self, bound: Tensor, x: Tensor, along: Tensor) -> Tensor:
        """x + eta along, eta the smallest with |r - eta s|^2 = bound, or where that is least; 0 within the bound."""
        r, s = (self.y - self.operator(x)).flatten(1), self.operator(along).flatten(1)
        above, slope, bend = r.square().sum(1) - bound, (r * s).sum(1), s.square().sum(1)
        root, tiny = slope**2 - bend * above, torch.finfo(x.dtype).tiny
        reaching = above / (slope + root.clamp_min(0).sqrt()).clamp_min(tiny)
        eta = torch.where(root >= 0, reaching, slope / bend.clamp_min(tiny))
        return x + broadcast(torch.where((above > 0) & (slope > 0), eta, 0.0), x) * along

    def finish(self, move: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The moves at sigma = 0, where x0(x) = x and none costs an evaluation; of an exact measurement their limit."""
        if self.std == 0:
            known = self.operator.pinv(self.y)
            return lambda x: self.operator.null(x) + known

        def moved(x: Tensor) -> Tensor:
            for _ in range(_LAST):
                x = move(x, self.operator.adjoint(self.y - self.operator(x)))
            return x

        return moved


def _square(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1)
