"""Levels of noise: a time together with everything a linear-Gaussian process knows about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from .._types import VIEWS, View
from ..errors import ViewError
from .matrix import Matrix


@dataclass(frozen=True, eq=False)
class Level:
    """(t, alpha, sigma, log-SNR) and the time derivatives of alpha and sigma, carried together.

    All are float64 tensors on the host and of one shape: () for one level, (batch,) for a level a sample, (batch, ...)
    for a level for each index of the event's first axes, or for each of its entries; with a grid's own axis E before
    that. `log_snr = log(alpha^2 / sigma^2)`, +-inf where the ratio is. A level is made by
    `process.level(t)`, and whatever is computed from it is rounded once, when it meets the state.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    defining: ClassVar[tuple[str, ...]] = ("alpha", "sigma")
    """The fields that make a level that of its process."""

    closed: ClassVar[bool] = False
    """Whether velocity and diffusion are finite at both ends too, so that steps in t may begin and end there."""

    @property
    def components(self) -> tuple[Level, ...]:
        """The level of each component of the state."""
        return (self,)

    @property
    def diffusion2(self) -> Tensor | Matrix:
        """g^2 = 2 sigma (alpha sigma' - sigma alpha')/alpha of the forward SDE."""
        return 2 * self.sigma * (self.alpha * self.d_sigma - self.sigma * self.d_alpha) / self.alpha

    @property
    def no_data(self) -> Tensor:
        """Where nothing of the data is left, so that steps start in x0 form."""
        return (self.alpha == 0) & (not self.closed)

    @property
    def no_noise(self) -> Tensor:
        """Where the state is data, of which a network is not asked."""
        return (self.sigma == 0) & (not self.closed)

    def tells(self, source: View, target: View) -> bool:
        """Whether a view follows from another, by `conversion`, where both are finite."""
        return True

    @property
    def shape(self) -> torch.Size:
        return self.t.shape

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: int | slice | list[int] | None) -> Level:
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def __iter__(self) -> Iterator[Level]:
        values = (getattr(self, field.name).unbind(0) for field in fields(self))
        return (type(self)(*each) for each in zip(*values, strict=True))

    @classmethod
    def stack(cls, levels: Sequence[Level]) -> Level:
        """Levels as one, along a new first axis."""
        kind = type(levels[0])
        return kind(*(torch.stack([getattr(level, field.name) for level in levels]) for field in fields(kind)))

    def tile(self, copies: int) -> Level:
        """The levels (E,) or (E, batch, ...) for a batch repeated `copies` times."""
        if self.t.dim() < 2 or self.t.shape[1] == 1:  # one time for all samples stays one
            return self
        values = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(value.repeat(1, copies, *(1,) * (value.dim() - 2)) for value in values))

    def rows(self, view: View) -> tuple[Tensor, Tensor]:
        """(a, b) with view = a x0 + b noise (to which the velocity of a process with a shift adds d shift/dt).

        x0 (1, 0); noise (0, 1); score (0, -1/sigma); velocity (alpha', sigma'); v (-sigma, alpha).
        """
        zero, one = torch.zeros_like(self.t), torch.ones_like(self.t)
        match view:
            case "x0":
                return one, zero
            case "noise":
                return zero, one
            case "score":
                return zero, -1 / self.sigma
            case "velocity":
                return self.d_alpha, self.d_sigma
            case "v":
                return -self.sigma, self.alpha
        raise ViewError(f"no view is called {view!r}: choose from {', '.join(VIEWS)}")

    def conversion(self, source: View, target: View) -> tuple[Tensor, Tensor]:
        """(c_x, c_p) with target = c_x (x - shift) + c_p source: the 2 x 2 system of (state, source) solved.

        With the rows (alpha, sigma) of the state, (p, q) of the source and (a, b) of the target,
        c_x = (a q - b p)/D and c_p = (alpha b - sigma a)/D, where D = alpha q - sigma p. A score is noise times
        -1/sigma, before and after: so at sigma = 0 it gives what has a limit there, and at alpha = 0 the noise.

        Raises ViewError where a coefficient is not finite (x0 from noise at alpha = 0, noise from x0 at sigma = 0).
        """
        if source == target:
            return torch.zeros_like(self.t), torch.ones_like(self.t)
        as_noise, to_noise = _by_noise(source), _by_noise(target)
        if as_noise == to_noise:
            c_x, c_p = torch.zeros_like(self.t), torch.ones_like(self.t)
        else:
            (p, q), (a, b) = self.rows(as_noise), self.rows(to_noise)
            determinant = self.alpha * q - self.sigma * p
            c_x, c_p = (a * q - b * p) / determinant, (self.alpha * b - self.sigma * a) / determinant
        if source == "score":
            c_p = -self.sigma * c_p
        if target == "score":
            c_x, c_p = -c_x / self.sigma, -c_p / self.sigma
        if not torch.compiler.is_compiling():
            finite = c_x.isfinite() & c_p.isfinite()
            if not holds(finite):
                t, log_snr = (float(v[~finite].flatten()[0]) for v in (self.t, self.log_snr))
                raise ViewError(
                    f"{target} cannot be formed from {source} at t = {t:.6g} (log-SNR {log_snr:.4g}): start or end a "
                    "little inside, or predict another view (velocity and v reach further)"
                )
        return c_x, c_p

    def condition(self, source: View, target: View) -> Tensor:
        """The condition number of a conversion: how many roundings of the inputs the answer may carry, relative to the
        root mean square of the target, for x0 and noise of unit variance."""
        source, target = _by_noise(source), _by_noise(target)
        if source == target:
            return torch.ones_like(self.t)
        (p, q), (a, b) = self.rows(source), self.rows(target)
        determinant = (self.alpha * q - self.sigma * p).abs()
        from_x = ((a * q).abs() + (b * p).abs()) * torch.hypot(self.alpha, self.sigma)
        from_p = ((self.alpha * b).abs() + (self.sigma * a).abs()) * torch.hypot(p, q)
        return (from_x + from_p) / (determinant * torch.hypot(a, b))


def _by_noise(view: View) -> View:
    """The view whose multiple it is: a score is -noise/sigma."""
    return "noise" if view == "score" else view


def holds(condition: Tensor) -> bool:
    """Whether a condition holds everywhere; under vmap, where no value may be looked at, it is taken to hold."""
    try:
        return bool(condition.all())
    except RuntimeError:
        return True


def broadcast(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient (), (batch,) or (batch, ...) in the shape in which it multiplies the state x (batch, *event).

    A scalar stays on the host: torch takes it into any kernel without a transfer and without promoting the state.
    """
    if coefficient.dim() == 0:
        return coefficient
    check_times_of(coefficient.shape, x.shape)
    return along(coefficient.to(device=x.device, dtype=x.dtype), x)


def along(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient of the first axes of x, with further axes of one entry."""
    return coefficient.reshape(*coefficient.shape, *(1,) * (x.dim() - coefficient.dim()))


def check_times_of(times: Sequence[int], state: Sequence[int]) -> None:
    """Refuse times that are not one, one a sample, or one for each index of the event's first axes."""
    if tuple(times[1:]) != tuple(state[1 : len(times)]) or tuple(times[:1]) not in ((), (1,), (state[0],)):
        raise ValueError(
            f"a time is a scalar or has one value a sample: got {tuple(times)} for a batch of {state[0]} "
            f"(or one for each entry: {tuple(state)})"
        )
