"""A box in closed form: mixtures of folded normal laws under reflected diffusion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._types import Cond, View
from ..denoiser import BaseDenoiser
from ..errors import ViewError
from ..processes import Level, Reflected
from ..processes.reflected import heat_kernel
from ..random import generator
from .world import NULL


class FoldedMixture:
    """p(x0) = sum_k w_k prod_i q(x0_i | mu_ki; s_k): components that are heat which has spread for s_k^2 in the box.

    q is the kernel of `Reflected`, so x_t has the same law with s_k^2 + sigma^2 for s_k^2: densities and scores at
    every level are those of the kernel. A large s_k is the uniform law.

    Args:
        means: (k, d), in the box. stds: (k,) positive. weights: (k,) positive, uniform by default.
        low, high: the walls. The label of a component is its index; `cond={"label": y}` restricts to it, -1 to none.
    """

    def __init__(
        self, means: Tensor, stds: Tensor, weights: Tensor | None = None, *, low: float = 0.0, high: float = 1.0
    ) -> None:
        weights = torch.ones(len(means)) if weights is None else weights
        self.means, self.stds, weights = (v.detach().cpu().to(torch.float64) for v in (means, stds, weights))
        if self.means.dim() != 2 or self.stds.shape != (len(means),) or weights.shape != (len(means),):
            raise ValueError(
                f"means are (k, d), stds and weights (k,): got {tuple(means.shape)}, {tuple(stds.shape)}, "
                f"{tuple(weights.shape)}"
            )
        inside = (self.means >= low) & (self.means <= high)
        if not bool(inside.all()):
            raise ValueError(f"{float(self.means[~inside][0]):.6g} lies outside the box [{low:.6g}, {high:.6g}]")
        if not bool((self.stds > 0).all()) or not bool((weights > 0).all()):
            raise ValueError(f"stds and weights are positive: got {self.stds.tolist()}, {weights.tolist()}")
        self.low, self.high = low, high
        self.log_weights = weights.log().log_softmax(0)

    @property
    def weights(self) -> Tensor:
        """The weights of the components, (k,) in float64."""
        return self.log_weights.exp()

    def sample(
        self, n: int, seed: int | torch.Generator | None = 0, *, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """n exact samples (n, d) and their labels (n,), on the host."""
        rng = generator(seed)
        label = torch.multinomial(self.weights, n, replacement=True, generator=rng)
        z = torch.randn(n, self.means.shape[1], dtype=torch.float64, generator=rng)
        x = Reflected(self.low, self.high).reflect(self.means[label] + self.stds[label, None] * z)
        return x.to(dtype or torch.get_default_dtype()), label

    def log_prob(
        self, x: Tensor, process: Reflected | None = None, t: float | Tensor | Level | None = None, cond: Cond = None
    ) -> Tensor:
        """log p_t(x) in nats, (batch,); that of the data without a process."""
        return self._at(x, self._sigma(process, t), cond)[0]

    def score(
        self, x: Tensor, process: Reflected | None = None, t: float | Tensor | Level | None = None, cond: Cond = None
    ) -> Tensor:
        """grad log p_t(x), (batch, d)."""
        return self._at(x, self._sigma(process, t), cond)[1]

    def denoiser(self, process: Reflected, predicts: View = "score") -> ExactBoxDenoiser:
        """The exact denoiser of this world: the score, or the velocity."""
        return ExactBoxDenoiser(self, process, predicts)

    def _sigma(self, process: Reflected | None, t: float | Tensor | Level | None) -> Tensor:
        if (process is None) != (t is None):
            raise ValueError("a process and a time belong together: give both, or neither for the data's own law")
        if process is None or t is None:
            return torch.zeros((), dtype=torch.float64)
        self.check(process)
        return process.level(t).sigma

    def check(self, process: Reflected) -> None:
        """Refuse a process of another box."""
        if not isinstance(process, Reflected) or (process.low, process.high) != (self.low, self.high):
            raise ValueError(f"this world lives in the box [{self.low:.6g}, {self.high:.6g}]: {process!r} does not")

    def _at(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        means = self.means.to(x)
        spread = torch.hypot(self.stds, sigma.reshape(-1, 1)).to(x)[..., None]  # (1 or batch, k, 1)
        log_q, score = heat_kernel(x[:, None] - self.low, means - self.low, spread, self.high - self.low)
        log_weights = self.log_weights.to(x).expand(len(x), -1)
        label = None if cond is None else cond.get("label")
        if label is not None:
            other = (label[:, None] != NULL) & (label[:, None] != torch.arange(len(means), device=x.device))
            log_weights = log_weights.masked_fill(other, -torch.inf).log_softmax(1)
        terms = log_weights + log_q.sum(-1)
        return terms.logsumexp(1), (terms.softmax(1)[..., None] * score).sum(1)


class ExactBoxDenoiser(BaseDenoiser):
    """The exact score of a world in a box, to rounding, at every level; its null condition is the label -1."""

    process: Reflected

    def __init__(self, world: FoldedMixture, process: Reflected, predicts: View = "score") -> None:
        super().__init__()
        world.check(process)
        if predicts not in process.views:
            raise ViewError(f"{process!r} has no {predicts}: choose from {', '.join(process.views)}")
        self.world, self.process, self.predicts = world, process, predicts
        self.null = {"label": NULL}

    def bind(self, levels: Any, x: Tensor, cond: Cond) -> Sequence[Callable[[Tensor], Tensor]]:
        return [partial(self._answer, level, cond) for level in levels]

    def _answer(self, level: Level, cond: Cond, x: Tensor) -> Tensor:
        score = self.world._at(x, level.sigma, cond)[1]
        _, factor = level.conversion("score", self.predicts)
        return factor.to(x).reshape(-1, 1) * score
