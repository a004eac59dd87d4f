"""How fast a network's answer changes with time: the Lipschitz constant in t, level by level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._types import Cond, View
from ..denoiser import BaseDenoiser
from ..processes import GaussianProcess, Level
from ..random import Noise, Seed, as_noise
from ..solvers.sample import evaluation


def time_lipschitz(
    model: BaseDenoiser,
    x0: Tensor,
    times: Tensor,
    *,
    clock: Callable[[Level], Tensor] | None = None,
    view: View | None = None,
    cond: Cond = None,
    seed: Seed | Noise = None,
) -> Tensor:
    """K_i = E |P(x, t_(i+1)) - P(x, t_i)| / |c(t_(i+1)) - c(t_i)|,    x = x_(t_(i+1)) the same in both

    with |.| the root mean square over the event and c the clock: t by default, or what the network is told of a level.
    A pair of times with the same clock has K_i = 0 if the answers agree and infinity if not. The network of the noise
    of a VP process, asked exactly, has K ~ 1/sqrt(t) near data.

    Args:
        model: any denoiser of a process of one component.
        x0: data, (batch, *event), in the user's units.
        times: n + 1 times, (n + 1,). The result is (n,), float64 on the host.
        clock: a function of the level, as `Denoiser(timestep=...)`.
        view: what is compared; by default what the model predicts.

    Source: Yang et al. 2023, "Lipschitz Singularities in Diffusion Models" (2306.11251), section 3.2.
    """
    process = model.process
    if not isinstance(process, GaussianProcess):
        raise ValueError(f"time is compared for a process of one component: got {process!r}")
    if times.dim() != 1 or len(times) < 2 or not bool((times.diff() != 0).all()):
        raise ValueError("times are a list of at least two, each different from the next")
    view = view or model.predicts
    first = next(iter(model.parameters()), x0)
    x0 = x0.to(first)
    state = x0 if model.scaling is None else model.scaling.encode(x0)
    noise = as_noise(seed, batch=len(x0), dtype=x0.dtype, device=x0.device)
    found = []
    with evaluation(model), torch.no_grad():
        levels = process.level(times)
        for here, there in ((levels[i], levels[i + 1]) for i in range(len(times) - 1)):
            x = process.corrupt(state, there, cond=cond, seed=noise).x
            a, b = (model(x, level, cond).view(view) for level in (here, there))
            change = (b - a).flatten(1).double().square().mean(1).sqrt().mean().cpu()
            apart = there.t - here.t if clock is None else clock(there) - clock(here)
            found.append(torch.where(change == 0, torch.zeros_like(change), change / apart.abs()))
    return torch.stack(found)
