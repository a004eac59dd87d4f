"""Couplings made within each batch: at random, by optimal transport, by optimal transport that minds the condition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._extras import require
from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..numerics.tree import check_batch, tree_map
from ..processes import AffineProcess, GaussianProcess
from ..random import Noise, Share, derive, generator
from .objective import Objective

DISTANCES = ("squared", "cosine")


@dataclass(frozen=True)
class Shuffled(Objective):
    """loss = E_t w |P(x_t, t) - target|^2,    (x0, x1) ~ p0 x p1: the other end of each batch in random order.

    The independent coupling of two sets of data that do not belong together row by row. With a plain `Objective` rows
    stay together for the whole training: that is a coupling too, of points. Where the other end is noise it is drawn
    anew anyway, and nothing is shuffled.

    The order is a function of the seed, and of the share of the batch that a process or a pass of accumulation takes:
    rows are paired within their share.

    Source: Liu, Gong, Liu 2022 (2209.03003), for any coupling; Albergo, Vanden-Eijnden 2022 (2209.15571).
    """

    def pair(
        self, model: BaseDenoiser, x0: State, cond: Cond, seed: int, share: Share
    ) -> tuple[dict[str, State], Cond]:
        """The other end in random order, and the condition that is left for the network."""
        given, cond = super().pair(model, x0, cond, seed, share)
        if "x1" not in given:
            return given, cond
        x1 = _like(x0, given["x1"])
        order = torch.randperm(len(x1), generator=generator(derive(seed, "pairs", share.start)))
        return {"x1": x1[order.to(x1.device)]}, cond


@dataclass(frozen=True)
class MinibatchOT(Shuffled):
    """loss = E_t w |P(x_t, t) - target|^2,    (x0_i, x1_pi(i)),    pi = argmin sum_i |x0_i - x1_pi(i)|^2 in each batch.

    x1 is the other end of a process between two laws, or the noise drawn for the batch. A permutation leaves both
    marginals as they are, so the minimiser moves one law to the other as it does for random pairs, along paths that
    cross less: straighter, with a loss of less variance. Only the inner products <x0, x1> tell permutations apart, so
    the scales of alpha and sigma do not matter. The pairs tend to those of optimal transport as the batch grows.

    Under a condition that the network sees it is wrong: x1 then depends on the condition in training and not in
    sampling. See `C2OT`. Within a share of the batch (see `Shuffled`): a large batch on one process pairs best.
    Time about cubic in the share; needs SciPy, the extra `metrics`.

    Source: Pooladian et al. 2023, "Multisample Flow Matching" (2304.14772); Tong et al. 2023 (2302.00482).
    """

    def pair(
        self, model: BaseDenoiser, x0: State, cond: Cond, seed: int, share: Share
    ) -> tuple[dict[str, State], Cond]:
        """The other end, or the noise, that belongs to each sample, and the condition that is left for the network."""
        given, cond = super().pair(model, x0, cond, seed, share)
        process = model.process
        if not given:
            if getattr(process, "end", None) is not None and not isinstance(process, GaussianProcess):
                return given, cond  # which a process between two laws refuses, and says why
            if not isinstance(process, AffineProcess):
                raise ValueError(f"{self!r} pairs x0 with noise or with x1, one tensor each: not with {process!r}")
            stream = Noise(derive(seed, "noise"), batch=len(share), dtype=x0.dtype, device=x0.device, share=share)
            given = {"noise": process.draw_noise(x0.shape, stream, cond)}
        ((name, other),) = given.items()
        return {name: other[self.order(x0, other, cond).to(other.device)]}, cond

    def order(self, x0: Tensor, x1: Tensor, cond: Cond = None) -> Tensor:
        """pi: the row of x1 for each row of x0, (batch,) on the host."""
        return assignment(costs(x0, _like(x0, x1)))


@dataclass(frozen=True)
class C2OT(MinibatchOT):
    """pi = argmin sum_i |x0_i - x1_pi(i)|^2 + w d(c_i, c_pi(i)): optimal transport that leaves p(x1 | c) = p(x1).

    Each x1 is given the condition of its row, which says nothing about it (noise is drawn anew; other ends are shuffled
    first). Plain transport then pairs x1 with data of other conditions, and a model learns paths from a part of p(x1)
    only, that which lies near the data of its condition: it is not asked there alone. With w = inf rows exchange x1
    only where conditions are equal: the set of pairs (c, x1) stays what it was. In between,

        r(w) = share of (i, j) with |x0_i - x1_j|^2 + w d(c_i, c_j) < |x0_i - x1_i|^2

    falls with w, and the adaptive weight is the least w with r(w) <= ratio, found exactly: an order statistic of
    (|x0_i - x1_i|^2 - |x0_i - x1_j|^2)/d(c_i, c_j). (As published a pair counts against itself too, and w is searched.)

    Args:
        condition: the name of the condition, (batch,) or (batch, *shape). Integers are classes, with d = 1 where they
            differ; dropped ones are a class of their own.
        weight: w; by default inf for classes and adaptive for numbers.
        ratio: r of the adaptive weight, in (0, 1); small ratios leave p(x1 | c) alone, large ones straighten more.
        distance: of numbers, "squared" or "cosine".

    Source: Cheng, Schwing 2025, "The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional
    Flow-Based Generation" (2503.10636).
    """

    condition: str = "label"
    weight: float | None = None
    ratio: float = 0.05
    distance: str = "squared"

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight >= 0:
            raise ValueError(f"weight={self.weight}: 0 for plain transport, up to inf; None for an adaptive one")
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio={self.ratio}: a share of pairs, between 0 and 1")
        if self.distance not in DISTANCES:
            raise ValueError(f"distance={self.distance!r}: choose from {', '.join(DISTANCES)}")

    def order(self, x0: Tensor, x1: Tensor, cond: Cond = None) -> Tensor:
        if not isinstance(cond, Mapping) or self.condition not in cond:
            raise ValueError(f"cond[{self.condition!r}], by which pairs are told apart, is missing")
        c, cost = cond[self.condition].detach(), costs(x0, _like(x0, x1))
        apart = _apart(c, self.distance)
        weight = self.weight
        if weight is None:
            weight = adaptive_weight(cost, apart, self.ratio) if c.is_floating_point() else math.inf
        if weight < math.inf:
            return assignment(cost + weight * apart)
        order = torch.arange(len(cost))
        _, group = torch.unique(c.cpu(), dim=0, return_inverse=True)
        for k in range(int(group.max()) + 1):
            rows = (group == k).nonzero().squeeze(1)
            order[rows] = rows[assignment(cost[rows][:, rows])]
        return order


def costs(x0: Tensor, x1: Tensor) -> Tensor:
    """|x0_i - x1_j|^2 of (n, *event) and (m, *event): (n, m) float64 on the host."""
    x, y = (z.detach().flatten(1).to(torch.promote_types(z.dtype, torch.float32)) for z in (x0, x1))
    return torch.cdist(x, y).cpu().double().square()


def assignment(cost: Tensor) -> Tensor:
    """pi with the least sum_i cost[i, pi(i)] among permutations, exact: (n, n) -> (n,) on the host."""
    chosen = require("scipy.optimize", extra="metrics").linear_sum_assignment(cost.numpy())[1]
    return torch.as_tensor(chosen)


def adaptive_weight(cost: Tensor, distance: Tensor, ratio: float) -> float:
    """The least w >= 0 with #{(i, j): cost_ij + w distance_ij < cost_ii} <= ratio n^2, inf where there is none."""
    gain = cost.diagonal()[:, None] - cost
    allowed = math.floor(ratio * cost.numel()) - int(((distance <= 0) & (gain > 0)).sum())
    if allowed < 0:
        return math.inf
    until = (gain / distance)[(distance > 0) & (gain > 0)].sort(descending=True).values
    return float(until[allowed]) if len(until) > allowed else 0.0


