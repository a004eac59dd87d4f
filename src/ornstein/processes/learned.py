"""A schedule that is learned with the model, one for all samples or one for each condition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .._types import Cond
from ..io.recipe import Recorded
from .gaussian import GaussianProcess
from .level import Level


class LearnedSchedule(Recorded, nn.Module, GaussianProcess):
    """alpha^2 = 1 - sigma^2 = 1/(1 + exp(-log_snr)) with a learned fall of the log-SNR from `high` to `low`:

        log_snr(t) = high - (high - low) F(t),    F(t) = w_0 t + sum_k w_k C_k(t),    w = softmax,
        C_k(t) = [S(a_k (t - c_k)) - S(-a_k c_k)] / [S(a_k (1 - c_k)) - S(-a_k c_k)],    S the logistic function

    F rises strictly from 0 to 1 whatever the parameters: a network of one layer with positive weights, with its ends
    pinned. The weights, slopes a_k and centres c_k in (0, 1) are trained by `orn.training.ScheduleBound` and by nothing
    else: `level(t)` and all that follows from it are numbers in float64 on the host without a gradient, so solvers,
    grids and other losses take the process as any other; `at(t, cond)` gives the levels that carry the gradient.

    With a `condition` each sample has a schedule of its own, F(t; cond). The process itself is then the one with
    F(t) = t, and a sample's schedule is its clock: `at(t, cond)` are levels (batch,), `grid(steps, cond)` those of a
    sampler. Where the features have axes of the event, (batch, ..., features), each index along them, or each entry,
    has a clock of its own, and levels are (batch, ...); a network is then told a time for each (`orn.nets.TimeMap`).

        process = LearnedSchedule(-9, 9)
        model = orn.Denoiser(net, process, predicts="v", timestep=process.timestep)
        orn.fit(model, data, objective=orn.training.ScheduleBound(steps=10), ...)
        orn.sample(model, shape, grid=process.grid(10), solver=orn.DDPM())

    The state at t = 0 keeps noise of log-SNR `high`, and so do samples.

    Args:
        low, high: the log-SNR at t = 1 and t = 0.
        units: the number of C_k.
        learn_ends: low and high are parameters too; the bound's own first and last terms keep them in place.
        condition: a module from the condition to features (batch, `features`) or (batch, ..., `features`), from which
            the parameters of each sample or entry are read linearly, at first those of all.

    Source: Della Maggiora et al. 2023, "Conditional Variational Diffusion Models" (2312.02246); Kingma et al. 2021
    (2107.00630), appendix H, for one schedule of all samples. There the ends are kept by penalties, or by a division.
    """

    def __init__(
        self,
        low: float = -9.0,
        high: float = 9.0,
        *,
        units: int = 16,
        learn_ends: bool = False,
        condition: nn.Module | None = None,
        features: int | None = None,
    ) -> None:
        super().__init__()
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"the log-SNR falls from high to low, both finite: got {high} and {low}")
        if units < 1:
            raise ValueError(f"units={units}: at least one")
        if (condition is None) != (features is None):
            raise ValueError("a schedule by condition needs both: condition, a module, and features, its outputs")
        self.units = units
        self.low, self.high = low, high
        # low and the logarithm of the width
        self.ends = nn.Parameter(torch.tensor([low, math.log(high - low)])) if learn_ends else None
        centres = torch.logit((torch.arange(units) + 0.5) / units)
        slopes = torch.full((units,), math.log(math.expm1(float(units))))
        # log-weights, w_0 first: half of F is t itself, so that at first F is nearly t
        weights = torch.cat([torch.full((1,), math.log(units)), torch.zeros(units)])
        self.curve = nn.Parameter(torch.cat([weights, slopes, centres]))
        self.condition, self.head = condition, None
        if condition is not None and features is not None:
            self.head = nn.Linear(features, len(self.curve))
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def __repr__(self) -> str:
        learned = ("" if self.ends is None else ", learn_ends") + ("" if self.condition is None else ", by condition")
        return f"LearnedSchedule({self.low}, {self.high}, {self.units} units{learned})"

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high - low)."""
        if self.ends is None:
            low, high = torch.tensor([self.low, self.high], dtype=torch.float64).to(like)
            return low, high - low
        low, width = self.ends.to(like)
        return low, width.exp()

    def _rise(self, t: Tensor, curve: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(F, F', F'') at t for parameters (size,), or (batch, ..., size) with t (..., batch)."""
        if t.dim() > 0:
            t = t.reshape(*t.shape, *(1,) * (curve.dim() - 2))
        sizes = [self.units + 1, self.units, self.units]
        weights, slopes, centres = torch.split(curve.to(t), sizes, -1)
        w, a, c = weights.softmax(-1), nn.functional.softplus(slopes) + 1e-3, torch.sigmoid(centres)
        before, here = torch.sigmoid(-a * c), torch.sigmoid(a * (t[..., None] - c))
        scale = w[..., 1:] / (torch.sigmoid(a * (1 - c)) - before)
        steep = here * (1 - here)
        rise = w[..., 0] * t + (scale * (here - before)).sum(-1)
        slope = w[..., 0] + (scale * a * steep).sum(-1)
        return rise, slope, (scale * a**2 * steep * (1 - 2 * here)).sum(-1)

    def _own(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(log_snr, its slope) of the process itself, without a gradient to the parameters."""
        low, width = (end.detach() for end in self._ends(t))
        if self.condition is not None:
            return low + width * (1 - t), -width * torch.ones_like(t)
        rise, slope, _ = self._rise(t, self.curve.detach())
        return low + width * (1 - rise), -width * slope

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(self._own(t)[0]).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self._own(t)[0]).sqrt()

    def d_alpha(self, t: Tensor) -> Tensor:
        log_snr, slope = self._own(t)
        return slope / 2 * torch.sigmoid(log_snr).sqrt() * torch.sigmoid(-log_snr)

    def d_sigma(self, t: Tensor) -> Tensor:
        log_snr, slope = self._own(t)
        return -slope / 2 * torch.sigmoid(log_snr) * torch.sigmoid(-log_snr).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        return self._own(t)[0]

    def at(self, t: Tensor, cond: Cond = None) -> Level:
        """The levels at t, with a gradient to the parameters: t () or (batch,), or with times first (N + 1, batch).

        Without a condition they are `level(t)`. With one they are (..., batch, ...), and their t and derivatives are
        those of the process itself, F(t; cond), which a solver and a network may be told.
        """
        t = t.to("cpu", torch.float64)
        low, width = self._ends(t)
        rise, slope, _ = self._rise(t, self._curve(cond))
        log_snr, speed = low + width * (1 - rise), -width * slope
        if self.condition is not None:
            t, speed = rise, -width * torch.ones_like(rise)
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        turn = -speed * alpha * sigma / 2
        return Level(t, alpha, sigma, log_snr, -sigma * turn, alpha * turn)

    def bend(self, t: Tensor, cond: Cond = None) -> Tensor:
        """F'' at t, as `at`."""
        return self._rise(t.to("cpu", torch.float64), self._curve(cond))[2]

    def _curve(self, cond: Cond) -> Tensor:
        if self.condition is None or self.head is None:
            return self.curve
        if cond is None:
            raise ValueError("this schedule is one for each condition: give cond")
        features: Any = self.condition(cond)
        curve: Tensor = self.curve + self.head(features)
        return curve

    def grid(self, steps: int, cond: Cond = None) -> Level:
        """steps + 1 levels from t = 1 to 0, even on the learned clock: (N + 1,), with a condition (N + 1, batch, ...).

        It has no gradient. The last level is t = 0, with the noise that is there.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: a grid has at least one step")
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        if self.condition is None:
            return self.level(t)
        with torch.no_grad():
            clock = self.at(t[:, None], cond).t
        clock[0], clock[-1] = 1, 0  # to the last bit
        return self.level(clock)

    def timestep(self, level: Level) -> Tensor:
        """(high - log_snr)/(high - low): what a network is told, the same for the same noise however F changes."""
        low, width = (end.detach() for end in self._ends(level.t))
        return ((low + width - level.log_snr) / width).clamp(0, 1)
