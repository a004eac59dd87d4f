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
        """The exact denoiser, or a network's where the world knows none."""
        if self.world is None:
            net = TOLD if isinstance(self.process, processes.GivenVelocity) else PLAIN
            return orn.Denoiser(net, self.process, "v")
        return self.world.denoiser(self.process) if predicts is None else self.world.denoiser(self.process, predicts)

    def data(self, n: int, seed: int = 3) -> Tensor:
        """n samples of the world."""
        if self.world is None:
            return normal(n, 2, seed=seed)
        if isinstance(self.world, orn.exact.Functions):
            return self.world.sample(times(n)["times"], seed=seed)
        drawn = self.world.sample(n, seed=seed)
        return (drawn[0] if isinstance(drawn, tuple) else drawn).to(F64)


def named(name: str) -> Callable[[int], Any]:
    """A condition like the data under a name."""
    return lambda n: {name: 0.5 * normal(n, 2, seed=9)}


def times(n: int) -> Any:
    """Two times of observation a sample, never the same."""
    early = torch.linspace(0.0, 0.4, n, dtype=F64)
    return {"times": torch.stack([early, early + 0.5], 1)}


RING = ring()
LOGS = orn.exact.GaussianMixture(torch.tensor([[0.5, -0.5], [-0.5, 0.5]], dtype=F64), 0.3)
POSITIVE = orn.exact.LogMixture(LOGS)
BOXED = orn.exact.FoldedMixture(torch.tensor([[0.3, 0.7], [0.8, 0.2]], dtype=F64), torch.tensor([0.1, 0.15], dtype=F64))
BITS = orn.exact.Enumerable(torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=F64))
PAIRS = orn.exact.TwoSidedMixture(RING, LOGS)
FUNCTIONS = orn.exact.Functions(processes.RBF(0.3))
PLAIN = orn.nets.MLP(2, width=16, depth=1).double()
TOLD = orn.nets.MLP(2, width=16, depth=1, conditions={"velocity": 2}).double()


def other_end(n: int) -> Tensor:
    """Samples of the other end of a process of two."""
    return LOGS.sample(n, seed=8).to(F64)


EVERY: dict[str, Case] = {
    "VP": Case(orn.VP(), RING),
    "SubVP": Case(orn.SubVP(), RING),
    "VE": Case(orn.VE(), RING),
    "EDM": Case(orn.EDM(), RING),
    "Flow": Case(orn.Flow(), RING),
    "Cosine": Case(orn.Cosine(), RING),
    "ConditionalOT": Case(processes.ConditionalOT(), RING),
    "ConstantAcceleration": Case(processes.ConstantAcceleration(0.5), RING),
    "DiscreteTime": Case(processes.DiscreteTime((0.99, 0.9, 0.6, 0.3, 0.1, 0.01)), RING),
    "KineticOptimal": Case(processes.KineticOptimal.of(RING.sample(32, seed=0), draws=128), RING),
    "LearnedRates": Case(processes.LearnedRates([0.01, 0.1, 0.3, 0.6, 0.9, 0.99]), RING),
    "LearnedSchedule": Case(processes.LearnedSchedule(-9.0, 9.0), RING),
    "Powers": Case(processes.Powers(), RING),
    "SeparateSchedules": Case(processes.SeparateSchedules(orn.Flow(), orn.EDM()), RING),
    "Shortened": Case(processes.Shortened(orn.VP(), until=0.6), RING),
    "a fitted end": Case(processes.Shortened(orn.VP(), until=0.6, law=RING), RING),
    "MeanReverting": Case(orn.MeanReverting(), RING, named("mean")),
    "SGMSE": Case(processes.SGMSE(), RING, named("mean")),
    "Residual": Case(processes.Residual(orn.VP()), RING, named("mean")),
    "BrownianBridge": Case(processes.BrownianBridge(), RING, named("end")),
    "I2SB": Case(processes.I2SB(), RING, named("end")),
    "PSLD": Case(processes.PSLD(), RING),
    "CLD": Case(processes.CLD(), RING),
    "PFGMPP": Case(processes.PFGMPP(aux_dim=16), RING),
    "Correlated": Case(processes.Correlated(orn.VP(), [[1.0, 0.6], [0.6, 1.0]]), RING),
    "GaussianProcessNoise": Case(processes.GaussianProcessNoise(), FUNCTIONS, times),
    "GeometricBrownian": Case(processes.GeometricBrownian(), RING),
    "Multiplicative": Case(processes.Multiplicative(), POSITIVE),
    "Reflected": Case(processes.Reflected(), BOXED),
    "Binomial": Case(processes.Binomial(), BITS),
    "TwoSided": Case(orn.TwoSided(), PAIRS, start=other_end),
    "Interpolant": Case(orn.Interpolant(), PAIRS, start=other_end),
    "GivenVelocity": Case(processes.GivenVelocity(), None, named("velocity")),
    "LearnedCoupling": Case(
        processes.LearnedCoupling(orn.nets.MLP(2, width=16, depth=1, outputs=("main", "log_std")).double()), None
    ),
}
ABSTRACT = {"LinearProcess", "AffineProcess", "GaussianProcess", "Scheduled", "Coloured", "Reverting", "PhaseSpace"}


def public() -> list[str]:
    """The names of all public processes that one may build."""
    kinds = [(name, getattr(processes, name)) for name in processes.__all__]
    return [
        name
        for name, kind in kinds
        if inspect.isclass(kind) and issubclass(kind, processes.LinearProcess) and name not in ABSTRACT
    ]


def page() -> str:
    """The table of docs/processes.md: what each process supports."""
    columns = ("score", "velocity", "ODE", "reverse SDE", "likelihood", "ELBO")
    lines = [f"| process | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    seen = set()
    for case in EVERY.values():
        name = type(case.process).__name__
        if name not in seen:
            seen.add(name)
            marks = ("yes" if what in case.process.supports else "" for what in columns)
            lines.append(f"| `{name}` | {' | '.join(marks)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
