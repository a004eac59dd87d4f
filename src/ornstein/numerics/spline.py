"""Natural cubic splines as linear maps."""

from __future__ import annotations

import torch
from torch import Tensor


class Spline:
    """The natural cubic splines on rising knots (K,): S(x) = sum_j c_j(x) values_j.

    c_j is cubic between knots, twice continuously differentiable, 1 at knot j and 0 at the others, and its second
    derivatives vanish at both ends. Two knots give a straight line. Beyond the ends the last cubics go on.
    """

    def __init__(self, knots: Tensor) -> None:
        self.knots, self._gap, count = knots, knots.diff(), len(knots)
        gap, one = self._gap, torch.eye(count, dtype=knots.dtype)
        self._second = torch.zeros_like(one)  # values to second derivatives
        if count > 2:
            system = torch.diag((gap[:-1] + gap[1:]) / 3)
            system = system + torch.diag(gap[1:-1] / 6, 1) + torch.diag(gap[1:-1] / 6, -1)
            self._second[1:-1] = torch.linalg.solve(system, (one.diff(dim=0) / gap[:, None]).diff(dim=0))
        self._value = one
        left = torch.arange(count - 1)
        whole = self._pieces(left, *(gap[:, None] * c for c in (1 / 2, 1 / 2, -1 / 4, -1 / 4)))
        self._before = torch.cat([torch.zeros_like(one[:1]), whole.cumsum(0)])  # integrals up to each knot

    def _pieces(self, i: Tensor, a: Tensor, b: Tensor, a3: Tensor, b3: Tensor) -> Tensor:
        bend = self._gap[i, None] ** 2 / 6
        straight = a * self._value[i] + b * self._value[i + 1]
        return straight + bend * (a3 * self._second[i] + b3 * self._second[i + 1])

    def _where(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        i = (torch.searchsorted(self.knots, at.detach().contiguous()) - 1).clamp(0, len(self.knots) - 2)
        h = self._gap[i]
        return i, h[:, None], ((self.knots[i + 1] - at) / h)[:, None], ((at - self.knots[i]) / h)[:, None]

    def cardinal(self, at: Tensor) -> Tensor:
        """c_j(at) for at (P,): (P, K)."""
        i, _, a, b = self._where(at)
        return self._pieces(i, a, b, a**3 - a, b**3 - b)

    def slope(self, at: Tensor) -> Tensor:
        """c_j'(at) for at (P,): (P, K)."""
        i, h, a, b = self._where(at)
        return self._pieces(i, -1 / h, 1 / h, (1 - 3 * a**2) / h, (3 * b**2 - 1) / h)

    def primitive(self, at: Tensor) -> Tensor:
        """int_{knot_0}^at c_j for at (P,): (P, K)."""
        i, h, a, b = self._where(at)
        rise = (h * (1 - a**2) / 2, h * b**2 / 2, h * ((1 - a**4) / 4 - (1 - a**2) / 2), h * (b**4 / 4 - b**2 / 2))
        return self._before[i] + self._pieces(i, *rise)
