"""Which model a table was tuned for."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser
from ..guidance import Guided


def fingerprint(denoiser: BaseDenoiser) -> str:
    """sha256 over the names, types and values of a denoiser's weights and buffers, and over its process.

    Of a guided denoiser it is that of the model inside: guidance is no other model. 16 hexadecimal digits.
    """
    while isinstance(denoiser, Guided):
        denoiser = denoiser.model
    sha = hashlib.sha256(f"{type(denoiser).__name__} {denoiser.process!r} {denoiser.predicts}".encode())
    for name, tensor in sorted(denoiser.state_dict().items()):
        if isinstance(tensor, Tensor):
            own = tensor.detach().to("cpu").contiguous()
            sha.update(f"{name} {own.dtype} {tuple(own.shape)}".encode())
            sha.update(own.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def describe(denoiser: BaseDenoiser) -> dict[str, Any]:
    """The guidance around a model, from the outside in, as JSON: {} for none."""
    if not isinstance(denoiser, Guided):
        return {}
    scale = denoiser.scale
    found: dict[str, Any] = {
        "class": type(denoiser).__name__,
        "scale": sorted(set(scale.flatten().tolist())) if isinstance(scale, Tensor) else float(scale),
        "interval": None if denoiser.interval is None else list(denoiser.interval),
    }
    inner = describe(denoiser.model)
    return {**found, "around": inner} if inner else found
