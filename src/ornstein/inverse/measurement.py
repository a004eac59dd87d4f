"""A measurement: what was measured, of what, with which noise, in the units of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser, Scaling
from ..linops import Function, GaussianNoise, LinearOperator, NoiseModel, Operator, check_adjoint


@dataclass(frozen=True)
class Measurement:
    """y = A(x0) + noise, with x0 in the model's units; y (batch, *measured).

    A scaling x = std u + mean of one number each leaves a linear operator as it is, and measures u:
    (y - A mean)/std = A u + noise/std. Otherwise the operator is asked of decoded states.
    """

    operator: Operator
    y: Tensor
    noise: NoiseModel

    @classmethod
    def of(cls, model: BaseDenoiser, operator: Operator, y: Tensor, noise: NoiseModel | float) -> Measurement:
        """The measurement y in the units of `model`, checked; a number is the standard deviation of normal noise."""
        noise = noise if isinstance(noise, NoiseModel) else GaussianNoise(float(noise))
        if not isinstance(operator, Operator):
            raise ValueError(f"an operator is one of orn.linops, or a subclass of its Operator: got {operator!r}")
        check_adjoint(operator)
        y = operator.check_measurement(y)
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
        decoded = Function(lambda u: operator(scaling.decode(u)), operator.event, operator.measured)
        return cls(decoded, y, noise)

    def __len__(self) -> int:
        return len(self.y)

    def linear(self, method: object) -> LinearOperator:
        """The operator of a method that needs a linear one."""
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(f"{method!r} is for linear operators, {self.operator!r} is none: choose DPS()")
        return self.operator

    def std(self, method: object) -> float:
        """The standard deviation of the noise, for a method that needs normal noise of one size."""
        if not isinstance(self.noise, GaussianNoise) or isinstance(self.noise.std, Tensor):
            raise ValueError(f"{method!r} is for normal noise of one size: got {self.noise!r}")
        return float(self.noise.std)

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
