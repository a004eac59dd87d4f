"""Exact worlds in phase space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .._types import Cond, View
from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..processes import Level, Phase, PhaseLevel, PhaseSpace, broadcast, mix
from ..processes.matrix import inverse_lower, lower_root
from .world import NULL, World, denoises


@denoises(PhaseSpace, "noise")
class ExactPhaseDenoiser(BaseDenoiser):
    """The exact denoiser of a world whose data are positions: E[view | z_t].

    z_t given x0 is N(a x0, S) for vectors a and matrices S of the level, so y = a^T S^-1 z/(a^T S^-1 a) is all that it
    tells of x0, x0 with noise of variance 1/(a^T S^-1 a): E[x0 | z_t] is the world's own answer to y. And

        score = -S^-1 (z - a E[x0 | z_t])

    from which every other view follows by the matrices of the level.
    """

    process: PhaseSpace

    def __init__(self, world: World, process: PhaseSpace, predicts: View = "noise") -> None:
        super().__init__()
        if predicts not in process.views:
            raise ViewError(f"{process!r} has no {predicts}: choose from {', '.join(process.views)}")
        self.world, self.process, self.predicts = world, process, predicts
        self.null = {"label": NULL}

    def bind(self, levels: Level, x: Phase, cond: Cond) -> Sequence[Callable[[Phase], Phase]]:
        flat = self.world._centred(None, None, x.position, cond)
        label = self.world._label(cond, len(flat))
        assert isinstance(levels, PhaseLevel)
        phi, covariance = self.process.kernel(levels.t, self.process.gamma * self.process.mass)
        whiten = inverse_lower(lower_root(covariance))
        precision, a = whiten.mT @ whiten, phi[..., :1]
        tells = (a.mT @ precision).squeeze(-2) * levels.sigma[..., None] ** 2  # y = tells . z
        by_z, by_score = levels.conversion("score", self.predicts)
        mixed = tells, by_z - by_score @ precision, by_score @ precision @ a
        x0s = self.world._bound(levels, torch.ones_like(levels.t), torch.zeros_like(levels.t), flat, label)
        return [partial(self._answer, x0, *parts) for x0, *parts in zip(x0s, *mixed, strict=True)]

    def _answer(
        self, x0: Callable[[Tensor], Tensor], tells: Tensor, from_z: Tensor, from_x0: Tensor, z: Phase
    ) -> Phase:
        x = z.position
        y = broadcast(tells[..., 0], x) * x + broadcast(tells[..., 1], x) * z.momentum
        mean = x0(self.world._centred(None, None, y, None)).to(x.dtype).reshape(x.shape)
        return Phase(*(part + broadcast(from_x0[..., i, 0], x) * mean for i, part in enumerate(mix(from_z, Phase(*z)))))
