"""Condition perturbation: the network is trained under conditions that are slightly off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..nets.base import LABEL_OFFSET
from ..nets.embedding import LabelEmbedding
from ..numerics.tree import parts
from ..random import Share, derive, generator
from .objective import Objective


@dataclass(frozen=True)
class ConditionPerturbation(Objective):
    """c' = c + delta,    delta ~ N(0, gamma^2/d I)   or   delta ~ U(-gamma/sqrt(d), gamma/sqrt(d))^d

    where c is the embedding of the label, or a continuous condition with d entries a sample: |delta| is about gamma
    (gamma/sqrt(3) when uniform) whatever d is. In training only: the model is sampled as any other. gamma = 0 is
    `Objective` bit for bit, and the times and noise of x_t are its own for every gamma.

    The perturbation acts on a label as shrinkage. For one class with mean m and covariance S of its training samples,
    and a linear answer x0 = W x_t + V c with |c| = 1, kappa = 1/(1 + gamma^2/d), the minimiser is the exact denoiser of

        N(kappa m, S + (1 - kappa) m m^T):

    more entropy, and a mean drawn to that of all data. gamma is compared with |c|: the embeddings of `orn.nets` begin
    at |c| = sqrt(width).

    Args:
        gamma: the size of the perturbation, at least 0.
        law: "normal" or "uniform".
        names: the conditions to perturb, "label" or floating-point ones (batch, ...), such as embeddings of text.

    Labels are perturbed in the networks of `orn.nets`, which add the condition "label_offset" to the embedding.

    Source: Chen et al. 2024 (2405.20494), section 5.
    """

    gamma: float = 1.0
    law: Literal["normal", "uniform"] = "normal"
    names: tuple[str, ...] = ("label",)

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"gamma={self.gamma}: the size of the perturbation is at least 0 and finite")
        if self.law not in ("normal", "uniform"):
            raise ValueError(f"law={self.law!r}: choose normal or uniform")
        if type(self.names) is not tuple or not self.names:
            raise ValueError(f"names={self.names!r}: a tuple of the conditions to perturb, as ('label',)")

    def draw(self, model: BaseDenoiser, x0: State, t: Tensor, cond: Cond, seed: int, share: Share) -> tuple[Any, Cond]:
        drawn, cond = super().draw(model, x0, t, cond, seed, share)
        given = _named(cond, self.names)
        if self.gamma == 0:
            return drawn, cond
        first, perturbed = parts(x0)[0], dict(given)
        for name in self.names:
            own = derive(seed, "condition", name)
            if name == "label":
                like = first.new_empty(0)
                perturbed[LABEL_OFFSET] = self._delta((len(share), _width(model)), own, share, like)
            else:
                c = given[name]
                perturbed[name] = c + self._delta(tuple(c.shape), own, share, c)
        return drawn, perturbed

    def _delta(self, shape: tuple[int, ...], seed: int, share: Share, like: Tensor) -> Tensor:
        whole, rng = (share.total, *shape[1:]), generator(seed, like.device)
        options: dict[str, Any] = {"generator": rng, "device": like.device, "dtype": torch.float32}
        unit = torch.randn(whole, **options) if self.law == "normal" else 2 * torch.rand(whole, **options) - 1
        return (self.gamma / math.sqrt(math.prod(shape[1:])) * share(unit)).to(like.dtype)


def corrupt_labels(labels: Tensor, share: float, seed: int = 0, classes: int | None = None) -> Tensor:
    """label_i <- one of the classes - 1 others, uniform, with probability `share`; else unchanged.

    labels: (n,) integers in [0, classes), `classes` by default one more than the largest. The condition corruption that
    the perturbation imitates, and the way to make data for `orn.CFG` to put right.

    Source: Chen et al. 2024 (2405.20494), section 3.
    """
    if labels.dim() != 1 or labels.is_floating_point() or len(labels) == 0:
        raise ValueError(f"labels are integers (n,): got {labels.dtype} {tuple(labels.shape)}")
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: the probability of a wrong label, in [0, 1]")
    count = 1 + int(labels.max()) if classes is None else classes
    if count < 2 or int(labels.min()) < 0 or int(labels.max()) >= count:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} among {count} classes: give classes, at least 2, "
            "with every label in [0, classes)"
        )
    rng = generator(seed)
    step = torch.randint(1, count, labels.shape, generator=rng).to(labels)
    wrong = (torch.rand(labels.shape, generator=rng) < share).to(labels.device)
    return torch.where(wrong, (labels + step) % count, labels)


def _named(cond: Cond, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """The condition, in which every name can be perturbed."""
    given: Mapping[str, Tensor] = cond if isinstance(cond, Mapping) else {}
    for name in names:
        if name not in given:
            raise ValueError(f"there is no cond[{name!r}] to perturb: the condition has {list(given) or 'no names'}")
        if name != "label" and not given[name].is_floating_point():
            raise ValueError(
                f"cond[{name!r}] is {given[name].dtype}: floating-point conditions and 'label' are perturbed"
            )
    return given


def _width(model: BaseDenoiser) -> int:
    """The number of entries of the embedding of a label."""
    widths = [module.width for module in model.modules() if isinstance(module, LabelEmbedding)]
    if not widths:
        raise ValueError(
            "this network has no ornstein.nets.embedding.LabelEmbedding to perturb: give the embedding itself as a "
            "condition and name it, as names=('embedding',)"
        )
    return widths[0]
