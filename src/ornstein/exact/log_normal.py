"""Positive data in closed form: mixtures of log-normal laws."""

from __future__ import annotations

import torch
from torch import Tensor

from .._types import Cond, View
from ..denoiser import BaseDenoiser
from ..processes import Multiplicative, Process
from .mixture import GaussianMixture


class LogMixture:
    """p(x) = p_Y(log x) / prod x for a mixture of Gaussians p_Y: the law of x = exp(y), y ~ `logs`.

    Under `Multiplicative` the states are logarithms, so its denoiser is the mixture's own.

    logs: the law of the logarithms, (*event).
    """

    def __init__(self, logs: GaussianMixture) -> None:
        if not isinstance(logs, GaussianMixture):
            raise ValueError(f"the law of the logarithms is a GaussianMixture: got {type(logs).__name__}")
        self.logs, self.event = logs, logs.event

    def __repr__(self) -> str:
        return f"LogMixture({self.logs!r})"

    def sample(self, n: int, seed: int | torch.Generator | None = 0, *, cond: Cond = None) -> Tensor:
        """n exact samples (n, *event), on the host."""
        return self.logs.sample(n, seed, cond=cond).exp()

    def log_prob(self, x: Tensor, cond: Cond = None) -> Tensor:
        """log p(x) in nats, (batch,); -inf where an entry is not positive."""
        positive = (x > 0).flatten(1).all(1)
        y = torch.where(x > 0, x, 1.0).log()
        return torch.where(positive, self.logs.log_prob(y, cond=cond) - y.flatten(1).sum(1), -torch.inf)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (*event) and covariance (d, d) of x: sum_k w_k exp(mu_k + diag C_k/2), and second moments alike."""
        covs, means = self.logs.covariance.dense(), self.logs.means
        log_first = means + covs.diagonal(dim1=-2, dim2=-1) / 2
        first = log_first.exp()
        second = first[:, :, None] * first[:, None, :] * covs.exp()
        mean = self.logs.weights @ first
        return mean.reshape(self.event), torch.einsum("k,kde->de", self.logs.weights, second) - torch.outer(mean, mean)

    def denoiser(self, process: Process, predicts: View | None = None) -> BaseDenoiser:
        """The exact denoiser, of states that are logarithms."""
        if not isinstance(process, Multiplicative):
            raise ValueError(f"positive data are diffused by Multiplicative(...): got {process!r}")
        return self.logs.denoiser(process, predicts)
