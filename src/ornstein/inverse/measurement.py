"""A measurement: what was measured, of what, with which noise, in the units of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser, Scaling
from ..linops import GaussianNoise, LinearOperator, NoiseModel, Operator, check_adjoint


class Decoded(Operator):
    """y = A(decode(x)): an operator of the user's units, asked of states in the model's."""

    def __init__(self, inner: Operator, decode: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner.event, inner.measured)
        self.inner, self.decode, self.differentiable = inner, decode, inner.differentiable
        self.batch, self.dtype, self.device = inner.batch, inner.dtype, inner.device

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.decode(x))

    def check_measurement(self, y: Tensor) -> Tensor:
        return self.inner.check_measurement(y)

    def rows(self, index: Tensor) -> Operator:
        return self if self.batch is None else Decoded(self.inner.rows(index), self.decode)


@dataclass(frozen=True)
class Measurement:
    """y = A(x0) + noise, with x0 in the model's units; y (batch, *measured).

    A scaling x = std u + mean of one number each leaves a linear operator as it is, and measures u:
    (y - A mean)/std = A u + noise/std. Otherwise the operator is asked of decoded states. Entries that are not measured
    hold what the noise can have made nearest to 0.
    """

    operator: Operator
    y: Tensor
    noise: NoiseModel

    @classmethod
    def of(cls, model: BaseDenoiser, operator: Operator, y: Tensor, noise: NoiseModel | float | Tensor) -> Measurement:
        """The measurement y in the units of `model`, checked; a number (or one a measurement) is the standard deviation
        of normal noise."""
        noise = noise if isinstance(noise, NoiseModel) else GaussianNoise(noise)
        if not isinstance(operator, Operator):
            raise ValueError(f"an operator is one of orn.linops, or a subclass of its Operator: got {operator!r}")
        check_adjoint(operator)
        if len(y) == 0:
            raise ValueError(f"y has the shape {tuple(y.shape)}: there is no measurement in it")
        y = operator.check_measurement(y)
        y = torch.where(operator.seen(y) > 0, y, noise.nearest(torch.zeros_like(y)))
        noise.check_measurement(y)
        scaling = model.scaling
        if scaling is None:
            return cls(operator, y, noise)
        if (
            isinstance(scaling, Scaling)
            and scaling.std.numel() == scaling.mean.numel() == 1
            and isinstance(operator, LinearOperator)
            and isinstance(noise, GaussianNoise)
        ):
            std, mean = float(scaling.std), float(scaling.mean)
            origin = operator(torch.full((len(y), *operator.event), mean, dtype=y.dtype, device=y.device))
            return cls(operator, (y - origin) / std, GaussianNoise(noise.std / std))
        return cls(Decoded(operator, scaling.decode), y, noise)

    def __len__(self) -> int:
        return len(self.y)

    def linear(self, method: object) -> LinearOperator:
        """The operator of a method that needs a linear one."""
        if isinstance(self.operator, Decoded) and isinstance(self.operator.inner, LinearOperator):
            raise ValueError(
                f"{method!r} is for linear operators, and {self.operator.inner!r} of what this model's scaling decodes "
                "is none: train with one mean and one std for all entries and normal noise, or choose DPS()"
            )
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(f"{method!r} is for linear operators, {self.operator!r} is none: choose DPS()")
        return self.operator

    def std(self, method: object) -> float:
        """The standard deviation of the noise, for a method that needs normal noise of one size."""
        if not isinstance(self.noise, GaussianNoise) or isinstance(self.noise.std, Tensor):
            raise ValueError(f"{method!r} is for normal noise of one size: got {self.noise!r}")
        return float(self.noise.std)

    def density(self, method: object) -> Measurement:
        """Itself, for a method that weighs samples by p(y | x0)."""
        if isinstance(self.noise, GaussianNoise) and bool((torch.as_tensor(self.noise.std) == 0).any()):
            raise ValueError(f"{method!r} weighs samples by p(y | x0): give the noise of y, or choose DDNM() or DDRM()")
        return self

    def gradient(self, method: object) -> Measurement:
        """Itself, for a method that follows the gradient of log p(y | x0)."""
        if not self.operator.differentiable:
            raise ValueError(f"{self.operator!r} has no gradient, which {method!r} follows: choose EnKG()")
        if not self.noise.differentiable:
            raise ValueError(f"{self.noise!r} has no gradient, which {method!r} follows: give it a std > 0")
        return self

    def repeat(self, samples: int) -> Measurement:
        """Every measurement `samples` times, one after the other."""
        if samples == 1:
            return self
        index = torch.arange(len(self)).repeat_interleave(samples)
        y = self.y[index.to(self.y.device)]
        return replace(self, operator=self.operator.rows(index), y=y, noise=self.noise.rows(index))

    def residual(self, x0: Tensor) -> Tensor:
        """y - A(x0)."""
        return self.y - self.operator(x0)

    @cached_property
    def seen(self) -> Tensor:
        """1 for the entries of y that are measured, and 0 for the others."""
        return self.operator.seen(self.y)

    def deviance(self, x0: Tensor) -> Tensor:
        """2 log p(y | clean = y) - 2 log p(y | A(x0)), (batch,): |y - A(x0)|^2/std^2 of normal noise, and 0 where x0
        explains the measurement as well as it can be."""
        best = self.noise.log_prob(self.y, self.y)
        return 2 * (best - self.noise.log_prob(self.y, torch.where(self.seen > 0, self.operator(x0), self.y)))
