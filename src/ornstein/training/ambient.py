"""Ambient diffusion: learning clean data from noisy data, each sample with a noise level of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser, Scaling
from ..processes import Draw, GaussianProcess, Level, broadcast
from ..random import Noise, Share, derive
from .objective import Objective
from .times import TimeLaw


@dataclass(frozen=True)
class AmbientDraw(Draw):
    """A draw from a noisy datum, and rest = 1 - rho: the part of the noise variance of x_t that training added."""

    rest: Tensor | None = None


@dataclass(frozen=True)
class Ambient(Objective):
    """loss = E |(1 - rho) D(x_t) + rho x_t/alpha - y|^2,    rho = SNR(t) s^2,    for data y = x0 + s noise

    at levels noisier than the data, rho < 1, where x_t = alpha y + sigma sqrt(1 - rho) z has the law of the process.
    With E[y | x_t] = (1 - rho) E[x0 | x_t] + rho x_t/alpha the minimiser is the posterior mean of the clean x0, which
    nobody has seen. (For alpha = 1, sigma = s_t: rho = s^2/s_t^2.) Written as it is computed, this is the ordinary
    regression on a pair of which only the mean given x_t is right,

        noise* = z/sqrt(1 - rho),    x0* = (x_t - sigma noise*)/alpha = y - s^2 SNR(t) sigma/alpha noise*,

    weighted by (1 - rho)^2, so any view, process and weighting will do. Each sample's times follow the time law
    restricted to t > t_n, where sigma/alpha = s; a sample with s = 0 is trained at all levels as `Objective` does, bit
    for bit. Other penalties than the mean square have a minimiser that is no mean, and are refused.

        orn.fit(model, y, cond={"noise_std": s}, objective=orn.training.Ambient(), ...)
        orn.sample(model, shape, grid=orn.LogSNR(end=-2 * math.log(s)))                   # no clean data at all

    Without clean data nothing is learned below the least s: that grid stops there and ends with the step to
    E[x0 | x_t]; with to_data=False it gives alpha (x0 + s noise), data as noisy as the cleanest seen. In a grid s is in
    model units: the user's over the scaling's std.

    Args:
        level: the name of the condition (batch,) that holds s, the standard deviation of the noise in a sample, in the
            user's units. The network does not see it.

    Source: Daras, Cherapanamjeri, Daskalakis 2024 (2411.02780); Daras, Dimakis, Daskalakis 2024 (2404.10177), theorem
    on Tweedie's formula from noisy data.
    """

    level: str = "noise_std"

    def __post_init__(self) -> None:
        if self.penalty is not None:
            raise ValueError("ambient training is right for the mean of squares only: leave penalty out")

    def times(self, model: BaseDenoiser, x0: State, cond: Cond, seed: int, share: Share) -> Tensor:
        """Times above each sample's own level."""
        t = super().times(model, x0, cond, seed, share)
        return above(self.time, t, _std(model, x0, cond, self.level), _process(model))

    def draw(self, model: BaseDenoiser, x0: State, t: Tensor, cond: Cond, seed: int, share: Share) -> tuple[Any, Cond]:
        process, y = _process(model), x0
        std = _std(model, y, cond, self.level)
        seen = {name: value for name, value in cond.items() if name != self.level} or None
        z = Noise(derive(seed, "noise"), batch=len(share), dtype=y.dtype, device=y.device, share=share).normal(y.shape)
        level: Level = process.level(t)
        rho = level.log_snr.exp() * std**2
        rest = (1 - rho).clamp_min(2.0**-52)
        drawn = process.corrupt(y, level, cond=seen, noise=broadcast(rest.sqrt(), z) * z)
        noise = broadcast(rest.rsqrt(), z) * z
        # s^2 SNR sigma/alpha, without dividing by an alpha that may be 0
        pull = std**2 * level.alpha / level.sigma
        clean = y - broadcast(pull, z) * noise
        return AmbientDraw(process, level, drawn.x, clean, noise, cond=seen, rest=rest), seen

    def compare(self, model: BaseDenoiser, prediction: Any, drawn: Any, cond: Cond) -> Tensor:
        cost, rest = super().compare(model, prediction, drawn, cond), drawn.rest
        assert isinstance(rest, Tensor)
        return cost * (rest**2).to(cost)


def above(law: TimeLaw, t: Tensor, std: Tensor, process: GaussianProcess) -> Tensor:
    """t <- Q(F(t_n) + (1 - F(t_n)) F(t)): a draw of the law becomes one of the law restricted to t > t_n.

    t (batch,) from the law; std (batch,) with sigma(t_n)/alpha(t_n) = std; Q and F are the law's quantile function and
    its inverse. Where std is 0, t stays as it is.
    """
    noisy = std > 0
    if not bool(noisy.any()):
        return t
    least = process.time(-2 * std[noisy].log())
    start = law.mass(least, process)
    if bool((start >= 1 - 1e-9).any()):
        raise ValueError(
            f"{law!r} draws no time above the noise of the data, standard deviation {float(std.max()):.6g} in model "
            "units: use a law that reaches further, or leave such samples out"
        )
    moved = law.quantile(start + (1 - start) * law.mass(t[noisy], process), process)
    return t.index_put((noisy,), moved.maximum(least).clamp_max(1 - 2.0**-53))


def _process(model: BaseDenoiser) -> GaussianProcess:
    process = model.process
    if not isinstance(process, GaussianProcess):
        raise ValueError(f"ambient training needs one state of one GaussianProcess: {process!r} is none")
    return process


def _std(model: BaseDenoiser, y: Tensor, cond: Cond, name: str) -> Tensor:
    """The noise of each sample in model units, (batch,) float64 on the host."""
    if not isinstance(cond, Mapping) or name not in cond:
        raise ValueError(
            f"ambient training needs cond[{name!r}]: the standard deviation of each sample's noise, 0 where clean"
        )
    std: Tensor = cond[name].detach().to("cpu", torch.float64)
    if std.shape != y.shape[:1]:
        raise ValueError(f"cond[{name!r}] has shape {tuple(std.shape)}: one number a sample, {tuple(y.shape[:1])}")
    unit = 1.0
    if model.scaling is not None:
        if not isinstance(model.scaling, Scaling) or model.scaling.std.numel() != 1:
            raise ValueError(
                "noise of one standard deviation has another in each entry after this model's codec: ambient training "
                "needs a Scaling with one std, or none"
            )
        unit = float(model.scaling.std)
    std = std / unit
    most = math.exp(-float(_process(model).level(1.0).log_snr) / 2)
    if not bool(((std >= 0) & (std < most)).all()):
        raise ValueError(
            f"cond[{name!r}] lies in [0, {most * unit:.6g}), the noise that {model.process!r} reaches: got "
            f"{float(std.min()) * unit:.6g} to {float(std.max()) * unit:.6g}"
        )
    return std
