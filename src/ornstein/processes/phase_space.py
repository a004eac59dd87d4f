"""Phase space: diffusions of data with a momentum, whose drift and diffusion are matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from torch import Tensor

from .._types import Cond, View
from ..errors import ViewError
from ..numerics.quadrature import between
from ..random import Noise, Seed, as_noise
from .level import Level, broadcast, holds
from .linear import LinearProcess, check_one_end, check_times
from .matrix import Matrix, inverse_lower, lower_root

_RULE, _DOUBLINGS = 10, 6
_DEGREE = 200  # of the series for the angle: exact to 1e-12 for the parameters of the papers


class Phase(NamedTuple):
    """A state of phase space: where it is, and its momentum, (batch, *event) each."""

    position: Any
    momentum: Any


@dataclass(frozen=True, eq=False)
class PhaseLevel(Level):
    """A level of phase space: z = mean (x0, m0) + root noise, and the drift F and diffusion G G^T of its SDE.

    The four are (..., 2, 2). `log_snr` is that of all that z tells of x0, log(a^T S^-1 a) for z ~ N(a x0, S), and
    sigma = 1/sqrt(SNR) with alpha = 1 says the same: a^T S^-1 z/SNR is x0 with noise of that size. So grids are placed
    as everywhere. alpha' and sigma' belong to no coordinate of z and are NaN.
    """

    mean: Tensor
    root: Tensor
    drift: Tensor
    diffusion: Tensor

    defining = ("mean", "root")

    @property
    def components(self) -> tuple[Level, ...]:
        return (self, self)

    @property
    def diffusion2(self) -> Matrix:
        return Matrix(self.diffusion)

    def rows(self, view: View) -> tuple[Tensor, Tensor]:
        if view not in ("x0", "noise"):
            raise ViewError(
                f"{view} is made of x0 and noise by matrices in phase space, so it has no weighting of its own: train "
                "on noise or x0, or give Objective(weighting=...)"
            )
        return super().rows(view)

    def conversion(self, source: View, target: View) -> tuple[Tensor, Tensor]:
        """(C_x, C_p) with target = C_x z + C_p source, (..., 2, 2) each; by way of the noise.

        noise = root^-1 (z - mean x0) = -root^T score,    x0 = mean^-1 (z - root noise)
        velocity = F z - G G^T score/2
        """
        one, zero = torch.eye(2, dtype=self.t.dtype).expand_as(self.root), torch.zeros_like(self.root)
        if source == target:
            return zero, one
        inverse = inverse_lower(self.root)
        to_noise = {"noise": (zero, one), "score": (zero, -self.root.mT), "x0": (inverse, -inverse @ self.mean)}
        back = torch.linalg.inv(self.mean)
        of_noise = {
            "noise": (zero, one),
            "score": (zero, -inverse.mT),
            "x0": (back, -back @ self.root),
            "velocity": (self.drift, self.diffusion @ inverse.mT / 2),
        }
        for name, views in ((source, to_noise), (target, of_noise)):
            if name not in views:
                raise ViewError(f"phase space has no {name} to {'read' if views is to_noise else 'form'} here")
        (s_x, s_p), (t_x, t_n) = to_noise[source], of_noise[target]
        c_x, c_p = t_x + t_n @ s_x, t_n @ s_p
        if not holds(c_x.isfinite() & c_p.isfinite()):
            raise ViewError(f"{target} cannot be formed from {source} at t = 0: end a little above")
        return c_x, c_p


@dataclass(frozen=True)
class PhaseDraw:
    """A draw of phase space: the state with the pair and the noise that made it, and every conditional target."""

    level: PhaseLevel
    x: Phase
    x0: Phase
    noise: Phase

    def target(self, view: View) -> Phase:
        """What a network that predicts `view` should answer to this draw: x0, noise, or score = -root^-T noise."""
        if view in ("x0", "noise"):
            return self.x0 if view == "x0" else self.noise
        if view != "score":
            raise ViewError(f"no network of phase space predicts {view}: choose x0, noise or score")
        return mix(-inverse_lower(self.level.root).mT, self.noise)


@dataclass(frozen=True)
class PhaseSpace(LinearProcess):
    """dz = F z dt + G dw on z = (x, m):    F = -(D + Q) diag(1, 1/mass),    G G^T = 2 D

        2 D = beta(t) [[damping, cross], [cross, mass friction]],    2 Q = beta(t) [[0, -coupling], [coupling, 0]]

    The complete recipe for the end law N(0, I) x N(0, mass I): every D that is positive semidefinite and every
    antisymmetric Q keep it. beta(t) = beta_min + t (beta_max - beta_min). With B = int beta and F = beta F_1 the kernel
    is Gaussian in closed form,

        z_t = Phi z_0 + root noise,    Phi = exp(B F_1),    root root^T = int Phi(t, s) G G^T Phi(t, s)^T ds

    `PSLD` and `CLD` are two choices; coupling = cross = 0 and
    damping = 1 is `VP` beside a momentum of its own.

    Data are positions; the momentum starts as N(0, gamma mass I). hybrid=True integrates it out: root root^T holds its
    spread too, and x0 = (data, 0). With hybrid=False it is drawn, and x0 = (data, m0): the same score, with targets of
    more variance.

    A network of this process takes and returns a `Phase` (see `orn.nets.Joined`) and predicts noise, x0 or score; from
    pure noise x0 is the safe choice, since an error of the noise is multiplied by Phi^-1, e^(B/2) and more. velocity
    can be formed, v does not exist. Solvers: those in t (Euler, Heun, RK4, AdamsBashforth), DDIM, DEIS, the
    conjugate integrators, the reverse SDE and the splittings.

    Source: Pandey, Mandt 2023, "Generative Diffusions in Augmented Spaces: A Complete Recipe" (2303.01748); Ma, Chen,
    Fox 2015 (1506.04696) for the recipe; Dockhorn, Vahdat, Kreis 2021 (2112.07068) for hybrid score matching.
    """

    damping: float = 0.0
    friction: float = 4.0
    coupling: float = 1.0
    cross: float = 0.0
    mass: float = 0.25
    beta_min: float = 8.0
    beta_max: float = 8.0
    gamma: float = 0.04
    hybrid: bool = True

    def __post_init__(self) -> None:
        for name in ("mass", "beta_min", "gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: it is positive and finite")
        if not self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"need beta_min <= beta_max, finite: got {self.beta_min}, {self.beta_max}")
        if not (self.damping >= 0 and self.friction >= 0 and self.damping * self.mass * self.friction >= self.cross**2):
            raise ValueError(
                f"the diffusion [[{self.damping}, {self.cross}], [{self.cross}, {self.mass * self.friction}]] is not "
                "positive semidefinite: need damping, friction >= 0 and damping mass friction >= cross^2"
            )
        if not bool((torch.linalg.eigvals(self._drift).real < 0)[: 2 if self.coupling or self.cross else 1].all()):
            raise ValueError(f"{self!r} forgets nothing of the data: give it damping, or friction and a coupling")

    @property
    def views(self) -> tuple[View, ...]:
        return ("noise", "x0", "score")

    @property
    def readable(self) -> tuple[View, ...]:
        return ("x0", "noise", "score", "velocity")

    @property
    def processes(self) -> tuple[PhaseSpace, PhaseSpace]:
        return (self, self)

    @property
    def finest(self) -> float:
        """The least time at which a network is asked by default; from there one step goes to data."""
        return 1e-3

    @cached_property
    def _drift(self) -> Tensor:
        """F_1 = F/beta."""
        c, k = self.cross, self.coupling
        return -torch.tensor([[self.damping, (c - k) / self.mass], [c + k, self.friction]], dtype=torch.float64) / 2

    @cached_property
    def _diffusion(self) -> Tensor:
        """G G^T/beta."""
        return torch.tensor([[self.damping, self.cross], [self.cross, self.mass * self.friction]], dtype=torch.float64)

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def transition(self, t: Tensor, s: Tensor) -> Tensor:
        """Phi(s, t) = exp(F_1 int_t^s beta), what the drift alone makes of a state from t to s."""
        return _exponential(self._drift, self.clock(s) - self.clock(t))

    def kernel(self, t: Tensor, spread: float) -> tuple[Tensor, Tensor]:
        """(Phi, covariance of z_t given x_0 and a momentum that has the variance `spread` at t = 0)."""
        phi, covariance = self._noise(t)
        return phi, _blurred(phi, covariance, spread)

    def _noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(Phi, covariance of z_t given z_0)."""
        return _ornstein_uhlenbeck(self._drift, self._diffusion, self.clock(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """log(a^T S^-1 a) for z_t ~ N(a x0, S): all that z_t tells of x0; it falls, since z is a Markov chain."""
        return _log_snr(*self.kernel(t, self.gamma * self.mass))

    def level(self, t: float | Sequence[float] | Tensor | Level) -> PhaseLevel:
        """The level(s) at t, in float64 on the host; times outside [0, 1] are refused."""
        if isinstance(t, PhaseLevel):
            return t
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        check_times(t)
        phi, covariance = self._noise(t)
        whole = _blurred(phi, covariance, self.gamma * self.mass)
        beta, log_snr, none = self.beta(t)[..., None, None], _log_snr(phi, whole), torch.full_like(t, torch.nan)
        return PhaseLevel(
            t, torch.ones_like(t), torch.exp(-log_snr / 2), log_snr, none, none,
            phi, lower_root(whole if self.hybrid else covariance), beta * self._drift, beta * self._diffusion,
        )  # fmt: skip

    def flow_root(self, t: Tensor) -> Tensor:
        """R(t) with R R^T = S(t) that the probability flow of a point mass carries: R' = F R + G G^T R^-T/2.

        Along that flow z = Phi (x0, 0) + R noise with one noise for all times, so R(s) R(t)^-1 carries z - Phi x0 from
        t to s exactly: DDIM's step. Of all roots L Q of S it is the one for which (R' - F R) R^T is symmetric. With L
        lower triangular and Q a rotation by theta this says

            theta' = -[(F S)_12 - (F S)_21 - L_11' L_21 + L_21' L_11] / (2 det L),    theta(1) = 0,

        integrated as a Chebyshev series in sqrt(t), in which it is smooth down to t = 0.

        Source: Zhang, Tao, Chen 2022, "gDDIM" (2206.05564), where R is found by an ODE.
        """
        angle = torch.as_tensor(self._angle(torch.sqrt(t).numpy()), dtype=torch.float64)
        cos, sin = angle.cos(), angle.sin()
        rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        return lower_root(self.kernel(t, self.gamma * self.mass)[1]) @ rotation

    @property
    def energy(self) -> Tensor:
        """H of the end law exp(-z^T H z/2): diag(1, 1/mass)."""
        return torch.diag(torch.tensor([1.0, 1 / self.mass], dtype=torch.float64))

    @property
    def noise_rate(self) -> Tensor:
        """G G^T/beta."""
        return self._diffusion

    def relax(self, step: Tensor, *, friction: bool, exchange: bool) -> tuple[Tensor, Tensor]:
        """(e^(step K), root of the noise gathered) of dz = K z db + G dw, K = -D H (friction) + Q H (exchange).

        With the friction go the noise and its balance: N(0, H^-1) stays as it is, so the noise's covariance is
        H^-1 - e^(step K) H^-1 e^(step K)^T, taken as an integral, which does not cancel.
        """
        rate, noise = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
        if friction:
            rate, noise = rate - self._diffusion @ self.energy / 2, self._diffusion
        if exchange:
            turn = torch.tensor([[0.0, -self.coupling], [self.coupling, 0.0]], dtype=torch.float64) / 2
            rate = rate + turn @ self.energy
        moved, covariance = _ornstein_uhlenbeck(rate, noise, step)
        return moved, lower_root(covariance)

    @cached_property
    def _angle(self) -> Chebyshev:
        """theta, of sqrt(t)."""

        def rate(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            turned: np.ndarray[Any, Any] = (self._turn(torch.from_numpy(v) ** 2)).numpy() * 2 * v
            return turned

        return Chebyshev.interpolate(rate, _DEGREE, domain=[0, 1]).integ(lbnd=1)

    def _turn(self, t: Tensor) -> Tensor:
        _, covariance = self.kernel(t, self.gamma * self.mass)
        root = lower_root(covariance)
        pull = self._drift @ covariance
        change = pull + pull.mT + self._diffusion
        first = change[..., 0, 0] / (2 * root[..., 0, 0])
        cross = (change[..., 1, 0] - root[..., 1, 0] * first) / root[..., 0, 0]
        skew = pull[..., 0, 1] - pull[..., 1, 0] - first * root[..., 1, 0] + cross * root[..., 0, 0]
        return -self.beta(t) * skew / (2 * root[..., 0, 0] * root[..., 1, 1])

    def clock(self, t: Tensor) -> Tensor:
        """int_0^t beta."""
        return t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2

    def data_of(self, state: Phase) -> Tensor:
        """What of a state are data: the position."""
        position: Tensor = state.position
        return position

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Phase:
        """A draw of the end law N(0, I) x N(0, mass I), for data of shape (batch, *event)."""
        noise = as_noise(seed, batch=shape[0], dtype=dtype, device=device)
        return Phase(noise.normal(shape), math.sqrt(self.mass) * noise.normal(shape))

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor | Level,
        x1: Tensor | None = None,
        cond: Cond = None,
        *,
        noise: Phase | None = None,
        seed: Seed | Noise = None,
    ) -> PhaseDraw:
        """Draw z_t given data x0 (batch, *event) at t, a scalar or (batch,); the noise may be given."""
        check_one_end(self, x1)
        level = self.level(t)
        stream = as_noise(seed, batch=x0.shape[0], dtype=x0.dtype, device=x0.device)
        if noise is None:
            noise = Phase(stream.normal(x0.shape), stream.normal(x0.shape))
        for part in noise:
            if part.shape != x0.shape:
                raise ValueError(f"noise of shape {tuple(part.shape)} for data of shape {tuple(x0.shape)}")
        momentum = torch.zeros_like(x0)
        if not self.hybrid:
            momentum = math.sqrt(self.gamma * self.mass) * stream.normal(x0.shape)
        start = Phase(x0, momentum)
        moved, spread = mix(level.mean, start), mix(level.root, noise)
        return PhaseDraw(level, Phase(*(a + b for a, b in zip(moved, spread, strict=True))), start, noise)


@dataclass(frozen=True)
class PSLD(PhaseSpace):
    """dx = (beta/2) (m/mass - damping x) dt + sqrt(beta damping) dw
    dm = -(beta/2) (x + friction m) dt + sqrt(beta mass friction) dw'

    Noise enters both, at critical damping (friction - damping)^2 = 4/mass.

    Source: Pandey, Mandt 2023 (2303.01748), with its parameters for images.
    """

    damping: float = 0.01
    friction: float = 4.01


@dataclass(frozen=True)
class CLD(PhaseSpace):
    """dx = (beta/2) m/mass dt,    dm = -(beta/2) (x + friction m) dt + sqrt(beta mass friction) dw

    Noise enters the momentum alone, at critical damping friction^2 = 4/mass.

    Source: Dockhorn, Vahdat, Kreis 2021, "Score-Based Generative Modeling with Critically-Damped Langevin Diffusion"
    (2112.07068), whose beta is half of this one.
    """


def mix(matrix: Tensor, state: Phase) -> Phase:
    """The components of a state, mixed: matrix (2, 2) or (batch, 2, 2)."""
    x, m = state
    rows = ((broadcast(matrix[..., i, 0], x), broadcast(matrix[..., i, 1], m)) for i in range(2))
    return Phase(*(a * x + b * m for a, b in rows))


def _blurred(phi: Tensor, covariance: Tensor, variance: float) -> Tensor:
    """The covariance at t where the momentum at t = 0 has a variance."""
    return covariance + variance * phi[..., :, 1:] @ phi[..., :, 1:].mT


def _log_snr(phi: Tensor, covariance: Tensor) -> Tensor:
    """log(a^T S^-1 a), a the first column of Phi."""
    root = lower_root(covariance)
    snr = (inverse_lower(root) @ phi[..., :, :1]).square().sum((-2, -1))
    return torch.where(root[..., 0, 0] == 0, torch.inf, snr).log()


def _exponential(drift: Tensor, time: Tensor) -> Tensor:
    """e^(F t) of a 2 x 2 matrix: e^(mu t) [cosh(d t) I + sinh(d t)/d (F - mu I)], mu = tr F/2, d^2 = mu^2 - det F.

    In closed form because every entry then has its own rounding: those that are small at small t do not carry the 1's.
    """
    mu = (drift[0, 0] + drift[1, 1]) / 2
    square = mu**2 - torch.linalg.det(drift)
    x = time * square.abs().sqrt()
    even, odd = (torch.cosh(x), torch.sinh(x)) if bool(square >= 0) else (torch.cos(x), torch.sin(x))
    odd = time * torch.where(x.abs() < 1e-4, 1 + torch.sign(square) * x**2 / 6, odd / torch.where(x == 0, 1.0, x))
    eye = torch.eye(2, dtype=drift.dtype)
    whole = even[..., None, None] * eye + odd[..., None, None] * (drift - mu * eye)
    return torch.exp(mu * time)[..., None, None] * whole


def _ornstein_uhlenbeck(drift: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """(Phi, C) of dz = F z dt + G dw: Phi = e^(F t), C = int_0^t e^(F s) G G^T e^(F s)^T ds.

    By Gauss's rule on a 64th of the time, and doubled: C(2 t) = C(t) + Phi(t) C(t) Phi(t)^T. Sums of positive parts
    alone, so that the t^3 of the position's own noise is exact to rounding.
    """
    times = time[..., None] / 2.0 ** torch.arange(_DOUBLINGS, -1, -1)
    s, ds = between(torch.zeros_like(time), times[..., 0], _RULE)
    moved = _exponential(drift, s)
    covariance = (moved @ noise @ moved.mT * ds[..., None, None]).sum(-3)
    *doubled, whole = _exponential(drift, times).unbind(-3)
    for phi in doubled:
        covariance = covariance + phi @ covariance @ phi.mT
    return whole, covariance
