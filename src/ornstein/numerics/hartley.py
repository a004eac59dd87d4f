"""The real, orthonormal twin of the discrete Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(spectrum: Tensor) -> Tensor:
    """h = Re F - Im F for the Fourier transform F of a real signal; |h|^2 = |F|^2 summed over all frequencies.

    With F of norm "ortho" this is the Hartley transform, real, orthonormal and its own inverse.

    Source: Hartley 1942, "A more symmetrical Fourier analysis"; Bracewell 1983, "Discrete Hartley transform".
    """
    return spectrum.real - spectrum.imag


def unpack(h: Tensor, dims: tuple[int, ...]) -> Tensor:
    """F from h: F(k) = [h(k) + h(-k)]/2 - i [h(k) - h(-k)]/2, with -k along `dims`."""
    other = mirror(h, dims)
    return torch.complex((h + other) / 2, (other - h) / 2)


def mirror(h: Tensor, dims: tuple[int, ...]) -> Tensor:
    """h(-k), indices taken modulo the size of each of `dims`."""
    return h.flip(dims).roll([1] * len(dims), dims)


def hartley(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The orthonormal Hartley transform along `dims`, its own inverse."""
    return pack(torch.fft.fftn(x, dim=dims, norm="ortho"))
