"""The one process: x_t = alpha(t) x0 + shift(t, cond) + sigma(t) noise with standard normal noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._types import VIEWS, Cond, View
from ..random import Noise
from .affine import AffineProcess


class GaussianProcess(AffineProcess):
    """Linear-Gaussian corruption of clean data, for t in [0, 1]: 0 is data, 1 is the end law.

        x_t = alpha(t) x0 + shift(t, cond) + sigma(t) noise,     noise ~ N(0, I)

    It is the solution of dx = [f (x - shift) + d shift/dt] dt + g dw with f = alpha'/alpha and
    g^2 = 2 sigma (alpha sigma' - sigma alpha')/alpha = -sigma^2 d log_snr/dt. A new process writes `alpha` and `sigma`
    (float64 tensors in, the same shape out; log-SNR must fall), and `shift` if it has one. The rest follows;
    derivatives come from forward-mode differentiation unless they are given. A process with learned parts also
    inherits `torch.nn.Module`. Subclasses that are frozen dataclasses print and compare by their parameters.

    Source: Song et al. 2020 (2011.13456); Kingma et al. 2021 (2107.00630); Lipman et al. 2022 (2210.02747).
    """

    views: tuple[View, ...] = VIEWS
    readable: tuple[View, ...] = VIEWS
    diffuses = True

    @property
    def supports(self) -> tuple[str, ...]:
        return (*super().supports, *(("ELBO",) if float(self.level(0.0).sigma.detach()) == 0 else ()))

    def draw_noise(self, shape: Sequence[int], noise: Noise, cond: Cond) -> Tensor:
        return noise.normal(shape)

    def colouring(self, x: Tensor, cond: Cond) -> Callable[[Tensor], Tensor]:
        return lambda z: z

    def precision(self, noise: Tensor, cond: Cond) -> Tensor:
        return noise

    def log_prior(self, x: Tensor, cond: Cond = None) -> Tensor:
        end = self.level(1.0)
        shift = self.shift(end.t, cond)
        white = ((x if shift is None else x - shift) / end.sigma).flatten(1)
        return -white.square().sum(1) / 2 - white.shape[1] * (torch.log(end.sigma) + math.log(2 * math.pi) / 2)
