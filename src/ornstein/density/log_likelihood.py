"""The likelihood of data under the probability flow, by the instantaneous change of variables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..numerics.dop853 import dop853
from ..processes import Level, Multiplicative, Reflected, check_shift
from ..random import Noise, Seed, as_noise
from ..solvers.sample import evaluation
from .units import units_of

_CHUNK = 64  # products with the Jacobian that are computed at once


@dataclass(frozen=True)
class LogLikelihood:
    """What `log_likelihood` returns.

    log_prob: log p(x) in nats, (batch,) float64 on the host, of the density in the user's units.
    error: with probes, the standard error of log_prob by their spread, (batch,); None where the trace is exact.
    latent: where the flow takes x at t = 1, (batch, *event).
    nfe: evaluations of the network, products with its Jacobian counted.
    seed: what repeats the probes.
    """

    log_prob: Tensor
    error: Tensor | None
    latent: Tensor
    nfe: int
    seed: object = None

    @property
    def bits_per_dim(self) -> Tensor:
        """-log2 p(x) / d, (batch,)."""
        return -self.log_prob / (math.log(2) * self.latent[0].numel())


def log_likelihood(
    model: BaseDenoiser,
    x: Tensor,
    *,
    cond: Cond = None,
    start: float | None = None,
    probes: int | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    seed: Seed | Noise = None,
) -> LogLikelihood:
    """log p(x) = log p_1(x_1) + integral over t from 0 to 1 of div velocity(x_t, t) dt,  dx_t/dt = velocity(x_t, t).

    It is the density of what `orn.sample` draws when its steps go to nothing: p_1 is the process's prior. The flow
    is followed in u = (x - shift)/rho, rho = hypot(alpha, sigma), over the angle phi = atan2(sigma, alpha), where

        du/dphi = cos(phi) noise - sin(phi) x0 = v/rho,     log p(x) = log p(u) - d log rho,

    is finite at both ends whatever the process. Where a model cannot be asked at t = 0 (x0 and score of no noise), give
    a small `start`: the answer is then the density of x0 + s noise at x, s = sigma/alpha at that time, a blur of the
    model's law and no approximation of anything else.

    Args:
        model: any denoiser of a process of one component, in any view.
        x: (batch, *event) in the user's units. A scaling's Jacobian is counted; another codec has no density.
        start: the time at which x is put; by default the process's `finest`, mostly 0.
        probes: None takes the exact trace, d products with the Jacobian at each evaluation. A number takes that many
            random signs v, the same along the path, and E v'Jv: unbiased for the log-likelihood, with an error bar
            from two on.
        rtol, atol: of the reference integrator of order 8, on the host in float64, the network in its own dtype on its
            own device. Below the rounding of float32 networks (1e-6) the steps shrink in vain.
        seed: names the probes; one seed a sample is possible.

    Raises:
        ValueError: on a product process, a codec without a Jacobian, or times and probes out of range. ViewError: where
        the model cannot be asked at `start`.

    Source: Chen et al. 2018 (1806.07366), equation 8; Grathwohl et al. 2018 (1810.01367) for the probes; Song et al.
    2020 (2011.13456), appendix D.2.
    """
    if probes is not None and probes < 1:
        raise ValueError(f"probes={probes}: at least one, or None for the exact trace")
    if isinstance(model.process, Reflected):
        from .reflected_likelihood import reflected_likelihood  # which takes pieces of this file

        return reflected_likelihood(model, x, cond, start, probes, rtol, atol, seed)
    process, scaling = units_of(model, "likelihood")
    start = process.finest if start is None else start
    if not 0 <= start < 1:
        raise ValueError(f"start={start}: the time of the data, in [0, 1)")
    first = next(iter(model.parameters()), x)
    dtype, device = first.dtype, first.device
    state = x.to("cpu", torch.float64)
    jacobian = torch.zeros((), dtype=torch.float64)
    if scaling is not None:
        state = scaling.encode(state)
        jacobian = -scaling.std.to(state).log().expand(x.shape[1:]).sum()
    if isinstance(process, Multiplicative):
        state, own = process.state_of(state)
        jacobian = jacobian + own
    batch, event, dim = len(x), x.shape[1:], x[0].numel()
    here, there = process.level(start), process.level(1.0)
    low, high = (math.atan2(float(level.sigma), float(level.alpha)) for level in (here, there))
    # the state at `start` whose data part is x: log p of x, the blurred data, is that of alpha x + shift, + d log alpha
    u = (here.alpha / torch.hypot(here.alpha, here.sigma)) * state

    noise = as_noise(seed, batch=batch, dtype=torch.float64) if probes is not None else None
    if noise is None:
        signs = torch.eye(dim, dtype=dtype, device=device).reshape(dim, 1, *event).expand(dim, batch, *event)
    else:
        drawn = torch.stack([noise.normal(x.shape) for _ in range(probes or 0)])
        signs = torch.where(drawn < 0, -1.0, 1.0).to(device, dtype)

    def level_at(phi: float) -> Level:
        for end, level in ((low, here), (high, there)):  # the ends as they are, not through an inverse
            if phi == end:
                return level
        return process.level(process.time(torch.tensor(-2 * math.log(math.tan(phi)), dtype=torch.float64)).clamp(0, 1))

    def field(phi: float, y: Tensor) -> Tensor:
        level = level_at(phi)
        rho = torch.hypot(level.alpha, level.sigma)
        shift = process.shift(level.t, cond)
        states = y[:, :dim].reshape(batch, *event).to(device, dtype)
        check_shift(shift, states)

        def slope(u: Tensor) -> Tensor:
            answer: Tensor = model(rho * u if shift is None else rho * u + shift, level, cond).v
            return answer / rho

        du, products = slope_and_products(slope, states, signs)
        divergence = products.sum(0)[:, None] if noise is None else products.T
        return torch.cat([du.flatten(1).cpu().double(), divergence.cpu().double()], 1)

    paths = 1 if probes is None else probes
    with evaluation(model):
        out = dop853(field, torch.cat([u.flatten(1), u.new_zeros(batch, paths)], 1), low, high, rtol=rtol, atol=atol)
    end, divergence = out.y[:, :dim], out.y[:, dim:]
    rho = torch.hypot(there.alpha, there.sigma)
    latent = (rho * end).reshape(x.shape)
    shift = process.shift(there.t, cond)
    latent = latent if shift is None else latent + shift
    # log p(u_1) = log p_1(x_1) + d log rho_1, and log p(x) = log p(u_0) - d log rho_0 + d log alpha_0
    units = dim * (torch.log(rho) + torch.log(here.alpha / torch.hypot(here.alpha, here.sigma)))
    return LogLikelihood(
        log_prob=process.log_prior(latent, cond) + divergence.mean(1) + units + jacobian,
        error=divergence.std(1) / math.sqrt(paths) if paths > 1 else None,
        latent=latent.to(x),
        nfe=out.evaluations * (1 + len(signs)) * model.cost(here[None])[0],
        seed=None if noise is None else noise.seed,
    )


def slope_and_products(f: Callable[[Tensor], Tensor], u: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """f(u) and v' (df/du) v of each sample for each v in `signs` (m, batch, *event): (m, batch)."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = f(u)
    products = []
    for first in range(0, len(signs), _CHUNK):
        some = signs[first : first + _CHUNK]
        (pulled,) = torch.autograd.grad(value, u, some, retain_graph=True, is_grads_batched=True)
        products.append((pulled * some).flatten(2).sum(2))
    return value.detach(), torch.cat(products)
