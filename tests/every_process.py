"""One example of every process: its data, what it needs besides, and an exact world to ask."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ornstein as orn
from ornstein import processes
from worlds import F64, normal, ring


@dataclass(frozen=True)
class Case:
    """A process with a world of two dimensions, the condition of n samples, and starts where it has no prior."""

    process: Any
    world: Any
    cond: Callable[[int], Any] = lambda n: None
    start: Callable[[int], Tensor | None] = lambda n: None

    def denoiser(self, predicts: Any = None) -> Any:
        return self.world.denoiser(self.process) if predicts is None else self.world.denoiser(self.process, predicts)


def named(name: str) -> Callable[[int], Any]:
    """A condition like the data under a name."""
    return lambda n: {name: 0.5 * normal(n, 2, seed=9)}


RING = ring()
EVERY: dict[str, Case] = {
    "VP": Case(orn.VP(), RING),
    "SubVP": Case(orn.SubVP(), RING),
    "VE": Case(orn.VE(), RING),
    "EDM": Case(orn.EDM(), RING),
    "Flow": Case(orn.Flow(), RING),
    "Cosine": Case(orn.Cosine(), RING),
    "ConditionalOT": Case(processes.ConditionalOT(), RING),
    "DiscreteTime": Case(
        processes.DiscreteTime(tuple(torch.linspace(0.9999, 0.98, 20, dtype=F64).cumprod(0).tolist())), RING
    ),
    "MeanReverting": Case(orn.MeanReverting(), RING, named("mean")),
    "KineticOptimal": Case(processes.KineticOptimal(processes.Separation((-8.0, 0.0, 8.0), (0.1, 0.7, 1), 2)), RING),
    "LearnedSchedule": Case(processes.LearnedSchedule(), RING),
    "Shortened": Case(processes.Shortened(orn.VP(), 0.4, RING), RING),
    "PSLD": Case(processes.PSLD(), RING),
    "CLD": Case(processes.CLD(), RING),
}
ABSTRACT = ("LinearProcess", "AffineProcess", "GaussianProcess", "Scheduled", "Process", "PhaseSpace", "Product")


def data_of(case: Case, n: int) -> Tensor:
    """Data of the world."""
    return case.world.sample(n, seed=3, dtype=F64)


def public() -> list[str]:
    """The names of all public processes that one may build."""
    kinds = [(name, getattr(processes, name)) for name in processes.__all__]
    return [
        name
        for name, kind in kinds
        if inspect.isclass(kind) and issubclass(kind, processes.LinearProcess) and name not in ABSTRACT
    ]
