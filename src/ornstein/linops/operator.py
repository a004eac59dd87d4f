"""Measurement operators: y = A(x), and what can be asked of A."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from operator import index
from typing import TypedDict

import torch
from torch import Tensor

from ..numerics.conjugate_gradients import Solved, cg, cgls
from .constant import finite
from .svd import SVD, dense

Scale = float | Tensor
"""A number, or one a sample (batch,)."""


class _Until(TypedDict):
    tolerance: float
    limit: int


SMALL = 1024
"""Largest size of an event and of a measurement for which an operator is written out as a matrix to get its SVD."""


class Operator(ABC):
    """y = A(x), what is measured of an event x before noise is added.

    event, measured: the shapes of x and y without their batch axis.
    batch: None, or the number of samples of an operator that is another one for each sample.
    differentiable: whether gradients of y with respect to x exist and mean something.
    dtype, device: in and on which the library may try it; states of any dtype and device are taken unless it says less.

    An operator of one's own writes `forward(x)` for x (batch, *event), each sample alone. Calling it checks shapes.
    """

    batch: int | None = None
    differentiable: bool = True
    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")

    def __init__(self, event: Sequence[int], measured: Sequence[int]) -> None:
        self.event, self.measured = _shape("event", event), _shape("measured", measured)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x): (batch, *event) -> (batch, *measured), shapes unchecked."""

    def __call__(self, x: Tensor) -> Tensor:
        self._check("x", x, self.event)
        y = self.forward(x)
        if y.shape != (len(x), *self.measured):
            raise ValueError(
                f"{self!r} answered {tuple(y.shape)} for {len(x)} samples, not {(len(x), *self.measured)}: its "
                "`measured` must be the shape that its `forward` gives"
            )
        return y

    def check_measurement(self, y: Tensor) -> Tensor:
        """`y`, 0 where nothing is measured, or ValueError where it cannot be a measurement of this operator: its shape,
        its dtype, NaN, infinity."""
        self._check("y", y, self.measured)
        return finite("the measurement y", y)

    def seen(self, y: Tensor) -> Tensor:
        """1 for the entries of a measurement like `y` that are measured, and 0 for the others."""
        return self.check_measurement(torch.ones_like(y))

    def rows(self, index: Tensor) -> Operator:
        """The operator for the samples `index` (k,) of a batch: itself, unless it is another one for each sample."""
        if self.batch is None:
            return self
        raise NotImplementedError(f"{self!r} is another operator for each sample and says no `rows`")

    def __matmul__(self, other: Operator) -> Operator:
        """(A @ B)(x) = A(B(x))."""
        from .compose import compose

        return compose(self, other)

    def __repr__(self) -> str:
        each = "" if self.batch is None else f", one for each of {self.batch} samples"
        return f"{type(self).__name__}({self.event} -> {self.measured}{each})"

    def _check(self, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if value.shape[1:] != shape or value.dim() == 0:
            raise ValueError(
                f"{name} of {self!r} has the shape (batch, {', '.join(map(str, shape))}): got {tuple(value.shape)}"
            )
        if not value.is_floating_point():
            raise ValueError(f"{name} of {self!r} must be real and floating: got {value.dtype}")
        if self.batch is not None and len(value) != self.batch:
            raise ValueError(f"{name} has {len(value)} samples and {self!r}: choose its rows with operator.rows(index)")


class LinearOperator(Operator):
    """y = A x, with what a linear map has: adjoint, pseudo-inverse, range and null space, SVD, solutions of systems.

        <A x, y> = <x, A^T y>,      range(x) = A^+ A x,      null(x) = x - A^+ A x

    What an inverse is needed for is answered by the SVD where there is one, else by conjugate gradients, each sample
    alone, until its residual is below `tolerance` of the right side. RuntimeError says so if `limit` steps do not get
    there: the system is badly conditioned or singular. Set them on an operator to take less for an answer.

    tolerance: None for 100 eps of the dtype. limit: steps.

    An operator of one's own writes `forward`; `transpose` is then found by automatic differentiation, and the SVD from
    the matrix where event and measurement have at most 1024 numbers. A faster adjoint overrides `transpose(y)`, a known
    SVD overrides `svd`; `ornstein.linops.check` proves both.
    """

    tolerance: float | None = None
    limit: int = 1000

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: (batch, *event) -> (batch, *measured), shapes unchecked."""

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y: (batch, *measured) -> (batch, *event), shapes unchecked."""
        flow = torch.is_grad_enabled() and y.requires_grad
        with torch.enable_grad():
            x = y.new_zeros(len(y), *self.event).requires_grad_()
            return torch.autograd.grad(self.forward(x), x, y, create_graph=flow)[0]

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""
        self._check("y", y, self.measured)
        return self.transpose(y)

    @cached_property
    def svd(self) -> SVD | None:
        """The SVD, in fast transforms or of the small matrix; None where there is neither."""
        if max(math.prod(self.event), math.prod(self.measured)) > SMALL:
            return None
        return dense(self.matrix(), self.event, self.measured, eps=torch.finfo(self.dtype).eps)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the least-squares solution of smallest norm."""
        self._check("y", y, self.measured)
        if self.svd is not None:
            s = self.svd.spectrum(y)
            return self.svd.v(_inverse(s) * self.svd.ut(y))
        return self._met(cgls(self.forward, self.transpose, y, **self._until(y)), "the pseudo-inverse")

    def range(self, x: Tensor) -> Tensor:
        """A^+ A x, the part of x that is measured."""
        self._check("x", x, self.event)
        if self.svd is not None:
            return self.svd.filter(lambda s: (s > 0).to(s), x)
        return self.pinv(self.forward(x))

    def null(self, x: Tensor) -> Tensor:
        """x - A^+ A x, the part of x that is not measured."""
        return x - self.range(x)

    def solve(self, b: Tensor, ridge: Scale, weight: Scale = 1.0) -> Tensor:
        """(ridge I + weight A^T A)^-1 b, the proximal step of |y - A x|^2 for b = ridge x0 + weight A^T y.

        b: (batch, *event); ridge, weight >= 0, numbers or one a sample. ValueError for a singular system (ridge = 0
        where some direction is not measured).
        """
        self._check("b", b, self.event)
        ridge, weight = _column("ridge", ridge, b), _column("weight", weight, b)
        if bool((ridge == 0).any()) and self._singular(ridge, weight):
            raise ValueError(
                f"ridge I + weight A^T A is singular: ridge = 0 and {self!r} does not measure every direction; give a "
                "ridge > 0, or use pinv"
            )
        if self.svd is not None:
            s = self.svd.spectrum(b)
            return self.svd.v(self.svd.vt(b) / (ridge + weight * s**2))

        def system(x: Tensor) -> Tensor:
            return _times(ridge, x) + _times(weight, self.transpose(self.forward(x)))

        return self._met(cg(system, b, **self._until(b)), "ridge I + weight A^T A")

    def gram_solve(self, r: Tensor, sigma2_y: Scale, r2: Scale) -> Tensor:
        """(r2 A A^T + sigma2_y I)^-1 r, for the covariance of a measurement with noise sigma2_y of x0 known to r2.

        r: (batch, *measured); sigma2_y, r2 >= 0, numbers or one a sample, not both 0. At sigma2_y = 0 it is the
        pseudo-inverse of r2 A A^T, what A^T of it tends to. What of r no A x can explain comes out as r/sigma2_y,
        rounding with it: where A^T of this is wanted, `gain` is exact.
        """
        self._check("r", r, self.measured)
        noise, spread = self._noise_and_spread(sigma2_y, r2, r)
        if self.svd is not None:
            s, within = self.svd.spectrum(r), self.svd.ut(r)
            known = self.svd.u(within / torch.where(s > 0, noise + spread * s**2, 1.0))
            if self._onto:
                return known
            beyond = r - self.svd.u(within)
            beyond = beyond - self.svd.u(self.svd.ut(beyond))  # 1/noise would blow up what rounding left of the range
            return known + _times(_inverse(noise), beyond)
        if bool((noise == 0).any()):
            within_range = self.forward(self.pinv(r))
            r = torch.where(_event(noise == 0, r), within_range, r)

        def system(v: Tensor) -> Tensor:
            return _times(noise, v) + _times(spread, self.forward(self.transpose(v)))

        return self._met(cg(system, r, **self._until(r)), "r2 A A^T + sigma2_y I")

    def gain(self, r: Tensor, sigma2_y: Scale, r2: Scale) -> Tensor:
        """A^T (r2 A A^T + sigma2_y I)^-1 r = (r2 A^T A + sigma2_y I)^-1 A^T r, what a residual r moves x0 by, over r2.

        The gain of Kalman's filter; A^+ r/r2 at sigma2_y = 0. Arguments and errors as in `gram_solve`.
        """
        self._check("r", r, self.measured)
        noise, spread = self._noise_and_spread(sigma2_y, r2, r)
        if self.svd is None:
            return self.transpose(self.gram_solve(r, sigma2_y, r2))
        s = self.svd.spectrum(r)
        return self.svd.v(s / torch.where(s > 0, noise + spread * s**2, 1.0) * self.svd.ut(r))

    def matrix(self) -> Tensor:
        """A as (m, d) in float64 on the host, or (batch, m, d) where each sample has its own; for small operators."""
        d, m = math.prod(self.event), math.prod(self.measured)
        if d * m > 2**24:
            raise ValueError(f"{self!r} as a matrix has {m} x {d} entries: it is written out up to {2**24} of them")
        eye = torch.eye(d, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            if self.batch is None:
                return self(eye.reshape(d, *self.event)).reshape(d, m).mT.to("cpu").to(torch.float64)
            columns = [self(e.reshape(1, *self.event).expand(self.batch, *self.event)).flatten(1) for e in eye]
            return torch.stack(columns, -1).to("cpu").to(torch.float64)

    def norm(self, *, tolerance: float = 1e-6, limit: int = 1000) -> float:
        """The largest singular value (of all samples): by the SVD, else by power iteration until it moves by less than
        `tolerance` of itself; RuntimeError after `limit` steps."""
        if self.svd is not None:
            return float(self.svd.s.max())
        seed = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch or 1, *self.event, generator=seed, dtype=torch.float64)
        x, last = x.to(self.dtype).to(self.device), 0.0
        with torch.no_grad():
            for _ in range(limit):
                length = x.flatten(1).norm(dim=1)
                x = self.transpose(self.forward(x / _event(length.clamp_min(torch.finfo(self.dtype).tiny)[:, None], x)))
                now = float(x.flatten(1).norm(dim=1).max().sqrt())
                if abs(now - last) <= tolerance * now:
                    return now
                last = now
        raise RuntimeError(f"the norm of {self!r} is not found in {limit} steps of power iteration: {last:.6g} so far")

    def _until(self, like: Tensor) -> _Until:
        goal = 100 * torch.finfo(like.dtype).eps if self.tolerance is None else self.tolerance
        return {"tolerance": goal, "limit": self.limit}

    def _met(self, solved: Solved, system: str) -> Tensor:
        """The solution, if conjugate gradients have met the tolerance."""
        x, _, residual = solved
        worst = float(residual.detach().max()) if len(residual) else 0.0
        goal = self._until(x)["tolerance"]
        if not worst <= goal:
            raise RuntimeError(
                f"{system} of {self!r} by conjugate gradients: relative residual {worst:.3g} after {self.limit} steps, "
                f"wanted {goal:.3g}; it is badly conditioned or singular: raise operator.limit or operator.tolerance, "
                "the ridge, or give the operator an SVD"
            )
        return x

    @cached_property
    def _onto(self) -> bool:
        """Whether every y is an A x."""
        return self.svd is not None and bool(((self.svd.s > 0).sum(-1) == math.prod(self.measured)).all())

    def _noise_and_spread(self, sigma2_y: Scale, r2: Scale, r: Tensor) -> tuple[Tensor, Tensor]:
        noise, spread = _column("sigma2_y", sigma2_y, r), _column("r2", r2, r)
        if bool(((noise == 0) & (spread == 0)).any()):
            raise ValueError("r2 A A^T + sigma2_y I is singular: both r2 and sigma2_y are 0")
        return noise, spread

    def _singular(self, ridge: Tensor, weight: Tensor) -> bool:
        """Whether ridge I + weight A^T A is surely singular, for some sample."""
        unseen = torch.tensor(math.prod(self.measured) < math.prod(self.event))
        if self.svd is not None:
            unseen = (self.svd.s == 0).any(-1, keepdim=True)  # (1,), or (batch, 1)
        return bool(((ridge == 0) & ((weight == 0) | unseen.to(weight.device))).any())


def _shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    whole = tuple(index(n) for n in shape)
    if not whole or min(whole) < 1:
        raise ValueError(f"{name} is the shape of one sample, of sizes of at least 1: got {tuple(shape)}")
    return whole


def _column(name: str, scale: Scale, like: Tensor) -> Tensor:
    """A scale as () or (batch, 1) in the dtype and on the device of `like`, for flat coefficients."""
    value = torch.as_tensor(scale, dtype=like.dtype)
    if value.shape not in ((), (len(like),)):
        raise ValueError(f"{name} is a number or one a sample, ({len(like)},): got shape {tuple(value.shape)}")
    if not bool(((value >= 0) & value.isfinite()).all()):
        bad = value[~((value >= 0) & value.isfinite())].flatten()[0]
        raise ValueError(f"{name} must be finite and not negative: got {float(bad):.6g}")
    value = value.to(like.device)
    return value if value.dim() == 0 else value[:, None]


def _event(column: Tensor, like: Tensor) -> Tensor:
    """() or (batch, 1) as it multiplies (batch, *event)."""
    return column if column.dim() == 0 else column.reshape(-1, *[1] * (like.dim() - 1))


def _times(column: Tensor, x: Tensor) -> Tensor:
    return _event(column, x) * x


def _inverse(value: Tensor) -> Tensor:
    """1/value, and 0 for 0."""
    return torch.where(value > 0, 1 / torch.where(value > 0, value, 1.0), 0.0)
