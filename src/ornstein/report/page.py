"""The report of a run: one page of everything that is known of it, each part by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch

from ornstein.io import atomic_write
from ornstein.progress import bar
from ornstein.report import html
from ornstein.report.beside import beside, deviation_of
from ornstein.report.cost import read
from ornstein.report.curves import training_curves
from ornstein.report.memorisation import memorisation
from ornstein.report.model import kind_of
from ornstein.report.named_tuned import named_tuned
from ornstein.report.over_nfe import against_cost, over_nfe
from ornstein.report.over_training import over_training
from ornstein.report.run import Evaluation, Run
from ornstein.report.sampler import existing
from ornstein.report.sections import quality
from ornstein.report.settings import in_words, settings
from ornstein.report.show import Show, show_of
from ornstein.report.the_data import shape_of, the_data

Part = Callable[[Run, Evaluation, Show], str]


def _quality(run: Run, found: Evaluation, show: Show) -> str:
    return quality(found.metrics, in_words(found.metrics["sampler"]), found.judge.says)


def _over_nfe(run: Run, found: Evaluation, show: Show) -> str:
    return over_nfe(read(run, found.judge, found.metrics["sampler"]), show, deviation_of(run.split))


def _against_cost(run: Run, found: Evaluation, show: Show) -> str:
    sampler = found.metrics["sampler"]
    return against_cost(read(run, found.judge, sampler), sampler["guidance"])


def _settings(run: Run, found: Evaluation, show: Show) -> str:
    weights = run.model().parameters()
    return settings(run.config, found.metrics["sampler"], run.timing(), sum(p.numel() for p in weights))


def _name(data: str) -> str:
    """What data are called: the name of their file or folder, or their own."""
    return data if ":" in data else Path(data).name or data


PARTS: dict[str, Part] = {
    "Are the samples good?": _quality,
    "Samples beside data": lambda run, found, show: beside(run.split, found.x, found.judge, show),
    "The data": lambda run, found, show: the_data(_name(run.config.data), run.split, show),
    "Samples over training": lambda run, found, show: over_training(run.place("watch"), show, run.every),
    "Samples over evaluations": _over_nfe,
    "Quality against cost": _against_cost,
    "Named against tuned": lambda run, found, show: named_tuned(run.folder, run.model()),
    "Memorisation": lambda run, found, show: memorisation(found.judge, found.x, run.split, show),
    "Training": lambda run, found, show: training_curves(run.history(), run.config.steps, run.config.clip),
    "Settings": _settings,
}
"""Every part of the page by its heading, in their order; one that has nothing to say is left out."""


def run_page(run: Run, found: Evaluation, progress: bool | None = None) -> None:
    """Write the report of a run that was evaluated: report.html in its folder.

    A part that cannot be made says why in its place, and the others stand.
    """
    show, parts = show_of(run.split), []
    with bar(len(PARTS), "report", progress) as tick:
        for heading, make in PARTS.items():
            parts.append(_part(heading, make, run, found, show))
            tick()
    parts = [part for part in parts if part]
    config, n = run.config, len(run.split.train)
    lead = (
        f"{escape(_name(config.data))}: {n:,} samples to train on, {shape_of(run.split)}. Process {config.process}, "
        f"network {kind_of(config)}, {config.steps:,} steps of {config.batch_size:,} samples."
    )
    page = html.page(f"Run {run.folder.resolve().name}", lead, [html.contents(parts), *parts])
    atomic_write(run.place("report.html"), page.encode())


def evaluated(run: Run) -> Evaluation:
    """What the last evaluation found, read again: nothing is sampled or judged anew.

    Errors: ValueError without an evaluation of the model as it is now.
    """
    again = f"`ornstein evaluate {run.folder}` first"
    metrics = run.metrics()
    if metrics is None:
        raise ValueError(f"{run.folder} was not evaluated yet: {again}")
    asked: Mapping[str, Any] = metrics["sampler"]
    options = {key: value for key, value in asked.items() if key != "nfe"}
    judge, job = run.judged(**options)
    shards = existing(run.place("samples"), job.request)
    if shards is None:
        raise ValueError(f"the samples of the evaluation of {run.folder} are gone, or are of an earlier model: {again}")
    x = torch.cat([x for x, _ in shards.read(judge.n)])
    return Evaluation(metrics, x, judge, job.workers.main)


def _part(heading: str, make: Part, run: Run, found: Evaluation, show: Show) -> str:
    try:
        return make(run, found, show)
    except Exception as error:  # whatever is wrong with one part, the page is of use without it
        why = escape(" ".join(str(error).split()) or type(error).__name__)
        return html.section(heading, f'<p class="missed">This part could not be made: {why:.300}</p>')
