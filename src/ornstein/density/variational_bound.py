"""The variational bound of the discrete chain: -log p(x) of ancestral sampling, from above."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser, Scaling
from ..prediction import Prediction, heads_of
from ..processes import GaussianProcess, Level, Multiplicative, ancestral, broadcast
from ..random import Noise, Seed, as_noise
from ..solvers.grids import Grid, Uniform
from ..solvers.sample import evaluation
from .units import units_of

VARIANCES = ("posterior", "forward", "learned")


@dataclass(frozen=True)
class Quantised:
    """Data that take the values low, low + h, ..., high, h = (high - low)/(count - 1), in the user's units.

    The last step's N(mean, std^2) is then a law on the values, that of the cell of each, the outer cells without end:
    P(x) = F((x + h/2 - mean)/std) - F((x - h/2 - mean)/std).

    Source: Ho, Jain, Abbeel 2020 (2006.11239), equation 13.
    """

    low: float
    high: float
    count: int

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf or self.count < 2:
            raise ValueError(f"at least 2 values from low to high: got {self.count} from {self.low} to {self.high}")

    @property
    def _step(self) -> float:
        return (self.high - self.low) / (self.count - 1)

    def check(self, x: Tensor) -> None:
        """Refuse data that are not of these values, to a hundredth of their distance."""
        nearest = ((x - self.low) / self._step).round().clamp(0, self.count - 1) * self._step + self.low
        wrong = (x - nearest).abs() > self._step / 100
        if bool(wrong.any()):
            raise ValueError(f"{float(x[wrong][0]):.6g} is none of the values of {self!r}, {self._step:.6g} apart")

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """log P(x) of each entry, all in the user's units."""
        half = self._step / 2
        upper = torch.where(x > self.high - half, torch.inf, (x + half - mean) / std)
        lower = torch.where(x < self.low + half, -torch.inf, (x - half - mean) / std)
        # in the tail that is the smaller, where a difference of two numbers near 1 would lose all digits
        flip = lower + upper > 0
        a, b = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        log_b = torch.special.log_ndtr(b)
        log_a = torch.special.log_ndtr(a.clamp(min=-1e4))
        inside = log_b + torch.log(-torch.expm1((log_a - log_b).clamp(max=-torch.finfo(x.dtype).eps)))
        return torch.where(a == -torch.inf, log_b, inside)


@dataclass(frozen=True)
class VariationalBound:
    """What `variational_bound` returns, in nats of one sample, float64 on the host.

    prior: KL of q(x_1 | x) from the prior, (batch,). terms: of each step of the chain from noise to data, (steps,
    batch), one draw each; the last is -log p(x | x_1). total: their sum, (batch,), an unbiased estimate of a bound of
    -log p(x) from above.
    """

    prior: Tensor
    terms: Tensor
    dim: int

    @property
    def total(self) -> Tensor:
        return self.prior + self.terms.sum(0)

    @property
    def bits_per_dim(self) -> Tensor:
        """total / (d log 2), (batch,)."""
        return self.total / (self.dim * math.log(2))


def variational_bound(
    model: BaseDenoiser,
    x: Tensor,
    *,
    grid: Grid | Level | None = None,
    steps: int | None = None,
    variance: str = "posterior",
    values: Quantised | None = None,
    cond: Cond = None,
    seed: Seed | Noise = None,
) -> VariationalBound:
    """-log p(x) <= KL(q(x_1|x) || prior) + sum over steps t > s of KL(q(x_s|x_t, x) || p(x_s|x_t)) - log p(x|x_1)

    for the chain that `orn.DDPM(variance)` samples, its last step with the noise that its density needs: see
    `bound_term`, which is what a step costs. Without `values` the last is a density in the user's units.

    Args:
        model: any denoiser of a process of one component; one with a head "variance" where that is learned.
        x: (batch, *event) in the user's units.
        grid, steps: of the chain, noise to data; by default 100 steps of `Uniform()`.
        variance: "posterior", "forward" or "learned", of the steps before the last.
        values: the values that quantised data take; bits_per_dim is then the code length of lossless compression.
        seed: names the noise of each step.

    Source: Ho, Jain, Abbeel 2020 (2006.11239), equation 5; Nichol, Dhariwal 2021 (2102.09672), equations 4 to 7.
    """
    process, scaling = units_of(model, "bound")
    if not isinstance(process, GaussianProcess):
        raise ValueError(f"the bound is a sum of divergences of normal laws: {process!r} has other noise")
    if isinstance(process, Multiplicative):
        raise ValueError(f"{process!r} has no bound of its own: take that of the logarithms, with a model of its base")
    if "ELBO" not in process.supports:
        raise ValueError(f"the chain of a bound ends at data: {process!r} has noise left at t = 0, or another end")
    if isinstance(grid, Level):
        if steps is not None:
            raise ValueError("these levels know their number of steps: give a grid, or no steps")
        levels = grid
    else:
        levels = (grid or Uniform())(process, steps=100 if steps is None else steps)
    check_chain(levels)
    first = next(iter(model.parameters()), x)
    x = x.to(first)
    if values is not None:
        values.check(x)
    state = x if scaling is None else scaling.encode(x)
    noise = as_noise(seed, batch=len(x), dtype=x.dtype, device=x.device)
    start = levels[0]
    # KL(N(alpha x, s^2) || N(0, end^2)) with s the chain's first sigma and end the prior's
    ratio = start.sigma / process.level(1.0).sigma
    mean = (start.alpha / process.level(1.0).sigma * state).double()
    prior = ((mean**2 + ratio**2 - 1) / 2 - torch.log(ratio)).flatten(1).sum(1)
    floor, terms = floor_of(levels), []
    with evaluation(model), torch.no_grad():
        for i in range(len(levels) - 1):
            draw = process.corrupt(state, levels[i], cond=cond, seed=noise)
            prediction = model(draw.x, draw.level, cond)
            cost = bound_term(prediction, levels[i], levels[i + 1], floor, state, variance, values, scaling)
            terms.append(cost.double().flatten(1).sum(1))
    return VariationalBound(prior.detach().cpu(), torch.stack(terms).cpu(), x[0].numel())


