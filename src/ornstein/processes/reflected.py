"""Diffusion that stays in a box: Brownian motion reflected at its walls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond, View
from ..errors import ViewError
from ..random import Noise, Seed, as_noise
from .gaussian import GaussianProcess
from .level import Level, broadcast, holds
from .linear import LinearProcess, check_one_end, noise_like
from .ve import VE

_CROSSING = 0.45  # of sigma/width, below which images are summed, above which cosines
_IMAGES, _COSINES = 2, 7  # what is left out is below 1e-16 of the sum on either side


@dataclass(frozen=True, eq=False)
class ReflectedLevel(Level):
    """A level of reflected diffusion: `spread` is g^2 = d sigma^2/dt, finite where sigma' is not."""

    spread: Tensor

    closed = True

    @property
    def diffusion2(self) -> Tensor:
        return self.spread

    def tells(self, source: View, target: View) -> bool:
        return source == target or {source, target} == {"score", "velocity"}

    def rows(self, view: View) -> tuple[Tensor, Tensor]:
        """(a, b): sizes of a target, for weightings."""
        if view == "velocity":
            return torch.zeros_like(self.t), self.spread / (2 * self.sigma)
        if view == "score":
            return super().rows(view)
        raise ViewError(f"a reflected state has no {view}: choose score or velocity")

    def conversion(self, source: View, target: View) -> tuple[Tensor, Tensor]:
        """velocity = -(g^2/2) score, and back."""
        if not self.tells(source, target):
            raise ViewError(f"a reflected state has no {target}, for no x0 and noise are told from it: take the score")
        factors = {("score", "velocity"): -self.spread / 2, ("velocity", "score"): -2 / self.spread}
        return torch.zeros_like(self.t), factors.get((source, target), torch.ones_like(self.t))


@dataclass(frozen=True)
class ReflectedDraw:
    """A draw in the box: the state, the data and the noise that made it, and every conditional target."""

    process: Reflected
    level: ReflectedLevel
    x: Tensor
    x0: Tensor
    noise: Tensor

    def target(self, view: View) -> Tensor:
        """score = grad log q(x_t | x0) of the reflected heat kernel; velocity = -(g^2/2) score."""
        _, factor = self.level.conversion("score", view)
        return broadcast(factor, self.x) * self.process.kernel(self.x, self.x0, self.level)[1]


