"""The time-shift sampler: the network is asked at the time that the state's variance looks like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, View
from ..denoiser import BaseDenoiser, Call
from ..prediction import heads_of
from ..processes import GaussianProcess, Level
from .wrapped import Wrapped


class TimeShift(Wrapped):
    """x0'(x, t) = x0(x, t_s),    t_s = argmin over |tau - t| <= window/2 of |var(x) - v(tau)|

    v(tau) = alpha(tau)^2 data_variance + sigma(tau)^2, and var(x) is the variance over the event of each sample. A
    sampler's state that is noisier than its level says is so denoised at the level where it belongs. Times at or below
    `cutoff` are left alone.

    The published rule is data_variance=0, keeps="noise". It compares the variance of the whole state with that of its
    noise alone, and so errs by alpha^2 times the data's variance where nothing is wrong; and it carries over the noise
    found at t_s, of amplitude sigma(t_s), as if it were of amplitude sigma(t), which leaves the surplus in x0. With the
    variance of the data the shift is zero for exact marginals, to sampling error: var(x) of d independent entries
    deviates by v sqrt(2/d), which moves t_s by v sqrt(2/d)/|v'|, so the event should be large.

    Args:
        model: the denoiser.
        data_variance: of the entries of one event of the data, on average, in model units.
        window: width of the interval of times around t.
        cutoff: times above it are shifted.
        candidates: times tried in the window, t itself among them (so an odd number).
        keeps: the view that is carried over from t_s to t, "x0" or "noise".

    Source: Li, Qu, Yao, Sun, Moens 2023, "Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted
    Time Steps" (2305.15583).
    """

    def __init__(
        self,
        model: BaseDenoiser,
        data_variance: float,
        *,
        window: float = 0.2,
        cutoff: float = 0.02,
        candidates: int = 41,
        keeps: View = "x0",
    ) -> None:
        super().__init__(model)
        if not isinstance(model.process, GaussianProcess):
            raise ValueError(f"TimeShift is for one GaussianProcess: got {model.process!r}")
        if not 0 < window <= 1 or not 0 <= cutoff <= 1:
            raise ValueError(f"window={window}, cutoff={cutoff}: a width in (0, 1] and a time in [0, 1]")
        if candidates < 3 or candidates % 2 == 0:
            raise ValueError(f"candidates={candidates}: an odd number from 3 on, so that t is among them")
        if not 0 <= data_variance < math.inf:
            raise ValueError(f"data_variance={data_variance}: a variance is finite and not negative")
        if keeps not in ("noise", "x0"):
            raise ValueError(f"keeps={keeps!r}: choose noise or x0")
        self.keeps: View = keeps
        self.window, self.cutoff, self.data_variance, self.candidates = window, cutoff, data_variance, candidates

    def bind(self, levels: Any, x: Tensor, cond: Cond) -> Sequence[Call]:
        process: Any = self.process
        if process.shift(levels.t[0], cond) is not None:
            raise ValueError(f"{process!r} shifts the mean, which is part of the state's variance: no time is read")
        alone = self.model.bind(levels, x, cond)
        calls: list[Call] = []
        for level, call in zip(levels, alone, strict=True):
            acts = (level.t > self.cutoff) & (level.alpha > 0)
            if bool(acts.any()):
                calls.append(partial(self._shifted, self._candidates(level, acts, x), cond))
            else:
                calls.append(call)
        return calls

    def _candidates(self, level: Level, acts: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each time tried: the level's six numbers, v, and (c_x, c_p) with view(t) = c_x x + c_p view(t_s); each
        (candidates, 1 or batch). A sample whose time is not shifted has it for every candidate."""
        process: Any = self.process
        t, acts = level.t.reshape(1, -1), acts.reshape(1, -1)
        half = torch.linspace(-1, 1, self.candidates, dtype=torch.float64)[:, None] * self.window / 2
        tried = torch.minimum(torch.maximum(t + half, t / 2), torch.ones_like(t))
        middle = torch.full_like(t, 0.5)  # stands in where nothing is converted
        asked, here = (process.level(torch.where(acts, times, middle)) for times in (tried, t))
        variance = asked.alpha**2 * self.data_variance + asked.sigma**2
        if bool((acts & (variance.amax(0) - variance.amin(0) < 1e-6 * variance.amax(0))).any()):
            raise ValueError(
                f"under {process!r} data of variance {self.data_variance} have the same variance at all times around "
                f"t = {float(t.max()):.4g}: it shows no shift"
            )
        (n_x, n_p), (v_x, v_p) = asked.conversion(self.predicts, self.keeps), here.conversion(self.keeps, self.predicts)
        c_x = torch.where(acts, v_x + v_p * n_x, torch.zeros_like(n_x))
        c_p = torch.where(acts, v_p * n_p, torch.ones_like(n_p))
        own = process.level(torch.where(acts, tried, t))
        fields = (own.t, own.alpha, own.sigma, own.log_snr, own.d_alpha, own.d_sigma)
        numbers = torch.stack([*fields, c_x, c_p]).to(x)
        return numbers[:6], variance.to(x), numbers[6], numbers[7]

    def _shifted(self, candidates: tuple[Tensor, Tensor, Tensor, Tensor], cond: Cond, x: Tensor) -> Any:
        numbers, variance, c_x, c_p = candidates
        best = (variance - x.flatten(1).var(1)).abs().argmin(0)
        column = torch.arange(x.shape[0], device=x.device) if variance.shape[1] > 1 else torch.zeros_like(best)
        level = Level(*(field[best, column] for field in numbers))
        output = self.model.bind(level[None], x, cond)[0](x)
        wide = (-1, *(1,) * (x.dim() - 1))
        main = heads_of(output)["main"]
        value = c_x[best, column].reshape(wide) * x + c_p[best, column].reshape(wide) * main
        return {**output, "main": value} if isinstance(output, dict) else value
