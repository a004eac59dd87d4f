"""Fourier subsampling: the measurement of magnetic resonance imaging."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ..numerics.hartley import hartley, mirror
from .constant import Constant, finite
from .operator import LinearOperator
from .svd import SVD


class Fourier(LinearOperator):
    """y_c = mask * F(S_c x): some frequencies of an image, seen by each coil c; F is orthonormal, S_c its sensitivity.

    Complex numbers are two real channels. An event (2, h, w) is a complex image, (1, h, w) or (h, w) a real one; y is
    (2, h, w), with coils (coils, 2, h, w), zero where the mask is. Frequencies stand as torch.fft puts them, zero first
    (`torch.fft.ifftshift` turns a centred mask). Without coils the singular values are known: the mask itself for a
    complex image; sqrt((mask(k) + mask(-k))/2) for a real one, in the Hartley basis, as F(-k) is the conjugate of F(k).

    mask: (h, w), zeros and ones. coils: complex sensitivities (coils, h, w), or None.

    Errors: ValueError for other shapes, a mask of other values, NaN, infinity.
    """

    def __init__(self, mask: Tensor, event: Sequence[int], coils: Tensor | None = None) -> None:
        image = tuple(event)[-2:]
        if len(image) < 2 or tuple(event)[:-2] not in ((), (1,), (2,)):
            raise ValueError(f"an event is (2, h, w) complex, (1, h, w) or (h, w) real: got {tuple(event)}")
        if mask.shape != image or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"a mask of frequencies is {image}, of zeros and ones: got {tuple(mask.shape)}")
        if coils is not None and (coils.dim() != 3 or coils.shape[1:] != image or not coils.is_complex()):
            raise ValueError(f"coils are complex, (coils, {image[0]}, {image[1]}): got {tuple(coils.shape)}")
        super().__init__(event, (2, *image) if coils is None else (len(coils), 2, *image))
        self.mask = mask.bool().cpu()
        self._complex = tuple(event)[:-2] == (2,)
        self._seen = Constant(self.mask)
        self._coils = None if coils is None else Constant(finite("coils", coils))

    def forward(self, x: Tensor) -> Tensor:
        image = torch.complex(x[:, 0], x[:, 1]) if self._complex else x.reshape(-1, *self.event[-2:])
        if self._coils is not None:
            image = self._coils(x) * image[:, None]
        seen = torch.where(self._seen(x), torch.fft.fft2(image, norm="ortho"), 0.0)
        return torch.stack([seen.real, seen.imag], -3)

    def transpose(self, y: Tensor) -> Tensor:
        seen = torch.where(self._seen(y), torch.complex(*y.unbind(-3)), 0.0)
        image = torch.fft.ifft2(seen, norm="ortho")
        if self._coils is not None:
            image = (self._coils(y).conj() * image).sum(1)
        return torch.stack([image.real, image.imag], 1) if self._complex else image.real.reshape(-1, *self.event)

    def check_measurement(self, y: Tensor) -> Tensor:
        return torch.where(self._seen(y), super().check_measurement(y), 0.0)

    @cached_property
    def svd(self) -> SVD | None:
        if self._coils is not None:
            return super().svd
        seen = self.mask.to(torch.float64)
        if self._complex:
            return SVD(seen.expand(2, -1, -1).flatten(), vt=self._spectrum, v=self._image, ut=_flat, u=self._measured)
        s = ((seen + mirror(seen, (-2, -1))) / 2).sqrt().flatten()
        self._inverse = Constant(torch.where(s > 0, 1 / s.clamp_min(0.5), 0.0))
        return SVD(s, vt=self._hartley, v=self._from_hartley, ut=self._ut, u=self._u)

    def _spectrum(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(torch.complex(x[:, 0], x[:, 1]), norm="ortho")
        return torch.stack([spectrum.real, spectrum.imag], 1).flatten(1)

    def _image(self, c: Tensor) -> Tensor:
        image = torch.fft.ifft2(torch.complex(*self._measured(c).unbind(1)), norm="ortho")
        return torch.stack([image.real, image.imag], 1)

    def _measured(self, c: Tensor) -> Tensor:
        return c.reshape(-1, *self.measured)

    def _hartley(self, x: Tensor) -> Tensor:
        return hartley(x, (-2, -1)).flatten(1)

    def _from_hartley(self, c: Tensor) -> Tensor:
        return hartley(c.reshape(-1, *self.event), (-2, -1))

    def _ut(self, y: Tensor) -> Tensor:
        return self._inverse(y) * self._hartley(self.transpose(y))

    def _u(self, c: Tensor) -> Tensor:
        return self.forward(self._from_hartley(self._inverse(c) * c))


def _flat(y: Tensor) -> Tensor:
    return y.flatten(1)
