"""Exact worlds under correlated noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .._types import Cond, View
from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..processes import Correlated, Level
from .covariance import Covariance
from .empirical import Empirical
from .mixture import GaussianMixture
from .world import NULL, World, coefficients, denoises


@denoises(Correlated)
class ExactCorrelatedDenoiser(BaseDenoiser):
    """The exact denoiser of a mixture, or of a data set, under `Correlated` noise L z: E[view | x_t].

    In the coordinates L^-1 x the noise is white and the world another of its kind, means L^-1 mu_k, covariances
    L^-1 C_k L^-T. x0, noise, velocity and v there, times L, are those here.
    """

    process: Correlated

    def __init__(self, world: World, process: Correlated, predicts: View = "x0") -> None:
        super().__init__()
        if predicts not in process.views:
            raise ViewError(f"{process!r} has no {predicts} to predict: choose from {', '.join(process.views)}")
        self.world, self.process, self.predicts = world, process, predicts
        self.null = {"label": NULL}
        self._white = whitened(world, process)

    def bind(self, levels: Level, x: Tensor, cond: Cond) -> Sequence[Callable[[Tensor], Tensor]]:
        white, label = self._whiten(levels[0], x, cond), self.world._label(cond, len(x))
        calls = []
        for level in levels:
            law = self._white._law(level.alpha, level.sigma, white, label)
            view = law.combine(*coefficients(self._white, self.process, level, self.predicts))
            calls.append(partial(self._answer, view, level, cond))
        return calls

    def _whiten(self, level: Level, x: Tensor, cond: Cond) -> Tensor:
        shift = self.process.shift(level.t, cond)
        flat = self.world._centred(None, None, x if shift is None else x - shift, None)
        return self.process.whiten(flat, cond)

    def _answer(self, view: Callable[[Tensor], Tensor], level: Level, cond: Cond, x: Tensor) -> Tensor:
        out = self.process.colour(view(self._whiten(level, x, cond)), cond).to(x.dtype).reshape(x.shape)
        slope = self.process.d_shift(level.t, cond) if self.predicts == "velocity" else None
        return out if slope is None else out + slope


def whitened(world: World, process: Correlated) -> World:
    """The law of L^-1 x0."""
    if isinstance(world, Empirical):
        data = process.whiten(world.data.to(torch.float64), None)
        return Empirical(data.reshape(-1, *world.event), world.labels, world.weights)
    if not isinstance(world, GaussianMixture):
        raise ValueError(f"under correlated noise the worlds known are GaussianMixture and Empirical: got {world!r}")
    k, d = world.means.shape
    half = process.whiten(world.covariance.dense().reshape(k * d, d), None).reshape(k, d, d)  # C L^-T
    covariances = process.whiten(half.mT.reshape(k * d, d), None).reshape(k, d, d)
    covariance = Covariance.full((covariances + covariances.mT) / 2)
    return GaussianMixture._of(world, process.whiten(world.means, None), covariance, world.log_weights)
