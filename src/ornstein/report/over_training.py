"""How the samples came about: the same seeds at every stop of the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ornstein.io import load_tensors
from ornstein.report import html
from ornstein.report.during import stops
from ornstein.report.show import Show

MOST = 8
"""Most stops that are shown."""


def over_training(folder: Path, show: Show, every: int) -> str:
    """The section of the samples over training: a row for each stop, of at most 8 spread evenly, and the last."""
    found = stops(folder)
    if not found:
        return html.section(
            "Samples over training",
            f"None were kept while it trained, or they are gone: the field <code>watch</code> says how many are kept "
            f"at every stop, of which there is one every {every} steps.",
        )
    paths = [found[i] for i in spread(len(found), MOST)]
    loaded = [load_tensors(path, kind="samples") for path in paths]
    sets = {f"{metadata['step']:,}": tensors["x"][: show.many] for tensors, metadata in loaded}
    return html.section(
        "Samples over training",
        "The averaged model at stops of its training: the same seeds and labels each time, 20 steps of the solver.",
        show.over(sets, "step"),
    )


def spread(n: int, most: int) -> Sequence[int]:
    """At most `most` of the places 0 to n - 1, evenly, the last among them."""
    if n <= most:
        return range(n)
    return [round(i * (n - 1) / (most - 1)) for i in range(most)]
