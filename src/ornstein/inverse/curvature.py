"""How sharply a measurement bends the log-density of what was measured."""

from __future__ import annotations

import torch
from torch import Tensor

from .measurement import Measurement

_ITERATIONS = 5  # from noise they find most of the largest eigenvalue: steps are half of what is stable


def curvature(measurement: Measurement, u: Tensor, v: Tensor) -> Tensor:
    """The largest eigenvalue of J^T F J at u, J = dA/du and F = -d^2 log p(y | A)/dA^2, as it multiplies u.

    It is that of -log p(y | u) by Gauss and Newton, found by power iteration from v.
    """
    noise, y = measurement.noise, measurement.y
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        clean = measurement.operator(u)
        weight = torch.zeros_like(clean, requires_grad=True)
        (back,) = torch.autograd.grad(clean, u, weight, create_graph=True)
        own = clean.detach().requires_grad_()
        (slope,) = torch.autograd.grad(noise.log_prob(y, own).sum(), own, create_graph=True)
        for _ in range(_ITERATIONS):
            (seen,) = torch.autograd.grad(back, weight, v / length(v), retain_graph=True)
            (bent,) = torch.autograd.grad(slope, own, seen, retain_graph=True)
            (v,) = torch.autograd.grad(clean, u, bent, retain_graph=True)
    return length(v)


def length(v: Tensor) -> Tensor:
    """The length of each sample, as it multiplies one."""
    found: Tensor = v.flatten(1).norm(dim=1)
    return found.clamp_min(torch.finfo(v.dtype).tiny).reshape(-1, *(1,) * (v.dim() - 1))
