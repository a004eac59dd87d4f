"""A time law that looks where the losses have been large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..processes import Level, Process
from .times import TimeLaw


@dataclass(eq=False)
class LossSecondMoment(TimeLaw):
    """p(t) ~ sqrt(mean of the last L^2 in the bin of t), mixed with `uniform` parts of U(0, 1).

    Of all laws it gives the mean of L/p the least variance, if L is not negative: the second moment of a weighted loss
    is the integral of E[L^2 | t]/p. It is uniform until every bin has `memory` losses. The law remembers: objectives
    that know it (`VLB`, `HybridLoss`) tell it the losses of each batch, unweighted, and weigh them by 1/p, so their
    mean stays unbiased. `state_dict` holds what it has seen.

    Args:
        bins: equal intervals of t; for a chain on `Uniform()` its number of steps.
        memory: losses kept of each bin.
        uniform: the share of the uniform law, so that no bin is lost from sight.

    Source: Nichol, Dhariwal 2021 (2102.09672), section 3.3.
    """

    bins: int = 1000
    memory: int = 10
    uniform: float = 0.001
    _seen: Tensor = field(init=False, repr=False)
    _count: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.bins < 1 or self.memory < 1:
            raise ValueError(f"bins={self.bins}, memory={self.memory}: at least one of each")
        if not 0 < self.uniform <= 1:
            raise ValueError(f"uniform={self.uniform}: the share of the uniform law, in (0, 1]")
        self._seen = torch.zeros(self.bins, self.memory, dtype=torch.float64)
        self._count = torch.zeros(self.bins, dtype=torch.long)

    @property
    def masses(self) -> Tensor:
        """The probability of each bin, (bins,)."""
        even = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        if bool((self._count < self.memory).any()):
            return even
        size = self._seen.square().mean(1).sqrt()
        if float(size.sum()) == 0:
            return even
        return (1 - self.uniform) * size / size.sum() + self.uniform * even

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        masses = self.masses
        ends = torch.cat([masses.new_zeros(1), masses.cumsum(0)])
        k = (torch.searchsorted(ends, u, right=True) - 1).clamp(0, self.bins - 1)
        return (k + ((u - ends[k]) / masses[k]).clamp(0, 1)) / self.bins

    def density(self, level: Level) -> Tensor:
        return self.masses[self._bin(level.t)] * self.bins

    def observe(self, t: Tensor, loss: Tensor) -> None:
        """Take the losses (batch,) at times (batch,) into the memory, in the order of the batch."""
        loss = loss.detach().to("cpu", torch.float64)
        for k, value in zip(self._bin(t).tolist(), loss.tolist(), strict=True):
            self._seen[k, self._count[k] % self.memory] = value
            self._count[k] += 1

    def _bin(self, t: Tensor) -> Tensor:
        return (t * self.bins).long().clamp(0, self.bins - 1)

    def state_dict(self) -> dict[str, Tensor]:
        """The losses kept, (bins, memory), and how many each bin has seen, (bins,)."""
        return {"seen": self._seen.clone(), "count": self._count.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what another law of the same make had seen."""
        if state["seen"].shape != self._seen.shape:
            raise ValueError(f"losses of {tuple(state['seen'].shape)} for a law of {tuple(self._seen.shape)}")
        self._seen, self._count = state["seen"].clone(), state["count"].clone()
