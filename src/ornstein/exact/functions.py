"""A world of functions: Gaussian processes seen at any times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .._types import Cond, View
from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..processes import Coloured, GaussianProcess, Kernel, Level
from ..processes.functional import factor_of, times_of
from ..random import generator
from .covariance import over


class Functions:
    """x0 = f(times) with f ~ GP(mean, std^2 kernel): the values of a random function at times of one's choice.

    Everything is Gaussian: at times (batch, n) the law of the values is N(mean, K), K = std^2 kernel(times), and given
    some of them it is N(m, C) with, for the rows of A that pick those,

        m = mean + K A^T (A K A^T)^-1 A (values - mean),     C = K - K A^T (A K A^T)^-1 A K

    kernel: of times (batch, n), with a density (a nugget, where it is smooth). Values are (batch, n), or
    (batch, channels, n) with independent channels that are observed together.
    """

    def __init__(self, kernel: Kernel, mean: float = 0.0, std: float = 1.0) -> None:
        if not 0 < std < float("inf"):
            raise ValueError(f"std={std}: positive and finite")
        self.kernel, self.mean, self.std = kernel, mean, std

    def __repr__(self) -> str:
        return f"Functions({self.kernel!r}, mean={self.mean}, std={self.std})"

    def covariance(self, times: Tensor) -> Tensor:
        """K, (batch, n, n) in float64."""
        return self.std**2 * self.kernel(times.to("cpu", torch.float64))

    def sample(self, times: Tensor, seed: int | torch.Generator | None = 0, channels: int | None = None) -> Tensor:
        """One function for each row of times (batch, n): its values (batch, n), or (batch, channels, n), in float64."""
        factor = self.std * factor_of(self.kernel, times.cpu())
        z = torch.randn(len(times), channels or 1, times.shape[1], generator=generator(seed), dtype=torch.float64)
        values = self.mean + z @ factor.mT
        return values if channels is not None else values.squeeze(1)

    def posterior(self, times: Tensor, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """(m, C): mean like `values` and covariance (batch, n, n) given the values where `observed` (batch, n) is 1."""
        if observed.shape != times.shape or (len(values), values.shape[-1]) != times.shape:
            raise ValueError(
                f"values (batch, ..., n) and observed (batch, n) belong to times {tuple(times.shape)}: "
                f"got {tuple(values.shape)} and {tuple(observed.shape)}"
            )
        k, seen = self.covariance(times), observed.to("cpu", torch.float64)
        mask = seen[:, None]
        given = torch.where(mask > 0, self._rows(values, times) - self.mean, 0.0)
        # A K A^T, with the identity where nothing was seen, so that all of a batch have one shape
        inner = mask.mT * k * mask + torch.diag_embed(1 - seen)
        gain = torch.cholesky_solve(mask.mT * k, torch.linalg.cholesky(inner)).mT
        # what was seen is known exactly, not to the rounding of a difference
        mean = self.mean + torch.where(mask > 0, given, given @ gain.mT)
        covariance = (1 - mask).mT * (k - gain @ k) * (1 - mask)
        return mean.reshape(values.shape), covariance

    def log_prob(self, times: Tensor, values: Tensor) -> Tensor:
        """log of the density of values at times, (batch,) in nats, float64."""
        factor = self.std * factor_of(self.kernel, times.cpu())
        apart = self._rows(values, times) - self.mean
        white: Tensor = torch.linalg.solve_triangular(factor.mT, apart, upper=True, left=False).flatten(1)
        pivots = factor.diagonal(dim1=-2, dim2=-1).log().sum(1) * apart.shape[1]
        return -white.square().sum(1) / 2 - pivots - white.shape[1] * math.log(2 * math.pi) / 2

    def _rows(self, values: Tensor, times: Tensor) -> Tensor:
        """Values as rows (batch, channels, n)."""
        return values.to("cpu", torch.float64).reshape(len(times), -1, times.shape[1])

    def denoiser(
        self, process: Coloured | GaussianProcess, predicts: View = "x0", times: str = "times"
    ) -> BaseDenoiser:
        """The exact denoiser under a process with Gaussian noise of any colour; the times are an entry of `cond`.

        With cond["observed"] (batch, n) and cond["values"], like the state, it is that of the law given those values.
        """
        return ExactFunctionsDenoiser(self, process, predicts, times)


class ExactFunctionsDenoiser(BaseDenoiser):
    """E[view | x_t, times, what was observed] of `Functions`, to rounding.

    With m and C of the data, L of the noise and L^-1 C L^-T = U diag(lambda) U^T, once for each batch, a view
    a x0 + b noise is, at every level,

        a m + L U diag((a alpha lambda + b sigma)/(alpha^2 lambda + sigma^2)) U^T L^-1 (x - shift - alpha m)
    """

    process: Coloured | GaussianProcess

    def __init__(self, world: Functions, process: Coloured | GaussianProcess, predicts: View, times: str) -> None:
        super().__init__()
        if predicts not in process.views or predicts == "score":
            raise ViewError(f"functions answer x0, noise, velocity or v: got {predicts}")
        self.world, self.process, self.predicts, self.times = world, process, predicts, times

    def bind(self, levels: Level, x: Tensor, cond: Cond) -> Sequence[Callable[[Tensor], Tensor]]:
        times = times_of(self.times, x, cond)
        mean, c = torch.full_like(x, self.world.mean, dtype=torch.float64, device="cpu"), self.world.covariance(times)
        if isinstance(cond, dict) and "observed" in cond:
            mean, c = self.world.posterior(times, cond["values"], cond["observed"])
        factor = torch.eye(times.shape[1], dtype=torch.float64)
        if isinstance(self.process, Coloured):
            factor = self.process.factor(mean, cond)
        mean, factor = self.world._rows(mean, times), factor.expand(c.shape)
        half = torch.linalg.solve_triangular(factor, c, upper=False)
        inner = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        values, basis = torch.linalg.eigh((inner + inner.mT) / 2)
        values, out = values.clamp_min(0), factor @ basis
        into = torch.linalg.solve_triangular(factor.mT, basis, upper=True).mT  # U^T L^-1
        calls = []
        for level in levels:
            a, b = (column(row) for row in level.rows(self.predicts))
            alpha, sigma = column(level.alpha), column(level.sigma)
            gains = over(a * alpha * values + b * sigma, alpha**2 * values + sigma**2)
            linear = ((out * gains[:, None, :]) @ into).mT
            own = a[..., None] * mean - (alpha[..., None] * mean) @ linear
            calls.append(partial(self._answer, linear.to(x), own.to(x), level, cond))
        return calls

    def _answer(self, linear: Tensor, own: Tensor, level: Level, cond: Cond, x: Tensor) -> Tensor:
        shift = self.process.shift(level.t, cond)
        centred = (x if shift is None else x - shift).reshape(own.shape)
        out = (own + centred @ linear).reshape(x.shape)
        slope = self.process.d_shift(level.t, cond) if self.predicts == "velocity" else None
        return out if slope is None else out + slope


def column(coefficient: Tensor) -> Tensor:
    """A coefficient () or (batch,) as () or (batch, 1)."""
    return coefficient if coefficient.dim() == 0 else coefficient[:, None]
