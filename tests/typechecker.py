"""What checks annotations while tests run: beartype, an int passing for a float, closures left out.

A closure is decorated each time it is made, which costs a millisecond where the library makes thousands.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    return function if "<locals>" in getattr(function, "__qualname__", "") else _check(function)