def unpaired(x0: Tensor, x1: Tensor, *, cond: Cond = None, seed: int = 0, end: str = "x1") -> tuple[Tensor, Cond]:
    """(x0, cond) for `fit` from two sets of data of any sizes n and m: max(n, m) rows, the smaller repeated evenly.

    Rows of the smaller set are repeated in random order, each floor or ceil of m/n times; they do not belong to those
    of the other, so train with `Shuffled`, `MinibatchOT` or `C2OT`.

        x0, cond = orn.training.unpaired(x0, x1, cond={"label": y}, seed=0)
        orn.fit(model, x0, cond=cond, objective=orn.training.MinibatchOT())

    Args:
        x0: (n, *event). x1: (m, *event), in the model's units.
        cond: a mapping of tensors (n, ...) that belong to x0, or None.
        end: the name under which the process finds x1.
    """
    if x0.shape[1:] != x1.shape[1:] or 0 in (len(x0), len(x1)):
        raise ValueError(f"two sets of one event shape, neither empty: got {tuple(x0.shape)} and {tuple(x1.shape)}")
    if cond is not None and not isinstance(cond, Mapping):
        raise ValueError(f"cond is a mapping of tensors by name, or None: got {type(cond).__name__}")
    check_batch(cond, len(x0))
    size, source = max(len(x0), len(x1)), generator(seed)

    def rows(n: int) -> Tensor:
        if n == size:
            return torch.arange(n)
        return torch.cat([torch.randperm(n, generator=source) for _ in range(-(-size // n))])[:size]

    first, second = rows(len(x0)), rows(len(x1))
    own = {} if cond is None else {name: tree_map(lambda c: c[first], part) for name, part in cond.items()}
    return x0[first], {**own, end: x1[second]}


def _like(x0: State, x1: State) -> Tensor:
    """The other end, if there is one row of it for each of the data."""
    if not isinstance(x0, Tensor) or not isinstance(x1, Tensor):
        raise ValueError("pairs are made of one tensor at each end: these states have several components")
    if x1.shape != x0.shape:
        raise ValueError(
            f"couplings of unequal size: x0 is {tuple(x0.shape)}, x1 {tuple(x1.shape)}. Give as many rows of one event "
            "shape: orn.training.unpaired(x0, x1) makes them of any two sets"
        )
    return x1


def _apart(c: Tensor, distance: str) -> Tensor:
    """d(c_i, c_j): (n, n) float64 on the host."""
    flat = c.reshape(len(c), -1)
    if not c.is_floating_point():
        return (flat[:, None] != flat[None]).any(2).cpu().double()
    if distance == "squared":
        return costs(flat, flat)
    unit = torch.nn.functional.normalize(flat.to(torch.promote_types(flat.dtype, torch.float32)), dim=1)
    return (1 - unit @ unit.mT).cpu().double().clamp_min(0).fill_diagonal_(0)
