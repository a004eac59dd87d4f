"""The samples of a run, one by one in what they are and many at once in how they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ornstein.data import Space
from ornstein.denoiser import BaseDenoiser
from ornstein.io import inside
from ornstein.random import derive
from ornstein.report.formats import check_form, export, finished, form_of, note_of, parts_of
from ornstein.report.shards import MANIFEST, Request, Rows, Shards, digest_of, read_manifest
from ornstein.solvers import Samples, Table, sample
from ornstein.training.workers import Workers
from ornstein.tuning import TunedTable

MOST_AT_ONCE = 1_000_000
"""Most samples made at once: each has a seed of its own."""


@dataclass(frozen=True)
class Sampler:
    """x_i = solve(denoiser, table, noise of seed derive(seed, i), label labels[i mod len(labels)]), i = 0, 1, 2, ...

    Each sample has a seed and a label of its own, so it is the same alone and among any others, to the rounding of a
    network that is evaluated on another number of rows.

    Args:
        denoiser, table: what is run.
        event: the shape of one state.
        complete: makes the conditions, beside the label, under which n whole samples are asked for.
        labels: (k,), the labels in the order in which they come round; None without labels.
        bounds: the least and greatest value of a sample, or None.
        seed: names the noise.
        request: what the samples depend on, less their number, for manifests.
        tuned: where the table is a tuned one, its figures.
    """

    denoiser: BaseDenoiser
    table: Table
    event: tuple[int, ...]
    complete: Callable[[int], dict[str, Tensor]]
    labels: Tensor | None
    bounds: tuple[float, float] | None
    seed: int
    request: Request = field(repr=False)
    tuned: TunedTable | None = field(default=None, repr=False)

    @property
    def nfe(self) -> int:
        """Network evaluations a sample."""
        return sum(self.denoiser.cost(self.table.levels))

    def labels_of(self, start: int, stop: int) -> Tensor | None:
        """The labels of the samples start to stop."""
        return None if self.labels is None else self.labels[torch.arange(start, stop) % len(self.labels)]

    def cond_of(self, start: int, stop: int) -> dict[str, Tensor] | None:
        """The conditions of the samples start to stop, where the weights are."""
        labels, first = self.labels_of(start, stop), next(self.denoiser.parameters(), None)
        cond = self.complete(stop - start) | ({} if labels is None else {"label": labels})
        where = "cpu" if first is None else first.device
        return {name: value.to(where) for name, value in cond.items()} or None

    def __call__(self, start: int, stop: int, progress: bool | None = None) -> Samples:
        """The samples start to stop, in the user's units, within their bounds."""
        if stop - start > MOST_AT_ONCE:
            raise ValueError(f"at most {MOST_AT_ONCE} samples are made at once: got {stop - start}; `job` makes more")
        out = sample(
            self.denoiser,
            (stop - start, *self.event),
            table=self.table,
            cond=self.cond_of(start, stop),
            seed=[derive(self.seed, i) for i in range(start, stop)],
            progress=progress,
        )
        return Samples(out.x if self.bounds is None else out.x.clamp(*self.bounds), out.nfe, self.seed, out.table)


@dataclass(frozen=True)
class Job:
    """n samples of a run, from the first network evaluation to the last file. Made by `Run.job`, which checks all that
    can be known before: that is what `--check` does."""

    sampler: Sampler
    n: int
    target: Path
    form: str
    space: Space
    batch: int
    workers: Workers

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1: got {self.n}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1: got {self.batch}")
        if self.batch > MOST_AT_ONCE:
            raise ValueError(f"batch is at most {MOST_AT_ONCE}, all samples that are made at once: got {self.batch}")
        check_form(self.form, self.space, self.n)
        if self.form == "shards" or not finished(self.target, self.form, self.request):
            self.shards()

    @property
    def request(self) -> Request:
        """What is asked for."""
        return {**self.sampler.request, "n": self.n}

    def shards(self) -> Shards:
        """Where the samples are collected."""
        folder = self.target if self.form == "shards" else parts_of(self.target)
        return Shards.open(folder, self.request, self.batch)

    def run(self, progress: bool | None = None) -> None:
        """Make what is missing, and write what was asked for; what is there already is left."""
        done = self.form != "shards" and finished(self.target, self.form, self.request)
        self.workers.wait()
        shards = self.shards()
        if not done:
            self.fill(shards, progress)
        if self.form != "shards" and self.workers.main:
            if not done:
                export(shards, self.target, self.form, self.space, self.sampler.bounds)
            shards.remove()
        self.workers.wait()

    def fill(self, shards: Shards, progress: bool | None = None) -> None:
        """Make what is missing in shards of this sampler."""

        def make(start: int, stop: int) -> Rows:
            inner = progress if self.workers.main and shards.count == 1 else False
            return self.sampler(start, stop, inner).x.cpu(), self.sampler.labels_of(start, stop)

        shards.fill(make, batch=self.batch, workers=self.workers, progress=progress)


def target_of(folder: Path, request: Request, out: Path | None, form: str | None) -> tuple[Path, str]:
    """(where to write, and what): `out`, or a place in the run's folder with a name that no other request has."""
    if out is not None:
        return out, form_of(out, form)
    name = f"{request['n']}-{request['solver']}-{request['steps']}-{digest_of(request)[:8]}"
    place = (
        folder
        / "samples"
        / ({"csv": f"{name}.csv", "parquet": f"{name}.parquet", "png": f"{name}-png"}.get(form or "", name))
    )
    kind = form_of(place, None if form == "npz" else form)
    for path in (place, parts_of(place), note_of(place, kind)):
        inside(folder, str(path.relative_to(folder)))
    return place, kind


def existing(folder: Path, request: Request) -> Shards | None:
    """Complete shards below `folder` of the same request, or of one for more samples, which begin with the same."""
    for path in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            kept = read_manifest(inside(folder, path.parent.name))
        except (ValueError, OSError):
            continue
        more = kept["request"]
        if "shards" in kept and {**more, "n": 0} == {**request, "n": 0} and more["n"] >= request["n"]:
            return Shards.read_only(path.parent)
    return None


def named(labels: Tensor | None, classes: int) -> str:
    """What the labels are, in a word."""
    if labels is None:
        return "none"
    if len(labels) == 1:
        return str(int(labels))
    if torch.equal(labels, torch.arange(classes)):
        return "in turn"
    return f"{len(labels)} given, {hashlib.sha256(repr(labels.tolist()).encode()).hexdigest()[:8]}"
