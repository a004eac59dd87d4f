"""Bounds on what a reverse step cannot know: the conditional entropy of x_s given x_t."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..processes import Binomial, GaussianProcess, Level, LinearProcess


def reverse_entropy(process: LinearProcess, levels: Level) -> tuple[Tensor, Tensor]:
    """H(x_t|x_s) + H(x_s|x_0) - H(x_t|x_0)  <=  H(x_s | x_t)  <=  H(x_t | x_s),    s below t

    in nats of each entry of the state, of the data's own reverse process, whatever the data: (lower, upper), (N,) each,
    for the N steps of falling levels (N + 1,). The lower bound is H(x_s | x_t, x_0), the entropy of the forward
    posterior. The upper one holds where the entropy of x_t does not fall with t: always for `Binomial` and where alpha
    = 1; for alpha^2 + sigma^2 = 1 where no direction of the data has a variance above 1.

    At s = 0 the lower bound of a `GaussianProcess` is -inf. ValueError for other processes.

    Source: Sohl-Dickstein et al. 2015 (1503.03585), equations 22 to 25 of the appendix.
    """
    t, s = levels[:-1], levels[1:]
    if not bool((levels.t.diff() < 0).all()):
        raise ValueError("steps run from noise to data: these levels do not fall")
    if isinstance(process, Binomial):
        step, late, early = (_coin(alpha) for alpha in (t.alpha / s.alpha, t.alpha, s.alpha))
    elif isinstance(process, GaussianProcess):
        step = _normal(t.sigma * torch.sqrt(-torch.expm1(t.log_snr - s.log_snr)))
        late, early = _normal(t.sigma), _normal(s.sigma)
    else:
        raise ValueError(f"the entropies of {process!r} are not known: take a GaussianProcess or Binomial")
    return step + early - late, step


def _coin(alpha: Tensor) -> Tensor:
    """The entropy of an entry that is kept with probability alpha, else tossed."""
    p = torch.stack([(1 + alpha) / 2, (1 - alpha) / 2])
    return -torch.xlogy(p, p).sum(0)


def _normal(std: Tensor) -> Tensor:
    return torch.log(std) + math.log(2 * math.pi * math.e) / 2
