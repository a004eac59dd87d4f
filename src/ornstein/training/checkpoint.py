"""Checkpoints: all that a run is, in one file; and the weights of a model alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..io import load_tensors, save_tensors
from .workers import cut


def save_weights(model: nn.Module, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
    """Write the model's parameters and buffers (its scaling too) and what JSON can hold of `extra`, atomically."""
    save_tensors(path, model.state_dict(), extra, kind="model")


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load into a model of the same make what `save_weights` wrote, and return its `extra`.

    A damaged or foreign file, or one whose names or shapes are not the model's, is a CheckpointError, and the model
    stays as it was.
    """
    tensors, extra = load_tensors(path, kind="model")
    load_into(model, tensors, os.fspath(path))
    return extra


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy `tensors` into the model's own, or raise a CheckpointError that names the first that does not fit."""
    own = model.state_dict()
    for key in (*own, *tensors):
        if key not in tensors:
            raise CheckpointError(f"{name} lacks {key!r}, which this {type(model).__name__} has: build the same model")
        if key not in own:
            raise CheckpointError(f"{name} has {key!r}, which this {type(model).__name__} lacks: build the same model")
        if own[key].shape != tensors[key].shape:
            raise CheckpointError(
                f"{key!r} has shape {tuple(tensors[key].shape)} in {name} and {tuple(own[key].shape)} in this "
                f"{type(model).__name__}: build the same model"
            )
    with torch.no_grad():
        for key, tensor in own.items():
            tensor.copy_(cut(tensors[key], tensor))


def pack(tree: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """`tree` as JSON, its tensors put into `tensors` under `prefix`; `unpack` is the inverse, types included."""
    if isinstance(tree, Tensor):
        name = f"{prefix}/{len(tensors)}"
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"dict": [[pack(k, tensors, prefix), pack(v, tensors, prefix)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [pack(v, tensors, prefix) for v in tree]}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint cannot hold {tree!r} of {prefix}: it takes tensors, numbers, text and nests of them")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `pack` took apart."""
    match packed:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": items}:
            return {unpack(k, tensors): unpack(v, tensors) for k, v in items}
        case {"list": values}:
            return [unpack(v, tensors) for v in values]
        case {"tuple": values}:
            return tuple(unpack(v, tensors) for v in values)
    return packed


def check_same(run: Mapping[str, str], saved: Mapping[str, str], name: str) -> None:
    """Refuse a checkpoint of another run, and say in what it differs."""
    differences = [
        f"{key} was {saved.get(key, 'unknown')}, is {run.get(key, 'unknown')}"
        for key in dict.fromkeys([*run, *saved])
        if run.get(key) != saved.get(key)
    ]
    if differences:
        raise CheckpointError(
            f"{name} is the checkpoint of another run: {'; '.join(differences)}. Give the same arguments to resume it, "
            "or another path to begin anew"
        )
