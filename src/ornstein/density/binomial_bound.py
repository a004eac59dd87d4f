"""The variational bound of binomial diffusion."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..processes import Binomial, Level
from ..processes.binomial import reverse
from ..random import Noise, Seed, as_noise
from ..solvers.grids import Grid, Uniform
from ..solvers.sample import evaluation
from .variational_bound import VariationalBound, check_chain


def binomial_bound(
    model: BaseDenoiser,
    x: Tensor,
    *,
    grid: Grid | Level | None = None,
    steps: int | None = None,
    cond: Cond = None,
    seed: Seed | Noise = None,
) -> VariationalBound:
    """-log P(x) <= KL(q(x_1|x) || prior) + sum over steps t > s of KL(q(x_s|x_t, x) || p(x_s|x_t))

    for the chain that `BinomialAncestral` samples. The last step's is -log p(x | x_t): q is a point there. With the
    exact model the mean of the bound falls to the entropy of the data, in N equal steps as log(N)/N; what is left is
    what the entries of one step know of each other.

    Args:
        model: any denoiser of a `Binomial` process.
        x: (batch, *event), zeros and ones.
        grid, steps: of the chain, noise to data; by default 100 steps of `Uniform()`.
        seed: names the noise of each step.

    The paper's K is minus the mean of this over data, but for its last step, which it takes from the forward process.

    Source: Sohl-Dickstein et al. 2015 (1503.03585), equation 14.
    """
    process = model.process
    if not isinstance(process, Binomial):
        raise ValueError(f"a bound for zeros and ones is of a Binomial process: got {process!r}")
    if model.scaling is not None:
        raise ValueError("zeros and ones have no scaling: take the bound of a model without one")
    if isinstance(grid, Level):
        if steps is not None:
            raise ValueError("these levels know their number of steps: give a grid, or no steps")
        levels = grid
    else:
        levels = (grid or Uniform())(process, steps=100 if steps is None else steps)
    check_chain(levels)
    first = next(iter(model.parameters()), x)
    x = x.to(first)
    noise = as_noise(seed, batch=len(x), dtype=x.dtype, device=x.device)
    sign = levels[0].alpha
    prior = ((1 + sign) * torch.log1p(sign) + torch.xlogy(1 - sign, 1 - sign)) / 2  # of each entry, whatever it is
    terms = []
    with evaluation(model), torch.no_grad():
        for t, s in pairwise(levels):
            draw = process.corrupt(x, t, cond=cond, seed=noise)
            answer = model(draw.x, draw.level, cond).x0
            terms.append(binomial_term(draw.x, answer, x, t, s).double().flatten(1).sum(1))
    return VariationalBound((prior * x[0].numel()).expand(len(x)), torch.stack(terms).cpu(), x[0].numel())


def binomial_term(x: Tensor, answer: Tensor, x0: Tensor, t: Level, s: Level) -> Tensor:
    """KL(q(x_s|x_t, x0) || p(x_s|x_t)) of each entry, in nats, (batch, *event); levels () or (batch,), s below t.

    Logarithms are taken above -100, so that a wrong certainty costs much and not infinity.
    """
    q, p = reverse(x, x0, t, s).clamp(0, 1), reverse(x, answer, t, s).clamp(0, 1)
    cost = torch.nn.functional.binary_cross_entropy(p, q, reduction="none")
    return cost + torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)
