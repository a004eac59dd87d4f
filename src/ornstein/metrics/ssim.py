"""Structural similarity of images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ornstein.metrics.psnr import paired, span


def ssim(x: Tensor, truth: Tensor, bounds: tuple[float, float], *, size: int = 11, std: float = 1.5) -> Tensor:
    """SSIM = mean of (2 m_x m_y + c1)(2 s_xy + c2) / ((m_x^2 + m_y^2 + c1)(s_x^2 + s_y^2 + c2)), 1 for equal images

    over all windows of size x size pixels that lie in the image, and over channels: (n,). m, s^2 and s_xy are the
    means, variances and covariance of x and y = truth in a window whose weights are Gaussian of width `std`, summing
    to 1; c1 = (0.01 L)^2, c2 = (0.03 L)^2, L = high - low of `bounds`.

    Shapes: x and truth (n, channels, height, width). In images smaller than the window it is cut to the largest odd
    size that lies in them.
    Errors: ValueError on other shapes, non-finite values, bounds without a range, an even size.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to structural
    similarity", equation 13.
    """
    if x.dim() != 4:
        raise ValueError(f"images are (n, channels, height, width): got {tuple(x.shape)}")
    if size < 1 or size % 2 == 0 or not std > 0:
        raise ValueError(f"a window has an odd number of pixels and a positive width: got size={size}, std={std}")
    a, b = (flat.reshape(-1, 1, *x.shape[2:]) for flat in paired(x, truth))
    c1, c2 = (0.01 * span(bounds)) ** 2, (0.03 * span(bounds)) ** 2
    place = torch.arange(size, dtype=torch.float64) - size // 2
    weight = torch.exp(-(place**2) / (2 * std**2))
    rows, columns = (_cut(weight, side) for side in x.shape[2:])
    window = torch.outer(rows, columns)[None, None]

    def local(value: Tensor) -> Tensor:
        return conv2d(value, window)

    m_a, m_b = local(a), local(b)
    s_aa, s_bb, s_ab = local(a * a) - m_a**2, local(b * b) - m_b**2, local(a * b) - m_a * m_b
    similar = (2 * m_a * m_b + c1) * (2 * s_ab + c2) / ((m_a**2 + m_b**2 + c1) * (s_aa + s_bb + c2))
    return similar.reshape(len(x), -1).mean(1)


def _cut(weight: Tensor, side: int) -> Tensor:
    """The middle of a window, of an odd number of entries that is not above `side`, summing to 1."""
    drop = max(0, (len(weight) - (side - 1 + side % 2)) // 2)
    kept = weight[drop : len(weight) - drop]
    return kept / kept.sum()
