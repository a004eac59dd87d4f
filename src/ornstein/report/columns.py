"""Rows of words in columns: by rich on a terminal if it is installed, else as plain text."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ornstein._extras import require


def columns(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows under their names."""
    if sys.stdout.isatty():
        try:
            return _rich(names, rows)
        except ImportError:
            pass
    wide = [max(len(row[i]) for row in [names, *rows]) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in [names, *rows]
    )


def _rich(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = require("rich.table", extra="cli").Table(*names, box=require("rich.box", extra="cli").SIMPLE)
    for row in rows:
        table.add_row(*(require("rich.text", extra="cli").Text(cell) for cell in row))
    console = require("rich.console", extra="cli").Console()
    with console.capture() as captured:
        console.print(table)
    text: str = captured.get()
    return text.rstrip("\n")
