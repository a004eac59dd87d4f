"""DEIS: exponential integrators with the noise extrapolated in t, in rho, or by Runge-Kutta in rho."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.quadrature import between, lagrange
from ..processes import Level, PhaseSpace
from .euler import Euler
from .exponential import combine
from .heun import Heun
from .multistep import multistep
from .phase import advance_phase
from .runge_kutta import RK4, Kutta3, RungeKutta
from .solver import Solver
from .table import Evaluation, Expression, Register, Writer

_RULE = 32  # points of the Gauss-Legendre rule: exact for the polynomials of rho, to rounding for those of t

RUNGE_KUTTA: dict[int, RungeKutta] = {0: Euler("sigma"), 1: Heun(), 2: Kutta3(), 3: RK4()}


@dataclass(frozen=True)
class DEIS(Solver):
    """x_s = (alpha_s/alpha_t) x_t + alpha_s int_{rho_t}^{rho_s} noise d rho,    rho = sigma/alpha

    method:
        "tAB"   the noise extrapolated through the last `order` + 1 evaluations by a polynomial in t,
        "rhoAB" in rho, "lambdaAB" in log rho (which is `DPMSolver`, multistep, with exact integrals),
        "rhoRK" no past: Runge-Kutta of order + 1 stages in rho, which are `Heun`, `Kutta3` and `RK4`.

    The weights alpha_s int l_j d rho of the Lagrange polynomials l_j come from Gauss-Legendre quadrature in rho. order
    0 is DDIM; order r has order r + 1 of convergence. start: with "matched" orders 2 and 3 begin, where the steps are
    short (see `multistep`), with 0 and 2 more evaluations; with "published" by lower orders, and the order is 2. Steps
    at infinite log-SNR, to data or from pure noise, are DDIM's.

    In phase space sigma/alpha is that of the level, and the weights are integrals of matrices (see `advance_phase`).

    Source: Zhang, Chen 2022, "Fast Sampling of Diffusion Models with Exponential Integrator" (2204.13902), equation 14
    and section 3.3.
    """

    order: int = 3
    method: str = "tAB"
    start: str = "matched"
    exact_for_constant = True

    def __post_init__(self) -> None:
        if self.order not in RUNGE_KUTTA:
            raise ValueError(f"order={self.order}: choose 0, 1, 2 or 3")
        for name, choices in {
            "method": ("tAB", "rhoAB", "lambdaAB", "rhoRK"),
            "start": ("matched", "published"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {', '.join(choices)}")

    @property
    def matrices(self) -> bool:
        return self.method != "rhoRK"

    def write(self, table: Writer, grid: Level) -> None:
        if self.method == "rhoRK":
            return RUNGE_KUTTA[self.order].write(table, grid)

        def advance(x: Register, t: Level, s: Level, nodes: Sequence[Evaluation]) -> Expression:
            if isinstance(table.process, PhaseSpace):
                clock = _PHASE_CLOCKS[self.method]
                own = torch.stack([clock(node.level) for node in nodes], -1)
                return advance_phase(table.process, x, t, s, nodes, lambda level: lagrange(clock(level), own))
            return combine(x, t, s, self._weights(table, t, s, [node.level for node in nodes]), nodes, "noise")

        begun = self.order - 1 if self.order > 1 and self.start == "matched" else 0
        return multistep(table, grid, advance, past=self.order + 1, start=begun)

    def _weights(self, table: Writer, t: Level, s: Level, nodes: Sequence[Level]) -> list[Tensor]:
        if len(nodes) == 1:
            return [s.alpha * (_rho(s) - _rho(t))]
        clock = _CLOCKS[self.method]
        rho, measure = between(_rho(t), _rho(s), _RULE)
        own = torch.stack([clock(table, _rho(node)) for node in nodes], -1)
        integrals = (lagrange(clock(table, rho), own) * measure[..., None]).sum(-2)
        return list((s.alpha[..., None] * integrals).unbind(-1))


def _rho(level: Level) -> Tensor:
    return level.sigma / level.alpha


def _time(table: Writer, rho: Tensor) -> Tensor:
    """The time at which sigma/alpha = rho."""
    if table.process is None:
        return table.level(rho).t  # which says what is missing
    return table.process.time(-2 * rho.log())


_PHASE_CLOCKS: dict[str, Callable[[Level], Tensor]] = {
    "tAB": lambda level: level.t,
    "rhoAB": _rho,
    "lambdaAB": lambda level: _rho(level).log(),
}
_CLOCKS: dict[str, Callable[[Writer, Tensor], Tensor]] = {
    "tAB": _time,
    "rhoAB": lambda table, rho: rho,
    "lambdaAB": lambda table, rho: rho.log(),
}
