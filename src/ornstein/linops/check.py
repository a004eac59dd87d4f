"""Whether an operator is what it says it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .operator import LinearOperator, Operator


@dataclass(frozen=True)
class Checked:
    """Relative errors of an operator's parts on random tensors; None where it has no such part. It prints as a table.

    operator: its repr. tolerance: what every figure is held to.
    batch: A(x) of a batch against A(x) of each sample alone.
    linear: A(a x + b x') against a A x + b A x'.
    adjoint: <A x, y> - <x, A^T y> in units of |A x| |y|.
    pinv: the identities of Moore and Penrose, A A^+ A = A, A^+ A A^+ = A^+, and A A^+, A^+ A symmetric.
    svd: A = U diag(s) V^T, of x and of y. orthonormal: V V^T = V^T V = I, U^T U = diag(s > 0).
    """

    operator: str
    tolerance: float
    batch: float
    linear: float | None = None
    adjoint: float | None = None
    pinv: tuple[float, float, float, float] | None = None
    svd: float | None = None
    orthonormal: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """What was measured, by the name it has in the table."""
        names = ("A A^+ A = A", "A^+ A A^+ = A^+", "A A^+ symmetric", "A^+ A symmetric")
        found = {
            "each sample alone": self.batch,
            "linear": self.linear,
            "<A x, y> = <x, A^T y>": self.adjoint,
            **dict(zip(names, self.pinv or (None,) * 4, strict=True)),
            "A = U diag(s) V^T": self.svd,
            "U, V orthonormal": self.orthonormal,
        }
        return {name: figure for name, figure in found.items() if figure is not None}

    @property
    def failures(self) -> dict[str, float]:
        """The figures above the tolerance, and those that are not finite."""
        return {name: figure for name, figure in self.figures.items() if not figure <= self.tolerance}

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        rows = [
            f"  {name:<24}{figure:9.1e}{'' if figure <= self.tolerance else '  WRONG'}"
            for name, figure in self.figures.items()
        ]
        return "\n".join([f"{self.operator}: relative errors, {self.tolerance:.0e} allowed", *rows])


def check(
    operator: Operator,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    samples: int = 4,
    strict: bool = True,
) -> Checked:
    """Try an operator on random events and measurements: see `Checked` for the figures.

    dtype: the operator's own (float64 for those of this library) if not given. tolerance: sqrt(eps) of the dtype if not
    given, 1.5e-8 in float64. samples: of the batch tried, one for each sample where the operator has a batch.

    Errors: with `strict`, ValueError naming every figure above the tolerance.
    """
    dtype = operator.dtype if dtype is None else dtype
    tolerance = torch.finfo(dtype).eps ** 0.5 if tolerance is None else tolerance
    draw = _Draw(operator, seed, dtype, samples)
    with torch.no_grad():
        x = draw(operator.event)
        found = Checked(repr(operator), tolerance, _alone(operator, x))
        if isinstance(operator, LinearOperator):
            other, y = draw(operator.event), draw(operator.measured)
            ax = operator(x)
            parts = 2 * ax - 0.5 * operator(other)
            found = Checked(
                repr(operator),
                tolerance,
                batch=found.batch,
                linear=_apart(operator(2 * x - 0.5 * other), parts),
                adjoint=_adjoint(operator, x, y),
                pinv=_penrose(operator, x, other, y, draw(operator.measured)),
                svd=_reconstruction(operator, x, y),
                orthonormal=_orthonormal(operator, x),
            )
    if strict and found.failures:
        wrong = ", ".join(f"{name} by {figure:.3g}" for name, figure in found.failures.items())
        raise ValueError(
            f"{operator!r} fails {wrong} (relative, {tolerance:.1e} allowed): mend it, or see check(..., strict=False)"
        )
    return found


def check_adjoint(operator: Operator, *, seed: int = 0, tolerance: float | None = None) -> None:
    """The cheap part of `check`: one forward and one adjoint, as methods ask before a run.

    Errors: ValueError naming the figure where <A x, y> and <x, A^T y> differ by more than `tolerance` |A x| |y|,
    sqrt(eps) of the operator's dtype if not given. Operators that are not linear have no adjoint and pass.
    """
    if not isinstance(operator, LinearOperator):
        return
    tolerance = torch.finfo(operator.dtype).eps ** 0.5 if tolerance is None else tolerance
    draw = _Draw(operator, seed, operator.dtype, 1)
    with torch.no_grad():
        figure = _adjoint(operator, draw(operator.event), draw(operator.measured))
    if not figure <= tolerance:
        raise ValueError(
            f"the adjoint of {operator!r} is wrong: <A x, y> and <x, A^T y> differ by {figure:.3g} of |A x| |y| "
            f"({tolerance:.1e} allowed)"
        )


class _Draw:
    def __init__(self, operator: Operator, seed: int, dtype: torch.dtype, samples: int) -> None:
        self.batch = operator.batch or samples
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.device = dtype, operator.device

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        drawn = torch.randn(self.batch, *shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.dtype).to(self.device)


def _alone(operator: Operator, x: Tensor) -> float:
    index = torch.arange(len(x))
    each = [operator.rows(index[i : i + 1])(x[i : i + 1]) for i in range(len(x))]
    return _apart(operator(x), torch.cat(each))


def _adjoint(operator: LinearOperator, x: Tensor, y: Tensor) -> float:
    ax = operator(x)
    y = _unit(ax) + _unit(y)  # partly along A x: a wrong factor then shows as what it is
    left, right = _dot(ax, y), _dot(x, operator.adjoint(y))
    scale = _dot(ax, ax).sqrt() * _dot(y, y).sqrt()
    return _worst((left - right).abs(), torch.where(scale > 0, scale, _dot(x, x).sqrt()))


def _penrose(
    operator: LinearOperator, x: Tensor, other: Tensor, y: Tensor, y2: Tensor
) -> tuple[float, float, float, float]:
    ax, pinv_y = operator(x), operator.pinv(y)
    first = _apart(operator(operator.pinv(ax)), ax)
    second = _apart(operator.pinv(operator(pinv_y)), pinv_y)
    third = _worst((_dot(operator(pinv_y), y2) - _dot(y, operator(operator.pinv(y2)))).abs(), _sizes(y, y2))
    fourth = _dot(operator.pinv(ax), other) - _dot(x, operator.pinv(operator(other)))
    return first, second, third, _worst(fourth.abs(), _sizes(x, other))


def _reconstruction(operator: LinearOperator, x: Tensor, y: Tensor) -> float | None:
    svd = operator.svd
    if svd is None:
        return None
    back = svd.v(svd.spectrum(y) * svd.ut(y))
    return max(
        _apart(svd.u(svd.spectrum(x) * svd.vt(x)), operator(x)), _apart(back, operator.adjoint(y)), _negative(svd.s)
    )


def _negative(s: Tensor) -> float:
    return float(torch.relu(-s).max())


def _orthonormal(operator: LinearOperator, x: Tensor) -> float | None:
    svd = operator.svd
    if svd is None:
        return None
    c = x.flatten(1)
    seen = torch.where(svd.spectrum(c) > 0, c, 0.0)
    return max(
        _apart(svd.v(svd.vt(x)), x),
        _apart(svd.vt(svd.v(c)), c),
        abs(_worst(_dot(svd.vt(x), svd.vt(x)), _dot(x, x)) - 1),
        _apart(svd.ut(svd.u(seen)), seen),
        _worst((_dot(svd.u(seen), svd.u(seen)) - _dot(seen, seen)).abs(), _dot(c, c)),
    )


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _sizes(a: Tensor, b: Tensor) -> Tensor:
    return (_dot(a, a) * _dot(b, b)).sqrt()


def _unit(x: Tensor) -> Tensor:
    size = _dot(x, x).sqrt().reshape(-1, *[1] * (x.dim() - 1))
    return x / torch.where(size > 0, size, 1.0)


def _apart(a: Tensor, b: Tensor) -> float:
    """|a - b|/|b| of the worst sample, |a - b| where b is 0."""
    size = _dot(b, b).sqrt()
    return _worst(_dot(a - b, a - b).sqrt(), torch.where(size > 0, size, 1.0))


def _worst(error: Tensor, scale: Tensor) -> float:
    return float((error / scale).max())
