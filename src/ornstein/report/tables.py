"""The tuned tables of a run: RUN/tuned/<evaluations>.safetensors, with guidance <evaluations>-g<scale>.safetensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from ornstein.denoiser import BaseDenoiser
from ornstein.errors import CheckpointError
from ornstein.io import inside
from ornstein.tuning import TunedTable
from ornstein.tuning.fingerprint import describe, fingerprint

FOLDER = "tuned"
_NAME = re.compile(r"([1-9]\d{0,5})(?:-g(-?[\d.e+-]+))?\.safetensors")


class StaleTableWarning(UserWarning):
    """A tuned table is there, but it is of other weights."""


def place_of(folder: Path, nfe: int, guidance: float) -> Path:
    """The file of the table of a budget and a scale."""
    return inside(folder, FOLDER, f"{nfe}{_suffix(guidance)}.safetensors")


def read(folder: Path, nfe: int, guidance: float) -> TunedTable | None:
    """The table in that file; None where there is none.

    Errors: CheckpointError for a damaged file, or a table of another budget than its name says.
    """
    path = place_of(folder, nfe, guidance)
    if not path.exists():
        return None
    found = TunedTable.load(path)
    on = found.tuned_on
    if found.nfe != nfe or not isinstance(on.get("guidance"), list) or "fingerprint" not in on:
        raise CheckpointError(f"{path} is no table that `ornstein tune` wrote for {nfe} evaluations: remove it")
    return found


def fits(found: TunedTable, denoiser: BaseDenoiser) -> bool:
    """Whether a table was tuned for these weights, this process and this guidance."""
    on = found.tuned_on
    return bool(on["fingerprint"] == fingerprint(denoiser) and describe(denoiser) in on["guidance"])


def choose(folder: Path, denoiser: BaseDenoiser, nfe: int, guidance: float, *, required: bool) -> TunedTable | None:
    """The run's table of this budget and guidance if it was tuned for these weights; None, with a warning, for others'.

    Errors: with `required` ValueError where there is none, or one of other weights.
    """
    found = read(folder, nfe, guidance)
    again = f"`ornstein tune {folder} --nfe {nfe}{'' if guidance == 1 else f' --guidance {guidance:g}'}`"
    if found is None:
        if required:
            there = ", ".join(str(n) for n, g, _ in named(folder) if g == guidance) or "none"
            raise ValueError(
                f"{folder} has no table tuned for {nfe} evaluations and guidance {guidance:g} (for others: {there}): "
                f"{again} makes it"
            )
        return None
    if not fits(found, denoiser):
        stale = (
            f"the table tuned for {nfe} evaluations is of other weights than these (an earlier state of the training, "
            "or another average)"
        )
        if required:
            raise ValueError(f"{stale}: {again} makes it anew")
        warnings.warn(f"{stale}: a named solver samples; {again} makes it anew", StaleTableWarning, stacklevel=3)
        return None
    found.table.check_process(denoiser.process)
    return found


def named(folder: Path) -> Iterator[tuple[int, float, Path]]:
    """(evaluations, guidance, file) of every file that has the name of a table, in their order."""
    if not (folder / FOLDER).is_dir():
        return
    found = []
    for path in inside(folder, FOLDER).iterdir():
        if name := _NAME.match(path.name):
            nfe, guidance = int(name[1]), 1.0
            try:
                guidance = float(name[2] or 1)
            except ValueError:
                continue
            if path.name == f"{nfe}{_suffix(guidance)}.safetensors":
                found.append((nfe, guidance, path))
    yield from sorted(found, key=lambda each: (each[1], each[0]))


def every(folder: Path) -> tuple[list[tuple[int, float, TunedTable]], list[str]]:
    """((evaluations, guidance, table) of every file that is whole, why each of the others is not)."""
    found, damaged = list[tuple[int, float, TunedTable]](), list[str]()
    for nfe, guidance, _ in named(folder):
        try:
            table = read(folder, nfe, guidance)
        except ValueError as error:  # damaged, or a link that leads out of the run
            damaged.append(" ".join(str(error).split()))
            continue
        if table is not None:
            found.append((nfe, guidance, table))
    return found, damaged


def _suffix(guidance: float) -> str:
    return "" if guidance == 1 else f"-g{repr(float(guidance)).removesuffix('.0')}"
