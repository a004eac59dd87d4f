"""How an object was made, as JSON, and the object made again from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, TypeAlias

from torch import Tensor, nn

from ornstein.errors import CheckpointError

Known: TypeAlias = Mapping[str, type]
"""The classes that may be named, each under its own name."""

_SCALARS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


class Recorded:
    """object = type(object)(**arguments): an object that remembers the arguments it was made with.

    A base class; subclasses write `__init__` as ever. The outermost constructor's arguments are kept under the names of
    its parameters; lists and dicts are copied, so that what happens to them later changes nothing here.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            type.__setattr__(cls, "__init__", _recording(cls.__dict__["__init__"]))


def _recording(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)
    own, *_ = signature.parameters

    @wraps(init)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_made_with" not in self.__dict__:  # else the constructor of a subclass called this one
            try:
                given = signature.bind(self, *args, **kwargs)
            except TypeError:  # the constructor says it better
                return init(self, *args, **kwargs)
            given.apply_defaults()  # which another version may change
            self.__dict__["_made_with"] = {name: _copy(v) for name, v in given.arguments.items() if name != own}
        return init(self, *args, **kwargs)

    return recorded


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(own) for key, own in value.items()}
    return [_copy(own) for own in value] if isinstance(value, list) else value


def recipe_of(made: Any, known: Known, tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Any]:
    """{"class": name, "arguments": {name: value}}: what `build` makes the object from.

    A frozen dataclass is made of its fields, a `Recorded` object of its arguments; any other class of `known` has the
    arguments None, and only someone who has such an object can go on. An argument that a module keeps as a buffer of
    the same name is {"tensor": prefix + name}, for the buffer is written anyway; other tensors are put into `tensors`.
    A class that is not in `known`, and a value that JSON lacks, is a ValueError.
    """
    name = type(made).__name__
    if known.get(name) is not type(made):
        raise ValueError(f"{name} is not one of {_names(known)}")
    if isinstance(made, Recorded):
        arguments = made.__dict__["_made_with"]
    elif is_dataclass(made):
        arguments = {f.name: getattr(made, f.name) for f in fields(made) if f.init}
    else:
        return {"class": name, "arguments": None}
    buffers = dict(made.named_buffers(recurse=False)) if isinstance(made, nn.Module) else {}
    packed = {
        key: {"tensor": prefix + key} if key in buffers else pack(value, known, tensors, f"{name}({key}=...)")
        for key, value in arguments.items()
    }
    return {"class": name, "arguments": packed}


def _names(known: Known) -> str:
    """The names that are known, a few of many."""
    some = list(known)[:12]
    return ", ".join(some) + (f" and {len(known) - 12} more" if len(known) > 12 else "")


def pack(value: Any, known: Known, tensors: dict[str, Tensor], where: str) -> Any:
    """A value as JSON: numbers, text, lists, tuples, dicts with text for keys, tensors, and objects of `known`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        key = f"recipe/{len(tensors)}"
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: pack(own, known, tensors, where) for key, own in value.items()}}
    if isinstance(value, list):
        return [pack(own, known, tensors, where) for own in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [pack(own, known, tensors, where) for own in value]}
    if known.get(type(value).__name__) is type(value):
        return recipe_of(value, known, tensors)
    raise ValueError(f"{where}: a {type(value).__name__} is neither number, text, tensor nor a nest of them")


def build(recipe: Any, known: Known, tensors: Mapping[str, Tensor]) -> Any:
    """The object of a recipe, whoever wrote it: no class but those of `known` is ever called, with arguments that its
    constructor names; what else the recipe says, and what the constructor refuses, is a CheckpointError."""
    if not isinstance(recipe, dict) or set(recipe) != {"class", "arguments"}:
        raise CheckpointError(f"a recipe is a class and its arguments, not {_short(recipe)}")
    name, arguments = recipe["class"], recipe["arguments"]
    kind = known.get(name) if isinstance(name, str) else None
    if kind is None:
        raise CheckpointError(f"the class {_short(name)} is not one of {_names(known)}")
    if arguments is None:
        raise CheckpointError(f"only who has the {name} can load this: the file does not say how it was made")
    if not isinstance(arguments, dict):
        raise CheckpointError(f"the arguments of {name} are {_short(arguments)}")
    parameters = inspect.signature(kind).parameters
    values = {}
    for key, packed in arguments.items():
        if key not in parameters:
            raise CheckpointError(f"{name} takes no {_short(key)}: it takes {', '.join(parameters)}")
        values[key] = value = unpack(packed, known, tensors)
        hint = parameters[key].annotation
        scalar = _SCALARS.get(hint if isinstance(hint, str) else getattr(hint, "__name__", ""))
        if scalar and (not isinstance(value, scalar) or (isinstance(value, bool) and bool not in scalar)):
            raise CheckpointError(f"{name}({key}=...) is {hint}: got {_short(value)}")
    try:
        return kind(**values)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be made of {_short(arguments)}: {_short(error, str)}") from error


def unpack(packed: Any, known: Known, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` took apart."""
    if packed is None or isinstance(packed, (bool, int, float, str)):
        return packed
    if isinstance(packed, list):
        return [unpack(value, known, tensors) for value in packed]
    match packed:
        case {"class": _}:
            return build(packed, known, tensors)
        case {"tensor": str(key)} if key in tensors:
            return tensors[key]
        case {"tuple": list(values)}:
            return tuple(unpack(value, known, tensors) for value in values)
        case {"dict": dict(items)}:
            return {key: unpack(value, known, tensors) for key, value in items.items()}
    raise CheckpointError(f"{_short(packed)} is no value of a recipe")


def _short(value: Any, show: Callable[[Any], str] = repr) -> str:
    text = " ".join(show(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
