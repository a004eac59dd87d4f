"""Worlds, processes and oracles that several tests share."""

import math
import re
from typing import Any

import torch
from torch import nn

import ornstein as orn

F64 = torch.float64


def ring(std: float = 0.15) -> orn.exact.GaussianMixture:
    """Six modes of standard deviation 0.15 on a circle of radius 2, of different weight."""
    angles = torch.arange(6, dtype=F64) * math.pi / 3
    means = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    return orn.exact.GaussianMixture(
        means, torch.full((6,), std, dtype=F64), torch.tensor([1.0, 2, 3, 1, 2, 3], dtype=F64)
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def shaken(net: nn.Module) -> Any:
    """The network with weights of size 0.3, so that it answers something everywhere."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return net


def at(process: orn.GaussianProcess, level: orn.Level, world: orn.exact.GaussianMixture, n: int, seed: int = 0):
    """States of the world under the process at a level, and nothing else known about them."""
    x0 = world.sample(n, seed=seed).to(F64)
    return process.corrupt(x0, level, noise=normal(*x0.shape, seed=seed + 1)).x


def name(thing: object) -> str:
    """The repr of a test's parameter without addresses, which differ from one process to the next."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
