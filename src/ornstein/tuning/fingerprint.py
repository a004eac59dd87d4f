"""Which model a table was tuned for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoiser import BaseDenoiser, Denoiser
from ..exact import World
from ..guidance import Guided

_SAID = frozenset({"training", "process", "predicts", "heads", "null"})  # elsewhere, or of no say in the answer


def fingerprint(denoiser: BaseDenoiser) -> str:
    """sha256 over the names, types and values of a denoiser's weights and buffers, over its process, and over the
    settings around the network: precondition, timesteps, the options of wrappers, the numbers of an exact world.

    Of a guided denoiser it is that of the model inside: guidance is no other model. Nor is a network that
    `torch.compile` or a data-parallel wrapper holds another than the network. 16 hexadecimal digits.
    """
    while isinstance(denoiser, Guided):
        denoiser = denoiser.model
    sha = hashlib.sha256(f"{type(denoiser).__name__} {denoiser.process!r} {denoiser.predicts}".encode())
    weights = [(_plain(name), tensor) for name, tensor in denoiser.state_dict().items()]
    for name, tensor in sorted(weights, key=lambda weight: weight[0]):
        if isinstance(tensor, Tensor):
            _add(sha, name, tensor)
    for name, value in _settings(denoiser):
        if isinstance(value, Tensor):
            _add(sha, name, value)
        else:
            sha.update(f"{name} {value!r}".encode())
    return sha.hexdigest()[:16]


def _plain(name: str) -> str:
    """The name of a weight without the wrappers around its module."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "module"))


def _add(sha: Any, name: str, tensor: Tensor) -> None:
    own = tensor.detach().to("cpu").contiguous()
    sha.update(f"{name} {own.dtype} {tuple(own.shape)}".encode())
    sha.update(own.flatten().view(torch.uint8).numpy().tobytes())


def _settings(denoiser: BaseDenoiser) -> Iterator[tuple[str, Any]]:
    """What a denoiser answers by besides its weights, as (name, tensor or plain value)."""
    for name, value in sorted(vars(denoiser).items()):
        if name.startswith("_") or name in _SAID or value is None:
            continue
        if isinstance(value, World):
            yield from _numbers(value)
        elif isinstance(value, Tensor | int | float | str):
            yield name, value
    if isinstance(denoiser, Denoiser) and denoiser.precondition is not None:
        yield "precondition", denoiser.precondition
    if isinstance(denoiser, Denoiser) and denoiser.timestep is not None:
        process: Any = denoiser.process
        yield "timestep", denoiser.timestep(process.level(torch.linspace(0.1, 0.9, 9, dtype=torch.float64)))
    for name, inner in denoiser.named_children():
        if isinstance(inner, BaseDenoiser):
            yield f"inside {name}", fingerprint(inner)
            yield f"guidance {name}", describe(inner)


def _numbers(world: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that make a world; not those that it keeps for later, which are private."""
    for name, value in sorted(vars(world).items()):
        if isinstance(value, Tensor) and not name.startswith("_"):
            yield name, value
        elif name == "covariance":
            yield from _numbers(value)


def describe(denoiser: BaseDenoiser) -> dict[str, Any]:
    """The guidance around a model, from the outside in, as JSON: {} for none. A second model, as that of autoguidance,
    is named by its fingerprint."""
    if not isinstance(denoiser, Guided):
        return {}
    scale = denoiser.scale
    found: dict[str, Any] = {
        "class": type(denoiser).__name__,
        "scale": sorted(set(scale.flatten().tolist())) if isinstance(scale, Tensor) else float(scale),
        "interval": None if denoiser.interval is None else list(denoiser.interval),
    }
    for name, other in denoiser.named_children():
        if name != "model" and isinstance(other, BaseDenoiser):
            found[name] = fingerprint(other)
    inner = describe(denoiser.model)
    return {**found, "around": inner} if inner else found


def covered(guidance: dict[str, Any], known: Sequence[dict[str, Any]]) -> bool:
    """Whether a guidance is among those described, or its scale between two of theirs that are alike in all else; none
    is a scale of 1."""
    if guidance in known:
        return True
    own, kinds = _scales(guidance), [_kind(each) for each in (guidance, *known) if each]
    for kind in kinds:
        alike = [scale for each in known if not each or _kind(each) == kind for scale in _scales(each)]
        if (not guidance or _kind(guidance) == kind) and alike and min(alike) <= min(own) and max(own) <= max(alike):
            return True
    return False


def _scales(guidance: dict[str, Any]) -> list[float]:
    scale = guidance.get("scale", 1.0)
    return scale if isinstance(scale, list) else [scale]


def _kind(guidance: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in guidance.items() if name != "scale"}
