"""A process that stops early, with an end law fitted to where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .._types import Cond
from ..random import Noise, Seed, as_noise, derive
from .affine import check_shift
from .gaussian import GaussianProcess
from .scheduled import Scheduled


@runtime_checkable
class EndLaw(Protocol):
    """A law from which samples can be drawn and whose density is known, such as a `GaussianMixture`."""

    def sample(self, n: int, seed: int, *, dtype: torch.dtype) -> Tensor:
        """n samples (n, *event)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at x (batch, *event): (batch,)."""


@dataclass(frozen=True)
class Shortened(Scheduled, GaussianProcess):
    """The base process on [0, T]: alpha(t) = alpha_base(T t), and so sigma and shift; samples begin at x_T.

    The longer a process runs, the closer its end is to noise and the more a model's errors add up; the bound of the
    likelihood knows both (`orn.density.diffusion_times`). A law fitted to the state at T, less the shift, takes most
    of the first gap away at a T where there is little of the second, and leaves less of the path to follow.

        law = orn.density.end_law(process, data, until=0.3, components=8)
        orn.sample(orn.guidance.Shorter(model, until=0.3, law=law), shape)     # a model trained on all of [0, 1]

    Args:
        base: the process that is stopped.
        until: T, in (0, 1].
        law: of the state at T less its shift, an `EndLaw`; None is N(0, sigma_base(T)^2 I), as of an unstopped process.
            It is one law, whatever the condition.

    Source: Franzese et al. 2022, "How Much is Enough? A Study on Diffusion Times in Score-based Generative Models"
    (2206.05173), section 3.
    """

    until: float = 1.0
    law: EndLaw | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.base, GaussianProcess):
            raise ValueError(f"what is stopped early is a process with normal noise, as orn.VP(): got {self.base!r}")
        if not 0 < self.until <= 1:
            raise ValueError(f"until={self.until}: the time at which the base is stopped, in (0, 1]")
        if self.until <= self.base.finest:
            raise ValueError(f"until={self.until}: the base has its last step to data at {self.base.finest:.4g}")
        if self.law is not None and not isinstance(self.law, EndLaw):
            raise ValueError(f"an end law has sample(n, seed, dtype=) and log_prob(x): got {self.law!r}")

    @property
    def supports(self) -> tuple[str, ...]:
        # the bound's divergence from the end law is that of two normal laws; see `orn.density.diffusion_times`
        return tuple(name for name in super().supports if name != "ELBO" or self.law is None)

    @property
    def finest(self) -> float:
        return self.base.finest / self.until

    def alpha(self, t: Tensor) -> Tensor:
        return self.base.alpha(self.until * t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.base.sigma(self.until * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return self.until * self.base.d_alpha(self.until * t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.until * self.base.d_sigma(self.until * t)

    def log_snr(self, t: Tensor) -> Tensor:
        return self.base.log_snr(self.until * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.base.time(log_snr) / self.until

    def wronskian(self, t: Tensor) -> Tensor:
        return self.until * self.base.wronskian(self.until * t)

    def drift(self, t: Tensor) -> Tensor:
        return self.until * self.base.drift(self.until * t)

    def diffusion2(self, t: Tensor) -> Tensor:
        return self.until * self.base.diffusion2(self.until * t)

    def shift(self, t: Tensor, cond: Cond) -> Tensor | None:
        return self.base.shift(self.until * t, cond)

    def d_shift(self, t: Tensor, cond: Cond) -> Tensor | None:
        slope = self.base.d_shift(self.until * t, cond)
        return None if slope is None else self.until * slope

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A draw of the end law, shift included, of shape (batch, *event)."""
        if self.law is None:
            return super().prior(shape, seed=seed, cond=cond, dtype=dtype, device=device)
        noise = as_noise(seed, batch=shape[0], dtype=dtype, device=device)
        x = _draw(self.law, noise)
        if x.shape != tuple(shape):
            raise ValueError(f"the end law is one of events {tuple(x.shape[1:])}: {tuple(shape[1:])} are asked for")
        shift = self.shift(self.level(1.0).t, cond)
        check_shift(shift, x)
        return x if shift is None else x + shift.to(x)

    def log_prior(self, x: Tensor, cond: Cond = None) -> Tensor:
        if self.law is None:
            return super().log_prior(x, cond)
        shift = self.shift(self.level(1.0).t, cond)
        return self.law.log_prob(x if shift is None else x - shift)


def _draw(law: EndLaw, noise: Noise) -> Tensor:
    """Samples of the law, in one call, or for each sample with a seed of its own in one of its own: the next numbers of
    the stream are what names them."""
    names = noise.normal((noise.batch, 2)).to("cpu", torch.float32).contiguous().view(torch.int32).tolist()
    seeds = [derive(first, "end law", second) for first, second in names]
    if not isinstance(noise.seed, tuple):
        x = law.sample(noise.batch, seeds[0] if seeds else 0, dtype=noise.dtype)
    else:
        x = torch.cat([law.sample(1, seed, dtype=noise.dtype) for seed in seeds])
    return x.to(noise.device)
