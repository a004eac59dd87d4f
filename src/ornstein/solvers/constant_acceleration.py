"""Sampling and inversion by an initial velocity and a constant acceleration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..flow_map import FlowMap
from ..processes import ConstantAcceleration, GivenVelocity, Level, broadcast


def initial_velocity(model: BaseDenoiser, x: Tensor, t: float | Tensor | Level = 1.0, cond: Cond = None) -> Tensor:
    """v0 = h (x0 - noise), as a model of `ConstantAcceleration` answers at the state x: (batch, *event), no gradient.

    x: the noise at t = 1 for sampling, data at t = 0 for inversion, (batch, *event) in the model's units.

    Source: Park et al. 2024, "Constant Acceleration Flow" (2411.00322).
    """
    process = model.process
    if not isinstance(process, ConstantAcceleration):
        raise ValueError(f"an initial velocity is answered by a model of ConstantAcceleration: {process!r} is another")
    if process.h == 0:
        raise ValueError("h=0: paths from rest have no initial velocity that tells them apart; choose h in (0, 2]")
    with torch.no_grad():
        answer = model(x, t, cond)
        velocity: Tensor = process.h * (answer.x0 - answer.noise)
    return velocity


class ConstantAccelerationFlow(FlowMap):
    """X(x, t, s) = x + v0 (u_s - u_t) + a (u_s^2 - u_t^2)/2,    u = 1 - t,    v0 = v(x, t),    a = a(x, t, v0)

    in one evaluation of each of two models, from any time to any other: X(noise, 1, 0) is a sample, X(x0, 0, 1) the
    noise that it came from (in two dimensions the first model alone, x0 - v0/h, finds it better, and rectified flow
    better still). The second is trained with the answers of the first, on pairs that belong together:

        pairs = orn.training.reflow_pairs(teacher, (50_000, 2))
        first = orn.Denoiser(orn.nets.MLP(2), orn.processes.ConstantAcceleration(h=1.5), "v")
        orn.fit(first, pairs.x0, cond=pairs.cond, objective=orn.training.Coupled(), steps=...)
        v0 = orn.solvers.initial_velocity(first, pairs.noise)
        net = orn.nets.MLP(2, conditions={"velocity": 2})
        second = orn.Denoiser(net, orn.processes.GivenVelocity(), "v")
        orn.fit(second, pairs.x0, cond={**pairs.cond, "velocity": v0}, objective=orn.training.Coupled(), steps=...)
        flow = orn.solvers.ConstantAccelerationFlow(first, second)

    For inversion train the second on every pair twice, once with the velocity answered at the data, time 0: in twice
    the steps the error of the noise is less than half.

    Several steps, with one initial velocity for all, are DDIM's with the second model:
    orn.sample(second, x_init=noise, cond={"velocity": v0}, solver=orn.DDIM(), grid=orn.Uniform(), steps=4).
    States are in the models' units.

    Args:
        first: a denoiser of `ConstantAcceleration`.
        second: a denoiser of `GivenVelocity`, in a view that tells x0 at both ends, as "v".

    Source: Park, Lee, Kim, Lee, Hong, Kim 2024, "Constant Acceleration Flow" (2411.00322), sampling and inversion.
    """

    process: GivenVelocity

    def __init__(self, first: BaseDenoiser, second: BaseDenoiser) -> None:
        super().__init__()
        for name, model, kind in (("first", first, ConstantAcceleration), ("second", second, GivenVelocity)):
            if not isinstance(model.process, kind):
                raise ValueError(f"the {name} is a denoiser of {kind.__name__}: got one of {model.process!r}")
        assert isinstance(second.process, GivenVelocity)
        self.first, self.second, self.process = first, second, second.process

    def forward(self, x: Tensor, t: Any, s: Any, cond: Cond = None) -> Tensor:
        v0 = initial_velocity(self.first, x, t.t, cond)
        answer = self.second(x, t, {**(cond or {}), self.process.velocity: v0})
        a = 2 * (answer.x0 - answer.noise - v0)
        u, w = 1 - t.t, 1 - s.t
        end: Tensor = x + broadcast(w - u, x) * v0 + broadcast((w**2 - u**2) / 2, x) * a
        return end
