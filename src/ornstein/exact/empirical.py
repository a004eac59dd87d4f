"""A finite data set as a law: what a denoiser that memorises everything would know."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial

import torch
from torch import Tensor

from .covariance import column, over
from .mixture import measurement
from .world import Law, World

_BLOCK = 2**24  # entries of the largest table (rows of the batch, points) held at once


class Empirical(World):
    """p(x0) = sum_i w_i delta(x0 - y_i): the law of a finite data set, a mixture of point masses.

        r_i = softmax_i [log w_i - |xc - alpha y_i|^2 / (2 sigma^2)],   E[x0 | x] = sum_i r_i y_i,
        score = (alpha E[x0 | x] - xc) / sigma^2

    This is the minimiser of the denoising loss on the data set itself. Distances are taken by differences, never by
    expanding the square, so they hold in float32 at small sigma; nothing of size (batch, n, d) is ever made.

    Args:
        data: (n, *event), kept in its dtype.
        labels: (n,) not negative; the index of the point by default.
        weights: (n,) positive, uniform by default.
    """

    def __init__(self, data: Tensor, labels: Tensor | None = None, weights: Tensor | None = None) -> None:
        if data.dim() < 1 or len(data) == 0:
            raise ValueError(f"a data set has at least one point, (n, *event): got {tuple(data.shape)}")
        data = data.detach().cpu()
        data = data if data.is_floating_point() else data.to(torch.get_default_dtype())
        if not bool(data.isfinite().all()):
            row = int((~data.isfinite()).reshape(len(data), -1).any(1).nonzero()[0])
            raise ValueError(f"the data must be finite: row {row} is not")
        super().__init__(len(data), data.shape[1:], data.dtype, labels, weights)
        self.data = data.reshape(len(data), self.dim)
        self._casts: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def singular(self) -> bool:
        return True

    @cached_property
    def scale(self) -> float:
        """The largest coordinate."""
        return float(self.data.abs().max()) or 1.0

    def _cast(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points, log-weights and labels in the dtype and on the device of `like`, made once."""
        key = (like.dtype, like.device)
        if key not in self._casts:
            with torch.inference_mode(False):  # what is kept must serve gradients too
                data, log_weights = (part.to(device=key[1], dtype=key[0]) for part in (self.data, self.log_weights))
                self._casts[key] = data, log_weights, self.labels.to(key[1])
        return self._casts[key]

    def _law(self, alpha: Tensor, sigma: Tensor, like: Tensor, label: Tensor | None) -> Law:
        return _EmpiricalLaw(self, alpha, sigma, like, label)

    def _draw(self, component: Tensor, seed: torch.Generator) -> Tensor:
        return self.data[component].to(torch.float64)

    def moments(self) -> tuple[Tensor, Tensor]:
        data = self.data.to(torch.float64)
        mean = self.weights @ data
        apart = data - mean
        return mean.reshape(self.event), (self.weights[:, None] * apart).mT @ apart

    def posterior(
        self, y: Tensor, a: Tensor, noise_std: float | int | Tensor | None = None, noise_cov: Tensor | None = None
    ) -> Empirical:
        """The law of x0 given y = A x0 + e: the same points with weights w_i' ~ w_i N(y; A y_i, R), R positive."""
        y, a, r = measurement(y, a, noise_std, noise_cov, self.dim)
        factor, failed = torch.linalg.cholesky_ex(r)
        if bool(failed):
            raise ValueError("a finite data set has a posterior only under noise in every measurement: R is singular")
        residual = y - self.data.to(torch.float64) @ a.mT
        white = torch.linalg.solve_triangular(factor, residual.mT, upper=False)
        new = Empirical(self.data.reshape(-1, *self.event), self.labels)
        new.log_weights = (self.log_weights - white.square().sum(0) / 2).log_softmax(0)
        return new


class _EmpiricalLaw(Law):
    def __init__(self, world: Empirical, alpha: Tensor, sigma: Tensor, like: Tensor, label: Tensor | None) -> None:
        self.world, self.label = world, label
        self.alpha, self.sigma = (c.to("cpu", torch.float64) for c in (alpha, sigma))
        self.data, self.log_weights, self.labels = world._cast(like)
        # Distances are in the frame z = xc / alpha, their scale is k = alpha / sigma. Both ends are clamped where the
        # answer no longer changes in this dtype: equal weights below, the nearest point above.
        double = like.dtype == torch.float64
        least, most = torch.finfo(like.dtype).eps * 1e-2 / world.scale, (1e100 if double else 1e12) / world.scale
        frame = torch.maximum(self.alpha, least * self.sigma)
        k = torch.where(self.sigma == 0, most, over(frame, self.sigma).clamp_max(most))
        inverse_sigma = over(torch.ones_like(self.sigma), self.sigma)
        self._frame, self._k2, self._alpha, self._inverse_sigma = (
            column(c, like) for c in (frame, k**2, self.alpha, inverse_sigma)
        )

    def _blocks(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For blocks of the batch: log-terms (rows, n), and what all of them lack alike (rows,), of value zero."""
        rows = max(1, _BLOCK // len(self.data))
        z = x / self._frame
        blocks = []
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            here, scale = z[part], self._k2 if self._k2.dim() == 0 else self._k2[part]
            # cdist has no forward-mode derivative. The terms are quadratic in z with the same square for every point,
            # so with delta = z - stop(z), which is zero, the line below has their value and all their derivatives.
            still = here.detach()
            distance2 = torch.cdist(still, self.data, compute_mode="donot_use_mm_for_euclid_dist").square()
            delta = here - still
            terms = self.log_weights - scale / 2 * distance2 + scale * (delta @ self.data.mT)
            if self.label is not None:
                label = self.label[part, None]
                terms = torch.where((label == self.labels) | (label < 0), terms, -torch.inf)
            common = (delta * still).sum(1, keepdim=True) + delta.square().sum(1, keepdim=True) / 2
            blocks.append((terms, (scale * common).squeeze(1)))
        return blocks

    def _mean(self, x: Tensor) -> Tensor:
        return torch.cat([terms.softmax(-1) @ self.data for terms, _ in self._blocks(x)])

    def _noise(self, x: Tensor, x0: Tensor) -> Tensor:
        return self._inverse_sigma * (x - self._alpha * x0)

    def pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x0 = self._mean(x)
        return x0, -self._inverse_sigma * self._noise(x, x0)

    def combine(self, a: Tensor, c: Tensor) -> Callable[[Tensor], Tensor]:
        return partial(self._combined, column(a, self.data), column(c, self.data))

    def _combined(self, a: Tensor, c: Tensor, x: Tensor) -> Tensor:
        x0 = self._mean(x)
        return a * x0 - c * self._inverse_sigma * self._noise(x, x0)

    def log_prob(self, x: Tensor) -> Tensor:
        total = torch.cat([terms.logsumexp(-1) - common for terms, common in self._blocks(x)])
        base = -self.world.dim * (self.sigma.log() + math.log(2 * math.pi) / 2) - self.world._log_mass(self.label)
        return total + (base if base.dim() == 0 else base.to(x))

    def cov(self, x: Tensor) -> Tensor:
        covariances = []
        for terms, _ in self._blocks(x):
            for r in terms.softmax(-1):
                apart = self.data - r @ self.data
                covariances.append((r[:, None] * apart).mT @ apart)
        return torch.stack(covariances)
