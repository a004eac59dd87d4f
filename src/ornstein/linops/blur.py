"""Blurs: by one kernel, by the fast Fourier transform or axis by axis, and by a kernel that changes over the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..numerics.hartley import pack, unpack
from .constant import Constant, finite
from .kernel import Boundary, convolution, gaussian_kernel
from .operator import LinearOperator
from .separable import Separable, last_axes
from .svd import SVD


class Blur(LinearOperator):
    """y[n] = sum_l kernel[l] x[n - l + c], indices modulo the size of the image, c = the middle of the kernel, size//2.

        A = F^-1 diag(k) F,   k = the Fourier transform of the kernel,   s = |k|,   U = F^-1 diag(k/|k|) H,   V = H

    with H the Hartley basis, the real twin of the Fourier basis F: everything in the SVD is real.

    kernel: (h, w), or of any number of axes, which are the last ones of the event; not larger than it. It may ask for
    a gradient. `Blur.gaussian(std, event)` makes a Gaussian one.
    """

    def __init__(self, kernel: Tensor, event: Sequence[int]) -> None:
        super().__init__(event, event)
        self._spectrum = Constant(transfer(kernel, self.event))
        self._dims = tuple(range(-kernel.dim(), 0))

    @classmethod
    def gaussian(cls, std: float, event: Sequence[int]) -> Blur:
        """A Gaussian kernel of width `std` on the last two axes (or the only one), cut to the size of the image."""
        kernels = [gaussian_kernel(std, min(2 * math.ceil(3 * std) + 1, n - 1 + n % 2)) for n in tuple(event)[-2:]]
        return cls(kernels[0] if len(kernels) == 1 else torch.outer(*kernels), event)

    def forward(self, x: Tensor) -> Tensor:
        return self._filtered(self._spectrum(x), x)

    def transpose(self, y: Tensor) -> Tensor:
        return self._filtered(self._spectrum(y).conj(), y)

    @cached_property
    def svd(self) -> SVD:
        k = self._spectrum.value.detach()
        self._phase = Constant(torch.where(k.abs() > 0, k / k.abs().clamp_min(1e-300), 1.0))
        s = k.abs().expand(self.event).flatten()
        return SVD(s, vt=self._vt, v=self._v, ut=self._ut, u=self._u)

    def _filtered(self, k: Tensor, x: Tensor) -> Tensor:
        return _real(k * torch.fft.fftn(x, dim=self._dims), self._dims, "backward")

    def _vt(self, x: Tensor) -> Tensor:
        return pack(self._fourier(x)).flatten(1)

    def _v(self, c: Tensor) -> Tensor:
        return self._image(self._unpack(c))

    def _ut(self, y: Tensor) -> Tensor:
        return pack(self._phase(y).conj() * self._fourier(y)).flatten(1)

    def _u(self, c: Tensor) -> Tensor:
        return self._image(self._phase(c) * self._unpack(c))

    def _fourier(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.fftn(x, dim=self._dims, norm="ortho")
        return spectrum

    def _image(self, spectrum: Tensor) -> Tensor:
        return _real(spectrum, self._dims, "ortho")

    def _unpack(self, c: Tensor) -> Tensor:
        return unpack(c.reshape(-1, *self.event), self._dims)


def _real(spectrum: Tensor, dims: tuple[int, ...], norm: str) -> Tensor:
    image: Tensor = torch.fft.ifftn(spectrum, dim=dims, norm=norm)
    return image.real


def transfer(kernel: Tensor, event: tuple[int, ...], axes: int | None = None) -> Tensor:
    """The Fourier transform of a kernel whose middle stands at the origin of an image, on the last `axes` axes (all
    its own, if not given), complex128 on the host; gradients flow."""
    axes = kernel.dim() if axes is None else axes
    own, sizes = tuple(kernel.shape[kernel.dim() - axes :]), event[len(event) - axes :]
    if not 1 <= axes <= len(event) or any(k > n for k, n in zip(own, sizes, strict=True)) or 0 in own:
        raise ValueError(f"a kernel is not larger than the last axes of the event {event}: got {tuple(kernel.shape)}")
    finite("the kernel", kernel)
    values = kernel.to("cpu").to(torch.float64)
    padding = [part for k, n in reversed(list(zip(own, sizes, strict=True))) for part in (0, n - k)]
    dims = tuple(range(-axes, 0))
    placed = torch.nn.functional.pad(values, padding).roll([-(k // 2) for k in own], dims)
    spectrum: Tensor = torch.fft.fftn(placed, dim=dims)
    return spectrum


class SeparableBlur(Separable):
    """y = R x C^T: a row of weights down the columns of an image and one along its rows, with a true edge.

        R[i, j] = sum of column[l] over the l with i - l + len//2 -> j,      the same for C from `row`

    column, row: the kernels (size,) of the last axis but one and of the last; `row` is `column` if not given.
    boundary: "zero", "reflect" (as torch's padding, without the edge itself) or "circular".
    """

    def __init__(
        self, column: Tensor, event: Sequence[int], *, row: Tensor | None = None, boundary: Boundary | str = "reflect"
    ) -> None:
        if len(event) < 2:
            raise ValueError(f"a separable blur is for images: got events {tuple(event)}")
        down = convolution(column, event[-2], boundary)
        across = convolution(column if row is None else row, event[-1], boundary)
        super().__init__(last_axes(event, [down, across]), event)


class NonuniformBlur(LinearOperator):
    """y = sum_j weights_j * (kernel_j circularly convolved with x): a blur that changes over the image.

    It is linear in x. No fast SVD.

    kernels: (j, h, w); weights: (j, H, W), where each kernel holds, usually summing to 1 at each place.

    Source: product-convolution expansions, Escande, Weiss 2017, "Approximation of integral operators using
    product-convolution expansions".
    """

    def __init__(self, kernels: Tensor, weights: Tensor, event: Sequence[int]) -> None:
        super().__init__(event, event)
        if kernels.dim() != 3 or weights.shape != (len(kernels), *self.event[-2:]):
            raise ValueError(
                f"kernels are (j, h, w) and weights (j, {', '.join(map(str, self.event[-2:]))}): got "
                f"{tuple(kernels.shape)} and {tuple(weights.shape)}"
            )
        self._spectra = Constant(transfer(kernels, self.event, axes=2))
        self._weights = Constant(finite("weights", weights))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = self._spectra(x) * torch.fft.fft2(x).unsqueeze(-3)
        return (self._weights(x) * _real(spectrum, (-2, -1), "backward")).sum(-3)

    def transpose(self, y: Tensor) -> Tensor:
        spectrum = self._spectra(y).conj() * torch.fft.fft2(self._weights(y) * y.unsqueeze(-3))
        return _real(spectrum.sum(-3), (-2, -1), "backward")
