"""The bound of a chain of few steps, by which a schedule is learned together with the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import LearnedSchedule, broadcast
from ..random import Noise, Share, derive, fresh_seed
from .objective import Objective
from .times import UniformTime


@dataclass(frozen=True)
class ScheduleBound(Objective):
    """-log p(x0)/d <= prior + recon + steps/2 E_i (SNR(s) - SNR(t)) |x0(x_t) - x0|^2/d,    s = t - 1/steps, t = i/steps

        prior = exp(low) |x0|^2/(2d),    recon = (1 + log 2 pi - high)/2

    in nats per entry of the model's units: of the chain of `steps` even steps on the clock of a `LearnedSchedule`, from
    noise at log-SNR `low` to data told by N(x_0/alpha, sigma^2/alpha^2) at `high`. The clock and the model are trained
    by the same gradient. Unlike the bound of infinitely many steps, which depends on the ends alone, it knows where the
    schedule should be slow: for an exact model it is above the entropy by the sum of what each step loses, and least
    where no step can give another anything.

    Where entries have clocks of their own, each has its own terms, and the bound is their mean.

    With pinned ends `prior` and `recon` are constants; with learned ones they are what keeps them.

    Args:
        steps: of the chain, and of the sampler that it is for.
        smooth: weight of E_t F''(t)^2, which keeps the clock from bending more than the bound is worth.

    Source: Della Maggiora et al. 2023 (2312.02246), section 3; Kingma et al. 2021 (2107.00630), equation 13.
    """

    steps: int = 10
    smooth: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.smooth < math.inf:
            raise ValueError(f"steps={self.steps}, smooth={self.smooth}: at least one step, and a weight not below 0")
        if self.weighting is not None or self.penalty is not None or self.observed is not None:
            raise ValueError("ScheduleBound has weights of its own: no weighting, penalty or observed")
        if not isinstance(self.time, UniformTime):
            raise ValueError(f"the clock that is learned says where to look: no time law, got {self.time!r}")

    def losses(
        self,
        model: BaseDenoiser,
        x0: Tensor,
        cond: Cond = None,
        *,
        seed: int | None = None,
        share: Share | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(loss of each sample, the time of its step), both (batch,)."""
        process = model.process
        if not isinstance(process, LearnedSchedule):
            raise ValueError(f"this bound is that of a LearnedSchedule: got {process!r}")
        seed, share = fresh_seed() if seed is None else seed, share or Share(0, len(x0), len(x0))
        t = (self.times(model, x0, cond, seed, share) * self.steps).ceil() / self.steps
        both = process.at(torch.stack([t, t - 1 / self.steps]), cond)
        noise = Noise(derive(seed, "noise"), batch=len(share), dtype=x0.dtype, device=x0.device, share=share)
        drawn = process.corrupt(x0, both[0], cond=cond, seed=noise)
        error = (model(drawn.x, drawn.level, cond).x0 - x0).square()
        snr = both.log_snr.exp()
        low, high = process.at(torch.tensor([1.0, 0.0], dtype=torch.float64)[:, None].expand(2, len(x0)), cond).log_snr
        loss = _mean(broadcast(self.steps / 2 * (snr[1] - snr[0]), error) * error)
        loss = loss + _mean(broadcast(low.exp() / 2, x0) * x0.square())
        rest = (1 + math.log(2 * math.pi) - high) / 2
        if self.smooth:
            rest = rest + self.smooth * process.bend(t - 0.5 / self.steps, cond).square()
        rest = _mean(rest)
        return loss + rest.to(loss), t


def _mean(values: Tensor) -> Tensor:
    """The mean over the entries of each sample, (batch,)."""
    return values.reshape(len(values), -1).mean(1)
