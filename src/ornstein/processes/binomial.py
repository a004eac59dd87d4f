"""Binomial diffusion: states of zeros and ones that are forgotten by being drawn anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._types import Cond, View
from ..errors import ViewError
from ..random import Noise, Seed, as_noise
from .affine import derivative
from .level import Level, broadcast, holds
from .linear import LinearProcess, check_one_end, check_times, noise_like


@dataclass(frozen=True, eq=False)
class BinomialLevel(Level):
    """A level of binomial diffusion: `alpha` is the probability that an entry still is what it was, and sigma^2 =
    1 - alpha^2 the variance of its sign 2 x_t - 1 given x0."""

    def tells(self, source: View, target: View) -> bool:
        return source == target

    def conversion(self, source: View, target: View) -> tuple[Tensor, Tensor]:
        if source != target:
            raise ViewError(f"zeros and ones have no {target}: a binomial process has P(x0 = 1 | x_t), which is x0")
        return torch.zeros_like(self.t), torch.ones_like(self.t)


@dataclass(frozen=True)
class BinomialDraw:
    """A draw of a binomial process: the state, its data, and the standard normal numbers that decided it."""

    level: BinomialLevel
    x: Tensor
    x0: Tensor
    noise: Tensor

    def target(self, view: View) -> Tensor:
        """x0, whose mean given x_t is the probability that a network predicts."""
        if view != "x0":
            raise ViewError(f"a binomial process has no {view}: predict x0, the probability of a one")
        return self.x0


@dataclass(frozen=True)
class Binomial(LinearProcess):
    """P(x_t = 1 | x0) = alpha(t) x0 + (1 - alpha(t))/2, each entry on its own, x in {0, 1}: alpha(t) = 1 - t.

    From s to t > s an entry is kept with probability alpha_t/alpha_s and else drawn anew by a fair coin; at t = 1 all
    are. In N equal steps beta_k = 1 - alpha_k/alpha_(k-1) = 1/(N - k + 1), the published rates: each step erases 1/N
    of the signal. Another schedule is a subclass with another `alpha`, which falls from 1 to 0 or more.

    States are floating-point zeros and ones (batch, *event). The one view is x0 = P(x0 = 1 | x_t), in [0, 1]: a
    network ends in a sigmoid (`orn.nets.Probability`). The solver is `orn.solvers.BinomialAncestral`, the losses
    `orn.training.CrossEntropy` and `BinomialVLB`, the bound `orn.density.binomial_bound`.

    Raises ValueError for data other than 0 and 1. ViewError for other views; a state has no score and no flow.

    Source: Sohl-Dickstein, Weiss, Maheswaranathan, Ganguli 2015 (1503.03585), section 2.4 and table App.1.
    """

    @property
    def views(self) -> tuple[View, ...]:
        """What a network of this process may be asked to predict."""
        return ("x0",)

    @property
    def readable(self) -> tuple[View, ...]:
        """No solver for real numbers reads it: `BinomialAncestral` takes the answer as it comes."""
        return ()

    @property
    def supports(self) -> tuple[str, ...]:
        return ("ELBO",)

    def alpha(self, t: Tensor) -> Tensor:
        """The probability that an entry has been kept until t."""
        return 1 - t

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2/(1 - alpha^2)): that of the signs 2 x - 1."""
        alpha = self.alpha(t)
        return 2 * alpha.log() - torch.log1p(-alpha) - torch.log1p(alpha)

    def level(self, t: float | Sequence[float] | Tensor | Level) -> BinomialLevel:
        """The level(s) at t, in float64 on the host; times outside [0, 1] are refused."""
        if isinstance(t, BinomialLevel):
            return t
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        check_times(t)
        alpha, slope = self.alpha(t), derivative(self.alpha, t)
        sigma = torch.sqrt((1 - alpha) * (1 + alpha))
        return BinomialLevel(t, alpha, sigma, self.log_snr(t), slope, -alpha * slope / sigma)

    def prior(
        self,
        shape: Sequence[int],
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """A draw of the end law, fair coins, of shape (batch, *event)."""
        z = as_noise(seed, batch=shape[0], dtype=dtype, device=device).normal(shape)
        return (z < 0).to(z)

    def corrupt(
        self,
        x0: Tensor,
        t: float | Tensor | Level,
        x1: Tensor | None = None,
        cond: Cond = None,
        *,
        noise: Tensor | None = None,
        seed: Seed | Noise = None,
    ) -> BinomialDraw:
        """Draw x_t given x0 (batch, *event) at t, a scalar or (batch,): one where `noise`, N(0, 1), is below the
        quantile of its probability."""
        check_one_end(self, x1)
        if x0.device.type == "cpu" or not torch.is_grad_enabled():  # in training on a device no step waits for it
            binary = (x0 == 0) | (x0 == 1)
            if not holds(binary):
                raise ValueError(f"data of {self!r} are 0 and 1: got {float(x0[~binary].flatten()[0]):.6g}")
        noise = noise_like(x0, noise, seed)
        level = self.level(t)
        alpha = broadcast(level.alpha, x0)
        return BinomialDraw(level, bernoulli(alpha * x0 + (1 - alpha) / 2, noise), x0, noise)


def reverse(x: Tensor, x0: Tensor, t: Level, s: Level) -> Tensor:
    """P(x_s = 1 | x_t = x) for s < t when x0 is 1 with the probability `x0`, each entry on its own.

        E[e_s | e_t, e_0] = e_0 (alpha_s +- alpha_t/alpha_s)/(1 +- alpha_t),    e = 2 x - 1,  + where e_t = e_0

    by Bayes on P(e_s | e_0) P(e_t | e_s) = (1 + alpha_s e_s e_0)(1 + (alpha_t/alpha_s) e_t e_s)/4; the mean over e_0
    is exact, since given x_t and x0 the entries of x_s are independent. A datum in {0, 1} for `x0` gives the forward
    posterior q(x_s | x_t, x0).

    x, x0: (batch, *event); t, s: levels () or (batch,). Finite at alpha_t = 0 and at alpha_s = 1.

    Source: Sohl-Dickstein et al. 2015 (1503.03585), equation 14 and table App.1, for the binomial chain.
    """
    kept = t.alpha / s.alpha
    same = broadcast((s.alpha + kept) / (1 + t.alpha), x)
    other = broadcast((s.alpha - kept) / (1 - t.alpha), x)
    # e_0 = 1 with probability x0: (1 + x0 m(1) - (1 - x0) m(-1))/2, where m is `same` for the e_0 that equals e_t
    one, zero = x * same + (1 - x) * other, x * other + (1 - x) * same
    return (1 + x0 * one - (1 - x0) * zero) / 2


def bernoulli(probability: Tensor, z: Tensor) -> Tensor:
    """1 with the probability, else 0, by standard normal numbers z: exact at 0 and 1, whatever the precision."""
    below: Tensor = z < torch.special.ndtri(probability)
    return below.to(z)
