"""PFGM++: Poisson flow in N + D dimensions, a diffusion whose noise has heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond
from ..numerics.gamma import gamma_quantile
from ..random import Noise
from .affine import AffineProcess
from .edm import EDM
from .gaussian import GaussianProcess
from .level import broadcast
from .scheduled import Scheduled


@dataclass(frozen=True)
class PFGMPP(Scheduled):
    """x_t = alpha x0 + sigma noise,    p(noise) ~ (|noise|^2 + D)^(-(N + D)/2) in N dimensions

    Points of data in the plane r = 0 of N + D dimensions make an electric field, the sum over data y of
    (x - y, r)/(|x - y|^2 + r^2)^((N+D)/2). Along its lines dx/dr = E_x/E_r = (x - E[x0 | x])/r, the mean under the
    kernel p_r(x | y) ~ the same power; with r = sigma sqrt(D) that is the flow dx/dsigma = E[noise | x], which every
    deterministic solver follows. The kernel is Student's law with D degrees of freedom, a normal one of random width:

        noise = sqrt(D/w) z,    z ~ N(0, I),  w ~ chi-square with D degrees, one number a sample

    so that |noise|^2/(|noise|^2 + D) ~ Beta(N/2, D/2). Its variance is D/(D - 2) for D > 2. D = 1 is PFGM; as D grows
    it becomes the base process, and differs from it as 1/D. Training is that of the base at the same sigma: the
    alignment r = sigma sqrt(D) is built in. There is no score: the noise is not Gaussian.

    A draw takes z from the stream, then one normal number a sample, in whose place among normal numbers w stands among
    its own: see `gamma_quantile`, in float64 on the host.

    base: the process whose schedule it is, EDM in the paper. aux_dim: D, positive, whole or not.

    Source: Xu et al. 2023, "PFGM++: Unlocking the Potential of Physics-Inspired Generative Models" (2302.04265),
    sections 3 and 4; Xu et al. 2022 (2209.11178) for D = 1.
    """

    base: AffineProcess = field(default_factory=EDM)
    aux_dim: float = 128

    def __post_init__(self) -> None:
        if not isinstance(self.base, GaussianProcess):
            raise ValueError(f"PFGMPP changes the noise of a Gaussian process, as orn.EDM(): got {self.base!r}")
        if not 0 < self.aux_dim < math.inf:
            raise ValueError(
                f"aux_dim={self.aux_dim}: D is positive and finite; 1 is PFGM, and its limit is {self.base!r}"
            )

    def draw_noise(self, shape: Sequence[int], noise: Noise, cond: Cond) -> Tensor:
        z = noise.normal(shape)
        w = 2 * gamma_quantile(self.aux_dim / 2, noise.normal(shape[:1]).to("cpu", torch.float64))
        return broadcast(torch.sqrt(self.aux_dim / w), z) * z

    def log_prior(self, x: Tensor, cond: Cond = None) -> Tensor:
        end = self.level(1.0)
        shift = self.shift(end.t, cond)
        u = ((x if shift is None else x - shift) / end.sigma).flatten(1)
        n, d = u.shape[1], self.aux_dim
        volume = math.lgamma((n + d) / 2) - math.lgamma(d / 2) - n / 2 * math.log(d * math.pi)
        return volume - n * torch.log(end.sigma) - (n + d) / 2 * torch.log1p(u.square().sum(1) / d)
