"""What a tuned table is to be good at: residuals, whose sum of squares falls."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..random import generator


class Objective(ABC):
    """L = sum_i r_i^2, r = residuals(x, ends), for the table's endpoints x and the flow's, both (batch, *event).

    A sum of squares, so that one table of derivatives of x gives the Gauss-Newton step of any of them. They add:
    `Endpoint() + 0.1 * Distribution()`.
    """

    @property
    @abstractmethod
    def pathwise(self) -> bool:
        """Whether a start is compared with its own endpoint, which a stochastic table does not have."""

    @abstractmethod
    def residuals(self, x: Tensor, ends: Tensor) -> Tensor:
        """r (rows, k), float64 on the host: a row is a start, or what else stands for one."""

    def value(self, x: Tensor, ends: Tensor) -> float:
        """sqrt(L)."""
        return float(self.residuals(x, ends).square().sum().sqrt())

    def __add__(self, other: Objective) -> Objective:
        return Sum((*_terms(self), *_terms(other)))

    def __mul__(self, weight: float) -> Objective:
        if not weight > 0:
            raise ValueError(f"the weight {weight} of an objective is positive")
        return Sum(tuple((weight * own, term) for own, term in _terms(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Objective):
    """L = sum_k weight_k L_k."""

    terms: tuple[tuple[float, Objective], ...]

    @property
    def pathwise(self) -> bool:
        return any(term.pathwise for _, term in self.terms)

    def residuals(self, x: Tensor, ends: Tensor) -> Tensor:
        parts = [weight**0.5 * term.residuals(x, ends) for weight, term in self.terms]
        return torch.cat(parts, 1)


def _terms(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    return objective.terms if isinstance(objective, Sum) else ((1.0, objective),)


def _mean(apart: Tensor) -> Tensor:
    """Residuals whose sum of squares is the mean of the squares."""
    return apart.flatten(1) / math.sqrt(apart.numel())


@dataclass(frozen=True)
class Endpoint(Objective):
    """L = mean_b |x_b - X_b|^2 / d: the distance to the flow's endpoint, in model units."""

    pathwise = True

    def residuals(self, x: Tensor, ends: Tensor) -> Tensor:
        return _mean((x - ends).to("cpu", torch.float64))


@dataclass(frozen=True)
class Features(Objective):
    """L = mean_b |f(x_b) - f(X_b)|^2 / k: the distance in a feature space.

    network: f, called on (batch, *event) in model units, returns (batch, ...) of k numbers each; it is run without
        gradients.
    """

    network: Callable[[Tensor], Tensor]
    pathwise = True

    def residuals(self, x: Tensor, ends: Tensor) -> Tensor:
        with torch.no_grad():
            return _mean((self.network(x) - self.network(ends)).to("cpu", torch.float64))


@dataclass(frozen=True)
class Distribution(Objective):
    """L = mean_u W_2^2(<u, x>, <u, X>), over random directions u: the sliced Wasserstein distance of the two batches.

    On a line the optimal coupling is that of the ranks: W_2^2 = mean_i (<u, x>_(i) - <u, X>_(i))^2. The directions are
    of length sqrt(d), drawn once by `seed`, so that the value is a distance a coordinate, as `Endpoint`'s is; they are
    for tables with noise, where no start has an endpoint of its own. A batch of n has a distance of its own from its
    law, of order 1/sqrt(n): take many starts.

    Source: Rabin, Peyre, Delon, Bernot 2011, "Wasserstein Barycenter and its Application to Texture Mixing".
    """

    directions: int = 64
    seed: int = 0
    pathwise = False

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ValueError(f"directions={self.directions}: at least one")

    def residuals(self, x: Tensor, ends: Tensor) -> Tensor:
        a, b = (v.flatten(1).to("cpu", torch.float64) for v in (x, ends))
        u = torch.randn(a.shape[1], self.directions, generator=generator(self.seed), dtype=torch.float64)
        u = u / u.norm(dim=0)
        return _mean((a @ u).sort(0).values - (b @ u).sort(0).values)
