"""Kinetic-optimal paths: the Gaussian path along which samples move least, for the data at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..numerics.quadrature import between
from .gaussian import GaussianProcess

_EDGE = 2.0**-32  # less than the spacing of torch's Sobol points, which may be 0 or 1
_SOBOL = torch.quasirandom.SobolEngine.MAXDIM


@dataclass(frozen=True)
class Separation:
    """lambda(log_snr) = E |E[x0 | x_t]|^2 / E |x0|^2 = 1 - mmse/E |x0|^2: how well data are told apart through noise.

    It is all that the kinetic energy of a path alpha x0 + sigma noise knows of the data. With m = E |x0|^2/d,

        energy = int E |E[velocity | x_t]|^2/d dt = int (m alpha'^2 + sigma'^2 - m (1 - lambda) (W/sigma)^2) dt,

    W = alpha sigma' - sigma alpha'. In polar coordinates, r cos(phi) = sqrt(m) alpha and r sin(phi) = sigma, it is

        energy = int (r'^2 + (stretch r phi')^2) dt,    stretch^2 = 1 - (1 - lambda)/sin(phi)^2, in [0, 1],

    1 for data of which every point is known (one point, or points far apart), 0 for N(0, m I).

    Args:
        log_snr: rising. values: lambda at each, in [0, 1]. Between them the stretch is linear in phi, outside constant.
        second_moment: m.

    Source: Shaul et al. 2023, "On Kinetic Optimal Probability Paths for Generative Models" (2306.06626); the polar form
    is ours.
    """

    log_snr: Sequence[float] | Tensor
    values: Sequence[float] | Tensor
    second_moment: float

    def __post_init__(self) -> None:
        log_snr, values = (torch.as_tensor(v, dtype=torch.float64) for v in (self.log_snr, self.values))
        if log_snr.dim() != 1 or len(log_snr) < 2 or not bool((log_snr.diff() > 0).all()):
            raise ValueError("log_snr is a rising list of at least two levels")
        if values.shape != log_snr.shape or not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(f"a separation lies in [0, 1], one value a level: got {values.tolist()}")
        if not 0 < self.second_moment < math.inf:
            raise ValueError(f"second_moment={self.second_moment}: E |x0|^2/d of the data, positive and finite")
        object.__setattr__(self, "log_snr", tuple(log_snr.tolist()))
        object.__setattr__(self, "values", tuple(values.tolist()))

    def __repr__(self) -> str:
        return f"Separation({len(self.values)} levels, second_moment={self.second_moment:.4g})"

    @classmethod
    def of(cls, data: Tensor, *, draws: int = 2048, seed: int = 0) -> Separation:
        """That of a finite data set (n, *event), from `draws` noised points at each of 129 levels.

        Points and noise are those of a scrambled Sobol sequence, the same at all levels: a power of 2 serves it best.
        It costs 129 draws n min(n, d) multiplications.
        """
        if data.dim() < 1 or len(data) == 0 or not bool(data.isfinite().all()):
            raise ValueError("a separation is that of data (n, *event), finite and not empty")
        points = data.detach().to("cpu", torch.float64).reshape(len(data), -1)
        moment = float(points.square().mean())
        if moment == 0:
            raise ValueError("all data are 0: there is nothing to tell apart")
        if len(points) < points.shape[1]:  # noise across all points tells nothing: coordinates in their span
            points = torch.linalg.qr(points.mT).R.mT
        if points.shape[1] >= _SOBOL:
            raise ValueError(f"{len(points)} points span more than {_SOBOL - 1} dimensions: give fewer of them")
        sobol: Any = torch.quasirandom.SobolEngine
        drawn = sobol(points.shape[1] + 1, scramble=True, seed=seed).draw(draws, dtype=torch.float64)
        drawn = drawn.clamp(_EDGE, 1 - _EDGE)
        own = (len(points) * drawn[:, 0]).long()
        noise = torch.special.ndtri(drawn[:, 1:])
        near, far = points[own] @ points.mT - points.square().sum(1) / 2, noise @ points.mT
        levels = torch.linspace(-16, 16, 129, dtype=torch.float64)
        return cls(
            levels - math.log(moment),
            torch.stack([_separation(points, own, near, far, snr) for snr in levels.exp() / moment]),
            moment,
        )

    def nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        """(phi, pi/2 - phi, stretch^2) at the levels, from data to noise and with both ends: rising phi."""
        log_snr = torch.tensor(self.log_snr, dtype=torch.float64).flip(0)
        ratio = math.sqrt(self.second_moment) * torch.exp(log_snr / 2)
        phi, rest = torch.atan(1 / ratio), torch.atan(ratio)
        values = torch.tensor(self.values, dtype=torch.float64).flip(0)
        stretch2 = (1 - (1 - values) / torch.sin(phi) ** 2).clamp(0, 1)  # a sample may break the bound
        zero, right = phi.new_zeros(1), phi.new_full((1,), math.pi / 2)
        ends = stretch2[:1], stretch2, stretch2[-1:]
        return torch.cat([zero, phi, right]), torch.cat([right, rest, zero]), torch.cat(ends)

    def energy(self, process: GaussianProcess, start: float = 0.0, end: float = 1.0, count: int = 400) -> float:
        """The kinetic energy of a process with these data between two times, per entry, by quadrature.

        It is infinite where sigma' is infinite and noise meets points (VP at t = 0): name a start above.
        """
        first = process.level(torch.tensor([start, end], dtype=torch.float64))
        if not bool((first.d_alpha.isfinite() & first.d_sigma.isfinite()).all()):
            raise ValueError(
                f"alpha' or sigma' of {process!r} is infinite at t = {start:.4g} or {end:.4g}, and so may be the "
                "energy: take times a little inside"
            )
        edges = torch.linspace(start, end, count + 1, dtype=torch.float64)
        t, weight = (v.flatten() for v in between(edges[:-1], edges[1:], 4))
        level, root = process.level(t), math.sqrt(self.second_moment)
        x, y, dx, dy = root * level.alpha, level.sigma, root * level.d_alpha, level.d_sigma
        phi, _, stretch2 = self.nodes()
        at = torch.atan2(y, x)
        k = (torch.searchsorted(phi, at) - 1).clamp(0, len(phi) - 2)
        low, high = stretch2[k].sqrt(), stretch2[k + 1].sqrt()
        stretch = low + (high - low) * (at - phi[k]) / (phi[k + 1] - phi[k])
        along, across = x * dx + y * dy, stretch * (x * dy - y * dx)
        return float((weight * (along**2 + across**2) / (x**2 + y**2)).sum())


def _separation(points: Tensor, own: Tensor, near: Tensor, far: Tensor, snr: Tensor) -> Tensor:
    """lambda at one level; near: x0.y - |y|^2/2 and far: noise.y of each draw and point."""
    weights = (snr * near + snr.sqrt() * far).softmax(1)
    weights[torch.arange(len(own)), own] -= 1
    error = weights @ points
    total = points[own].square().sum()
    kept = (points[own] + error).square().sum() / total
    # both are unbiased, the smaller of the two parts is the better known
    return torch.where(kept < 0.5, kept, 1 - error.square().sum() / total).clamp(0, 1)


@dataclass(frozen=True)
class KineticOptimal(GaussianProcess):
    """The path alpha x0 + sigma noise of the least kinetic energy for data of the given `Separation`.

    With theta(phi) = int_0^phi stretch the energy is int (r'^2 + r^2 theta'^2) dt, that of a motion in a flat plane:
    it is least on the straight line, at even speed, from (r, theta) = (sqrt(m), 0) to (1, Theta), Theta = theta(pi/2):

        r (cos theta, sin theta) = ((1 - t) sqrt(m) + t cos(Theta), t sin(Theta)),
        alpha = r cos(phi(theta))/sqrt(m),   sigma = r sin(phi(theta)),   energy = m + 1 - 2 sqrt(m) cos(Theta).

    Where every point is told apart (stretch = 1) it is `Flow`; where the data are N(0, m I), sqrt(m) goes to 1.

    Centred data cannot be told apart at the end of noise: there the stretch, W = sin(Theta)/stretch and so alpha'
    would be 0 and infinite; data with a density do the same to sigma' at t = 0. `floor` is the least stretch that is
    counted: alpha' and sigma' stay below about 1/floor, and the energy is above the least by about floor^2.

    Args:
        separation: of the data, in the model's units: `KineticOptimal.of(data)`, or
            `orn.density.separation(model, data)` for what a denoiser makes of data that it has not seen.
        floor: in (0, 1].

    Source: Shaul et al. 2023 (2306.06626); the paper solves an ordinary differential equation, whose solution this is.
    """

    separation: Separation
    floor: float = field(default=0.05, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor={self.floor}: the least stretch that is counted, in (0, 1]")

    @classmethod
    def of(cls, data: Tensor, *, floor: float = 0.05, draws: int = 2048, seed: int = 0) -> KineticOptimal:
        """The optimum for a finite data set (n, *event), in the units in which the model sees it."""
        return cls(Separation.of(data, draws=draws, seed=seed), floor=floor)

    @cached_property
    def _angles(self) -> tuple[_Integral, _Integral]:
        """theta as a function of phi, and Theta - theta as one of pi/2 - phi: each is exact at its own end."""
        phi, rest, stretch2 = self.separation.nodes()
        stretch = stretch2.sqrt().clamp_min(self.floor)
        return _Integral(phi, stretch), _Integral(rest.flip(0), stretch.flip(0))

    @cached_property
    def _root(self) -> float:
        return math.sqrt(self.separation.second_moment)

    @cached_property
    def turn(self) -> float:
        """Theta, at most pi/2."""
        return float(self._angles[0].total)

    @property
    def energy(self) -> float:
        """The energy of this path, per entry, if the stretch were nowhere below the floor."""
        return self.separation.second_moment + 1 - 2 * self._root * math.cos(self.turn)

    def _point(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(r, cos phi, sin phi, stretch) at t."""
        a, cos, sin = self._root, math.cos(self.turn), math.sin(self.turn)
        x, y = a * (1 - t) + t * cos, t * sin
        theta, rest = torch.atan2(y, x), torch.atan2(a * (1 - t) * sin, t + a * (1 - t) * cos)
        up, down = self._angles
        (phi, g), (psi, h) = up.inverse(theta), down.inverse(rest)
        near = theta < rest
        cosine = torch.where(near, torch.cos(phi), torch.sin(psi))
        sine = torch.where(near, torch.sin(phi), torch.cos(psi))
        return torch.hypot(x, y), cosine, sine, torch.where(near, g, h)

    def alpha(self, t: Tensor) -> Tensor:
        r, cosine, _, _ = self._point(t)
        return r * cosine / self._root

    def sigma(self, t: Tensor) -> Tensor:
        r, _, sine, _ = self._point(t)
        return r * sine

    def _slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha', sigma') from r r' and r^2 theta' = sqrt(m) sin(Theta)."""
        a, cos, sin = self._root, math.cos(self.turn), math.sin(self.turn)
        r, cosine, sine, stretch = self._point(t)
        outward = ((a * (1 - t) + t * cos) * (cos - a) + t * sin**2) / r
        around = a * sin / (r * stretch)
        return (outward * cosine - around * sine) / a, outward * sine + around * cosine

    def d_alpha(self, t: Tensor) -> Tensor:
        return self._slopes(t)[0]

    def d_sigma(self, t: Tensor) -> Tensor:
        return self._slopes(t)[1]

    def wronskian(self, t: Tensor) -> Tensor:
        return math.sin(self.turn) / self._point(t)[3]

    def log_snr(self, t: Tensor) -> Tensor:
        _, cosine, sine, _ = self._point(t)
        return 2 * (cosine.log() - sine.log() - math.log(self._root))

    def time(self, log_snr: Tensor) -> Tensor:
        # the law of sines in the triangle of the origin and the line's ends
        ratio = self._root * torch.exp(log_snr / 2)
        up, down = self._angles
        theta, rest = up(torch.atan(1 / ratio)), down(torch.atan(ratio))
        near = self._root * torch.sin(torch.where(theta < rest, theta, self.turn - rest))
        far = torch.sin(torch.where(theta < rest, self.turn - theta, rest))
        return near / (near + far)


class _Integral:
    """y(x) = int_0^x g for a positive g that is linear between nodes (K,) from 0 on; a parabola on each piece."""

    def __init__(self, nodes: Tensor, g: Tensor) -> None:
        gap = nodes.diff()
        self.nodes, self.g = nodes, g
        self.bend = g.diff() / gap
        self.values = torch.cat([gap.new_zeros(1), (gap * (g[1:] + g[:-1]) / 2).cumsum(0)])
        self.total = self.values[-1]

    def _piece(self, table: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        k = (torch.searchsorted(table.to(at), at.detach().contiguous(), right=True) - 1).clamp(0, len(self.bend) - 1)
        return self.nodes.to(at)[k], self.values.to(at)[k], self.g.to(at)[k], self.bend.to(at)[k]

    def __call__(self, x: Tensor) -> Tensor:
        node, value, g, bend = self._piece(self.nodes, x)
        return value + (x - node) * (g + bend * (x - node) / 2)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x, g(x)) at which the integral is y."""
        node, value, g, bend = self._piece(self.values, y)
        rise = y - value
        there = torch.sqrt((g**2 + 2 * bend * rise).clamp_min(0))
        return node + 2 * rise / (g + there), there
