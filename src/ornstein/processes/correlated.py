"""Diffusion whose noise is correlated between the entries of an event."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .._types import Cond
from ..random import Noise
from .affine import AffineProcess
from .gaussian import GaussianProcess
from .scheduled import Scheduled


@dataclass(frozen=True)
class Coloured(Scheduled):
    """x_t = alpha x0 + shift + sigma noise,    noise = L z ~ N(0, L L^T)

    It solves dx = f (x - shift) dt + shift' dt + g L dw with the f and g of `base`, and is the base process in the
    coordinates L^-1 x. So every sampler of the base runs, the stochastic ones with coloured increments. Their rows are
    written in -noise/sigma, which is Cov grad log p; `Prediction.score` is the gradient itself,
    grad log p = -(L L^T)^-1 E[noise | x]/sigma, and no network is asked for either.

    A subclass writes `factor`, and `rows` where L acts on one axis of the event only.
    """

    readable = ("x0", "noise", "velocity", "v", "score")
    diffuses = True

    def __post_init__(self) -> None:
        if not isinstance(self.base, GaussianProcess):
            raise ValueError(f"{type(self).__name__} colours the noise of a Gaussian process: got {self.base!r}")

    @abstractmethod
    def factor(self, x: Tensor, cond: Cond) -> Tensor:
        """L, lower triangular, (m, m) or (batch, m, m), in the dtype and on the device of the state x."""

    def rows(self, x: Tensor) -> Tensor:
        """The state (batch, *event) as rows (batch, c, m), each of which L multiplies."""
        return x.flatten(1)[:, None]

    def colouring(self, x: Tensor, cond: Cond) -> Callable[[Tensor], Tensor]:
        factor = self.factor(x, cond).mT
        return lambda z: (self.rows(z) @ factor).reshape(z.shape)

    def whiten(self, noise: Tensor, cond: Cond) -> Tensor:
        """L^-1 noise."""
        factor = self.factor(noise, cond)
        white: Tensor = torch.linalg.solve_triangular(factor.mT, self.rows(noise), upper=True, left=False)
        return white.reshape(noise.shape)

    def draw_noise(self, shape: Sequence[int], noise: Noise, cond: Cond) -> Tensor:
        return self.colour(noise.normal(shape), cond)

    def precision(self, noise: Tensor, cond: Cond) -> Tensor:
        factor, white = self.factor(noise, cond), self.rows(self.whiten(noise, cond))
        precise: Tensor = torch.linalg.solve_triangular(factor, white, upper=False, left=False)
        return precise.reshape(noise.shape)

    def log_prior(self, x: Tensor, cond: Cond = None) -> Tensor:
        end = self.level(1.0)
        shift = self.shift(end.t, cond)
        white = self.whiten((x if shift is None else x - shift) / end.sigma, cond).flatten(1)
        pivots = self.factor(x, cond).diagonal(dim1=-2, dim2=-1).log().sum(-1) * self.rows(x).shape[1]
        return -white.square().sum(1) / 2 - pivots - white.shape[1] * (torch.log(end.sigma) + math.log(2 * math.pi) / 2)


@dataclass(frozen=True)
class Correlated(Coloured):
    """x_t = alpha x0 + shift + sigma L z with L L^T = covariance, the same for every sample.

    covariance: (d, d) of the noise on the flattened event, symmetric and positive definite; the identity gives `base`.
    """

    base: AffineProcess
    covariance: Sequence[Sequence[float]] | Tensor = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        matrix = torch.as_tensor(self.covariance, dtype=torch.float64).detach().cpu()
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a covariance is (d, d) of the flattened event: got {tuple(matrix.shape)}")
        check_covariance(matrix, "the covariance")
        object.__setattr__(self, "covariance", tuple(tuple(row) for row in matrix.tolist()))

    def __repr__(self) -> str:
        return f"Correlated({self.base!r}, {len(self.covariance)} x {len(self.covariance)})"

    @cached_property
    def _factors(self) -> dict[tuple[torch.dtype, torch.device], Tensor]:
        return {}

    def factor(self, x: Tensor, cond: Cond) -> Tensor:
        if (dim := math.prod(x.shape[1:])) != len(self.covariance):
            raise ValueError(f"{self!r} was given an event {tuple(x.shape[1:])} of {dim} entries")
        key = (x.dtype, x.device)
        if key not in self._factors:
            self._factors[key] = torch.linalg.cholesky(torch.tensor(self.covariance, dtype=torch.float64)).to(x)
        return self._factors[key]


def check_covariance(matrix: Tensor, name: str) -> None:
    """Refuse a covariance that is not finite, not symmetric, or has an eigenvalue that is not positive."""
    if not bool(matrix.isfinite().all()):
        raise ValueError(f"{name} is finite: got {float(matrix[~matrix.isfinite()][0])}")
    scale, gap = float(matrix.abs().max()), float((matrix - matrix.mT).abs().max())
    if gap > 1e-6 * scale:
        raise ValueError(f"{name} is symmetric: entries differ from their mirror by up to {gap:.3g}")
    least = float(torch.linalg.eigvalsh(matrix)[0])
    if least <= 1e-13 * scale:
        raise ValueError(f"{name} is positive definite: it has the eigenvalue {least:.6g}")
