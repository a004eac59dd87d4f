"""Epsilon scaling: the predicted noise divided by a little more or less than one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser, Call
from ..errors import ViewError
from ..prediction import heads_of
from ..processes import GaussianProcess, broadcast
from .wrapped import Wrapped


class EpsilonScaling(Wrapped):
    """noise'(x, t) = noise(x, t) / lambda(t),    lambda(t) = k t + b

    lambda > 1 removes less noise, so samples spread wider: with data N(0, c^2) the flow from sigma/alpha = S ends with
    a standard deviation larger by ((c^2 + S^2)/c^2)^((1 - 1/lambda)/2). It so repairs models and samplers whose samples
    are too narrow; where they are too wide, lambda < 1 does. `exposure_bias` tells which. (The paper has lambda > 1
    repair states that are too noisy; on Gaussians it does the opposite.)

    In the model's own view, with view = c_x (x - shift) + c_n noise, it is view' = view/lambda + (1 - 1/lambda) c_x
    (x - shift). lambda = 1 is the model. A level with alpha = 0, where x is noise and nothing else, is left alone.

    Args:
        model: the denoiser to correct.
        k, b: of lambda, with t in [0, 1] (the paper's k times its number of steps).

    Source: Ning et al. 2023, "Elucidating the Exposure Bias in Diffusion Models" (2308.15321).
    """

    def __init__(self, model: BaseDenoiser, b: float = 1.0, k: float = 0.0) -> None:
        super().__init__(model)
        if not isinstance(model.process, GaussianProcess):
            raise ValueError(f"EpsilonScaling is for one GaussianProcess: got {model.process!r}")
        if not (min(b, k + b) > 0 and math.isfinite(k) and math.isfinite(b)):
            raise ValueError(f"lambda = k t + b must be positive on [0, 1]: got k={k}, b={b}")
        self.k, self.b = k, b

    def bind(self, levels: Any, x: Tensor, cond: Cond) -> Sequence[Call]:
        process: Any = self.process
        calls = []
        for level, call in zip(levels, self.model.bind(levels, x, cond), strict=True):
            keep = 1 / (self.k * level.t + self.b)
            if bool((keep == 1).all()) or bool((level.alpha == 0).all()):
                calls.append(call)
                continue
            if bool((level.alpha == 0).any()):
                raise ViewError("EpsilonScaling needs alpha > 0 for all samples of a level, or for none")
            c_x, _ = level.conversion("noise", self.predicts)
            slope = process.d_shift(level.t, cond) if self.predicts == "velocity" else None
            shift = process.shift(level.t, cond)
            own, state = broadcast(keep, x), broadcast((1 - keep) * c_x, x)
            calls.append(partial(self._scaled, call, own, state, shift, slope))
        return calls

    @staticmethod
    def _scaled(call: Call, own: Tensor, state: Tensor, shift: Tensor | None, slope: Tensor | None, x: Tensor) -> Any:
        output = call(x)
        main = heads_of(output)["main"]
        value = own * main + state * (x if shift is None else x - shift)
        if slope is not None:
            value = value + (1 - own) * slope
        return {**output, "main": value} if isinstance(output, dict) else value
