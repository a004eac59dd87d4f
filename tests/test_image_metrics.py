"""PSNR and SSIM: cases worked by hand, and what they are refused."""

from __future__ import annotations

import math

import pytest
import torch

from ornstein.metrics import psnr, ssim


def images(seed: int, n: int = 2, channels: int = 1, side: int = 16) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_by_hand() -> None:
    """An error of 0.1 on a range of 1 is 10 log10(1/0.01) = 20 dB, of 0.1 in one of four numbers 6.02 dB more, and on
    a range of 2 as much again. The mean is over a sample, not over the batch."""
    truth = torch.zeros(2, 4, dtype=torch.float64)
    x = torch.tensor([[0.1, 0.1, -0.1, 0.1], [0.1, 0.0, 0.0, 0.0]], dtype=torch.float64)
    four = 10 * math.log10(4)
    torch.testing.assert_close(psnr(x, truth, (0, 1)), torch.tensor([20.0, 20.0 + four], dtype=torch.float64))
    torch.testing.assert_close(psnr(x, truth, (-1, 1)) - psnr(x, truth, (0, 1)), torch.full((2,), four).double())
    assert psnr(truth, truth, (0, 1)).tolist() == [math.inf, math.inf]


def test_ssim_of_two_constants_is_the_luminance_term() -> None:
    """Without variance SSIM = (2 a b + c1)/(a^2 + b^2 + c1), c1 = (0.01 L)^2: for a = 0.2, b = 0.8 on a range of 1,
    (0.32 + 0.0001)/(0.04 + 0.64 + 0.0001) = 0.470666."""
    a, b = torch.full((1, 1, 12, 12), 0.2), torch.full((1, 1, 12, 12), 0.8)
    assert float(ssim(a, b, (0, 1))) == pytest.approx(0.3201 / 0.6801, rel=1e-6)
    assert float(ssim(255 * a, 255 * b, (0, 255))) == pytest.approx(0.3201 / 0.6801, rel=1e-6)  # of no unit


def test_ssim_of_one_window_by_hand() -> None:
    """A window of 3 x 3 in an image of 3 x 3, weights so wide that they are equal, 1/9 each. x is 1 in the middle, y is
    1/2 there: m = 1/9, 1/18; E x^2 = 1/9, E y^2 = 1/36, E xy = 1/18; s^2 = 8/81, 2/81, s_xy = 4/81. The rival takes
    the unbiased 9/8 of each."""
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    x[..., 1, 1] = 1
    c1, c2 = 1e-4, 9e-4
    light = (2 / 162 + c1) / (1 / 81 + 1 / 324 + c1)
    found = float(ssim(x, x / 2, (0, 1), size=3, std=1e6))
    assert found == pytest.approx(light * (8 / 81 + c2) / (10 / 81 + c2), rel=1e-9)
    rival = light * (9 / 8 * 8 / 81 + c2) / (9 / 8 * 10 / 81 + c2)
    assert abs(found - rival) > 1e-4


def test_the_window_is_gaussian() -> None:
    """3 x 3 of width 1: weights w = exp(-1/2) beside 1 in the middle of a row, k = 1/(1 + 2 w)^2 in the middle of the
    window. x is 1 there against y = 0: SSIM = c1/(k^2 + c1) c2/(k - k^2 + c2)."""
    x = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    x[..., 1, 1] = 1
    k = (1 + 2 * math.exp(-0.5)) ** -2
    expected = 1e-4 / (k**2 + 1e-4) * 9e-4 / (k - k**2 + 9e-4)
    assert float(ssim(x, torch.zeros_like(x), (0, 1), size=3, std=1.0)) == pytest.approx(expected, rel=1e-9)


def test_ssim_is_symmetric_and_of_each_image_alone() -> None:
    x, y = images(0, 3, 3), images(1, 3, 3)
    whole = ssim(x, y, (0, 1))
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, ssim(y, x, (0, 1)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole[1:2], ssim(x[1:2], y[1:2], (0, 1)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ssim(x, x, (0, 1)), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(whole, ssim(x.mT, y.mT, (0, 1)), rtol=1e-10, atol=1e-12)
    channels = torch.stack([ssim(x[:, c : c + 1], y[:, c : c + 1], (0, 1)) for c in range(3)]).mean(0)
    torch.testing.assert_close(whole, channels, rtol=1e-12, atol=1e-12)


def test_windows_lie_in_the_image() -> None:
    """Beyond an image nothing is made up: the window of 11 is cut to the 7 that an image of 7 x 7 has room for, and in
    one of 8 x 8 there are four of them."""
    x, y = images(2, 1, side=8), images(3, 1, side=8)
    parts = [(x[..., i : i + 7, j : j + 7], y[..., i : i + 7, j : j + 7]) for i in (0, 1) for j in (0, 1)]
    each = [float(ssim(a, b, (0, 1), size=7)) for a, b in parts]
    assert float(ssim(*parts[0], (0, 1))) == pytest.approx(each[0], rel=1e-12)
    assert float(ssim(x, y, (0, 1))) == pytest.approx(sum(each) / 4, rel=1e-9)


def test_refusals() -> None:
    x = images(0)
    for wrong in ({"bounds": (1.0, 1.0)}, {"size": 4}, {"std": 0.0}):
        with pytest.raises(ValueError, match=r"bounds are|odd number of pixels"):
            ssim(x, x, **{"bounds": (0.0, 1.0), **wrong})
    with pytest.raises(ValueError, match=r"images are \(n, channels"):
        ssim(x[0], x[0], (0, 1))
    with pytest.raises(ValueError, match="one shape"):
        psnr(x, x[:1], (0, 1))
    with pytest.raises(ValueError, match="non-finite"):
        psnr(x, x * math.nan, (0, 1))
