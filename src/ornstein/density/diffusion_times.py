"""How long a process should run: the two gaps of the likelihood's bound as functions of the time at which it stops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..exact import GaussianMixture
from ..exact.world import World
from ..numerics.quadrature import between
from ..processes import EndLaw, GaussianProcess, Shortened
from ..random import Noise, Seed, as_noise
from ..solvers.sample import evaluation


@dataclass(frozen=True)
class DiffusionTimes:
    """What `diffusion_times` returns: (K,) float64 on the host, in nats of a whole sample, in the model's units.

    times: T. bound: of -log p from above, of the process that stops at T; spread: its standard deviation over samples.
    laws: the end law of each. With the truth, prior_gap: KL(p_T || end law); score_gap: 1/2 int g^2 E |score error|^2;
    bound = entropy + prior_gap + score_gap. Without, None.
    """

    times: Tensor
    bound: Tensor
    spread: Tensor
    laws: tuple[EndLaw | None, ...]
    prior_gap: Tensor | None = None
    score_gap: Tensor | None = None

    @property
    def best(self) -> int:
        """The index of the least bound: the search of T."""
        return int(self.bound.argmin())


def diffusion_times(
    model: BaseDenoiser,
    x0: Tensor,
    times: Tensor,
    *,
    laws: Callable[[float], EndLaw | None] | None = None,
    truth: World | None = None,
    start: float = 1e-3,
    nodes: int = 16,
    cond: Cond = None,
    seed: Seed | Noise = None,
) -> DiffusionTimes:
    """-log p(x0) <= recon + 1/2 int_start^T (-SNR') E |x0(x_t) - x0|^2 dt + E log q(x_T|x0)/law_T(x_T)

    as a function of T, recon = d (1 + log(2 pi) - log_snr(start))/2. With exact answers the integral is what the states
    say of x0 between T and `start`, and the mean of the sum is entropy + KL(p_T || law_T): that gap falls with T.
    Errors of the model, on -SNR'/2 = g^2 alpha^2/(2 sigma^4), add up: that gap rises. The best T is where they balance,
    and the better the law, the earlier.

    Args:
        model: a denoiser of one GaussianProcess, on all of it.
        x0: held-out data, (batch, *event), in the user's units.
        times: rising, each above `start`: (K,).
        laws: the end law of each T, as `functools.partial(end_law, process, data)` of other data; None and by default
            N(0, sigma(T)^2 I).
        truth: the world of the data, in the model's units, if it is known: it tells the two gaps apart.
        start: the time of the data; sigma is positive there.
        nodes: of Gauss-Legendre rules in log-SNR, between start and the first T, and from each to the next.
        seed: names the noise, fresh at each node.

    Source: Franzese et al. 2022 (2206.05173), section 2; the integral as in Kingma et al. 2021 (2107.00630).
    """
    process = model.process
    if not isinstance(process, GaussianProcess):
        raise ValueError(f"times are compared of a process with normal noise: got {process!r}")
    times = times.to("cpu", torch.float64)
    if times.dim() != 1 or len(times) == 0 or not bool((times.diff() > 0).all()) or not start < float(times[0]):
        raise ValueError(f"times are a rising list above start={start}: got {times.tolist()}")
    x0 = x0.to(next(iter(model.parameters()), x0))
    state = x0 if model.scaling is None else model.scaling.encode(x0)
    noise = as_noise(seed, batch=len(x0), dtype=x0.dtype, device=x0.device)
    ends = process.level(torch.cat([torch.tensor([start], dtype=torch.float64), times]))
    if not bool(ends.log_snr.isfinite().all()):
        raise ValueError(f"the log-SNR of {process!r} is infinite at start={start} or at T = {float(times[-1]):.4g}")
    dim = x0[0].numel()
    recon = dim * (1 + math.log(2 * math.pi) - ends.log_snr[0]) / 2
    told, missed = torch.zeros(len(x0), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    bounds, scores, priors, chosen = [], [], [], []
    with evaluation(model), torch.no_grad():
        for i, time in enumerate(times.tolist()):
            where, weights = between(ends.log_snr[i + 1], ends.log_snr[i], nodes)
            for level, weight in zip(process.level(process.time(where).clamp(0, 1)), weights, strict=True):
                draw = process.corrupt(state, level, cond=cond, seed=noise)
                answer, rate = model(draw.x, level, cond).x0, weight * level.log_snr.exp() / 2
                told += _controlled(rate * _squares(answer - state), _squares(draw.noise) - dim)
                if truth is not None:
                    missed += rate * _squares(answer - truth.posterior_mean(draw.x, process, level, cond)).mean()
            law = None if laws is None else laws(time)
            end = process.corrupt(state, ends[i + 1], cond=cond, seed=noise)
            log_prior = Shortened(process, time, law).log_prior(end.x, cond).double().cpu()
            log_q = -_squares(end.noise) / 2 - dim * (math.log(2 * math.pi) / 2 + torch.log(ends.sigma[i + 1]))
            bounds.append(recon + told + log_q - log_prior)
            scores.append(missed.clone())
            chosen.append(law)
            if truth is not None:
                log_prob = truth.log_prob(end.x, process, ends[i + 1], cond).double().cpu()
                priors.append((log_prob - log_prior).mean())
    bound = torch.stack(bounds)
    gaps = (None, None) if truth is None else (torch.stack(priors), torch.stack(scores))
    return DiffusionTimes(times, bound.mean(1), bound.std(1), tuple(chosen), *gaps)


def end_law(
    process: GaussianProcess,
    data: Tensor,
    until: float,
    *,
    components: int = 8,
    cond: Cond = None,
    seed: int = 0,
) -> GaussianMixture:
    """A Gaussian mixture fitted to x_T - shift = alpha(T) x0 + sigma(T) noise of data (n, *event), in model units.

    What blurs the data makes the law easy: at T = 1 one component is enough. See `GaussianMixture.fit`.

    Source: Franzese et al. 2022 (2206.05173), section 3.2.
    """
    if not 0 < until <= 1:
        raise ValueError(f"until={until}: a time in (0, 1]")
    draw = process.corrupt(data, until, cond=cond, seed=seed)
    shift = process.shift(draw.level.t, cond)
    return GaussianMixture.fit(draw.x if shift is None else draw.x - shift, components, seed=seed)


def _controlled(value: Tensor, control: Tensor) -> Tensor:
    """value - b control, b that of least squares: the same mean where the control has none, and less spread."""
    centred = control - control.mean()
    return value - (value * centred).sum() / centred.square().sum().clamp_min(1e-300) * control


def _squares(x: Tensor) -> Tensor:
    return x.flatten(1).double().square().sum(1).cpu()
