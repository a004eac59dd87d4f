"""Tuning the tables of a run: taught once, one table a budget, each saved as soon as it is there."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ornstein import solvers
from ornstein.denoiser import BaseDenoiser
from ornstein.errors import CheckpointError
from ornstein.progress import bar
from ornstein.random import derive
from ornstein.report.run import NAMED, Run
from ornstein.report.shards import one_line
from ornstein.report.tables import fits, place_of, read
from ornstein.training.workers import Workers
from ornstein.tuning import Lessons, TunedTable, teach, tune
from ornstein.tuning.named import named_table

MOST = 100
"""Most evaluations of a table that is tuned: there are half their square of numbers in it."""
FEWEST_STARTS = 16
STARTS = 256


@dataclass(frozen=True)
class Tuned:
    """A table of a run, with its guidance; `kept` if it was there already."""

    table: TunedTable
    guidance: float
    kept: bool


def tune_run(
    run: Run,
    budgets: Sequence[int],
    *,
    guidance: Sequence[float] = (1.0,),
    starts: int = STARTS,
    labels: Tensor | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    again: bool = False,
    check: bool = False,
    progress: bool | None = None,
) -> list[Tuned]:
    """theta*(nfe, scale) for each budget and scale: `tune` on lessons of the run's averaged model, taught once a scale.

    Each table is written as soon as it is tuned, to RUN/tuned/<evaluations>[-g<scale>].safetensors, so that what was
    interrupted goes on with the next one. A table that was tuned for these weights already is kept.

    Args:
        budgets: evaluations of the denoiser in a run of the table, 2 to 100; a guided one evaluates the network twice.
        guidance: scales, each with tables of its own; 1 is none.
        starts: to tune on, a quarter of which only says when to stop; as many as that quarter more give the figures.
        labels: (k,), they come round and round over the starts, by default all classes in turn.
        again: tune what is there already too.
        check: all but the first network evaluation.

    Raises ValueError, before the work starts, for what cannot be tuned.
    """
    if not budgets or not all(2 <= nfe <= MOST for nfe in budgets):
        raise ValueError(f"nfe are whole numbers of evaluations from 2 to {MOST}: got {', '.join(map(str, budgets))}")
    if not guidance or not all(map(math.isfinite, guidance)):
        raise ValueError(f"guidance are scales, 1 for none: got {', '.join(map(str, guidance))}")
    if starts < FEWEST_STARTS:
        raise ValueError(f"starts={starts}: tuning needs {FEWEST_STARTS} at least, {STARTS} are usual")
    budgets, guidance = sorted(set(budgets)), list(dict.fromkeys(guidance))
    model = run.model().to(device_of(device))
    makers = [run.sampler(labels=labels, solver=NAMED, steps=2, guidance=g, model=model) for g in guidance]
    if check:
        return []
    found: list[Tuned] = []
    with (
        one_line(lambda: "the tables that are tuned stay"),
        bar((1 + len(budgets)) * len(guidance), "tuning", progress) as tick,
    ):
        for scale, maker in zip(guidance, makers, strict=True):
            lessons: Lessons | None = None
            there = {nfe: None if again else _current(run, nfe, scale, maker.denoiser) for nfe in budgets}
            for nfe, kept in there.items():
                if kept is not None:
                    found.append(Tuned(kept, scale, True))
                    tick()
                    continue
                if lessons is None:
                    count, origin = starts + starts // 4, derive(seed, "tune")
                    cond = maker.cond_of(0, count)
                    lessons = teach(maker.denoiser, (count, *maker.event), cond=cond, seed=origin)
                    tick()
                begun = time.monotonic()
                made = tune(maker.denoiser, nfe=nfe, lessons=lessons.take(torch.arange(starts)), seed=seed)
                made = judged(made, lessons.take(torch.arange(starts, len(lessons))))
                more = {"labels": maker.request["labels"], "seconds": round(time.monotonic() - begun, 1)}
                made = replace(made, tuned_on={**made.tuned_on, **more})
                made.save(place_of(run.folder, nfe, scale))
                found.append(Tuned(made, scale, False))
                tick()
    return found


def judged(made: TunedTable, fresh: Lessons) -> TunedTable:
    """The same table with the errors of starts that had no say in it: those kept apart in tuning chose when to stop."""
    before = named_table(fresh.process, made.nfe, made.tuned_on["named"])
    return replace(made, errors=fresh.errors(made.table), named_errors=fresh.errors(before))


def _current(run: Run, nfe: int, guidance: float, denoiser: BaseDenoiser) -> TunedTable | None:
    """The table that is there, if it is whole and of these weights."""
    try:
        found = read(run.folder, nfe, guidance)
    except CheckpointError:
        return None
    return found if found is not None and fits(found, denoiser) else None


def cells(found: Sequence[Tuned]) -> tuple[list[str], list[list[str]]]:
    """(names, rows) of a table of tables: budget, the best named solver and its error, that of the tuned table, the
    share that is left, and what it cost."""
    guided = any(one.guidance != 1 for one in found)
    names = ["evaluations", "named solver", "its error", "tuned", "gain", "network evaluations", "seconds"]
    rows = []
    for one in found:
        on = one.table.tuned_on
        spent = on.get("evaluations", {})
        rows.append(
            [
                str(one.table.nfe),
                *([f"{one.guidance:g}"] if guided else []),
                brief(str(on.get("named"))),
                f"{one.table.named_error:.4g}",
                f"{one.table.error:.4g}",
                f"{one.table.gain:.3f}",
                f"{spent['tuning']:,}" if isinstance(spent.get("tuning"), int) else "",
                "kept" if one.kept else f"{on.get('seconds', '')}",
            ]
        )
    return [names[0], *(["guidance"] if guided else []), *names[1:]], rows


def brief(name: str) -> str:
    """A solver on a grid as it is named in a tuned table, without the options that are their defaults."""

    def shown(found: re.Match[str]) -> str:
        kind = getattr(solvers, found[1], None)
        known = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        usual = {f"{field.name}={field.default!r}" for field in known}
        return f"{found[1]}({', '.join(option for option in found[2].split(', ') if option not in usual)})"

    return re.sub(r"(\w+)\(([^()]*)\)", shown, name)


def device_of(name: str | torch.device | None) -> torch.device:
    """The device of a name, by default the best one here; ValueError if it cannot be used."""
    if name is None:
        return Workers.best()
    try:
        torch.zeros((), device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {str(name)!r} cannot be used here: choose cpu, or cuda where there is one") from error
