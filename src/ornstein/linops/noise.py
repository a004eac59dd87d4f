"""Measurement noise: what is drawn around the clean A(x), and how likely a measurement is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..numerics.poisson import poisson_quantile
from ..random import Noise, Seed, as_noise
from .constant import finite


class NoiseModel(ABC):
    """p(y | clean), every entry on its own, for clean = A(x).

    differentiable: whether `log_prob` has a gradient that means something with respect to `clean`.
    """

    @property
    def differentiable(self) -> bool:
        return True

    @abstractmethod
    def sample(self, clean: Tensor, seed: Seed | Noise) -> Tensor:
        """A measurement y of clean (batch, *measured); `seed` as everywhere: one, or one a sample."""

    @abstractmethod
    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """log p(y | clean), (batch,): a density in nats, or a probability where y is discrete."""

    def rows(self, index: Tensor) -> NoiseModel:
        """The noise of the samples `index` (k,) of a batch: itself, unless it is another one for each sample."""
        return self

    def check_measurement(self, y: Tensor) -> Tensor:
        """`y`, or ValueError if this noise cannot have made it."""
        return finite("the measurement y", y)

    def nearest(self, y: Tensor) -> Tensor:
        """The measurement that this noise can have made next to `y`."""
        return y

    def _normal(self, clean: Tensor, seed: Seed | Noise) -> Tensor:
        stream = as_noise(seed, batch=len(clean), dtype=clean.dtype, device=clean.device)
        return stream.normal(clean.shape)


class GaussianNoise(NoiseModel):
    """y = clean + std z,   log p(y | clean) = -|y - clean|^2/(2 std^2) - m log(std sqrt(2 pi)),   z ~ N(0, I).

    std: >= 0, a number or one a sample (batch,). With std = 0 a sample is clean itself, and there is no density.
    """

    def __init__(self, std: float | Tensor) -> None:
        self.std = _positive("std", std, zero=True)

    def __repr__(self) -> str:
        return f"GaussianNoise(std={_show(self.std)})"

    def check_measurement(self, y: Tensor) -> Tensor:
        _column(self.std, y)
        return super().check_measurement(y)

    def rows(self, index: Tensor) -> NoiseModel:
        each = isinstance(self.std, Tensor) and self.std.dim() > 0
        return GaussianNoise(self.std[index.to(self.std.device)]) if each and isinstance(self.std, Tensor) else self

    def sample(self, clean: Tensor, seed: Seed | Noise) -> Tensor:
        return clean + _column(self.std, clean) * self._normal(clean, seed)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        _pair(y, clean)
        if bool((torch.as_tensor(self.std) == 0).any()):
            raise ValueError(
                "a Gaussian of std = 0 has no density: give the noise of the measurement, or a method for exact ones"
            )
        std = _column(self.std, clean)
        white = ((y - clean) / std).flatten(1)
        log_std = torch.log(std).reshape(-1) if isinstance(std, Tensor) else math.log(std)
        return -white.square().sum(1) / 2 - white.shape[1] * (log_std + math.log(2 * math.pi) / 2)


class PoissonNoise(NoiseModel):
    """peak (y + offset) = k ~ Poisson(rate),   rate = peak (clean + offset),   log p = k log rate - rate - log k!

    y has the scale of clean, standard deviation sqrt((clean + offset)/peak), and takes the values k/peak - offset.

    peak: > 0, counts for an intensity of 1. offset: 0 for intensities clean >= 0; 1 for data in [-1, 1].

    Errors: ValueError on sampling a negative intensity, and for a y that is not k/peak - offset with k = 0, 1, 2, ...
    (within 0.01 counts, or rounding). `log_prob` is -inf where a clean value is impossible: clamp it first to guide.
    """

    def __init__(self, peak: float, offset: float = 0.0) -> None:
        self.peak, self.offset = float(_positive("peak", peak)), offset

    def __repr__(self) -> str:
        return f"PoissonNoise(peak={self.peak:g}, offset={self.offset:g})"

    def sample(self, clean: Tensor, seed: Seed | Noise) -> Tensor:
        finite("the clean measurement", clean)
        if bool((clean + self.offset < 0).any()):
            raise ValueError(
                f"intensities clean + offset are not negative: got {float(clean.min()) + self.offset:.6g}; data in "
                "[-1, 1] take offset=1"
            )
        z = self._normal(clean, seed).cpu().to(torch.float64)
        rate = self.peak * (clean.detach().cpu().to(torch.float64) + self.offset)
        return (poisson_quantile(rate, z) / self.peak - self.offset).to(clean.dtype).to(clean.device)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        _pair(y, clean)
        k = self._counts(self.check_measurement(y))
        rate = self.peak * (clean + self.offset)
        none, possible = k == 0, rate > 0
        count = torch.where(none, 1.0, k)
        excess = torch.where(possible, rate, 1.0) / count - 1
        # k log rate - rate - log k! = k [log(1 + e) - e] - (log k! - k log k + k): no large terms that cancel
        some = count * (torch.log1p(excess) - excess) - _stirling(count)
        each = torch.where(none, torch.where(rate >= 0, -rate, -torch.inf), torch.where(possible, some, -torch.inf))
        return each.flatten(1).sum(1)

    def check_measurement(self, y: Tensor) -> Tensor:
        counts, k = self.peak * (finite("the measurement y", y) + self.offset), self._counts(y)
        slack = 0.01 + 4 * torch.finfo(y.dtype).eps * (k.abs() + abs(self.peak * self.offset))
        wrong = (k < 0) | ((counts - k).abs() > slack)
        if bool(wrong.any()):
            raise ValueError(
                f"a measurement with {self!r} is k/peak - offset for counts k = 0, 1, 2, ...: {int(wrong.sum())} "
                f"entries are not, the first is {float(y[wrong][0]):.6g}, {float(counts[wrong][0]):.6g} counts"
            )
        return y

    def nearest(self, y: Tensor) -> Tensor:
        return self._counts(y).clamp_min(0) / self.peak - self.offset

    def _counts(self, y: Tensor) -> Tensor:
        return (self.peak * (y + self.offset)).round()


class QuantisationNoise(NoiseModel):
    """y = step round((clean + std z)/step): rounded to a grid after Gaussian noise.

        p(y | clean) = Phi((y - clean + step/2)/std) - Phi((y - clean - step/2)/std)

    With std = 0 it is rounding alone: probability 1 where clean lies in the cell of y and 0 elsewhere, no gradient.

    step: > 0; std: >= 0.

    Errors: ValueError for a y that is no multiple of step (within 1e-3 steps, or rounding).
    Source: Zymnis, Boyd, Candes 2010, "Compressed sensing with quantized measurements".
    """

    def __init__(self, step: float, std: float = 0.0) -> None:
        self.step, self.std = float(_positive("step", step)), float(_positive("std", std, zero=True))

    def __repr__(self) -> str:
        return f"QuantisationNoise(step={self.step:g}, std={self.std:g})"

    @property
    def differentiable(self) -> bool:
        return self.std > 0

    def sample(self, clean: Tensor, seed: Seed | Noise) -> Tensor:
        moved = clean + self.std * self._normal(clean, seed) if self.std else clean
        return self.step * (moved / self.step).round()

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        _pair(y, clean)
        middle = self.check_measurement(y) - clean
        if not self.std:
            edge = 4 * torch.finfo(y.dtype).eps * torch.maximum(y.abs(), clean.abs())
            inside = middle.abs() <= self.step / 2 + edge
            return torch.where(inside, 0.0, -torch.inf).to(y.dtype).flatten(1).sum(1)
        # of the two tails the smaller: Phi(b) - Phi(a) = Phi(-a) - Phi(-b)
        distance, half = middle.abs() / self.std, self.step / 2 / self.std
        upper, lower = (torch.special.log_ndtr(end - distance) for end in (half, -half))
        each: Tensor = upper + torch.log(-torch.expm1(lower - upper))
        return each.flatten(1).sum(1)

    def check_measurement(self, y: Tensor) -> Tensor:
        k = finite("the measurement y", y) / self.step
        wrong = (k - k.round()).abs() > 1e-3 + 4 * torch.finfo(y.dtype).eps * k.abs()
        if bool(wrong.any()):
            raise ValueError(
                f"a measurement with {self!r} is a multiple of {self.step:g}: {int(wrong.sum())} entries are not, the "
                f"first is {float(y[wrong][0]):.6g}"
            )
        return y

    def nearest(self, y: Tensor) -> Tensor:
        return self.step * (y / self.step).round()


def _stirling(k: Tensor) -> Tensor:
    """log k! - k log k + k for k >= 1, to rounding."""
    large = torch.clamp_min(k, 16)
    series = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 / large**2) / large**2) / large**2) / large
    small = k.clamp_max(16)
    exact = torch.lgamma(small + 1) - small * torch.log(small) + small
    return torch.where(k < 16, exact, series + torch.log(2 * math.pi * large) / 2)


def _positive(name: str, value: float | Tensor, zero: bool = False) -> float | Tensor:
    whole = torch.as_tensor(value)
    if not bool((whole.isfinite() & ((whole >= 0) if zero else (whole > 0))).all()) or whole.dim() > 1:
        allowed = "not negative" if zero else "positive"
        raise ValueError(f"{name} is finite and {allowed}, a number or one a sample: got {_show(value)}")
    return value if isinstance(value, Tensor) and (value.dim() or value.requires_grad) else float(value)


def _show(value: float | Tensor) -> str:
    return f"{value.tolist()}" if isinstance(value, Tensor) else f"{value:g}"


def _column(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A number, or one a sample as it multiplies (batch, *measured)."""
    if not isinstance(value, Tensor):
        return value
    if value.shape not in ((), (len(like),)):
        raise ValueError(f"std is a number or one a sample, ({len(like)},): got shape {tuple(value.shape)}")
    value = value.to(like.dtype).to(like.device)
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (like.dim() - 1))


def _pair(y: Tensor, clean: Tensor) -> None:
    if y.shape != clean.shape or y.dim() < 1:
        raise ValueError(f"y and clean have one shape, (batch, *measured): got {tuple(y.shape)}, {tuple(clean.shape)}")
