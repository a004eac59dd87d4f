"""What checks annotations while tests run: beartype for all functions of the library, jaxtyping where shapes are named.

A module's functions and classes are wrapped once it has run, when every name in their annotations is known. An int
passes for a float; closures are left out. (jaxtyping's own hook binds the arguments of every call, and took a third of
the suite's time.)
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped

_check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for name, made in list(vars(module).items()):
            if getattr(made, "__module__", None) == module.__name__:
                if isinstance(made, type):
                    for attribute, method in list(vars(made).items()):
                        if (checked := _checked(method)) is not method:
                            setattr(made, attribute, checked)
                else:
                    setattr(module, name, _checked(made))


def _checked(made: Any) -> Any:
    if isinstance(made, (classmethod, staticmethod)):
        return type(made)(_checked(made.__func__))
    if isinstance(made, property):
        return property(*(_checked(each) for each in (made.fget, made.fset, made.fdel)))
    if not isinstance(made, FunctionType) or made.__globals__.get("__name__") not in sys.modules:  # a named tuple's own
        return made
    if "NotImplemented" in made.__code__.co_names:  # it says itself what it takes
        return made
    written = made.__annotations__
    made.__annotations__ = {name: _known(hint, made.__globals__) for name, hint in written.items()}
    shapes = any("Array" in str(hint) for hint in written.values())
    checked = jaxtyped(made, typechecker=_check) if shapes else _check(made)
    made.__annotations__ = checked.__annotations__ = written
    return checked


def _known(hint: Any, names: dict[str, Any]) -> Any:
    try:
        return eval(hint, names) if isinstance(hint, str) else hint
    except NameError:  # of what only checkers of types import
        return Any


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        spec: ModuleSpec | None = PathFinder.find_spec(name, path, target) if name.startswith("ornstein") else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    sys.meta_path.insert(0, _Finder())
