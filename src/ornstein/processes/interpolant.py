"""Stochastic interpolants: paths between two laws of data through noise of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond, View
from ..errors import ViewError
from ..random import Noise, Seed
from .affine import AffineProcess, derivative
from .flow import Flow
from .level import Level, broadcast, holds
from .linear import LinearProcess, check_times, noise_like
from .two_sided import check_ends, no_end


@dataclass(frozen=True, eq=False)
class InterpolantLevel(Level):
    """A level of x_t = alpha x0 + beta x1 + sigma z: `sigma` is that of the latent noise, zero at both ends."""

    beta: Tensor
    d_beta: Tensor

    defining = ("alpha", "sigma", "beta")
    closed = True

    @property
    def diffusion2(self) -> Tensor:
        """2 sigma: epsilon^2 by default, for which epsilon^2 score/2 = -E[z | x_t] is bounded up to the ends."""
        return 2 * self.sigma

    def tells(self, source: View, target: View) -> bool:
        return source == target or {source, target} == {"noise", "score"}

    def rows(self, view: View) -> tuple[Tensor, Tensor]:
        """(a, b): the sizes of x0, and of x1 and z together, in a target; weightings read them."""
        if view == "velocity":
            return self.d_alpha, torch.hypot(self.d_beta, self.d_sigma)
        return super().rows(view)

    def conversion(self, source: View, target: View) -> tuple[Tensor, Tensor]:
        if not self.tells(source, target):
            raise ViewError(f"{target} does not follow from {source} between two laws: learn it apart")
        return super().conversion(source, target)


@dataclass(frozen=True)
class InterpolantDraw:
    """A draw between two laws: the state, its two ends and its latent noise, and every conditional target."""

    process: Interpolant
    level: InterpolantLevel
    x: Tensor
    x0: Tensor
    x1: Tensor
    noise: Tensor

    def target(self, view: View) -> Tensor:
        """velocity = alpha' x0 + beta' x1 + sigma' z; noise = z; score = -z/sigma; x0."""
        level = self.level
        match view:
            case "x0":
                return self.x0
            case "noise":
                return self.noise
            case "score":
                return -self.noise / broadcast(level.sigma, self.noise)
            case "velocity":
                if not holds(level.d_sigma.isfinite()):
                    raise ViewError(f"velocity is not finite at the ends of {self.process!r}: draw times inside (0, 1)")
                ends = broadcast(level.d_alpha, self.x0) * self.x0 + broadcast(level.d_beta, self.x1) * self.x1
                return ends + broadcast(level.d_sigma, self.noise) * self.noise
        raise ViewError(f"{self.process!r} has no {view}: choose from {', '.join(self.process.views)}")


@dataclass(frozen=True)
class Interpolant(LinearProcess):
    """x_t = alpha(t) x0 + beta(t) x1 + gamma(t) z,    z ~ N(0, I),    gamma = sqrt(noise_level t (1 - t))

    between data x0 at t = 0 and other data x1 at t = 1, with alpha and beta the alpha and sigma of `base` (t and 1 - t
    for `Flow`). Two regressions say everything about its law p_t:

        velocity b(x, t) = E[alpha' x0 + beta' x1 + gamma' z | x_t = x],    noise eta(x, t) = E[z | x_t = x],
        score = -eta/gamma

    p_t is carried by dx = b dt, and by dX = (b + eps score) dt + sqrt(2 eps) dW and its reverse for any eps(t) >= 0,
    chosen after training: `EulerMaruyama(diffusion=...)`, whose epsilon^2 is 2 eps; by default eps = gamma. Each is
    learned by a model of its own (predicts="velocity", predicts="noise") and `orn.Heads` makes them one. The velocity
    is enough for the flow: solvers in t. Views that follow from neither are refused.

    noise_level: that of gamma; 0 leaves x_t = alpha x0 + beta x1, which is `TwoSided`.
    end: the entry of `cond` that holds x1 in training. Sampling takes it as `x_init`.

    A subclass may write another `gamma2`, the square of gamma.

    Source: Albergo, Boffi, Vanden-Eijnden 2023, "Stochastic Interpolants: A Unifying Framework for Flows and
    Diffusions" (2303.08797), with time running from data to the other end.
    """

    base: AffineProcess = field(default_factory=Flow)
    noise_level: float = 1.0
    end: str = "x1"

    def __post_init__(self) -> None:
        if not 0 <= self.noise_level < math.inf:
            raise ValueError(f"noise_level={self.noise_level}: gamma^2 = noise_level t (1 - t), 0 or more")

    @property
    def views(self) -> tuple[View, ...]:
        """What a network of this process may be asked to predict."""
        return ("velocity", "noise", "score", "x0")

    @property
    def readable(self) -> tuple[View, ...]:
        return ("velocity", "score")

    @property
    def diffuses(self) -> bool:
        return self.noise_level > 0

    def gamma2(self, t: Tensor) -> Tensor:
        """Variance of the latent noise."""
        return self.noise_level * t * (1 - t)

    def d_gamma2(self, t: Tensor) -> Tensor:
        """d gamma^2/dt = 2 gamma gamma', finite at the ends."""
        if type(self).gamma2 is Interpolant.gamma2:
            return self.noise_level * (1 - 2 * t)
        return derivative(self.gamma2, t)

    def gamma(self, t: Tensor) -> Tensor:
        """Standard deviation of the latent noise."""
        return torch.sqrt(self.gamma2(t))

    def d_gamma(self, t: Tensor) -> Tensor:
        """d gamma/dt, infinite at the ends."""
        if self.noise_level == 0:
            return torch.zeros_like(t)
        return self.d_gamma2(t) / (2 * self.gamma(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2/(beta^2 + gamma^2)): x0 beside all else, for ends of unit size."""
        return 2 * (self.base.alpha(t).log() - torch.hypot(self.base.sigma(t), self.gamma(t)).log())

    def level(self, t: float | Sequence[float] | Tensor | Level) -> InterpolantLevel:
        """The level(s) at t, in float64 on the host; times outside [0, 1] are refused."""
        if isinstance(t, InterpolantLevel):
            return t
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        check_times(t)
        base = self.base
        return InterpolantLevel(
            t, base.alpha(t), self.gamma(t), self.log_snr(t), base.d_alpha(t), self.d_gamma(t),
            base.sigma(t), base.d_sigma(t),
        )  # fmt: skip

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The end law is data: it is given to a sampler as x_init."""
        raise ValueError(no_end(self, self.end))

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor | Level,
        x1: Tensor | None = None,
        cond: Cond = None,
        *,
        noise: Tensor | None = None,
        seed: Seed | Noise = None,
    ) -> InterpolantDraw:
        """Draw x_t given both ends (batch, *event) at t, a scalar or (batch,)."""
        check_ends(self, self.end, x0, x1)
        assert x1 is not None
        noise = noise_like(x0, noise, seed)
        level = self.level(t)
        x = broadcast(level.alpha, x0) * x0 + broadcast(level.beta, x1) * x1 + broadcast(level.sigma, noise) * noise
        return InterpolantDraw(self, level, x, x0, x1, noise)
