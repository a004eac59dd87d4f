"""deepinv's physics objects as operators: fakes of their interface, and the objects themselves where installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ornstein.interop import from_deepinv
from ornstein.linops import LinearOperator, Mask, Matrix, check


def weights() -> Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """The interface of deepinv's LinearPhysics on images (3, 2, 2)."""

    img_size = (3, 2, 2)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", weights())

    def A(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x.flatten(1) @ self.weights.T

    def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
        return (y @ self.weights).reshape(-1, 3, 2, 2)

    def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
        return (y @ torch.linalg.pinv(self.weights).T).reshape(-1, 3, 2, 2) + 0.1


class Nonlinear:
    def A(self, x: Tensor) -> Any:
        return x.abs()


def test_a_linear_object_becomes_a_linear_operator() -> None:
    physics = Linear().double()
    a = from_deepinv(physics)
    assert isinstance(a, LinearOperator)
    assert (a.event, a.measured, a.dtype) == ((3, 2, 2), (5,), torch.float64)
    assert repr(a) == "from_deepinv(Linear: (3, 2, 2) -> (5,))"
    assert check(a).passed
    twin, y = Matrix(weights(), (3, 2, 2)), weights().double()[:, :5]
    for method in ("adjoint", "pinv"):
        torch.testing.assert_close(getattr(a, method)(y), getattr(twin, method)(y), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(a.gram_solve(y, 0.1, 2.0), twin.gram_solve(y, 0.1, 2.0), rtol=1e-10, atol=1e-12)


def test_the_pseudo_inverse_is_this_librarys_unless_asked() -> None:
    theirs = from_deepinv(Linear().double(), dagger=True)
    y = weights().double()[:, :5]
    assert isinstance(theirs, LinearOperator)
    torch.testing.assert_close(theirs.pinv(y), Linear().double().A_dagger(y), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"fails A A\^\+ A = A by 0\.\d"):
        check(theirs)


def test_float32_objects_are_tried_in_float32() -> None:
    a = from_deepinv(Linear())
    assert a.dtype == torch.float32
    assert check(a).passed
    assert isinstance(a, LinearOperator)
    assert a.matrix().dtype == torch.float64
    assert (a @ Mask(torch.ones(3, 2, 2))).dtype == torch.float32  # of a composition, the least precise


def test_a_wrong_adjoint_is_found() -> None:
    class Wrong(Linear):
        def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
            return 2 * super().A_adjoint(y)

    with pytest.raises(ValueError, match=r"<A x, y> = <x, A\^T y> by 0"):
        check(from_deepinv(Wrong()))


def test_a_nonlinear_object_becomes_an_operator() -> None:
    a = from_deepinv(Nonlinear(), event=(1, 2, 2))
    assert not isinstance(a, LinearOperator)
    assert a.measured == (1, 2, 2)
    assert torch.equal(a(-torch.ones(3, 1, 2, 2)), torch.ones(3, 1, 2, 2))


def test_what_cannot_be_an_operator() -> None:
    with pytest.raises(ValueError, match=r"has a method A\(x\): got object"):
        from_deepinv(object())
    with pytest.raises(ValueError, match=r"Nonlinear has no img_size: .* event=\(c, h, w\)"):
        from_deepinv(Nonlinear())
    with pytest.raises(ValueError, match="Nonlinear has no A_dagger"):
        from_deepinv(Nonlinear(), (1, 2, 2), dagger=True)

    class Complex(Nonlinear):
        def A(self, x: Tensor) -> Any:
            return torch.complex(x, x)

    class Several(Nonlinear):
        def A(self, x: Tensor) -> Any:
            return [x, x]

    with pytest.raises(ValueError, match="complex numbers: wrap it"):
        from_deepinv(Complex(), (1, 2, 2))
    with pytest.raises(ValueError, match=r"measures list .* orn\.linops\.Stack"):
        from_deepinv(Several(), (1, 2, 2))


@pytest.mark.parametrize("kind", ["Inpainting", "BlurFFT", "MRI", "Tomography", "CompressedSensing", "Decolorize"])
def test_deepinvs_own_objects(kind: str) -> None:
    """Their adjoints are right, and so is what this library makes of them, to the rounding of their float32."""
    physics = pytest.importorskip("deepinv").physics
    torch.manual_seed(0)
    kernel = torch.rand(1, 1, 3, 3)
    made: dict[str, Any] = {
        "Inpainting": lambda: (physics.Inpainting((1, 8, 8), mask=0.5), None),
        "BlurFFT": lambda: (physics.BlurFFT((1, 8, 8), filter=kernel / kernel.sum()), None),
        "MRI": lambda: (physics.MRI(mask=(torch.rand(8, 8) > 0.5).float(), img_size=(2, 8, 8)), (2, 8, 8)),
        "Tomography": lambda: (physics.Tomography(angles=6, img_width=8, circle=False), (1, 8, 8)),
        "CompressedSensing": lambda: (physics.CompressedSensing(m=10, img_size=(1, 4, 4)), None),
        "Decolorize": lambda: (physics.Decolorize(), (3, 4, 4)),
    }
    a = from_deepinv(*made[kind]())
    assert isinstance(a, LinearOperator)
    report = check(a)
    assert max(report.figures.values()) < 3e-4  # sqrt(eps) of float32
    x = torch.randn(2, *a.event)
    torch.testing.assert_close(a(a.pinv(a(x))), a(x), rtol=1e-3, atol=1e-3)
