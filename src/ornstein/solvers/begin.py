"""What every sampler beside the loop begins with: a state and a stream of noise, checked before anything runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..numerics.tree import check_batch, like, parts
from ..random import Noise, Seed, as_noise


def begin(
    denoiser: BaseDenoiser,
    shape: Any,
    x_init: State | None,
    start: float | Tensor,
    cond: Cond,
    seed: Seed | Noise,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> tuple[State, Noise]:
    """(x, noise): the state at the time `start`, drawn from the end law or given, in the dtype and on the device of
    `x_init`, else of the denoiser's parameters; and the stream, after that draw. Errors are those of `orn.sample`.
    """
    if x_init is not None and not all(isinstance(part, Tensor) for part in parts(x_init)):
        raise ValueError(f"x_init is a tensor, or a named tuple of tensors: got {type(x_init).__name__}")
    first = parts(x_init)[0] if x_init is not None else next(iter(denoiser.parameters()), None)
    dtype = dtype or (torch.get_default_dtype() if first is None else first.dtype)
    device = device or ("cpu" if first is None else first.device)
    shapes = _shapes(shape, x_init)
    batch = parts(shapes)[0][0] if hasattr(shapes, "_fields") else shapes[0]
    check_batch(cond, batch)
    if not dtype.is_floating_point:
        raise ValueError(f"a state is of floating point: got {dtype}")
    earliest = float(torch.as_tensor(start).min())
    if x_init is None and earliest < 1:
        raise ValueError(f"sampling starts at t = {earliest:.4g}: give x_init, the state there")
    noise = as_noise(seed, batch=batch, dtype=dtype, device=device)
    noise.rewind()
    if x_init is None:
        return denoiser.process.prior(shapes, seed=noise, cond=cond), noise
    return like(x_init, [part.to(device=device, dtype=dtype) for part in parts(x_init)]), noise


def _shapes(shape: Any, x_init: State | None) -> Any:
    if x_init is None:
        if shape is None:
            raise ValueError("give the shape (batch, *event) of the samples, or x_init")
        for part in shape if hasattr(shape, "_fields") else (shape,):
            if not isinstance(part, (tuple, list)) or not part or not all(isinstance(n, int) and n >= 0 for n in part):
                raise ValueError(f"a shape is (batch, *event), whole numbers, one such for each component: got {shape}")
        return shape if hasattr(shape, "_fields") else tuple(shape)
    own = like(x_init, [tuple(part.shape) for part in parts(x_init)])
    if len({part.shape[0] for part in parts(x_init)}) > 1:
        raise ValueError(f"the components of x_init have different batches: {own}")
    if shape is not None and own != (shape if hasattr(shape, "_fields") else tuple(shape)):
        raise ValueError(f"x_init has shape {own}, but shape={shape}")
    return own
