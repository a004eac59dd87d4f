"""Splitting integrators: the flows of phase space in turn, each solved by itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from ..processes import Level, Matrix, PhaseLevel, PhaseSpace
from .exponential import jump, with_noise
from .reverse_sde import check_falling
from .solver import Solver
from .table import Writer

_PARTS = "OABL"


@dataclass(frozen=True)
class Splitting(Solver):
    """The reverse SDE of phase space as a sum of flows, taken one after the other.

        dz = [-F z + G G^T score] dr + G dw = O + A + B,    H = diag(1, 1/mass), r = -t

        O: dz = -D H z dr + G dw              the end law's own friction and noise, exact
        A: dz = Q H z dr                      the exchange of position and momentum, exact (a rotation)
        B: dz = G G^T (score + H z) dr        the data: one evaluation, held over the step
        L: O and A together, exact

    since F = -(D + Q) H and G G^T = 2 D. `parts` names the flows in order; one that is named k times takes 1/k of the
    step each time. "LBL" is SSCS, "OBA" and others are the orders of the paper. A score is asked for at the middle of
    the step where the order is a palindrome, else at its beginning. Weak order 1: B is Euler's. The step to data is
    the exact one of a point mass.

    Source: Dockhorn, Vahdat, Kreis 2021 (2112.07068), appendix D, for SSCS; Pandey, Rudolph, Mandt 2023, "Efficient
    Integrators for Diffusion Generative Models" (2310.07894) for OBA.
    """

    parts: str = "LBL"

    def __post_init__(self) -> None:
        once = set(self.parts)
        if once not in ({"O", "A", "B"}, {"L", "B"}):
            raise ValueError(f"parts={self.parts!r}: name O, A and B, or L (O and A together) and B, in any order")

    @property
    def matrices(self) -> bool:
        return True

    def write(self, table: Writer, grid: Level) -> None:
        check_falling(self, grid)
        process, z = _phase(self, table), table.state
        symmetric = self.parts == self.parts[::-1]
        for t, s in pairwise(grid):
            if not s.log_snr.isfinite().all():
                z = jump(table, z, table.evaluate(z, t), s)
                continue
            at = process.level((t.t + s.t) / 2) if symmetric else t
            h = process.clock(t.t) - process.clock(s.t)  # of int beta: the parts are constant matrices on it
            for i, part in enumerate(self.parts):
                step = h / self.parts.count(part)
                last = i == len(self.parts) - 1
                if part == "B":
                    e = table.evaluate(z, at)
                    kick = step * Matrix(process.noise_rate)
                    value = z + kick * e.score + (kick * Matrix(process.energy)) * z
                else:
                    left, spread = process.relax(step, friction=part in "OL", exchange=part in "AL")
                    value = with_noise(table, Matrix(left) * z, t, s, Matrix(spread))
                z = table.step(value, s) if last else table.register(value, at)


@dataclass(frozen=True)
class ReducedSymplecticEuler(Solver):
    """m' = m - h [F z - G G^T score/2]_m,    x' = x - h [F (x, m') - G G^T score/2]_x,    h = t - s

    on the probability flow: the momentum first, then the position with the new momentum; one evaluation serves both.
    Order 1, with an error below Euler's. The step to data is the exact one of a point mass.

    Source: Pandey, Rudolph, Mandt 2023, "Efficient Integrators for Diffusion Generative Models" (2310.07894).
    """

    @property
    def matrices(self) -> bool:
        return True

    def write(self, table: Writer, grid: Level) -> None:
        _phase(self, table)
        z = table.state
        position = Matrix(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)))
        momentum = 1.0 - position
        for t, s in pairwise(grid):
            e, h = table.evaluate(z, t), t.t - s.t
            if not s.log_snr.isfinite().all():
                z = jump(table, z, e, s)
                continue
            assert isinstance(t, PhaseLevel)
            drift, half = Matrix(t.drift), 0.5 * t.diffusion2
            kicked = table.register(z - (h * momentum * drift) * z + (h * momentum * half) * e.score)
            z = table.step(kicked - (h * position * drift) * kicked + (h * position * half) * e.score, s)


def _phase(solver: Solver, table: Writer) -> PhaseSpace:
    if not isinstance(table.process, PhaseSpace):
        raise ValueError(f"{solver!r} splits position and momentum: {table.process!r} has no momentum")
    return table.process
