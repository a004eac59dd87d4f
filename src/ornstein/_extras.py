"""Optional packages, imported when first needed and named in the error when missing."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, *, extra: str) -> Any:
    """Import and return `module`; if it is missing, raise ImportError naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ImportError(f"this needs {module!r}: pip install 'ornstein[{extra}]'") from error
