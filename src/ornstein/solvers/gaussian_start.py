"""The first part of the flow in closed form: what the data's mean and covariance alone decide."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._types import Cond
from ..flow_map import FlowMap
from ..processes import GaussianProcess, Level, broadcast, check_shift


class GaussianStart(FlowMap):
    """X(x, t, s) of the Gaussian with the data's mean and covariance C = U diag(c) U^T:

        x_s = shift_s + alpha_s mean + U diag(psi) U^T (x_t - shift_t - alpha_t mean)
        psi_k = sqrt((alpha_s^2 c_k + sigma_s^2) / (alpha_t^2 c_k + sigma_t^2))

    Exact for Gaussian data between any two times. At high noise every data law looks Gaussian, so the first steps of a
    sampler may be replaced by one jump without evaluations:

        start = GaussianStart.of(process, data)
        x = process.prior((n, *event), seed=0)
        orn.sample(model, x_init=start(x, 1.0, t), grid=orn.LogSNR(start=float(process.level(t).log_snr)), steps=8)

    mean: (*event); cov: (d, d) of the flattened event; both in model units.

    Source: Wang, Vastola 2023, "Diffusion Models Generate Images Like Painters" (2303.02490).
    """

    process: GaussianProcess

    def __init__(self, process: GaussianProcess, mean: Tensor, cov: Tensor) -> None:
        super().__init__()
        d = mean.numel()
        if cov.shape != (d, d):
            raise ValueError(f"the covariance of an event of {d} numbers has shape {(d, d)}: got {tuple(cov.shape)}")
        if not torch.allclose(cov, cov.mT, rtol=1e-5, atol=1e-8):
            raise ValueError("a covariance is symmetric: this one is not")
        values, basis = torch.linalg.eigh(cov.to("cpu", torch.float64))
        if bool(values[0] < -1e-6 * values[-1].abs()):
            raise ValueError(f"a covariance has no negative eigenvalue: this one has {float(values[0]):.4g}")
        self.process, self.values, self.basis = process, values.clamp(min=0), basis
        self.mean = mean.detach().to("cpu", torch.float64)

    @classmethod
    def of(cls, process: GaussianProcess, data: Tensor) -> GaussianStart:
        """From samples (n, *event) in model units."""
        if len(data) < 2:
            raise ValueError(f"a covariance needs at least 2 samples: got {len(data)}")
        flat = data.detach().to("cpu", torch.float64).flatten(1)
        return cls(process, flat.mean(0).reshape(data.shape[1:]), torch.cov(flat.mT).reshape(2 * flat.shape[1:]))

    def emergence(self, share: float = 0.5) -> Tensor:
        """log-SNR_k = log(share^2/(1 - share^2)) - log c_k: (d,), in the order of the directions basis[:, k].

        There x0 predicted along the flow has reached a share of its final deviation from the mean in that direction,
        sqrt(SNR c_k/(1 + SNR c_k)). What varies most, the outline, comes first. Infinite for c_k = 0.
        """
        if not 0 < share < 1:
            raise ValueError(f"share={share}: a part of the whole, between 0 and 1")
        reached: Tensor = math.log(share**2 / (1 - share**2)) - self.values.log()
        return reached

    def forward(self, x: Tensor, t: Level, s: Level, cond: Cond = None) -> Tensor:
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"states have shape (batch, *{tuple(self.mean.shape)}): got {tuple(x.shape)}")
        here, there = (self.process.shift(level.t, cond) for level in (t, s))
        check_shift(here, x)
        mean, basis = self.mean.to(x), self.basis.to(x)
        centred = (x if here is None else x - here) - broadcast(t.alpha, x) * mean
        spread = [
            torch.sqrt(level.alpha[..., None] ** 2 * self.values + level.sigma[..., None] ** 2) for level in (t, s)
        ]
        # a direction without spread at t has no deviation there either
        gain = torch.where(spread[0] > 0, spread[1] / spread[0], torch.zeros_like(spread[0]))
        moved = ((centred.flatten(1) @ basis) * gain.to(x)) @ basis.mT
        end: Tensor = moved.reshape(x.shape) + broadcast(s.alpha, x) * mean
        return end if there is None else end + there
