"""The law of an earlier state given a later one and the data: what ancestral sampling and its bound are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .level import Level


@dataclass(frozen=True)
class Ancestral:
    """q(x_s | x_t, x0) = N(c_x x_t + c_x0 x0, posterior^2) for s < t, in coordinates centred by the shift.

        c_x = alpha_ts sigma_s^2/sigma_t^2,   c_x0 = alpha_s sigma_ts^2/sigma_t^2,   alpha_ts = alpha_t/alpha_s
        posterior = sigma_ts sigma_s/sigma_t,   forward = sigma_ts,   sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2

    forward is the standard deviation of x_t given x_s: the squares of `forward` and `posterior` are the paper's beta
    and beta-tilde. Float64 on the host, of the shape of the levels, finite where alpha_t = 0 or sigma_s = 0.

    Source: Ho, Jain, Abbeel 2020 (2006.11239), equations 6 and 7.
    """

    c_x: Tensor
    c_x0: Tensor
    forward: Tensor
    posterior: Tensor


def ancestral(t: Level, s: Level) -> Ancestral:
    """The step from the levels t to the levels s, less noisy ones."""
    # sigma_ts^2/sigma_t^2 = 1 - SNR_t/SNR_s
    fresh = -torch.expm1(t.log_snr - s.log_snr)
    kept = (s.sigma / t.sigma) ** 2
    return Ancestral(
        t.alpha / s.alpha * kept, s.alpha * fresh, t.sigma * torch.sqrt(fresh), s.sigma * torch.sqrt(fresh)
    )
