"""Noise that is learned with the flow: each sample's own part of it, so that paths cross less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._types import Cond
from ..io.recipe import Recorded
from ..random import Noise, Seed, as_noise
from .affine import AffineProcess, Draw
from .flow import Flow
from .gaussian import GaussianProcess
from .level import Level
from .scheduled import Scheduled


@dataclass(frozen=True)
class CoupledDraw(Draw):
    """A draw with learned noise, and what it costs: kl = KL(q(. | x0) || N(0, I)), (batch,), None for given noise."""

    kl: Tensor | None = None


class LearnedCoupling(Recorded, nn.Module, Scheduled):
    """x_t = alpha(t) x0 + shift + sigma(t) noise,    noise ~ q(. | x0) = N(mean(x0), std(x0)^2)

    along the schedule of `base`, with mean and log std answered by an encoder that is trained with the model, by
    `orn.training.MinimumCurvature`. Samples begin in N(0, I) whatever the encoder, and it is not asked: that
    E q(. | x0) is N(0, I) is what the KL in the objective sees to, the better the larger its weight. An encoder that
    answers 0, as a new network does, is the independent coupling, `base` itself.

        encoder = orn.nets.MLP(2, outputs=("main", "log_std"))
        model = orn.Denoiser(orn.nets.MLP(2), orn.processes.LearnedCoupling(encoder), "velocity")
        orn.fit(model, x, objective=orn.training.MinimumCurvature(beta=1.0), steps=...)

    The encoder's weights are the model's: `fit` trains, averages and checkpoints them. Given x0 the noise is not
    N(0, I), so there is no score and no reverse SDE; deterministic solvers run on the model as ever.

    encoder: called as encoder(x0, t), t = 0 (batch,); answers {"main": mean, "log_std": log std}, each like x0.

    Source: Lee, Kim, Ye 2023, "Minimizing Trajectory Curvature of ODE-based Generative Models" (2301.12003).
    """

    def __init__(self, encoder: nn.Module, base: GaussianProcess | None = None) -> None:
        nn.Module.__init__(self)
        base = base or Flow()
        if not isinstance(base, GaussianProcess):
            raise ValueError(f"LearnedCoupling takes its schedule from a Gaussian process, as orn.Flow(): got {base!r}")
        object.__setattr__(self, "base", base)  # the field of a frozen dataclass
        self.encoder = encoder

    __eq__, __hash__ = object.__eq__, object.__hash__

    def __repr__(self) -> str:
        return f"LearnedCoupling(base={self.base!r})"

    def encode(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log std) of q(. | x0), each (batch, *event)."""
        answer = self.encoder(x0, torch.zeros(len(x0), dtype=x0.dtype, device=x0.device))
        if not isinstance(answer, dict) or not {"main", "log_std"} <= set(answer):
            raise ValueError(
                "the encoder answers {'main': mean, 'log_std': ...}, as orn.nets.MLP(d, outputs=('main', 'log_std')): "
                f"got {sorted(answer) if isinstance(answer, dict) else type(answer).__name__}"
            )
        return answer["main"], answer["log_std"]

    def draw_noise(self, shape: Sequence[int], noise: Noise, cond: Cond) -> Tensor:
        return noise.normal(shape)

    def log_prior(self, x: Tensor, cond: Cond = None) -> Tensor:
        return self.base.log_prior(x, cond)

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor | Level,
        x1: Tensor | None = None,
        cond: Cond = None,
        *,
        noise: Tensor | None = None,
        seed: Seed | Noise = None,
    ) -> CoupledDraw:
        """Draw x_t given x0 (batch, *event) at t, with noise from q(. | x0) unless it is given."""
        kl = None
        if noise is None:
            mean, log_std = self.encode(x0)
            std = log_std.exp()
            z = as_noise(seed, batch=x0.shape[0], dtype=x0.dtype, device=x0.device).normal(x0.shape)
            noise = mean + std * z
            kl = (mean.square() + std.square() - 1 - 2 * log_std).flatten(1).sum(1) / 2
        draw = AffineProcess.corrupt(self, x0, t, x1, cond, noise=noise)
        return CoupledDraw(draw.process, draw.level, draw.x, draw.x0, draw.noise, cond=draw.cond, kl=kl)
