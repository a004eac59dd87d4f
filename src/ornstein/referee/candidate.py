"""A sampler under test, whoever wrote it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .oracle import Oracle, State

PROBE = (-9.0, 3.0)
"""Log-SNR where the range on which orders are measured begins and ends: both ends are finite, so that no jump hides
the order, and it begins so deep in noise that first steps of lower order leave nothing visible."""


@dataclass(frozen=True)
class Claims:
    """What the sampler's author says of it; None where nothing is said.

    order: of convergence to the exact flow. nfe_per_step: network evaluations a step. stochastic: whether it adds
    noise.
    """

    order: int | None = None
    nfe_per_step: int | None = None
    stochastic: bool | None = None

    def __post_init__(self) -> None:
        for name in ("order", "nfe_per_step"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: a positive whole number, or None for no claim")


@dataclass(frozen=True)
class Outcome:
    """What a run leaves behind.

    end: the last state with its level, which is where the sampler says that it stopped.
    claimed: the evaluations that the sampler itself announces, where it does.
    """

    end: State
    claimed: int | None = None


class Candidate(ABC):
    """One interface for all samplers.

    name: what the report calls it. claims: see `Claims`. takes_generator: whether randomness can be handed to it; if
    not, torch's global generator governs it. own_levels: whether the noise levels are its own choice, and not the
    referee's.
    """

    name: str
    claims: Claims
    takes_generator: bool = False
    own_levels: bool = True

    @abstractmethod
    def run(self, oracle: Oracle, z: Tensor, steps: int, *, probe: bool = False, seed: int = 0) -> Outcome:
        """Sample from z, standard normal (batch, *event), which the sampler's first level scales.

        With `probe` over the log-SNR range `PROBE` where the sampler lets levels be chosen; else as it comes.
        """

    @abstractmethod
    def plain(self, steps: int) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), each (steps + 1,): the levels on which plain Euler is its rival."""

    def settings(self) -> Iterator[tuple[str, Candidate]]:
        """Its options worth trying, named; each is run with few steps."""
        yield "defaults", self


def karras(steps: int, most: float = 80.0, least: float = 0.002, rho: float = 7.0) -> Tensor:
    """N levels sigma by Karras et al. 2022 (2206.00364), equation 5, and 0; float64."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (most ** (1 / rho) + ramp * (least ** (1 / rho) - most ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def even(steps: int, probe: tuple[float, float] = PROBE) -> Tensor:
    """N + 1 levels sigma with equal steps of log-SNR over the probe's range; float64."""
    return torch.exp(-torch.linspace(*probe, steps + 1, dtype=torch.float64) / 2)


def preserving(level: float) -> tuple[float, float]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1 and sigma/alpha = level."""
    alpha = 1 / math.sqrt(1 + level**2)
    return alpha, level * alpha