def bound_term(
    prediction: Prediction,
    t: Level,
    s: Level,
    floor: Tensor,
    x0: Tensor,
    variance: str = "posterior",
    values: Quantised | None = None,
    scaling: Scaling | None = None,
    *,
    stop_mean: bool = False,
) -> Tensor:
    """What the step from t to s costs each entry of x0, in nats, (batch, *event).

        s > 0:  KL(q(x_s|x_t, x0) || p) = (V - 1 - log V)/2 + c_x0^2 (x0' - x0)^2/(2 std^2),  V = posterior^2/std^2
        s = 0:  -log N(x0; x0', std^2), or of the law on `values`

    with c_x0, posterior and forward of `ancestral`, and x0' the prediction's. std is "posterior", "forward", or between
    them ("learned"), log std = (1 + v)/2 log forward + (1 - v)/2 log posterior, v the head "variance": as `DDPM` draws.
    At s = 0 the posterior is a point, and as published that of the step before stands for it, the `floor`.

    Args:
        prediction: at x_t. t, s: levels () or (batch,), s below t.
        floor: `floor_of` the chain.
        x0: in the model's units; the cost at s = 0 is in those that `scaling` decodes to.
        stop_mean: no gradient flows through x0', as in the hybrid loss.

    Source: Nichol, Dhariwal 2021 (2102.09672), equations 6, 7 and 15.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance={variance!r}: choose {', '.join(VARIANCES)}")
    step, answer = ancestral(t, s), prediction.x0.detach() if stop_mean else prediction.x0
    last = s.sigma == 0
    posterior = torch.where(last, floor, step.posterior)
    low, high = (broadcast(std.log(), x0) for std in (posterior, step.forward))
    if variance == "learned":
        v = _variance(prediction)
        log_std = (1 + v) / 2 * high + (1 - v) / 2 * low
    else:
        log_std = (low if variance == "posterior" else high).to(x0) * torch.ones_like(x0)
    if bool(last.all()):
        return _decoder(x0, answer, log_std, values, scaling)
    log_ratio = low - log_std
    error = broadcast(step.c_x0, x0) * (answer - x0) * torch.exp(-log_std)
    divergence = (torch.expm1(2 * log_ratio) - 2 * log_ratio + error**2) / 2
    if not bool(last.any()):
        return divergence
    mask = last.to(x0.device).reshape(-1, *(1,) * (x0.dim() - 1))
    return torch.where(mask, _decoder(x0, answer, log_std, values, scaling), divergence)


def _variance(prediction: Prediction) -> Tensor:
    heads = heads_of(prediction.output)
    if "variance" not in heads:
        raise ValueError(
            f"the network answers {', '.join(heads)} and no variance: build it with outputs=('main', 'variance')"
        )
    v: Tensor = heads["variance"]
    return v


def _decoder(x0: Tensor, mean: Tensor, log_std: Tensor, values: Quantised | None, scaling: Scaling | None) -> Tensor:
    """-log of the last step's law at x0, in the user's units."""
    if scaling is not None:
        x0, mean, log_std = scaling.decode(x0), scaling.decode(mean), log_std + scaling.std.to(x0).log()
    if values is not None:
        return -values.log_prob(x0, mean, log_std.exp())
    return ((x0 - mean) * torch.exp(-log_std)) ** 2 / 2 + log_std + math.log(2 * math.pi) / 2


def floor_of(levels: Level) -> Tensor:
    """The least standard deviation of a chain's last step: the posterior's of the step before, if there is one."""
    return ancestral(levels[-3], levels[-2]).posterior if len(levels) > 2 else levels[-2].sigma


def check_chain(levels: Level) -> None:
    """Refuse levels that are no chain from noise down to data."""
    if levels.t.dim() != 1 or len(levels) < 2 or not bool((levels.t.diff() < 0).all()):
        raise ValueError("a chain is a list of at least two falling times")
    if bool(levels.sigma[-1] != 0):
        raise ValueError(
            f"the chain ends at t = {float(levels.t[-1]):.4g} with noise {float(levels.sigma[-1]):.4g}, not at data: "
            "its last time is t = 0 of a process that has no noise there"
        )
