"""The hook of the suite: wrong types, shapes and answers are refused, and what the library reads of itself stays."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

SOURCE = """
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ornstein._types import Array

if TYPE_CHECKING:
    from nowhere import Unknown


def count(x: Array, y: Array) -> int:
    return len(x)


def wrong(x: float) -> str:
    return x


@dataclass
class Early:
    width: float

    @property
    def twice(self) -> str:
        return 2 * self.width

    @classmethod
    def made(cls, late: Late) -> Early:
        return cls(late.width)

    def __add__(self, other: Early) -> Early:
        return Early(self.width + other.width) if isinstance(other, Early) else NotImplemented


class Late(NamedTuple):
    width: float


def any_of(x: Unknown) -> Unknown:
    return x
"""


def test_a_module_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ornstein_probe.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    probe = importlib.import_module("ornstein_probe")
    x = torch.zeros(3, 2)
    assert probe.count(x, torch.ones(3, 2)) == 3
    assert probe.Early(1).width == 1  # an int passes for a float
    assert probe.Early.made(probe.Late(2.0)) == probe.Early(2.0)
    assert probe.any_of("what only checkers of types import") is not None
    refused: tuple[Any, ...] = (
        lambda: probe.count(x, torch.ones(2, 2)),  # batches of 3 and 2
        lambda: probe.count(x, 3),
        lambda: probe.wrong("1"),
        lambda: probe.wrong(1.0),  # its answer
        lambda: probe.Early("1"),
        lambda: probe.Early(1.0).twice,
        lambda: probe.Early.made(3),
        lambda: probe.Early(1.0) + 3,  # NotImplemented, and nobody else knows
    )
    for call in refused:
        with pytest.raises(TypeError):
            call()
    assert inspect.signature(probe.Early).parameters["width"].annotation == "float"
