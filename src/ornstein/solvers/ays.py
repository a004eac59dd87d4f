"""Align Your Steps: the grid with the least bound on the divergence of ancestral sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..numerics.tree import check_batch
from ..processes import Level
from ..random import generator
from .schedule_search import Calibrated, cheapest_paths, gaussian


@dataclass(frozen=True)
class AYS:
    """Times that minimise the Kullback-Leibler upper bound of a sampler that freezes x0 over each step.

        KLUB = 1/2 sum_i int_(u_i)^(u_(i+1)) E |x0(x_u) - x0(x_(u_i))|^2 du,    u = SNR = alpha^2/sigma^2

    By Girsanov's theorem it bounds KL(the model's reverse process || DDIM with eta = 1), whose step is the exact
    solution of the reverse equation with x0 frozen; the clock u absorbs all else of the process. The expectation is
    over paths of the forward process from data. For an exact denoiser x0 is a martingale in u, the integrand is
    mmse(u_i) - mmse(u), and Gaussian data of variance c^2 have their optimum where 1 + c^2 u is geometric.

    Here the expectation is a mean over noised paths of data samples, on nodes that are equally important to Gaussian
    data of the same variance (equal steps of log(1 + c^2 u)); the least sum is found by dynamic programming over the
    nodes, then the gaps beside the points found are halved and searched again, `refinements` times.

    Args:
        steps: numbers of steps, each with a schedule of its own.
        end: the last log-SNR before the step to t = 0, by default that of `LogSNR()`, 2.4 + 2 ln N for the largest N;
            up to t = 0 itself the bound is infinite.
        nodes: candidates in the first search.
        refinements: how often it is refined.

    Source: Sabour, Fidler, Kreis 2024, "Align Your Steps" (2404.14507); the clock and the
    optimum by dynamic programming are ours.
    """

    steps: tuple[int, ...] = (10,)
    end: float | None = None
    nodes: int = 64
    refinements: int = 2

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 2:
            raise ValueError(f"steps={self.steps}: numbers of steps, each at least 2 (the last one goes to data)")
        if self.nodes < max(self.steps) or self.refinements < 0:
            raise ValueError(
                f"nodes={self.nodes}, refinements={self.refinements}: at least as many nodes as steps, refinements >= 0"
            )

    def calibrate(
        self, denoiser: BaseDenoiser, data: Tensor, *, cond: Cond = None, seed: int | torch.Generator | None = None
    ) -> Calibrated:
        """The grid for this denoiser and data (n, *event), in the user's units; cond has one entry a sample."""
        process = gaussian(denoiser)
        data, source = _encoded(denoiser, data, cond), generator(seed)
        end = 2.4 + 2 * math.log(max(self.steps)) if self.end is None else self.end
        first, top = (float(process.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (1.0, 0.0))
        jump = top > end  # else sigma(0) > 0, and the grid ends there
        last = min(end, top)
        if not first < last:
            raise ValueError(f"end={end:.4g} is no log-SNR above that of t = 1, {first:.4g}")
        variance = float(data.to(torch.float64).var())
        depth = torch.log1p(variance * torch.tensor([first, last], dtype=torch.float64).exp())
        nodes = torch.linspace(float(depth[0]), float(depth[1]), self.nodes + 1, dtype=torch.float64)
        for again in range(self.refinements + 1):
            times = process.time(torch.log(torch.expm1(nodes) / variance))
            times[0], times[-1] = 1.0, 0.0 if not jump else float(times[-1])
            levels = process.level(times)
            cost = klub_costs(denoiser, data, levels, cond=cond, seed=source)
            paths = cheapest_paths(cost, max(self.steps) - jump)
            if again < self.refinements:
                chosen = torch.tensor(sorted({i for n in self.steps for i in paths[n - jump][1:-1]}))
                finer = [(nodes[chosen] + nodes[chosen + side]) / 2 for side in (-1, 1)]
                nodes = torch.cat([nodes, *finer]).sort().values
        tail = (0.0,) if jump else ()
        found = [tuple(levels.t[list(paths[n - jump])].tolist()) + tail for n in self.steps]
        return Calibrated(process, tuple(found))


def klub(
    denoiser: BaseDenoiser,
    data: Tensor,
    grid: Level,
    *,
    between: int = 16,
    cond: Cond = None,
    seed: int | torch.Generator | None = None,
) -> float:
    """The bound of `AYS` for a falling grid (N + 1,) with a finite last SNR, in nats, over the whole event.

    Each interval is integrated on `between` nodes, equally spaced in log(1 + SNR).
    """
    process = gaussian(denoiser)
    if not bool(grid.sigma[-1] > 0):
        raise ValueError("the bound is infinite for a grid that reaches sigma = 0: end it above")
    depth = torch.log1p(grid.log_snr.exp())
    share = torch.linspace(0, 1, between + 1, dtype=torch.float64)[:-1]
    nodes = torch.cat([(depth[:-1, None] + share * depth.diff()[:, None]).flatten(), depth[-1:]])
    times = process.time(torch.log(torch.expm1(nodes)))
    times[::between] = grid.t
    cost = klub_costs(denoiser, _encoded(denoiser, data, cond), process.level(times), cond=cond, seed=seed)
    index = torch.arange(0, len(nodes), between)
    return float(cost[index[:-1], index[1:]].sum())


def klub_costs(
    denoiser: BaseDenoiser, data: Tensor, levels: Level, *, cond: Cond = None, seed: int | torch.Generator | None = None
) -> Tensor:
    """C[i, j] = 1/2 int_(u_i)^(u_j) E |x0(x_u) - x0(x_(u_i))|^2 du by the trapezoidal rule on the levels between.

    data (n, *event) in model units; levels (M + 1,) falling, with sigma > 0. (M + 1, M + 1), zero below the diagonal.
    """
    x0 = _answers(denoiser, data, levels, cond, seed).flatten(2)
    snr = levels.log_snr.exp()
    cost = torch.zeros(len(levels), len(levels), dtype=torch.float64)
    for i in range(len(levels) - 1):
        gap = (x0[i:] - x0[i]).square().sum(2).mean(1).to("cpu", torch.float64)
        cost[i, i + 1 :] = torch.cumulative_trapezoid(gap, snr[i:]) / 2
    return cost


def _answers(
    denoiser: BaseDenoiser, data: Tensor, levels: Level, cond: Cond, seed: int | torch.Generator | None
) -> Tensor:
    """x0 predicted along paths of the forward process, (M + 1, n, *event).

    Towards more noise x_(i-1)/alpha_(i-1) = x_i/alpha_i + sqrt(1/SNR_(i-1) - 1/SNR_i) z, and where alpha = 0 fresh
    noise; without the division, x_(i-1) = r x_i + sqrt(sigma_(i-1)^2 - r^2 sigma_i^2) z with r = alpha_(i-1)/alpha_i.
    """
    source, process = generator(seed), gaussian(denoiser)

    def normal() -> Tensor:
        z = torch.randn(data.shape, generator=source, device=source.device, dtype=torch.float32)
        return z.to(data)

    answers: list[Tensor] = []
    last = levels[-1]
    x = last.alpha.to(data) * data + last.sigma.to(data) * normal()
    with torch.no_grad():
        for i in reversed(range(len(levels))):
            if i < len(levels) - 1:
                ratio = levels.alpha[i] / levels.alpha[i + 1]
                fresh = torch.sqrt(levels.sigma[i] ** 2 - (ratio * levels.sigma[i + 1]) ** 2)
                x = ratio.to(data) * x + fresh.to(data) * normal()
            shift = process.shift(levels.t[i], cond)
            answers.append(denoiser(x if shift is None else x + shift, levels[i], cond).x0)
    return torch.stack(answers[::-1])


def _encoded(denoiser: BaseDenoiser, data: Tensor, cond: Cond) -> Tensor:
    check_batch(cond, len(data))
    return data if denoiser.scaling is None else denoiser.scaling.encode(data)
