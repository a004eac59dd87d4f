"""Diffusion of functions: noise that is a Gaussian process over the times of observation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._types import Cond
from .affine import AffineProcess
from .correlated import Coloured, check_covariance
from .kernels import OU, Kernel
from .vp import VP


@dataclass(frozen=True)
class GaussianProcessNoise(Coloured):
    """x_t = alpha x0 + sigma L z with L L^T = kernel(times): the noise, like the data, is a continuous function of time

    seen at the times of each sample, which may be irregular and differ from sample to sample. The law of x_t at some
    times does not depend on which others are looked at; with a kernel that is continuous, nor does what x_t tells of x0
    grow without bound as they get dense, as it does under white noise. A `DiscreteTime` base is the discrete (DSPD),
    any other the continuous (CSPD) form.

    Events are (n,), or (channels, n) with independent noises. To pad series of unequal length, give the
    padding further times of its own.

    base: the process whose schedule it is. kernel: `OU`, `RBF` or a function of times (batch, n), of diagonal 1 if the
    schedule is to keep its meaning. times: the entry of `cond` that holds the times, (batch, n). Its factors are kept
    for as long as the times are the same numbers.

    Source: Biloš et al. 2022, "Modeling Temporal Data as Continuous Functions with Stochastic Process Diffusion"
    (2211.02590), section 3.
    """

    base: AffineProcess = field(default_factory=VP)
    kernel: Kernel = field(default_factory=OU)
    times: str = "times"
    _known: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False, compare=False)

    def factor(self, x: Tensor, cond: Cond) -> Tensor:
        times = times_of(self.times, x, cond)
        held = self._known[0] if self._known else None
        # by value: a tensor written over in place is other times
        if held is None or held[0].dtype != times.dtype or not torch.equal(held[0], times):
            held = times.clone(), factor_of(self.kernel, times)
            self._known[:] = [held]
        return held[1].to(x)

    def rows(self, x: Tensor) -> Tensor:
        return x[:, None] if x.dim() == 2 else x


def times_of(name: str, x: Tensor, cond: Cond) -> Tensor:
    """The times (batch, n) of the state x (batch, n) or (batch, channels, n), on the host."""
    if not isinstance(cond, Mapping) or name not in cond:
        given = list(cond) if isinstance(cond, Mapping) else cond
        raise ValueError(f"this process needs the times of observation, cond[{name!r}] (batch, n): got {given}")
    times = cond[name]
    if x.dim() not in (2, 3) or not isinstance(times, Tensor) or times.shape != (len(x), x.shape[-1]):
        got = tuple(times.shape) if isinstance(times, Tensor) else type(times).__name__
        raise ValueError(
            f"states (batch, n) or (batch, channels, n) at cond[{name!r}] (batch, n): {tuple(x.shape)} at {got}"
        )
    return times.detach().cpu()


def factor_of(kernel: Kernel, times: Tensor) -> Tensor:
    """L with L L^T = kernel(times), (batch, n, n) in float64 on the host; the sample that has none is named."""
    if not bool(times.isfinite().all()):
        row = int((~times.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"times are finite: those of sample {row} are not")
    covariance = kernel(times.to(torch.float64))
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    bad = (failed > 0) | (pivots <= 1e-13 * covariance.diagonal(dim1=-2, dim2=-1).amax(-1))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        own = times[row].sort().values
        check_covariance(
            covariance[row],
            f"the covariance of sample {row}, whose closest times are {float(own.diff().min()):.3g} apart,",
        )
        raise ValueError(f"the covariance of sample {row} is singular to rounding: give the kernel a nugget")
    return factor
