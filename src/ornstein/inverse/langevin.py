"""Kinetic Langevin dynamics in the posterior itself, from where another method ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import GaussianProcess, Level, broadcast
from ..random import derive, fresh_seed
from ..solvers import Samples, Solver, sample
from ..solvers.table import Writer
from .curvature import curvature
from .measurement import Measurement
from .method import Method, check_positive
from .posterior import Plain
from .tds import TDS


@dataclass(frozen=True)
class Langevin(Method):
    """dx = v dt,    dv = [score + grad_f log p(y | f)/alpha - (2/width) v] dt + sqrt(4/width) dw

    at the level `log_snr`, from what `begin` returns, noised to there; and then x0 = f = (x/alpha + x0(x))/2, where the
    flow leads but for sigma^4. The law at rest is the posterior, whatever the data, the operator and the noise of y, so
    that `moves` mend what `begin` has wrong within a mode, and part the copies of a particle; between modes nothing
    moves, and their shares stay. A move asks the network once, without gradients:

        v <- v + h/2 force,  x <- x + h/2 v,  v <- e^(-2h/width) v + sqrt(1 - e^(-4h/width)) z,  x <- x + h/2 v,
        v <- v + h/2 force,      h = step/sqrt(1/sigma^2 + curvature/alpha^2)

    with the largest `curvature` of -log p(y | x0), found once. The error of the law in h is of order 2, and none where
    the posterior is normal. What remains is of order sigma^2: the derivative of f is taken as 1/alpha, which in a
    direction where x0 has the variance w overrates the likelihood's pull by sigma^2/(2 alpha^2 w) of it.

    begin: a method that finds the modes and their shares. nfe, steps and grid are its own; nfe counts the moves too.
    width: the deviation of x0 given y in its widest direction; 3 width/h moves forget where they began.
    log_snr: of the level; no closer to data than the network was trained. A step less of it is sqrt(e) times longer h.

    Source: Leimkuhler, Matthews 2013, "Rational Construction of Stochastic Numerical Methods for Molecular Sampling"
    (1203.5428); moves after resampling: Gilks, Berzuini 2001, "Following a Moving Target".
    """

    begin: Method = field(default_factory=TDS)
    moves: int = 200
    width: float = 1.0
    log_snr: float = 8.0
    step: float = 0.7

    def __post_init__(self) -> None:
        if not isinstance(self.begin, Method) or isinstance(self.begin, Langevin):
            raise ValueError(f"begin={self.begin!r}: a method that goes from noise to data, such as orn.inverse.TDS()")
        if self.moves < 1:
            raise ValueError(f"moves={self.moves}: at least one")
        check_positive(width=self.width)
        if not 0 < self.step < 2:
            raise ValueError(f"step={self.step}: between 0 and 2, where moves diverge")
        if not abs(self.log_snr) < 80:
            raise ValueError(f"log_snr={self.log_snr}: of a level near data, such as 8")

    @property
    def particles(self) -> int:
        return self.begin.particles

    def fits(self, model: BaseDenoiser) -> None:
        if not isinstance(model.process, GaussianProcess):
            raise ValueError(f"{self!r} is for a GaussianProcess: {model.process!r} is none")
        self.begin.fits(model)

    def check(self, model: BaseDenoiser, measurement: Measurement) -> None:
        super().check(model, measurement)
        self.begin.check(model, measurement)

    def denoiser(self, model: BaseDenoiser, measurement: Measurement) -> BaseDenoiser:
        return Plain(model, measurement)

    def solver(self, measurement: Measurement) -> Solver:
        return Moves(repr(self), measurement.density(self).gradient(self), self.moves, self.width, self.step)

    def run(
        self, model: BaseDenoiser, measurement: Measurement, cond: Cond, *, seed: Any = None, **options: Any
    ) -> Samples:
        plain, solver = self.denoiser(model, measurement), self.solver(measurement)  # what they refuse, at once
        if (nfe := options.get("nfe")) is not None:
            own_nfe = self.moves + 1  # and f at the end
            if nfe <= own_nfe:
                raise ValueError(f"nfe={nfe}: the moves take {own_nfe}, which leaves {self.begin!r} none")
            options["nfe"] = nfe - own_nfe
        seed = fresh_seed() if seed is None else seed
        own = [derive(s, "moves") for s in seed] if isinstance(seed, Sequence) else derive(seed, "moves")
        begun = self.begin.run(model, measurement, cond, seed=seed, **options)
        process: Any = model.process
        t = process.time(torch.tensor(self.log_snr, dtype=torch.float64)).clamp_min(process.finest)
        x0 = begun.x if model.scaling is None else model.scaling.encode(begun.x)
        start = process.corrupt(x0, t, cond=cond, seed=own)
        kept = {name: options[name] for name in ("dtype", "device", "progress", "debug") if name in options}
        moved = sample(
            plain,
            x_init=start.x,
            solver=solver,
            grid=torch.stack([t, torch.zeros_like(t)]),
            cond=cond,
            seed=[derive(s, "move") for s in own] if isinstance(own, list) else derive(own, "move"),
            **kept,
        )
        return replace(begun, x=moved.x, nfe=begun.nfe + moved.nfe)


@dataclass(frozen=True)
class Moves(Solver):
    """The moves of `Langevin` at the first level of a grid of two, and f at the second."""

    name: str
    measurement: Measurement
    moves: int
    width: float
    step: float

    def __repr__(self) -> str:
        return self.name

    def write(self, table: Writer, grid: Level) -> None:
        t, x = grid[0], table.state
        v = table.register(1.0 * table.noise(t, t))
        x0 = table.evaluate(x, t).x0
        h = table.apply(partial(self._length, t), x, table.noise(t, t))
        u = table.apply(partial(self._kick, t, 0.5), v, h, x, x0)
        for _ in range(self.moves):
            v = table.apply(self._rub, u, h, table.noise(t, t))
            x = table.apply(_drift, x, h, u + v, level=t)
            x0 = table.evaluate(x, t).x0
            u = table.apply(partial(self._kick, t, 1.0), v, h, x, x0)
        table.step((0.5 / t.alpha) * x + 0.5 * x0, grid[-1])

    def _length(self, t: Level, x: Tensor, z: Tensor) -> Tensor:
        """h, one number a sample on the whole event."""
        alpha, sigma = broadcast(t.alpha, x), broadcast(t.sigma, x)
        bend = 1 / sigma**2 + curvature(self.measurement, x / alpha, z) / alpha**2
        return (self.step / torch.sqrt(bend)).expand_as(x)

    def _kick(self, t: Level, part: float, v: Tensor, h: Tensor, x: Tensor, x0: Tensor) -> Tensor:
        """v + part h force: half a kick at first, and then the last half of a move with the first of the next."""
        alpha, sigma, measurement = broadcast(t.alpha, x), broadcast(t.sigma, x), self.measurement
        with torch.enable_grad():
            f = ((x / alpha + x0) / 2).detach().requires_grad_()
            (slope,) = torch.autograd.grad(measurement.noise.log_prob(measurement.y, measurement.operator(f)).sum(), f)
        return v + part * h * ((alpha * x0 - x) / sigma**2 + slope / alpha)

    def _rub(self, v: Tensor, h: Tensor, z: Tensor) -> Tensor:
        left = torch.exp(-2 * h / self.width)
        return left * v + torch.sqrt(1 - left**2) * z


def _drift(x: Tensor, h: Tensor, v: Tensor) -> Tensor:
    return x + h / 2 * v
