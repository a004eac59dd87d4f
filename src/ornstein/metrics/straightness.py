"""How straight the paths of a flow are."""

from __future__ import annotations

import torch
from torch import Tensor


def straightness(path: Tensor, times: Tensor) -> float:
    """S = int_0^1 E |(x_1 - x_0) - dx/dt|^2 dt,    t rescaled to [0, 1] along the path

    of paths known at `times`, each piece taken as straight: sum_i h_i |(x_N - x_0) - (x_(i+1) - x_i)/h_i|^2, averaged
    over the paths. It is 0 exactly for straight paths at constant speed, which one Euler step follows. Pieces of
    length h hide the curvature inside them, of order h^2.

        times = torch.linspace(1, 0, 101)
        out = orn.sample(model, shape, solver=orn.Heun(), grid=times, trajectory=True)
        orn.metrics.straightness(out.trajectory, times)

    Shapes: path (N + 1, batch, *event); times (N + 1,) monotone. Units: those of x, squared. Errors: ValueError on
    fewer than two times, times that are not monotone, or another number of states.

    Source: Liu, Gong, Liu 2022 (2209.03003), equation 5.
    """
    times = torch.as_tensor(times, dtype=torch.float64).cpu()
    if times.dim() != 1 or len(times) < 2 or path.dim() < 2 or len(path) != len(times):
        raise ValueError(
            f"a path has one state (batch, *event) for each of two or more times: got {tuple(path.shape)} for "
            f"{tuple(times.shape)}"
        )
    steps = times.diff() / (times[-1] - times[0])
    if not bool((steps > 0).all()):
        raise ValueError("times rise or fall along the whole path: these turn or repeat")
    x = path.detach().cpu().double().flatten(2) if path.dim() > 2 else path.detach().cpu().double()[..., None]
    speed = x.diff(dim=0) / steps[:, None, None]
    return float(steps @ (x[-1] - x[0] - speed).square().sum(2).mean(1))
