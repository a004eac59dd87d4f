"""Families of laws that are fitted to posteriors: their samples and densities are both known."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..random import generator

_LOG_2PI = math.log(2 * math.pi)


class Law(nn.Module, ABC):
    """q(x) of each of `count` posteriors, apart from each other: a map of normal numbers and the density of its values.

    noise: how many normal numbers one sample takes.
    """

    noise: int

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """x (count, n, dim) of z (count, n, noise)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """log q of x (count, n, dim): (count, n)."""


class Family(ABC):
    """What laws q are chosen from; a subclass is a frozen dataclass of options.

    lr: the learning rate of Adam with which it is fitted by default, for data of standard deviation 1.
    """

    lr: ClassVar[float] = 0.05

    @abstractmethod
    def law(self, count: int, dim: int) -> Law:
        """A law for each of `count` posteriors of `dim` numbers, before it is fitted N(0, I) or near it."""


@dataclass(frozen=True)
class Normal(Family):
    """q = N(mean, C),    C = L L' with `rank=None`,    C = diag(s^2) + F F' with F (dim, rank) else

    The nearest normal law to a posterior, exact where that is normal and the rank suffices. rank = 0 is the mean field,
    every number on its own: of a correlated posterior its variances are 1/diag(C^-1), which are too small.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"rank={self.rank}: how many directions are correlated, or None for all")

    def law(self, count: int, dim: int) -> Law:
        return _Full(count, dim) if self.rank is None else _LowRank(count, dim, self.rank)


class _Full(Law):
    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.noise = dim
        self.mean = nn.Parameter(torch.zeros(count, 1, dim))
        self.below = nn.Parameter(torch.zeros(count, dim, dim))
        self.log_diagonal = nn.Parameter(torch.zeros(count, dim))

    def _factor(self) -> Tensor:
        return torch.tril(self.below, -1) + torch.diag_embed(self.log_diagonal.exp())

    def forward(self, z: Tensor) -> Tensor:
        return self.mean + z @ self._factor().mT

    def log_prob(self, x: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self._factor(), (x - self.mean).mT, upper=False)
        volume = self.log_diagonal.sum(1) + x.shape[2] * _LOG_2PI / 2
        log_prob: Tensor = -white.square().sum(1) / 2 - volume[:, None]
        return log_prob


class _LowRank(Law):
    def __init__(self, count: int, dim: int, rank: int) -> None:
        super().__init__()
        self.noise = dim + rank
        self.mean = nn.Parameter(torch.zeros(count, 1, dim))
        self.log_std = nn.Parameter(torch.zeros(count, 1, dim))
        # from 0 no direction would be the first; the same start for each posterior
        start = torch.randn(dim, rank, generator=generator(0)) / (10 * math.sqrt(dim))
        self.factor = nn.Parameter(start.repeat(count, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        own, shared = z.tensor_split([self.mean.shape[2]], dim=2)
        return self.mean + self.log_std.exp() * own + shared @ self.factor.mT

    def log_prob(self, x: Tensor) -> Tensor:
        # Woodbury: C^-1 = S^-2 - S^-1 G K^-1 G' S^-1 with G = S^-1 F, K = I + G' G, |C| = |S|^2 |K|
        white = (x - self.mean) * (-self.log_std).exp()
        g = self.factor * (-self.log_std).exp().mT
        chol = torch.linalg.cholesky(torch.eye(g.shape[2], dtype=g.dtype, device=g.device) + g.mT @ g)
        shared = torch.linalg.solve_triangular(chol, g.mT @ white.mT, upper=False)
        volume = self.log_std.sum((1, 2)) + chol.diagonal(dim1=1, dim2=2).log().sum(1) + x.shape[2] * _LOG_2PI / 2
        log_prob: Tensor = (shared.square().sum(1) - white.square().sum(2)) / 2 - volume[:, None]
        return log_prob


@dataclass(frozen=True)
class RealNVP(Family):
    """x = mean + s h_K(...h_1(z)),    h: b <- b e^(tanh(scale(a))) + move(a),    a and b halves of the numbers

    A normalising flow of affine couplings: bent and skewed posteriors too. `scale` and `move` are a network with one
    hidden layer of `width`, for each posterior its own; the halves change from layer to layer. It is N(0, I) before it
    is fitted. Modes far from each other it joins by a bridge, or leaves out.

    Source: Dinh, Sohl-Dickstein, Bengio 2016, "Density estimation using Real NVP" (1605.08803), equations 7 to 9.
    """

    lr = 0.01

    layers: int = 6
    width: int = 32

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width < 1:
            raise ValueError(f"layers={self.layers}, width={self.width}: at least one each")

    def law(self, count: int, dim: int) -> Law:
        if dim < 2:
            raise ValueError("a coupling needs two numbers: of one number choose Normal()")
        return _RealNVP(count, dim, self)


class _RealNVP(Law):
    orders: Tensor

    def __init__(self, count: int, dim: int, family: RealNVP) -> None:
        super().__init__()
        self.noise = dim
        self.mean = nn.Parameter(torch.zeros(count, 1, dim))
        self.log_std = nn.Parameter(torch.zeros(count, 1, dim))
        random, width, half = generator(0), family.width, dim // 2
        orders: list[Tensor] = []
        self._given: list[int] = []
        for k in range(
            family.layers
        ):  # every other layer moves what the one before it took as given, and takes the rest
            even = k % 2 == 0
            orders.append(torch.randperm(dim, generator=random) if even else orders[-1].roll(-half))
            self._given.append(half if even else dim - half)
        self.register_buffer("orders", torch.stack(orders))
        self.first = nn.ParameterList(
            torch.randn(given, width, generator=random).div(math.sqrt(given)).repeat(count, 1, 1)
            for given in self._given
        )
        self.bias = nn.ParameterList(torch.randn(1, width, generator=random).repeat(count, 1, 1) for _ in orders)
        self.last = nn.ParameterList(torch.zeros(count, width, 2 * (dim - given)) for given in self._given)
        self.shift = nn.ParameterList(torch.zeros(count, 1, 2 * (dim - given)) for given in self._given)

    def _split(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, b, scale, move): what layer k takes as given, what it moves, and by how much."""
        a, b = x[..., self.orders[k]].tensor_split([self._given[k]], dim=2)
        hidden = torch.nn.functional.silu(a @ self.first[k] + self.bias[k])
        scale, move = (hidden @ self.last[k] + self.shift[k]).chunk(2, dim=2)
        return a, b, torch.tanh(scale), move

    def _join(self, k: int, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([a, b], 2)[..., self.orders[k].argsort()]

    def forward(self, z: Tensor) -> Tensor:
        for k in range(len(self.orders)):
            a, b, scale, move = self._split(k, z)
            z = self._join(k, a, b * scale.exp() + move)
        return self.mean + self.log_std.exp() * z

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x - self.mean) * (-self.log_std).exp()
        volume = self.log_std.sum((1, 2))[:, None] + x.shape[2] * _LOG_2PI / 2
        for k in reversed(range(len(self.orders))):
            a, b, scale, move = self._split(k, z)
            z = self._join(k, a, (b - move) * (-scale).exp())
            volume = volume + scale.sum(2)
        return -z.square().sum(2) / 2 - volume
