"""JSON files, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ornstein.io.atomic import atomic_write


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; a value that JSON lacks is a TypeError before any write."""
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value in a JSON file; ValueError names the file, and the line where it stops being JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError as error:
        raise ValueError(f"{os.fspath(path)} is no JSON file of ours: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is not a JSON file: {error}") from error
