"""Residual diffusion: the data's way to its damaged version and the noise, each with a schedule of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .gaussian import GaussianProcess
from .mean_reverting import Restoring
from .scheduled import Scheduled


@dataclass(frozen=True)
class Powers(GaussianProcess):
    """alpha = (1 - t)^residual,  sigma = noise_level t^noise: a schedule for the residual and one for the noise.

    Residual diffusion adds, of a residual and of independent noises, the shares alpha_k and beta_k in each of T steps;
    with alpha_k ~ (T - k)^a and beta_k^2 ~ k^b these add up to 1 - (1 - t)^(a+1) and, in variance, to t^(b+1): so
    residual = a + 1 and noise = (b + 1)/2. The published a = b = 1 is the default, with noise_level^2 the sum of the
    variances (1 to generate, 0.01 to restore). residual = noise = noise_level = 1 is `Flow`.

    Source: Liu et al. 2023 (2308.13712), section 3.3.
    """

    residual: float = 2.0
    noise: float = 1.0
    noise_level: float = 1.0

    def __post_init__(self) -> None:
        for name in ("residual", "noise", "noise_level"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite: got {getattr(self, name)}")

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.residual

    def sigma(self, t: Tensor) -> Tensor:
        return self.noise_level * t**self.noise

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.residual * (1 - t) ** (self.residual - 1)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.noise_level * self.noise * t ** (self.noise - 1)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self.residual * torch.log1p(-t) - self.noise * t.log() - math.log(self.noise_level))


@dataclass(frozen=True)
class SeparateSchedules(GaussianProcess):
    """alpha of the process `signal`, sigma of the process `noise`: any two schedules together.

    Log-SNR falls where alpha falls (or stays) and sigma rises.
    """

    signal: GaussianProcess
    noise: GaussianProcess

    def alpha(self, t: Tensor) -> Tensor:
        return self.signal.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.noise.sigma(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.signal.d_alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.noise.d_sigma(t)


@dataclass(frozen=True)
class Residual(Restoring, Scheduled, GaussianProcess):
    """x_t = x0 + (1 - alpha) (mean - x0) + sigma noise: the residual mean - x0 comes in as alpha falls from 1 to 0.

        alpha and sigma of `base`,  shift = (1 - alpha) mean

    In the paper's letters I_t = I_0 + a I_res + b eps with I_res = I_in - I_0: alpha = 1 - a and sigma = b are any two
    schedules, the published `Powers` or `SeparateSchedules` of two processes, and those of a diffusion carry over:
    a = 1 - sqrt(alpha_bar), b = sqrt(1 - alpha_bar) is base=VP(). Where `mean` is 0 the process is its base.

    base: the process whose schedule it is. mean: the name of the entry of `cond` with the damaged data, like the data
    and in the model's units. The end law is N(mean, sigma(1)^2 I). A network that answers the residual r answers
    x0 = mean - r; with a second head for the noise `solvers.RDDM` reads both.

    Source: Liu et al. 2023, "Residual Denoising Diffusion Models" (2308.13712), equations 7 to 9.
    """

    base: GaussianProcess = field(default_factory=Powers)
    mean: str = "mean"

    def __post_init__(self) -> None:
        if not isinstance(self.base, GaussianProcess):
            raise ValueError(f"Residual takes its schedule from a Gaussian process, as orn.VP(): got {self.base!r}")
