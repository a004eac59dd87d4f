"""Names that a person types, and the nearest real one when it does not exist. Imports nothing heavy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SOLVERS = ("dpmpp", "dpmpp3", "heun", "ddim", "euler", "ddpm", "iddpm")
"""Solvers of the command line; `ornstein.report.run` says what each stands for."""

TUNED = "tuned"
"""In place of a solver's name: the table that `ornstein tune` made for the budget."""

SOLVER_TITLES = {
    "dpmpp": "DPM-Solver++ 2",
    "dpmpp3": "DPM-Solver++ 3",
    "heun": "Heun",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "iddpm": "DDPM, learned variances",
    "tuned": "tuned table",
}
"""What they are called in reports."""

OPERATORS = ("box", "random", "mask", "downsample", "blur", "fourier", "radon", "hadamard", "colour", "denoise")
"""Measurement operators of the command line; `ornstein.report.operators` makes them."""

FORMATS = ("npz", "png", "csv", "parquet")
"""Formats of samples on the command line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for a slip of the pen; otherwise the list of what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
