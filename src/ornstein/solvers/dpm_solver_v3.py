"""DPM-Solver-v3: the parameterisation between noise and data prediction that a model's statistics ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..numerics.quadrature import between, lagrange
from ..numerics.spline import Spline
from ..processes import GaussianProcess, Level
from ..random import Noise, derive
from .multistep import multistep
from .solver import Solver
from .table import Evaluation, Expression, Register, Writer

_RULE = 32


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """l ("linear"), s ("slope") and the mean of f at K points of lambda = log(alpha/sigma), cubic splines between.

    points: (K,), rising. linear, slope, mean: (K, *event), or (K, 1, ...) to be shared; float64 on the host.
    `constant` makes the two known parameterisations: (l, s) = (0, -1) is noise, (1, 0) data prediction.
    """

    points: Tensor
    linear: Tensor
    slope: Tensor
    mean: Tensor

    def __repr__(self) -> str:
        low, high = 2 * self.points[0], 2 * self.points[-1]
        return f"ModelStatistics({len(self.points)} points of log-SNR {low:.4g} to {high:.4g})"

    @classmethod
    def constant(cls, linear: float, slope: float, dims: int = 1, reach: float = 30.0) -> ModelStatistics:
        """The same l and s everywhere, and no mean, for events of `dims` dimensions."""
        points, one = torch.tensor([-reach, reach], dtype=torch.float64), torch.ones(2, *(1,) * dims).double()
        return cls(points, linear * one, slope * one, 0 * one)

    @cached_property
    def spline(self) -> Spline:
        return Spline(self.points)

    def at(self, values: Tensor, where: Tensor) -> Tensor:
        """The spline through `values` at lambda = where, (P,): (P, *event)."""
        return _contract(self.spline.cardinal(where), values)

    def integral(self, values: Tensor, start: Tensor, ends: Tensor) -> Tensor:
        """Its integrals from `start`, (), to each of `ends`, (P,): (P, *event)."""
        return _contract(self.spline.primitive(ends) - self.spline.primitive(start[None]), values)


@dataclass(frozen=True)
class DPMSolverV3(Solver):
    """With y = x/alpha, dy/d lambda = -l y - f,    f = (sigma noise - l x)/alpha = (1 - l) x/alpha - x0,

        y_s = e^-L_s [y_t - int e^L m d lambda - int e^(L+S) g d lambda],    g = e^-S (f - m)

    where L and S are the integrals of l and s from lambda_t, and g is interpolated in lambda through the last `order`
    evaluations, in the corrector also through that of the predicted state, which serves the next step too. The
    coefficients are functions of lambda for each entry of the event, read off the model by `calibrate`:

        l = E[diag(sigma d noise/dx)],  so that f depends on x as little as a linear term allows,
        s = cov(f, f')/var(f),  f' = df/d lambda along the flow, so that g hardly changes,
        m = E[f];  the paper's b = E[f'] - s E[f] is m' - s m, the same line of regression.

    For Gaussian data of diagonal covariance f = m: one step is exact. Any smooth l, s and m give the same limit and
    order, `order` or with the corrector `order` + 1; l = 0, s = -1 is the noise
    prediction of `DPMSolver`, l = 1, s = 0 the data prediction of `DPMSolverPP`. start: as in `UniPC`. The paper's
    pseudo-orders and its corrector for half of the steps are not here. A table with m has a row that cannot be saved.

    Source: Zheng et al. 2023, "DPM-Solver-v3" (2310.13268), equations 5 to 14.
    """

    order: int = 2
    corrector: bool = True
    start: str = "matched"
    statistics: ModelStatistics | None = None

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order={self.order}: choose 1, 2 or 3")
        if self.start not in ("matched", "published"):
            raise ValueError(f"start={self.start!r}: choose matched or published")

    def calibrate(
        self,
        denoiser: BaseDenoiser,
        x0: Tensor,
        cond: Cond = None,
        *,
        log_snr: tuple[float, float] | None = None,
        points: int = 64,
        seed: int = 0,
    ) -> DPMSolverV3:
        """This solver with the statistics of a denoiser over data x0 (batch, *event), in the model's units.

        log_snr: the range that a grid may step in, as far as the process has it (by default -14 to 14). Each of
        `points` levels in it takes two forward passes with forward derivatives; all share the noise, so that the
        statistics are smooth in lambda.
        """
        process = denoiser.process
        if not isinstance(process, GaussianProcess):
            raise ValueError(f"{process!r} has several components: DPM-Solver-v3 calibrates one")
        ends = process.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
        low, high = (-14.0, 14.0) if log_snr is None else log_snr
        if not low < high:
            raise ValueError(f"log_snr={log_snr}: give the lower end first")
        low, high = max(low, ends[0]), min(high, ends[1])
        where = torch.linspace(low, high, points, dtype=torch.float64) / 2
        stream = Noise(derive(seed, "dpm-solver-v3"), batch=len(x0), dtype=x0.dtype, device=x0.device)
        noise, probe = stream.normal(x0.shape), torch.where(stream.normal(x0.shape) > 0, 1.0, -1.0).to(x0)
        levels = process.level(process.time(2 * where))
        draws = [_draw(denoiser, process, level, x0, cond, noise, probe) for level in levels]
        linear = torch.stack([1 - level.alpha * trace for level, trace, _, _, _ in draws])
        turn = _contract(Spline(where).slope(where), linear)
        slope, mean = [], []
        for (_, _, y, data, change), own, own_turn in zip(draws, linear, turn, strict=True):
            f = (1 - own) * y - data
            df = (1 - own) * (data - y) - own_turn * y - change
            spread = f - f.mean(0)
            variance = (spread**2).mean(0)
            covariance = (spread * (df - df.mean(0))).mean(0)
            rounding = (1e3 * torch.finfo(x0.dtype).eps) ** 2 * (y**2 + data**2).mean(
                0
            )  # for Gaussian data f is constant
            slope.append(torch.where(variance > rounding, covariance / variance, torch.zeros_like(variance)))
            mean.append(f.mean(0))
        return replace(self, statistics=ModelStatistics(where, linear, torch.stack(slope), torch.stack(mean)))

    def write(self, table: Writer, grid: Level) -> None:
        known = self.statistics
        if known is None:
            raise ValueError(
                f"{self!r} needs the model's statistics: solver.calibrate(denoiser, x0) returns one with them"
            )
        if grid.t.dim() > 1:
            raise ValueError(
                "DPMSolverV3 has coefficients for each entry of the event: its times are one for all samples"
            )
        inside = grid.log_snr[grid.log_snr.isfinite()] / 2
        if bool(((inside < known.points[0] - 1e-9) | (inside > known.points[-1] + 1e-9)).any()):
            raise ValueError(
                f"{known!r} does not reach the grid's {2 * inside.min():.4g} to {2 * inside.max():.4g}: "
                "calibrate with log_snr=(low, high)"
            )
        one = table.apply(torch.ones_like, table.state) if bool((known.mean != 0).any()) else None

        def advance(x: Register, t: Level, s: Level, nodes: Sequence[Evaluation]) -> Expression:
            return _advance(known, one, x, t, s, nodes)

        begun = self.order - 2 + self.corrector if self.order > 2 and self.start == "matched" else 0
        multistep(table, grid, advance, past=self.order, corrector=self.order if self.corrector else 0, start=begun)


def _contract(matrix: Tensor, values: Tensor) -> Tensor:
    """sum_k matrix[p, k] values[k, ...]."""
    return (matrix @ values.flatten(1)).reshape(-1, *values.shape[1:])


def _advance(
    known: ModelStatistics, one: Register | None, x: Register, t: Level, s: Level, nodes: Sequence[Evaluation]
) -> Expression:
    start, end = t.log_snr / 2, s.log_snr / 2
    levels = torch.stack([node.level.log_snr / 2 for node in nodes])
    where, measure = between(start, end, _RULE)
    measure = measure.reshape(-1, *(1,) * (known.linear.dim() - 1))
    grown = torch.exp(known.integral(known.linear, start, where)) * measure  # e^L d lambda
    spread = grown * torch.exp(known.integral(known.slope, start, where))
    weight = _contract(lagrange(where, levels).T, spread)  # int e^(L+S) l_j
    weight = weight * torch.exp(-known.integral(known.slope, start, levels))  # of f - m at the nodes
    left = s.alpha * torch.exp(-known.integral(known.linear, start, end[None]))  # (1, *event)
    linear, mean = known.at(known.linear, levels), known.at(known.mean, levels)
    value = x * (left / t.alpha)
    for j, node in enumerate(nodes):
        w = left * weight[j]
        value = value + node.x0 * w - Register(node.register) * (w * (1 - linear[j]) / node.level.alpha)
    if one is None:
        return value
    offset = (weight * mean).sum(0) - (grown * known.at(known.mean, where)).sum(0)
    return value + one * (left * offset)


def _jvp(function: Callable[..., Tensor], at: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    value, tangent = torch.func.jvp(function, at, tangents)[:2]
    return value, tangent


def _draw(
    denoiser: BaseDenoiser,
    process: GaussianProcess,
    level: Level,
    x0: Tensor,
    cond: Cond,
    noise: Tensor,
    probe: Tensor,
) -> tuple[Level, Tensor, Tensor, Tensor, Tensor]:
    """(level, E diag dx0/dx, y, x0, dx0/d lambda along the flow) of noised data; float64 on the host."""
    shift = process.shift(level.t, cond)
    centred = process.corrupt(x0, level, cond=cond, noise=noise).x
    centred = centred if shift is None else centred - shift.to(centred)
    t = level.t.to(centred).repeat(len(x0))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        moved = process.shift(t, cond)
        prediction: Tensor = denoiser(x if moved is None else x + moved, t, cond).x0
        return prediction

    data, trace = _jvp(lambda x: predict(x, t), (centred,), (probe,))
    rate = 1 / (level.d_alpha / level.alpha - level.d_sigma / level.sigma)  # dt/d lambda
    alpha, y = level.alpha, centred / float(level.alpha)
    velocity = float(rate * level.d_alpha) * y + float(alpha) * (data - y)
    change = _jvp(predict, (centred, t), (velocity, float(rate) * torch.ones_like(t)))[1]
    host = [v.detach().to(device="cpu", dtype=torch.float64) for v in ((probe * trace).mean(0), y, data, change)]
    return level, host[0], host[1], host[2], host[3]
