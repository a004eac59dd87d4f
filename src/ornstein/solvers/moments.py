"""What a table does to a Gaussian world, exactly and without sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import View
from ..errors import TableError
from ..processes import Level, Matrix
from .table import Gaussian, Output, Register, Table


@dataclass(frozen=True)
class Response:
    """The last state of a table as an affine function of its inputs: x = constant + gain x_init + sum_l gains_l z_l.

    One value for each of the d directions: constant (d,), gain (d,), gains (L, d). States are centred by the shift.
    """

    constant: Tensor
    gain: Tensor
    gains: Tensor

    def mean(self, initial: Tensor | float = 0.0) -> Tensor:
        """E[x] when E[x_init] = initial."""
        return self.constant + self.gain * initial

    def variance(self, initial: Tensor | float) -> Tensor:
        """Var[x] when Var[x_init] = initial, independent of the noise."""
        return self.gain**2 * initial + (self.gains**2).sum(0)


def posterior_row(level: Level, view: View, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """(m, k) with E[view | x] = m + k (x - alpha mean), for data N(mean, variance) in each direction.

    E[x0|x] = mean + alpha variance/S (x - alpha mean), E[noise|x] = sigma/S (x - alpha mean),
    S = alpha^2 variance + sigma^2; a view is a x0 + b noise. At S = 0 the state is alpha mean, and k is 0.
    """
    if view == "score":
        total = level.alpha**2 * variance + level.sigma**2
        return torch.zeros_like(mean), -1 / total
    a, b = level.rows(view)
    total = level.alpha**2 * variance + level.sigma**2
    k = (a * level.alpha * variance + b * level.sigma) / total
    return a * mean, torch.where(total > 0, k, torch.zeros_like(k))


def response(table: Table, mean: Tensor | float, variance: Tensor | float) -> Response:
    """Propagate a table through the exact denoiser of the data law N(mean, variance).

    The denoiser of a Gaussian is affine, so every register is affine in (x_init, z_1, ..., z_L), and its mean and
    variance follow without sampling: defects and weak orders of a solver are computed, not estimated. variance = 0 is a
    point mass. In d dimensions pass the mean and the variances along the eigenvectors of the covariance, (d,) each.
    """
    if table.adaptive:
        raise TableError(f"{table.solver} has rows that depend on the data: its law is not that of a linear program")
    if len(table.components) > 1:
        raise TableError(f"{table.solver} mixes components by matrices: a response is of numbers, in one component")
    centre = torch.as_tensor(mean, dtype=torch.float64).reshape(-1)
    spread = torch.as_tensor(variance, dtype=torch.float64).reshape(-1)
    centre, spread = centre + torch.zeros_like(spread), spread + torch.zeros_like(centre)
    inputs = 2 + len(table.noises)
    unit = torch.eye(inputs, dtype=torch.float64)[:, :, None].expand(-1, -1, len(centre))
    registers: dict[int, Tensor] = {0: unit[1]}
    outputs: dict[int, tuple[Level, Tensor]] = {}
    for kind, index in table.order:
        if kind == "evaluate":
            e = table.evaluations[index]
            outputs[index] = (e.level, registers[e.register])
            continue
        total = torch.zeros_like(unit[0])
        for atom, c in table.rows[index].terms.items():
            if isinstance(atom, Register):
                value = registers[atom.index]
            elif isinstance(atom, Gaussian):
                value = unit[2 + atom.index]
            else:
                assert isinstance(atom, Output)
                if atom.view == "raw":
                    raise TableError(f"{table.solver} reads the head {atom.head!r}, whose law is not known")
                level, state = outputs[atom.evaluation]
                m, k = posterior_row(level, atom.view, centre, spread)
                value = k * state + (m - k * level.alpha * centre) * unit[0]
            assert not isinstance(c, Matrix)
            total = total + c * value
        registers[index] = total
    last = registers[table.result.index]
    return Response(last[0], last[1], last[2:])