@dataclass(frozen=True)
class Reflected(LinearProcess):
    """dx = g dw, reflected at the walls of the box [low, high]^d:    x_t = fold(x0 + sigma(t) noise)

    with fold the reflection of the line into the box, entry by entry. The kernel is that of heat in a rod without
    losses; with x, y measured from `low` and w = high - low,

        q(x | y) = sum_k N(x; 2 k w +- y, sigma^2)                                              by images, small sigma
                 = (1/w) [1 + 2 sum_n exp(-(n pi sigma/w)^2/2) cos(n pi x/w) cos(n pi y/w)]     by cosines, large sigma

    both to rounding, and so is its score, which the network learns. The end law is uniform on the box. Samples are
    reflected after every step, so that no state ever leaves, under guidance of any scale too. Views are the score and
    the velocity -(g^2/2) score; solvers those in t and the reverse SDE, on grids such as `Uniform()`.

    Args:
        low, high: the walls, the same for all entries.
        base: alpha = 1 and the noise's sigma in units of the data; sigma(1) of twice the width forgets data to 1e-8.

    Raises ValueError for data outside the box. ViewError for x0, noise and v.

    Source: Lou, Ermon 2023, "Reflected Diffusion Models" (2304.04740), equations 3 to 5 and section 4.
    """

    low: float = 0.0
    high: float = 1.0
    base: GaussianProcess = field(default_factory=lambda: VE(0.01, 2.0))

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"a box has low < high, both finite: got {self.low}, {self.high}")
        if not isinstance(self.base, GaussianProcess):
            raise ValueError(f"base is a GaussianProcess, as orn.VE(0.01, 2.0): got {self.base!r}")
        alpha = self.base.alpha(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
        if not bool((alpha == 1).all()):
            raise ValueError(f"in a box data are not shrunk: {self.base!r} has alpha {float(alpha[-1]):.4g}, and not 1")

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def views(self) -> tuple[View, ...]:
        """What a network of this process may be asked to predict."""
        return ("score", "velocity")

    @property
    def readable(self) -> tuple[View, ...]:
        return ("score", "velocity")

    @property
    def supports(self) -> tuple[str, ...]:
        return (*super().supports, "likelihood")

    @property
    def finest(self) -> float:
        return self.base.finest

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log sigma, as without a box."""
        return self.base.log_snr(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.base.time(log_snr)

    def level(self, t: float | Sequence[float] | Tensor | Level) -> ReflectedLevel:
        """The level(s) at t, in float64; times outside [0, 1] are refused."""
        if isinstance(t, ReflectedLevel):
            return t
        own = self.base.level(t)
        return ReflectedLevel(
            own.t, own.alpha, own.sigma, own.log_snr, own.d_alpha, own.d_sigma, self.base.diffusion2(own.t)
        )

    def reflect(self, x: Tensor) -> Tensor:
        """The state folded into the box; one inside stays as it is, to the last bit."""
        y = torch.remainder(x - self.low, 2 * self.width)
        folded = self.low + (self.width - (y - self.width).abs())
        return torch.where((x >= self.low) & (x <= self.high), x, folded.clamp(self.low, self.high))

    def kernel(self, x: Tensor, x0: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """(log q(x_t = x | x0), its gradient in x), both of each entry, (batch, *event)."""
        return heat_kernel(x - self.low, x0 - self.low, broadcast(level.sigma, x).to(x), self.width)

    def log_prior(self, x: Tensor, cond: Cond = None) -> Tensor:
        """log of the uniform density, (batch,)."""
        return torch.full((len(x),), -x[0].numel() * math.log(self.width), dtype=x.dtype, device=x.device)

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A draw of the end law, uniform on the box, of shape (batch, *event)."""
        z = as_noise(seed, batch=shape[0], dtype=dtype, device=device).normal(shape)
        inside: Tensor = (self.low + self.width * torch.special.ndtr(z)).clamp(self.low, self.high)
        return inside

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor | Level,
        x1: Tensor | None = None,
        cond: Cond = None,
        *,
        noise: Tensor | None = None,
        seed: Seed | Noise = None,
    ) -> ReflectedDraw:
        """Draw x_t given x0 (batch, *event) in the box at t, a scalar or (batch,); the noise may be given."""
        check_one_end(self, x1)
        if x0.device.type == "cpu" or not torch.is_grad_enabled():  # in training on a device no step waits for it
            inside = (x0 >= self.low) & (x0 <= self.high)
            if not holds(inside):
                raise ValueError(
                    f"{float(x0[~inside].flatten()[0]):.6g} lies outside the box [{self.low:.6g}, {self.high:.6g}]: "
                    "scale the data into it"
                )
        noise = noise_like(x0, noise, seed)
        level = self.level(t)
        return ReflectedDraw(self, level, self.reflect(x0 + broadcast(level.sigma, x0) * noise), x0, noise)


def heat_kernel(x: Tensor, y: Tensor, sigma: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """(log q(x | y), d log q/dx) of heat that began at y in a rod [0, width], after the variance sigma^2.

    x, y, sigma broadcast to one shape; sigma > 0.
    """
    small = sigma < _CROSSING * width
    near = torch.where(small, sigma, _CROSSING * width)
    shifts = 2 * width * torch.arange(-_IMAGES, _IMAGES + 1, dtype=x.dtype, device=x.device)
    apart = torch.cat([(x - y)[..., None] - shifts, (x + y)[..., None] - shifts], -1) / near[..., None]
    terms = -apart.square() / 2
    log_images = torch.logsumexp(terms, -1) - torch.log(near) - math.log(2 * math.pi) / 2
    score_images = -(terms.softmax(-1) * apart).sum(-1) / near

    far = torch.where(small, _CROSSING, sigma / width)
    n = math.pi * torch.arange(1, _COSINES + 1, dtype=x.dtype, device=x.device)
    weights = 2 * torch.exp(-(n * far[..., None]).square() / 2) * torch.cos(n * y[..., None] / width)
    angle = n * x[..., None] / width
    density = 1 + (weights * torch.cos(angle)).sum(-1)
    slope = -(weights * n * torch.sin(angle)).sum(-1) / width
    log_cosines, score_cosines = torch.log(density) - math.log(width), slope / density
    return torch.where(small, log_images, log_cosines), torch.where(small, score_images, score_cosines)
