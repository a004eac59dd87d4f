"""The Radon transform: the measurement of computed tomography."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .constant import finite
from .operator import LinearOperator


class Radon(LinearOperator):
    """y[a, j] = the integral of the image along the ray <(cos a, sin a), (column, -row)> = position j, parallel beam.

        A[(a, j), pixel] = the length of ray (a, j) inside the pixel, a square of side 1
                         = clip(((p + q)/2 - r)/(p q), 0, 1/max(p, q)),    p, q = |cos a|, |sin a|

    with r the distance of the ray from the middle of the pixel: exact line integrals of the image made of squares.
    Rays are 1 apart, in the middle of the image; angles turn anticlockwise, at 0 a ray sums a column. The matrix is
    sparse; there is no fast SVD.

    angles: (n,) in radians: few for sparse views, a short range for limited angle. `Radon.views(n, event)` spreads n
    evenly over half a turn.
    detectors: rays an angle, ceil of the diagonal if not given.
    event: (..., h, w); y is (..., n, detectors).
    """

    def __init__(self, angles: Tensor, event: Sequence[int], detectors: int | None = None) -> None:
        if len(event) < 2 or angles.dim() != 1 or not len(angles):
            raise ValueError(
                f"angles (n,) and images (..., h, w): got angles {tuple(angles.shape)}, events {tuple(event)}"
            )
        finite("angles", angles)
        *others, height, width = event
        count = math.ceil(math.hypot(height, width)) if detectors is None else detectors
        if count < 1:
            raise ValueError(f"at least one detector is needed: got {count}")
        super().__init__(event, (*others, len(angles), count))
        self.angles = angles.cpu().to(torch.float64)
        self._indices, self._lengths = _rays(self.angles, height, width, count)
        self._made: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    @classmethod
    def views(cls, count: int, event: Sequence[int], detectors: int | None = None) -> Radon:
        """`count` angles spread evenly over [0, pi)."""
        return cls(torch.arange(count, dtype=torch.float64) * (math.pi / count), event, detectors)

    def forward(self, x: Tensor) -> Tensor:
        return _applied(self._sparse(x)[0], x).reshape(-1, *self.measured)

    def transpose(self, y: Tensor) -> Tensor:
        return _applied(self._sparse(y)[1], y).reshape(-1, *self.event)

    def _sparse(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """A and A^T in the dtype and on the device of `like`."""
        key = (like.dtype, like.device)
        if key not in self._made:
            shape = math.prod(self.measured[-2:]), math.prod(self.event[-2:])
            with torch.inference_mode(False):  # what is kept must serve gradients too
                values, indices = self._lengths.to(like.dtype).to(like.device), self._indices.to(like.device)
                whole = torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()
                self._made[key] = whole, whole.t().coalesce()
        return self._made[key]


def _applied(matrix: Tensor, x: Tensor) -> Tensor:
    """The matrix on the last two axes of x, (others, rows)."""
    answer: Tensor = torch.sparse.mm(matrix, x.flatten(-2).flatten(0, -2).mT)
    return answer.mT


def _rays(angles: Tensor, height: int, width: int, count: int) -> tuple[Tensor, Tensor]:
    """The indices (2, n) and the lengths (n,) of the pieces of rays inside pixels."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    across = (columns - (width - 1) / 2).flatten().double()
    up = ((height - 1) / 2 - rows).flatten().double()
    kept = [_one_angle(float(angle), across, up, count) for angle in angles]
    indices = [torch.stack([turn * count + ray, pixel]) for turn, (ray, pixel, _) in enumerate(kept)]
    return torch.cat(indices, 1), torch.cat([length for *_, length in kept])


def _one_angle(angle: float, across: Tensor, up: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ray, pixel and length of each piece."""
    c, s = math.cos(angle), math.sin(angle)
    long, short = max(abs(c), abs(s)), min(abs(c), abs(s))
    place = c * across + s * up + (count - 1) / 2  # of each pixel, in detectors
    if short < 1e-9:  # along an axis a ray on an edge is half in each of its pixels, whatever the rounding
        place, short = (place * 1e9).round() / 1e9, 1e-9
    ray = place.round().long()[:, None] + torch.arange(-1, 2)  # a pixel is sqrt(2) wide at most
    distance = (ray - place[:, None]).abs()
    length = (long - 2 * distance) / (2 * long * short) + 1 / (2 * long)
    length = length.clamp(0, 1 / long)
    kept = (length > 0) & (ray >= 0) & (ray < count)
    return ray[kept], kept.nonzero()[:, 0], length[kept]
