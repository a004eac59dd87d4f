"""The variables in which the probability flow is integrated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import TableError
from ..processes import Level
from .table import Evaluation, Expression, Register, Writer


@dataclass(frozen=True)
class Variable:
    """d(x/frame)/du = slope: the probability flow in a variable u.

    t          x            u = t                slope = velocity
    sigma      x/alpha      u = sigma/alpha      slope = noise
    log_snr    x/alpha      u = log_snr          slope = -(sigma/2 alpha) noise

    In sigma the slope does not change along the path of a constant x0, so every consistent method follows it exactly.
    """

    frame: Callable[[Level], Tensor]
    u: Callable[[Level], Tensor]
    slope: Callable[[Evaluation], Expression]
    log_snr: Callable[[Tensor], Tensor] | None  # of u; None where u is the time

    def level(self, table: Writer, u: Tensor) -> Level:
        """The level of the process at u."""
        if self.log_snr is None:
            return table.level(u)
        if table.process is None:
            raise TableError(f"{table.solver} needs the process for levels between the grid's points")
        return table.level(table.process.time(self.log_snr(u)))

    def change(self, t: Level, s: Level) -> Tensor:
        """u_s - u_t."""
        return self.u(s) - self.u(t)

    def move(self, x: Register, t: Level, s: Level, slope: Expression) -> Expression:
        """The state at s if the slope were constant from t to s."""
        frame = self.frame(s)
        return (frame / self.frame(t)) * x + (frame * self.change(t, s)) * slope

    def reaches(self, t: Level, s: Level) -> bool:
        """Whether u is finite from t to s."""
        return bool((self.u(t).isfinite() & self.u(s).isfinite()).all())


VARIABLES = {
    "t": Variable(lambda level: torch.ones_like(level.t), lambda level: level.t, lambda e: e.velocity * 1.0, None),
    "sigma": Variable(
        lambda level: level.alpha,
        lambda level: level.sigma / level.alpha,
        lambda e: e.noise * 1.0,
        lambda u: -2 * u.log(),
    ),
    "log_snr": Variable(
        lambda level: level.alpha,
        lambda level: level.log_snr,
        lambda e: (-e.level.sigma / e.level.alpha / 2) * e.noise,
        lambda u: u,
    ),
}


def check_variable(name: str) -> None:
    """Refuse a variable that is not there."""
    if name not in VARIABLES:
        raise ValueError(f"variable={name!r}: choose {', '.join(VARIABLES)}")
