"""Small operators of every kind, and ways to look at them."""

import math

import torch

from ornstein.linops import (
    Blur,
    Colour,
    Downsample,
    Fourier,
    Hadamard,
    LinearOperator,
    Mask,
    Matrix,
    NonuniformBlur,
    Radon,
    SeparableBlur,
    Stack,
    Truncated,
)

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def binary(*shape: int, seed: int = 0) -> torch.Tensor:
    return (draw(*shape, seed=seed) > 0).double()


def coils(count: int, *image: int) -> torch.Tensor:
    return torch.complex(draw(count, *image), draw(count, *image, seed=1))


LINEAR = {
    "mask": lambda: Mask(binary(2, 3, 4)),
    "mask-broadcast": lambda: Mask(binary(3, 4), (2, 3, 4)),
    "mask-each": lambda: Mask(binary(3, 1, 3, 4), (2, 3, 4)),
    "blur": lambda: Blur(draw(3, 2), (2, 4, 5)),
    "blur-line": lambda: Blur(draw(3), (7,)),
    "blur-even": lambda: Blur.gaussian(0.6, (1, 4, 6)),
    "blur-null": lambda: Blur(torch.full((1, 2), 0.5, dtype=F64), (1, 3, 6)),  # cannot see alternating columns
    "separable": lambda: SeparableBlur(draw(3), (2, 4, 5), row=draw(2, seed=1)),
    "separable-zero": lambda: SeparableBlur(draw(4), (5, 4), boundary="zero"),
    "downsample": lambda: Downsample(2, (3, 4, 6)),
    "downsample-line": lambda: Downsample((3,), (2, 9)),
    "grey": lambda: Colour((3, 2, 3)),
    "colour": lambda: Colour((3, 2, 3), draw(2, 3)),
    "fourier": lambda: Fourier(binary(4, 5), (2, 4, 5)),
    "fourier-real": lambda: Fourier(binary(4, 5), (1, 4, 5)),
    "fourier-plain": lambda: Fourier(binary(3, 6), (3, 6)),
    "fourier-coils": lambda: Fourier(binary(3, 4), (2, 3, 4), coils(2, 3, 4)),
    "fourier-real-coils": lambda: Fourier(binary(3, 4), (1, 3, 4), coils(2, 3, 4)),
    "radon": lambda: Radon.views(3, (5, 6)),
    "radon-limited": lambda: Radon(torch.linspace(-0.5, 0.4, 4, dtype=F64), (2, 4, 4), detectors=5),
    "hadamard": lambda: Hadamard([0, 3, 9, 7], (4, 4)),
    "wide": lambda: Matrix(draw(5, 12), (3, 4)),
    "tall": lambda: Matrix(draw(9, 6)),
    "deficient": lambda: Matrix(draw(6, 3) @ draw(3, 7, seed=1), measured=(2, 3)),
    "each-matrix": lambda: Matrix(draw(3, 5, 7)),
    "nonuniform": lambda: NonuniformBlur(draw(2, 3, 3), draw(2, 4, 5).abs(), (1, 4, 5)),
    "composed": lambda: Downsample(2, (1, 4, 6)) @ Blur(draw(3, 3), (1, 4, 6)),
    "composed-each": lambda: Mask(binary(3, 1, 3, 4), (1, 3, 4)) @ Blur(draw(3, 3), (1, 3, 4)),
    "stack": lambda: Stack([Mask(binary(4, 4)), Downsample(2, (4, 4)), Matrix(draw(3, 16), (4, 4))]),
    "truncated": lambda: Truncated(Blur.gaussian(1.2, (1, 6, 6)), 0.1),
}


class Plain(LinearOperator):
    """The forward map of another operator and nothing else: adjoint by differentiation, no SVD."""

    svd = None

    def __init__(self, other: LinearOperator) -> None:
        super().__init__(other.event, other.measured)
        self.forward, self.batch, self.dtype = other.forward, other.batch, other.dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError


def written_out(operator: LinearOperator) -> torch.Tensor:
    """(batch, m, d), one matrix a sample."""
    matrix = operator.matrix()
    return matrix if matrix.dim() == 3 else matrix.expand(3, -1, -1)


def times(matrix: torch.Tensor, x: torch.Tensor, *shape: int) -> torch.Tensor:
    return (matrix @ x.flatten(1)[..., None]).squeeze(-1).reshape(len(x), *shape)


def condition(matrix: torch.Tensor) -> float:
    """The largest over the smallest singular value that is not 0."""
    s = torch.linalg.svdvals(matrix)
    return float(s.max() / s[s > 1e-9 * s.max()].min())


def close(got: torch.Tensor, wanted: torch.Tensor, bound: float, scale: float | None = None) -> None:
    assert got.shape == wanted.shape
    size = float(wanted.detach().norm()) if scale is None else scale
    error = float((got - wanted).detach().norm())
    assert error <= bound * max(size, 1e-300), (error, size, bound)


def sizes(operator: LinearOperator) -> tuple[int, int]:
    return math.prod(operator.measured), math.prod(operator.event)
