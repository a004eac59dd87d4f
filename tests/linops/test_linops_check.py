"""The check of an operator of one's own finds what is wrong, with its figure."""

from __future__ import annotations

import re

import pytest
import torch
from operators import F64, LINEAR, close, draw
from torch import Tensor

from ornstein.linops import SVD, Blur, Clipping, LinearOperator, Matrix, check, check_adjoint


@pytest.mark.parametrize("name", LINEAR)
def test_own_operators_pass(name: str) -> None:
    report = check(LINEAR[name]())
    assert report.passed
    assert len(report.figures) == 9
    assert max(report.figures.values()) < 1e-12
    check_adjoint(LINEAR[name]())


def test_own_operators_pass_in_float32() -> None:
    assert check(Blur.gaussian(0.6, (1, 4, 6)), dtype=torch.float32).tolerance == pytest.approx(2**-11.5)


class Scaled(Matrix):
    """Its adjoint is 1 % too large."""

    def transpose(self, y: Tensor) -> Tensor:
        return 1.01 * super().transpose(y)


class Turned(LinearOperator):
    """A cyclic shift with itself for an adjoint."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 1)

    def transpose(self, y: Tensor) -> Tensor:
        return y.roll(1, 1)


class Affine(LinearOperator):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1

    def transpose(self, y: Tensor) -> Tensor:
        return y


class Mixing(LinearOperator):
    """Reads the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Halved(Matrix):
    """Its pseudo-inverse is A^T."""

    def pinv(self, y: Tensor) -> Tensor:
        return self.transpose(y)


class Decomposed(Matrix):
    """An SVD of which one part is wrong."""

    wrong = ""

    @property
    def svd(self) -> SVD:
        u, s, vh = torch.linalg.svd(self.matrix(), full_matrices=False)
        parts = {"s": s, "v": vh.mT, "u": u}
        if self.wrong == "order":
            parts["s"] = s.flip(0)
        elif self.wrong == "basis":
            parts["v"], parts["s"] = 2 * vh.mT, s / 2
        elif self.wrong == "sign":
            parts["u"] = -u
        v, u = parts["v"], parts["u"]
        if self.wrong == "scale":  # V^-1 in place of V^T
            return SVD(
                s / 2, vt=lambda x: 2 * x @ v, v=lambda c: c @ v.mT / 2, ut=lambda y: y @ u, u=lambda c: c @ u.mT
            )
        return SVD(parts["s"], vt=lambda x: x @ v, v=lambda c: c @ v.mT, ut=lambda y: y @ u, u=lambda c: c @ u.mT)


def test_a_wrong_adjoint_is_found_with_its_figure() -> None:
    """1 % of <A x, y>, of which |A x| |y| is at most sqrt(2) times: between 0.5 and 1 %."""
    a = Scaled(draw(5, 7))
    with pytest.raises(ValueError, match=r"the adjoint of Scaled.* is wrong: .* differ by") as caught:
        check_adjoint(a)
    found = re.search(r"differ by ([\d.e-]+)", str(caught.value))
    assert found is not None
    assert 0.004 < float(found[1]) < 0.0101
    with pytest.raises(ValueError, match=r"fails .*<A x, y> = <x, A\^T y> by 0.00"):
        check(a)
    report = check(a, strict=False)
    assert not report.passed
    assert 0.004 < report.failures["<A x, y> = <x, A^T y>"] < 0.0101
    assert "WRONG" in str(report)
    with pytest.raises(ValueError, match="the adjoint of Turned"):
        check_adjoint(Turned((6,), (6,)))
    check_adjoint(a, tolerance=0.02)
    check_adjoint(Clipping((3,)))  # no adjoint to be wrong
    check_adjoint(Matrix(torch.zeros(2, 3, dtype=F64)))


def test_each_other_fault_is_named() -> None:
    faults = {
        Affine((5,), (5,)): "linear",
        Mixing((5,), (5,)): "each sample alone",
        Halved(draw(4, 4)): "A A^+ A = A",
    }
    for operator, name in faults.items():
        assert name in check(operator, strict=False).failures
    for wrong, name in (
        ("order", "A = U diag(s) V^T"),
        ("basis", "U, V orthonormal"),
        ("scale", "U, V orthonormal"),
        ("sign", "A = U diag(s) V^T"),
    ):
        operator = Decomposed(draw(4, 4))
        operator.wrong = wrong
        assert name in check(operator, strict=False).failures
    assert check(Decomposed(draw(4, 4))).passed


def test_the_identities_of_moore_and_penrose_are_told_apart() -> None:
    """A generalised inverse may satisfy some of the four: A^+ + N with A N = 0, or N A = 0, breaks what it must."""
    m = draw(4, 6)
    plus = torch.linalg.pinv(m)
    null = torch.eye(6, dtype=F64) - plus @ m

    class Other(Matrix):
        inverse = plus

        def pinv(self, y: Tensor) -> Tensor:
            return y @ self.inverse.mT

    def failing(inverse: Tensor, matrix: Tensor = m) -> list[bool]:
        operator = Other(matrix)
        operator.inverse = inverse
        figures = check(operator, strict=False).pinv
        assert figures is not None
        return [figure > 1e-8 for figure in figures]

    assert failing(plus) == [False] * 4
    assert failing(plus + null @ draw(6, 4)) == [False, False, False, True]  # a right inverse, A^+ A not symmetric
    assert failing(2 * plus) == [True, True, False, False]
    tall = m.mT
    left = torch.linalg.pinv(tall)
    beyond = torch.eye(6, dtype=F64) - tall @ left
    assert failing(left + draw(4, 6, seed=1) @ beyond, tall) == [False, False, True, False]
    flat = torch.diag(torch.tensor([1.0, 0.0], dtype=F64))
    assert failing(torch.eye(2, dtype=F64), flat) == [False, True, False, False]  # A X A = A alone is not enough


def test_adjoint_by_differentiation_needs_only_forward() -> None:
    class Differences(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return x.diff(dim=1)

    a = Differences((5,), (4,))
    assert check(a).passed
    y = draw(2, 4).requires_grad_()
    with torch.no_grad():
        got = a.adjoint(y)
    assert not got.requires_grad
    close(got, y @ a.matrix(), 1e-14)
    (pulled,) = torch.autograd.grad(a.adjoint(y).square().sum(), y)
    close(pulled, 2 * a(got), 1e-14)
    assert str(check(a)).startswith("Differences((5,) -> (4,)): relative errors, 1e-08 allowed\n  each sample alone")
