"""What each operator measures, against a definition written another way: loops, torch's own layers, geometry."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from operators import F64, binary, close, coils, draw
from torch import Tensor
from torch.nn import functional as F

from ornstein.linops import (
    BlackBox,
    Blur,
    Clipping,
    Colour,
    Downsample,
    Fourier,
    Function,
    Hadamard,
    LinearOperator,
    Mask,
    Matrix,
    NonuniformBlur,
    PhaseRetrieval,
    Quantisation,
    Radon,
    Separable,
    SeparableBlur,
    check,
    gaussian_kernel,
)

EPS = torch.finfo(F64).eps


def convolved(kernel: Tensor, x: Tensor) -> Tensor:
    """sum_l kernel[l] x[n - l + middle], modulo the size, by loops."""
    y = torch.zeros_like(x)
    (kh, kw), (h, w) = kernel.shape, x.shape[-2:]
    for i, j, a, b in itertools.product(range(h), range(w), range(kh), range(kw)):
        y[..., i, j] += kernel[a, b] * x[..., (i - a + kh // 2) % h, (j - b + kw // 2) % w]
    return y


def test_mask() -> None:
    x, mask = draw(2, 3, 4, 5), binary(4, 5)
    assert torch.equal(Mask(mask, (3, 4, 5))(x), mask * x)
    assert torch.equal(Mask(mask.bool(), (3, 4, 5))(x), mask * x)
    each = binary(2, 1, 4, 5, seed=1)
    assert torch.equal(Mask(each, (3, 4, 5))(x), each * x)
    assert torch.equal(Mask(each, (3, 4, 5)).rows(torch.tensor([1, 1, 0]))(x[[1, 1, 0]]), (each * x)[[1, 1, 0]])
    with pytest.raises(ValueError, match=r"1 where an entry is seen .* got 0.5"):
        Mask(torch.tensor([0.0, 0.5]))
    with pytest.raises(ValueError, match=r"broadcasts to it.* got \(3, 5\)"):
        Mask(torch.ones(3, 5), (3, 4, 5))
    with pytest.raises(ValueError, match="broadcasts to it"):
        Mask(torch.ones(2, 1, 1, 4, 5), (3, 4, 5))


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (1, 4)])
def test_blur_is_a_circular_convolution(shape: tuple[int, int]) -> None:
    x, kernel = draw(2, 3, 4, 5), draw(*shape)
    close(Blur(kernel, (3, 4, 5))(x), convolved(kernel, x), 100 * EPS)


def test_blur_errors_and_gaussian() -> None:
    with pytest.raises(ValueError, match=r"not larger than the last axes .* got \(5, 3\)"):
        Blur(draw(5, 3), (1, 4, 6))
    with pytest.raises(ValueError, match="not larger than the last axes"):
        Blur(draw(3, 3), (6,))
    with pytest.raises(ValueError, match="width of a kernel is positive"):
        Blur.gaussian(0.0, (4, 4))
    kernel = gaussian_kernel(0.7)
    assert len(kernel) == 7  # 3 standard deviations to each side
    assert float(kernel.sum()) == pytest.approx(1, rel=4 * EPS)
    assert float(kernel[3] / kernel[4]) == pytest.approx(math.exp(1 / (2 * 0.49)), rel=1e-12)
    x = torch.zeros(1, 9, 9, dtype=F64)
    x[0, 4, 4] = 1
    close(Blur.gaussian(0.7, (9, 9))(x)[0, 1:8, 1:8], torch.outer(kernel, kernel), 100 * EPS)
    assert Blur.gaussian(3.0, (1, 4, 6)).norm() == pytest.approx(1, rel=1e-12)  # cut to 3 x 5


@pytest.mark.parametrize("boundary", ["zero", "reflect", "circular"])
@pytest.mark.parametrize("size", [3, 4, 5])
def test_separable_blur_is_a_padded_convolution(boundary: str, size: int) -> None:
    """Torch's convolution turns the kernel round; one with an even number of entries reaches further to one side."""
    x, column, row = draw(2, 3, 6, 5), draw(size), draw(3, seed=1)
    after = size - 1 - size // 2
    pad = (1, 1, after, size // 2)
    mode = {"zero": "constant"}.get(boundary, boundary)
    padded = F.pad(x, pad, mode=mode)
    kernel = torch.outer(column, row).flip(0, 1)[None, None].expand(3, 1, -1, -1)
    a = SeparableBlur(column, (3, 6, 5), row=row, boundary=boundary)
    close(a(x), F.conv2d(padded, kernel, groups=3), 100 * EPS)
    if boundary == "circular":
        close(a.matrix(), Blur(torch.outer(column, row), (3, 6, 5)).matrix(), 100 * EPS)


def test_separable_errors() -> None:
    with pytest.raises(ValueError, match="boundary is one of zero, reflect, circular: got 'edge'"):
        SeparableBlur(draw(3), (4, 4), boundary="edge")
    with pytest.raises(ValueError, match="beyond the mirror image of 4"):
        SeparableBlur(draw(8), (4, 4))
    with pytest.raises(ValueError, match="for images"):
        SeparableBlur(draw(3), (4,))
    with pytest.raises(ValueError, match="a row of finite numbers"):
        SeparableBlur(draw(3, 3), (4, 4))
    with pytest.raises(ValueError, match="a matrix or None for each: got 1"):
        Separable([draw(2, 4)], (4, 4))
    with pytest.raises(ValueError, match=r"axis 1 is \(m, 3\): got \(2, 4\)"):
        Separable([None, draw(2, 4)], (4, 3))
    with pytest.raises(ValueError, match="axis 0 must be finite"):
        Separable([draw(2, 4) / 0, None], (4, 3))


def test_downsample_is_average_pooling() -> None:
    x = draw(2, 3, 4, 6)
    close(Downsample(2, (3, 4, 6))(x), F.avg_pool2d(x, 2), 100 * EPS)
    close(Downsample((2, 3), (3, 4, 6))(x), F.avg_pool2d(x, (2, 3)), 100 * EPS)
    close(Downsample(4, (8,))(draw(2, 8)), F.avg_pool1d(draw(2, 1, 8), 4)[:, 0], 100 * EPS)
    y = draw(2, 3, 2, 3)
    close(Downsample(2, (3, 4, 6)).pinv(y), y.repeat_interleave(2, -1).repeat_interleave(2, -2), 100 * EPS)
    for factor in (4, (2, 4), 0, (1, 1, 1, 1)):
        with pytest.raises(ValueError, match="factors that divide"):
            Downsample(factor, (3, 4, 6))


def test_colour_mixes_channels() -> None:
    x, weights = draw(2, 3, 4, 5), draw(2, 3)
    close(Colour((3, 4, 5))(x), x.mean(1, keepdim=True), 100 * EPS)
    close(Colour((3, 4, 5), weights)(x), torch.einsum("oc,bchw->bohw", weights, x), 100 * EPS)
    close(Colour((3, 4, 5), weights[0])(x), Colour((3, 4, 5), weights[:1])(x), EPS)
    with pytest.raises(ValueError, match=r"axis 0 is \(m, 3\): got \(2, 4\)"):
        Colour((3, 4, 5), draw(2, 4))


@pytest.mark.parametrize("event", [(2, 4, 5), (1, 4, 5), (4, 5)])
@pytest.mark.parametrize("count", [0, 2])
def test_fourier_is_the_masked_transform(event: tuple[int, ...], count: int) -> None:
    """F[k, n] = exp(-2 pi i <k, n/size>)/sqrt(d), as a matrix for each axis."""
    x, mask = draw(3, *event), binary(4, 5, seed=5)
    image = torch.complex(x[:, 0], x[:, 1]) if event[0] == 2 else x.reshape(3, 4, 5).to(torch.complex128)
    turns = [torch.outer(n := torch.arange(size, dtype=F64), n) / size for size in (4, 5)]
    rows, columns = (torch.exp(-2j * math.pi * turn) / math.sqrt(len(turn)) for turn in turns)
    sensitivity = coils(count, 4, 5) if count else torch.ones(1, 4, 5, dtype=torch.complex128)
    seen = mask * (rows @ (sensitivity * image[:, None]) @ columns.mT)
    wanted = torch.stack([seen.real, seen.imag], 2)
    got = Fourier(mask, event, sensitivity if count else None)(x)
    close(got, wanted if count else wanted[:, 0], 100 * EPS)


def test_fourier_errors() -> None:
    with pytest.raises(ValueError, match=r"complex, \(1, h, w\) or \(h, w\) real: got \(3, 4, 5\)"):
        Fourier(torch.ones(4, 5), (3, 4, 5))
    for mask in (torch.ones(5, 4), torch.full((4, 5), 0.5)):
        with pytest.raises(ValueError, match=r"a mask of frequencies is \(4, 5\)"):
            Fourier(mask, (2, 4, 5))
    with pytest.raises(ValueError, match=r"coils are complex, \(coils, 4, 5\)"):
        Fourier(torch.ones(4, 5), (2, 4, 5), draw(2, 4, 5))
    with pytest.raises(ValueError, match="coils must be finite"):
        Fourier(torch.ones(4, 5), (2, 4, 5), coils(2, 4, 5) * math.nan)


def test_hadamard_rows_count_common_ones() -> None:
    rows = [5, 0, 6]
    wanted = [[(-1) ** (i & j).bit_count() / math.sqrt(8) for j in range(8)] for i in rows]
    close(Hadamard(rows, (2, 4)).matrix(), torch.tensor(wanted, dtype=F64), 100 * EPS)
    with pytest.raises(ValueError, match=r"2\^n numbers: .* have 6"):
        Hadamard([0], (6,))
    for bad in ([0, 8], [-1], [1, 1]):
        with pytest.raises(ValueError, match=r"different indices in 0 .. 7"):
            Hadamard(bad, (8,))


def chord(angle: float, position: float, left: float, low: float) -> float:
    """The length of the line x cos a + y sin a = position inside the square of side 1 with this corner, by clipping."""
    c, s = math.cos(angle), math.sin(angle)
    first, last = -math.inf, math.inf
    for origin, slope, edge in ((position * c, -s, left), (position * s, c, low)):
        if abs(slope) < 1e-12:
            if not edge <= origin <= edge + 1:
                return 0.0
            continue
        one, other = sorted(((edge - origin) / slope, (edge + 1 - origin) / slope))
        first, last = max(first, one), min(last, other)
    return max(0.0, last - first)


def test_radon_lengths_are_those_of_clipped_rays() -> None:
    """At angles for which no ray runs along an edge; row 0 is the top of the image."""
    angles = torch.tensor([0.3, math.pi / 4, 1.2, 2.0, 3.0, -0.7], dtype=F64)
    a = Radon(angles, (3, 5), detectors=6)
    wanted = torch.zeros(6, 6, 3, 5, dtype=F64)
    for i, j, row, column in itertools.product(range(6), range(6), range(3), range(5)):
        wanted[i, j, row, column] = chord(float(angles[i]), j - 2.5, column - 2.5, 0.5 - row)
    close(a.matrix(), wanted.reshape(36, 15), 1e-12)


def test_radon_along_the_axes() -> None:
    """At 0 a ray sums a column from left to right, at pi/2 a row from the bottom; rays along edges see half of each."""
    x = draw(1, 4, 6)
    y = Radon(torch.tensor([0.0, math.pi / 2], dtype=F64), (4, 6), detectors=6)(x)[0]
    close(y[0], x[0].sum(0), 100 * EPS)
    close(y[1, 1:5], x[0].sum(1).flip(0), 100 * EPS)
    y = Radon(torch.tensor([0.0, math.pi / 2, math.pi], dtype=F64), (4, 6), detectors=7)(x)[0]
    sums = F.pad(x[0].sum(0), (1, 1))
    close(y[0], (sums[:-1] + sums[1:]) / 2, 1e-9)
    close(y[2], y[0].flip(0), 1e-9)
    sums = F.pad(x[0].sum(1).flip(0), (2, 2))
    close(y[1], (sums[:-1] + sums[1:]) / 2, 1e-9)


def test_radon_of_a_disc() -> None:
    """2 sqrt(R^2 - t^2), to the size of a pixel; the sum over rays is the image's, whatever the angle."""
    n, radius = 64, 20.0
    place = torch.arange(n, dtype=F64) - (n - 1) / 2
    disc = ((place[:, None] ** 2 + place**2) < radius**2).double()[None]
    a = Radon.views(7, (n, n))
    y, t = a(disc)[0], torch.arange(a.measured[1], dtype=F64) - (a.measured[1] - 1) / 2
    wanted = 2 * (radius**2 - t**2).clamp_min(0).sqrt()
    inside = t.abs() < radius - 2
    assert float((y - wanted)[:, inside].abs().max()) < 3.0
    close(y.sum(1), disc.sum().expand(7), 1e-2)
    with pytest.raises(ValueError, match=r"angles \(n,\) and images"):
        Radon(draw(2, 2), (4, 4))
    with pytest.raises(ValueError, match="at least one detector"):
        Radon(draw(2), (4, 4), detectors=0)
    with pytest.raises(ValueError, match="angles must be finite"):
        Radon(draw(2) / 0, (4, 4))


def test_matrix() -> None:
    m, x = draw(3, 2, 6), draw(3, 2, 3)
    close(Matrix(m[0], (2, 3))(x), x.flatten(1) @ m[0].T, 100 * EPS)
    close(Matrix(m, (2, 3), (1, 2))(x), torch.einsum("bij,bj->bi", m, x.flatten(1)).reshape(3, 1, 2), 100 * EPS)
    with pytest.raises(ValueError, match=r"\(m, d\) or \(batch, m, d\), floating"):
        Matrix(torch.ones(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"2 x 6 takes no event \(5,\)"):
        Matrix(m[0], (5,))


def test_nonuniform_blur_blends_blurs() -> None:
    x, kernels, weights = draw(2, 3, 4, 5), draw(2, 3, 2), draw(2, 4, 5).abs()
    wanted = sum(w * convolved(k, x) for k, w in zip(kernels, weights, strict=True))
    assert isinstance(wanted, Tensor)
    close(NonuniformBlur(kernels, weights, (3, 4, 5))(x), wanted, 100 * EPS)
    with pytest.raises(ValueError, match=r"weights \(j, 4, 5\): got \(2, 3, 2\) and \(3, 4, 5\)"):
        NonuniformBlur(kernels, draw(3, 4, 5), (3, 4, 5))
    with pytest.raises(ValueError, match="weights must be finite"):
        NonuniformBlur(kernels, weights / 0, (3, 4, 5))


# -- nonlinear


def test_phase_retrieval_keeps_amplitudes_only() -> None:
    x, a = draw(3, 1, 4, 5), PhaseRetrieval((1, 4, 5), oversample=1.5)
    assert a.measured == (1, 6, 8)
    frame = F.pad(x, (0, 3, 0, 2))
    for got in (a(x), a(-x), a(x.flip(-1, -2))):
        close(got, torch.fft.fft2(frame, norm="ortho").abs(), 100 * EPS)
    moved = frame.roll((2, 3), (-2, -1))
    close(a(x), torch.fft.fft2(moved, norm="ortho").abs(), 100 * EPS)
    assert torch.autograd.gradcheck(a, x.requires_grad_())
    assert bool(torch.autograd.grad(a(zero := torch.zeros_like(x, requires_grad=True)).sum(), zero)[0].isfinite().all())
    close(a(x).square().sum((1, 2, 3)), x.square().sum((1, 2, 3)), 100 * EPS)  # Parseval: the scale is orthonormal
    with pytest.raises(ValueError, match="oversample >= 1"):
        PhaseRetrieval((4, 4), oversample=0.5)


def test_clipping_and_quantisation_are_undone_as_far_as_they_can_be() -> None:
    x = 2 * draw(4, 3, 5)
    for a in (Clipping((3, 5), scale=2.0), Quantisation((3, 5), levels=4)):
        close(a(a.pinv(a(x))), a(x), 4 * EPS)
    assert torch.equal(Clipping((3, 5), 3.0, -0.5, 2.0)(x), (3 * x).clamp(-0.5, 2.0))
    levels = torch.tensor([-1.0, -1 / 3, 1 / 3, 1.0], dtype=F64)
    nearest = levels[(x[..., None] - levels).abs().argmin(-1)]
    close(Quantisation((3, 5), levels=4)(x), nearest, 10 * EPS)
    assert float(Quantisation((1,), levels=2)(torch.zeros(1, 1))) == -1.0  # the lower of two
    assert float(Quantisation((1,), levels=4, low=0.0, high=3.0)(torch.full((1, 1), 1.5))) == 1.0
    assert not Quantisation((3,)).differentiable
    for build in (
        lambda: Clipping((2,), low=1.0, high=1.0),
        lambda: Clipping((2,), scale=0.0),
        lambda: Quantisation((2,), levels=1),
        lambda: Quantisation((2,), low=1.0),
    ):
        with pytest.raises(ValueError, match="low < high"):
            build()


def test_functions_and_black_boxes() -> None:
    x = draw(3, 4).requires_grad_()
    a = Function(lambda x: x[:, :3] ** 2, (4,))
    assert a.measured == (3,)
    assert torch.equal(torch.autograd.grad(a(x).sum(), x)[0], F.pad(2 * x[:, :3], (0, 1)))
    box = BlackBox(lambda x: x.sum(1, keepdims=True), (4,), numpy=True)
    assert box.measured == (1,)
    assert torch.equal(box(x), x.detach().sum(1, keepdim=True))
    assert box(x.float()).dtype == torch.float32
    assert not box(x).requires_grad
    assert not box.differentiable
    assert torch.equal(BlackBox(lambda x: 2 * x, (4,), (4,))(x), 2 * x.detach())
    with pytest.raises(ValueError, match="fails each sample alone"):
        check(Function(lambda x: x - x.mean(0), (4,)))  # mixes the samples of a batch
    assert not isinstance(a, LinearOperator)
