"""The library is light: importing it, and every room of floors 0 to 5, brings torch, numpy and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import ornstein
from ornstein._extras import require

# The rooms of floors 0 to 5, and the papers. Those above may need an extra.
CORE = (
    *("_types", "_extras", "errors", "progress", "numerics", "io", "random"),
    *("processes", "linops", "metrics", "prediction", "denoiser", "flow_map"),
    *("exact", "nets", "solvers", "guidance", "density", "papers"),
)

IMPORT = """
import importlib, pkgutil, sys
import numpy, torch
before = set(sys.modules)

import ornstein

def bring(path, prefix, rooms=None):
    for info in pkgutil.iter_modules(path, prefix):
        if rooms is None or info.name.removeprefix(prefix) in rooms:
            module = importlib.import_module(info.name)
            if info.ispkg:
                bring(module.__path__, info.name + ".")

bring(ornstein.__path__, "ornstein.", {rooms!r})
brought = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(brought - set(sys.stdlib_module_names) - {{"ornstein", "torch", "numpy"}}))
"""


def brought_by(rooms: Iterable[str]) -> list[str]:
    """What `import ornstein` and every module of `rooms` import beyond torch, numpy and the standard library."""
    code = IMPORT.format(rooms=set(rooms))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_library_brings_torch_and_numpy_alone() -> None:
    assert brought_by(()) == []


def test_the_core_brings_torch_and_numpy_alone() -> None:
    assert brought_by(CORE) == []


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(ImportError, match=r"this needs 'no_such_module': pip install 'ornstein\[metrics\]'"):
        require("no_such_module", extra="metrics")


def test_a_fault_inside_an_extra_is_not_taken_for_its_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        require("half_there", extra="metrics")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(ornstein, "no_such_" + "name")


def test_every_public_name_is_there_and_declared_to_type_checkers() -> None:
    source = ast.parse(Path(ornstein.__file__).read_text())
    blocks = [node for node in source.body if isinstance(node, ast.If)]
    declared = {alias.name for node in ast.walk(blocks[0]) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert declared == set(ornstein.__all__)
    for name in ornstein.__all__:
        assert getattr(ornstein, name) is not None
        assert name in dir(ornstein)


def test_importing_the_library_does_not_load_torch() -> None:
    code = "import sys, ornstein; print('torch' in sys.modules); ornstein.VP; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
