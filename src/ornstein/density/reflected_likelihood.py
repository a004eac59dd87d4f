"""The likelihood of data in a box, under the probability flow of reflected diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser, Scaling
from ..numerics.dop853 import dop853
from ..processes import Reflected
from ..random import Noise, Seed, as_noise
from ..solvers.sample import evaluation
from .log_likelihood import LogLikelihood, slope_and_products


def reflected_likelihood(
    model: BaseDenoiser,
    x: Tensor,
    cond: Cond,
    start: float | None,
    probes: int | None,
    rtol: float,
    atol: float,
    seed: Seed | Noise,
) -> LogLikelihood:
    """log p(x) = -d log w + int_0^1 div velocity(x_t, t) dt,    dx_t/dt = velocity(x_t, t) = -(g^2/2) score

    on the box, whose end law is uniform with density w^-d. The score of a law in the box has no part across its walls,
    so the flow stays inside; stages of the integrator that do not are reflected, and their velocities with them.
    Arguments as in `log_likelihood`, which calls this.

    Source: Lou, Ermon 2023 (2304.04740), section 5.
    """
    process, scaling = model.process, model.scaling
    assert isinstance(process, Reflected)
    if scaling is not None and not isinstance(scaling, Scaling):
        raise ValueError(f"{type(scaling).__name__} has no Jacobian: take the likelihood of its states, without it")
    start = process.finest if start is None else start
    if not 0 <= start < 1:
        raise ValueError(f"start={start}: the time of the data, in [0, 1)")
    first = next(iter(model.parameters()), x)
    dtype, device = first.dtype, first.device
    state, jacobian = x.to("cpu", torch.float64), torch.zeros((), dtype=torch.float64)
    if scaling is not None:
        state = scaling.encode(state)
        jacobian = -scaling.std.to(state).log().expand(x.shape[1:]).sum()
    process.corrupt(state, 1.0)  # refuses data outside the box
    batch, event, dim = len(x), x.shape[1:], x[0].numel()
    noise = as_noise(seed, batch=batch, dtype=torch.float64) if probes is not None else None
    if noise is None:
        signs = torch.eye(dim, dtype=dtype, device=device).reshape(dim, 1, *event).expand(dim, batch, *event)
    else:
        drawn = torch.stack([noise.normal(x.shape) for _ in range(probes or 0)])
        signs = torch.where(drawn < 0, -1.0, 1.0).to(device, dtype)

    def field(t: float, y: Tensor) -> Tensor:
        level = process.level(t)
        states = y[:, :dim].reshape(batch, *event)
        inside = process.reflect(states)
        turned = torch.where(torch.remainder(states - process.low, 2 * process.width) > process.width, -1.0, 1.0)

        def slope(u: Tensor) -> Tensor:
            velocity: Tensor = model(u, level, cond).velocity
            return velocity

        velocity, products = slope_and_products(slope, inside.to(device, dtype), signs)
        # a reflection of an entry turns its velocity, and leaves the divergence as it is
        divergence = products.sum(0)[:, None] if noise is None else products.T
        return torch.cat([(turned * velocity.cpu().double()).flatten(1), divergence.cpu().double()], 1)

    paths = 1 if probes is None else probes
    with evaluation(model):
        begin = torch.cat([state.flatten(1), state.new_zeros(batch, paths)], 1)
        out = dop853(field, begin, start, 1.0, rtol=rtol, atol=atol)
    latent, divergence = process.reflect(out.y[:, :dim].reshape(x.shape)), out.y[:, dim:]
    return LogLikelihood(
        log_prob=process.log_prior(latent, cond) + divergence.mean(1) + jacobian,
        error=divergence.std(1) / paths**0.5 if paths > 1 else None,
        latent=latent.to(x),
        nfe=out.evaluations * (1 + len(signs)) * model.cost(process.level(start)[None])[0],
        seed=None if noise is None else noise.seed,
    )
