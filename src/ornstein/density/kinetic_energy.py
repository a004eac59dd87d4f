"""How much samples move along a path, and how well data are told apart on it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..numerics.quadrature import between
from ..processes import GaussianProcess, Separation
from ..random import Noise, Seed, as_noise
from ..solvers.sample import evaluation


def kinetic_energy(
    model: BaseDenoiser,
    x0: Tensor,
    *,
    start: float = 0.0,
    end: float = 1.0,
    nodes: int = 32,
    cond: Cond = None,
    seed: Seed | Noise = None,
) -> Tensor:
    """int over t from start to end of |velocity(x_t, t)|^2/d dt of each sample, x_t drawn from the process,

    (batch,) float64 on the host, in the model's units. The mean is the kinetic energy of the path of marginals per
    entry, its spread the standard error; for an exact denoiser it is `Separation.energy(process)`. No path of these
    data has less than `KineticOptimal`, and none at all less than W2(data, end law)^2/d.

    Args:
        model: any denoiser of a process of one component.
        x0: data, (batch, *event), in the user's units.
        start, end: where the velocity is infinite (VP at t = 0) take times inside.
        nodes: times of a Gauss-Legendre rule, at which each sample is noised afresh.

    Source: Shaul et al. 2023 (2306.06626), section 3, without the half.
    """
    process = _gaussian(model)
    if not 0 <= start < end <= 1:
        raise ValueError(f"an energy is that between two times 0 <= start < end <= 1: got {start} and {end}")
    x0, noise = _placed(model, x0, seed)
    ends = torch.tensor([start, end], dtype=torch.float64)
    times, weights = between(ends[0], ends[1], nodes)
    total = torch.zeros(len(x0), dtype=torch.float64)
    with evaluation(model), torch.no_grad():
        for level, weight in zip(process.level(times), weights, strict=True):
            draw = process.corrupt(x0, level, cond=cond, seed=noise)
            velocity = model(draw.x, level, cond).velocity
            total += weight * velocity.flatten(1).double().square().mean(1).cpu()
    return total


def separation(
    model: BaseDenoiser,
    x0: Tensor,
    *,
    levels: int = 65,
    cond: Cond = None,
    seed: Seed | Noise = None,
) -> Separation:
    """lambda(log_snr) = 1 - E |x0 - x0(x_t)|^2/E |x0|^2, as a denoiser tells data apart that it has not seen:

    what `KineticOptimal` is made from for a law of which x0 (batch, *event), in the user's units, are samples. The same
    noise serves all levels, which are even in log-SNR over what the process reaches, from -12 to 12 - log m at most.

    Source: Shaul et al. 2023 (2306.06626), section 5.
    """
    process = _gaussian(model)
    x0, noise = _placed(model, x0, seed)
    second = float(x0.double().square().mean())
    if second == 0:
        raise ValueError("all data are 0: there is nothing to tell apart")
    low, high = (float(process.level(t).log_snr) for t in (1.0, process.finest))
    reach = max(low, -12 - math.log(second)), min(high, 12 - math.log(second))
    log_snr = torch.linspace(reach[0], reach[1], levels, dtype=torch.float64)
    z, found = noise.normal(x0.shape), []
    with evaluation(model), torch.no_grad():
        for level in process.level(process.time(log_snr).clamp(process.finest, 1)):
            draw = process.corrupt(x0, level, cond=cond, noise=z)
            error = (model(draw.x, level, cond).x0 - x0).double().square().mean()
            found.append(1 - error.cpu() / second)
    return Separation(log_snr, torch.stack(found).clamp(0, 1), second)


def _gaussian(model: BaseDenoiser) -> GaussianProcess:
    if not isinstance(model.process, GaussianProcess):
        raise ValueError(f"a path alpha x0 + sigma noise with normal noise is asked for: got {model.process!r}")
    return model.process


def _placed(model: BaseDenoiser, x0: Tensor, seed: Seed | Noise) -> tuple[Tensor, Noise]:
    """Data in the model's units, dtype and place, and a stream of noise for them."""
    x0 = x0.to(next(iter(model.parameters()), x0))
    noise = as_noise(seed, batch=len(x0), dtype=x0.dtype, device=x0.device)
    return x0 if model.scaling is None else model.scaling.encode(x0), noise
