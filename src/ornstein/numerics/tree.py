"""States of several components and nests of conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree

from .._types import Cond, State


def parts(state: State) -> tuple[Any, ...]:
    """The components of a state: those of a named tuple, or the one tensor itself."""
    return tuple(state) if isinstance(state, tuple) else (state,)


def like(state: State, components: Sequence[Any]) -> State:
    """Components put together again in the form of `state`."""
    return type(state)(*components) if isinstance(state, tuple) else components[0]


def tree_map(f: Callable[[Tensor], Any], tree: Cond) -> Cond:
    """f on every tensor of a nest; other leaves (None, numbers) stay."""
    if tree is None or isinstance(tree, Tensor):  # the common case, without the cost of a nest
        return None if tree is None else f(tree)
    return _pytree.tree_map(lambda leaf: f(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def tree_zip(f: Callable[[Any, Any], Any], first: Cond, second: Cond) -> Cond:
    """f on pairs of leaves of two nests of one structure."""
    leaves, structure = _pytree.tree_flatten(first)
    others, other = _pytree.tree_flatten(second)
    if structure != other:
        raise ValueError(f"two conditions of different structure: {structure} and {other}")
    return _pytree.tree_unflatten([f(a, b) for a, b in zip(leaves, others, strict=True)], structure)


def check_batch(cond: Cond, batch: int) -> None:
    """Refuse a condition with a tensor whose first axis is not the batch."""
    for path, leaf in _pytree.tree_flatten_with_path(cond)[0]:
        if isinstance(leaf, Tensor) and (leaf.dim() == 0 or leaf.shape[0] != batch):
            raise ValueError(
                f"cond{_pytree.keystr(path)} has shape {tuple(leaf.shape)}, its first axis must be the batch of {batch}"
            )
