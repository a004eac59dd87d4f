"""A variance-preserving chain whose forward rates are learned with the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..io.recipe import Recorded
from .gaussian import GaussianProcess


class LearnedRates(Recorded, GaussianProcess, nn.Module):
    """x_k = sqrt(1 - beta_k) x_(k-1) + sqrt(beta_k) z at t = k/N, k = 1, ..., N, with the beta_k learned.

        alpha^2 = exp(-B), sigma^2 = 1 - exp(-B),    B piecewise linear in t with B(k/N) = -sum_(j<=k) log(1 - beta_j)

    The variational bound of the chain on `Uniform()` with N steps depends on the rates through x_t = alpha x0 + sigma
    noise, so for fixed noise it has a gradient in them: `orn.training.VLB(steps=N)` or HybridLoss in `orn.fit` train
    them as any weights of the model. The first rate is kept, as published, against narrowing to the training data; so
    is the whole B(1), which leaves the KL of the end law as it was: what is learned is how it is spent.

    rates: N >= 3 numbers in (0, 1) to begin with. `.rates` are the present ones, (N,) float64.

    Source: Sohl-Dickstein et al. 2015 (1503.03585), section 2.4.1.
    """

    def __init__(self, rates: Sequence[float] | Tensor) -> None:
        super().__init__()
        start = torch.as_tensor(rates, dtype=torch.float64).detach().clone()
        if start.dim() != 1 or len(start) < 3 or not bool(((start > 0) & (start < 1)).all()):
            raise ValueError(f"rates are at least 3 numbers in (0, 1): got {start.tolist()}")
        spent = -torch.log1p(-start)
        self.first, self.rest = float(spent[0]), float(spent[1:].sum())
        self.shares = nn.Parameter(spent[1:].log())

    def __repr__(self) -> str:
        return f"LearnedRates({len(self.shares) + 1} steps)"

    @property
    def rates(self) -> Tensor:
        """beta_1, ..., beta_N."""
        return -torch.expm1(-self._spent)

    @property
    def _spent(self) -> Tensor:
        """B of each step."""
        shares = self.rest * self.shares.double().softmax(0)
        return torch.cat([shares.new_full((1,), self.first), shares])

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(B(t), B'(t))."""
        spent = self._spent.to(t)
        before = torch.cat([spent.new_zeros(1), spent.cumsum(0)])
        x = len(spent) * t
        k = x.floor().clamp(0, len(spent) - 1).long()
        return before[k] + (x - k) * spent[k], len(spent) * spent[k]

    def _above(self, t: Tensor) -> Tensor:
        """B(t), and 1 at t = 0, where its root and logarithm have slopes that would make a gradient NaN."""
        return torch.where(t == 0, 1.0, self._piece(t)[0])

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._piece(t)[0] / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.where(t == 0, 0.0, torch.sqrt(-torch.expm1(-self._above(t))))

    def d_alpha(self, t: Tensor) -> Tensor:
        spent, slope = self._piece(t)
        return -slope * torch.exp(-spent / 2) / 2

    def d_sigma(self, t: Tensor) -> Tensor:
        spent = self._above(t)
        slope = self._piece(t)[1] * torch.exp(-spent) / (2 * torch.sqrt(-torch.expm1(-spent)))
        return torch.where(t == 0, torch.inf, slope)

    def drift(self, t: Tensor) -> Tensor:
        return -self.diffusion2(t) / 2

    def diffusion2(self, t: Tensor) -> Tensor:
        return self._piece(t)[1]

    def log_snr(self, t: Tensor) -> Tensor:
        spent = self._above(t)
        return torch.where(t == 0, torch.inf, -spent - torch.log(-torch.expm1(-spent)))

    def time(self, log_snr: Tensor) -> Tensor:
        # e^B = 1 + e^-log_snr, then the piece in which B falls
        spent = self._spent.to(log_snr)
        before = torch.cat([spent.new_zeros(1), spent.cumsum(0)])
        whole = torch.nn.functional.softplus(-log_snr, threshold=700)
        k = (torch.searchsorted(before.detach(), whole.detach(), right=True) - 1).clamp(0, len(spent) - 1)
        return ((k + (whole - before[k]) / spent[k]) / len(spent)).clamp(0, 1)
