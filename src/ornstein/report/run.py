"""A run is a folder: config.yaml, {space,data,metrics}.json, checkpoint.safetensors, samples/, report.html."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ornstein.data import Space, Split, load_data
from ornstein.denoiser import BaseDenoiser, Denoiser
from ornstein.errors import CheckpointError
from ornstein.guidance import CFG
from ornstein.io import inside, load_tensors, read_json, write_json
from ornstein.progress import bar
from ornstein.report.config import Config, make_config, read_config, write_config
from ornstein.report.during import Keep, Timing, Watch, stops
from ornstein.report.judge import Judge, judge_of
from ornstein.report.model import averages_asked, build, check_memory, objective_of
from ornstein.report.names import TUNED, nearest
from ornstein.report.sampler import Job, Sampler, existing, named, target_of
from ornstein.report.shards import Request, digest_of, fingerprint, one_line
from ornstein.report.tables import choose
from ornstein.solvers import DDIM, DDPM, DPMSolverPP, Euler, Heun, LogSNR, Samples, Solver, Table
from ornstein.solvers.grids import as_grid
from ornstein.solvers.solver import steps_within
from ornstein.training import Fit, Forecast, Training, fit, post_hoc
from ornstein.training.checkpoint import load_into
from ornstein.training.schedule import factor_of
from ornstein.training.track import Track
from ornstein.training.workers import Workers, load_whole

SOLVERS: dict[str, Solver] = {
    "dpmpp": DPMSolverPP(order=2),
    "dpmpp3": DPMSolverPP(order=3),
    "heun": Heun(),
    "ddim": DDIM(),
    "euler": Euler(),
    "ddpm": DDPM(),
    "iddpm": DDPM(variance="learned"),
}

NAMED = "dpmpp"
"""The solver that is taken where none is asked for and no table was tuned."""

MOST_STEPS = 10_000
"""Most steps of a solver: a table of more takes minutes to write, and no solver here gains by it."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: what metrics.json holds, the samples in the data's units, and their judge."""

    metrics: dict[str, Any]
    x: Tensor
    judge: Judge
    main: bool = True
    """Whether this process is the one that writes and shows."""


class Run:
    """One training and what came of it, in `folder`. `Run.create` makes or resumes one, `Run.open` reads one."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self._split: Split | None = None

    @classmethod
    def create(
        cls, folder: str | Path, values: Mapping[str, Any], source: str = "config", *, check: bool = False
    ) -> Run:
        """The run in `folder`, new with these fields or, if it exists, the old one; a field that differs is refused.

        With a constant learning rate an old run may be given more steps. `check` writes nothing.
        """
        folder = Path(folder)
        path = inside(folder, "config.yaml")
        asked = make_config(values, source)
        if path.exists():
            run = cls.open(folder)
            kept = run.config.model_dump()
            if asked.steps > run.config.steps and run.config.schedule == "constant":
                run.config = run.config.model_copy(update={"steps": asked.steps})
                kept["steps"] = asked.steps
                if not check:
                    write_config(path, run.config)
            if differ := [key for key in asked.model_fields_set if _differs(key, getattr(asked, key), kept[key])]:
                was = ", ".join(f"{key} = {kept[key]}" for key in sorted(differ))
                raise ValueError(
                    f"{folder} is a run with {was}: leave that as it is to resume, or choose another --out"
                )
            return run
        split = read_data(asked)
        codec = split.space.codec()
        found: dict[str, Any] = {"event": split.space.state_event(codec), "labels": split.labels}
        if split.space.kind == "series":  # which no shape says
            found["read"] = asked.read.model_copy(update={"kind": "series"})
        config = asked.model_copy(update=found)
        # what cannot be built, or trained for want of memory, is refused before anything is written
        for key in ("event", "labels"):
            if (given := getattr(asked, key)) not in (None, found[key]):
                raise ValueError(f"{source}: {key} is {found[key]} in the data, got {given}: leave it out")
        check_memory(config, split.space.conditions, Workers.here().count)
        build(config, codec, split.space.conditions)
        objective_of(config)
        run = cls(folder, config)
        run._split = split
        if not check:
            write_json(inside(folder, "space.json"), split.space.to_json())
            write_json(run.mark, {"sha256": split.fingerprint()})
            write_config(path, config)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in an existing folder."""
        folder = Path(folder)
        if not (folder / "config.yaml").exists():
            beside = [path.parent.name for path in folder.parent.glob("*/config.yaml")]
            hint = nearest(folder.name, beside) if beside else "make one with `ornstein train --out ...`"
            raise FileNotFoundError(f"{folder} is no run (it has no config.yaml); {hint}")
        return cls(folder, read_config(folder / "config.yaml"))

    @property
    def split(self) -> Split:
        """The data, split as it was for training; refused if they are not those that the run was made with."""
        if self._split is None:
            split = read_data(self.config)
            same = not self.place("space.json").exists() or split.space == self.space
            if not same or (self.mark.exists() and read_json(self.mark) != {"sha256": split.fingerprint()}):
                raise ValueError(
                    f"the data of the run {self.folder} have changed since it was made ({self.config.data}): what was "
                    "trained on would be taken for held out. Restore them, or train anew with another --out"
                    + (f"; if only their decoding changed, remove {self.mark}" if same else "")
                )
            self._split = split
        return self._split

    @property
    def mark(self) -> Path:
        """The fingerprint of the data the run was made with."""
        return self.place("data.json")

    @property
    def space(self) -> Space:
        """What the samples are, as it was when the run was made."""
        path = self.place("space.json")
        if not path.exists():
            return self.split.space
        try:
            return Space.from_json(read_json(path))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error

    @property
    def every(self) -> int:
        """Steps from one checkpoint to the next."""
        return self.config.every or max(self.config.steps // 5, 1)

    def place(self, name: str) -> Path:
        """A file or folder of the run by its fixed name; ValueError if a link there leads out of the run."""
        return inside(self.folder, name)

    @property
    def checkpoint(self) -> Path:
        """Where the training stands."""
        return self.place("checkpoint.safetensors")

    def train(
        self, progress: bool | None = None, foresee: Callable[[Forecast], object] | None = None
    ) -> tuple[Denoiser, Fit]:
        """Train to the end from wherever the run stands; the model has its averaged weights."""
        train, config = self.split.train, self.config
        check_memory(config, self.space.conditions, Workers.here().count)
        model = build(config, train.codec(), self.space.conditions)
        data, cond = train.feed()
        timing = Timing(self.place("timing.json"), self.checkpoint.exists())
        callbacks: list[Callable[[int, Training], object]] = [timing]

        def foreseen(coming: Forecast) -> None:
            timing.forecast = round(coming.seconds, 1)
            if foresee is not None:
                foresee(coming)

        if config.watch:
            callbacks.append(Watch(self.place("watch"), self._draw))
        if config.keep:
            callbacks.append(Keep(self.place("averages"), config.keep))
        if config.trackers:
            settings = {key: str(value) for key, value in config.model_dump().items()}
            callbacks.append(Track(config.trackers, self.place("trackers"), self.folder.name, settings))
        fitted = self.fit(
            model,
            data,
            cond,
            self.checkpoint,
            progress,
            device=Workers.here().device or Workers.best(),
            accumulate=config.accumulate,
            compile=config.compile,
            recompute=config.recompute,
            deterministic=config.deterministic,
            sharding=config.sharding,
            callbacks=callbacks,
            foresee=None if foresee is None else foreseen,
        )
        return model, fitted

    def fit(
        self,
        model: Denoiser,
        data: Any,
        cond: Mapping[str, Tensor] | None,
        checkpoint: Path,
        progress: bool | None = None,
        **options: Any,
    ) -> Fit:
        """Train a model on samples and conditions as this run's config says."""
        config = self.config
        return fit(
            model,
            data,
            cond=cond,
            drop={"label": config.drop} if config.labels and config.drop else None,
            steps=config.steps,
            batch_size=config.batch_size,
            lr=config.lr,
            schedule=config.schedule,
            warmup=config.warmup,
            clip=config.clip,
            seed=config.seed,
            ema=averages_asked(config),
            precision=config.precision,
            objective=objective_of(config, next(iter(self.space.conditions), None)),
            checkpoint=checkpoint,
            every=self.every,
            progress=progress,
            **options,
        )

    def _draw(self, model: BaseDenoiser) -> Tensor:
        """The samples of a model in training: the same seeds and labels at every stop."""
        drawn = self.sample(self.config.watch, model=model, steps=20, solver=NAMED, progress=False).x
        assert isinstance(drawn, Tensor)
        return drawn

    def model(self, average: str | None = None) -> Denoiser:
        """The model as it was last saved, also of an unfinished training.

        average: which weights: "ema" (the default, if there are averages), another average by its name, "raw", or the
        length of one that is made now from those that were kept (fields `lengths` and `keep`), a share of the run.
        """
        if not self.checkpoint.exists():
            raise FileNotFoundError(f"{self.folder} has no checkpoint yet: `ornstein train --out {self.folder}` first")
        tensors, _ = load_tensors(self.checkpoint, kind="checkpoint")
        own = sorted({name.partition("/")[0] for name in tensors if "/" in name} - {"model", "optimizer", "time"})
        name = average or ("ema" if "ema" in own else "raw")
        weights = {} if name == "raw" else under(f"{name}/", tensors) if name in own else self._made(name, own)
        space = self.space
        model = build(self.config, space.codec(), space.conditions)
        load_into(model, under("model/", tensors), str(self.checkpoint))
        load_whole(model, model, weights)
        return model.eval()

    def _made(self, name: str, own: list[str]) -> dict[str, Tensor]:
        """An average of another length, from those kept."""
        try:
            length = float(name)
        except ValueError:
            raise ValueError(f"unknown average {name!r}; {nearest(name, [*own, 'raw'])}, or a length as 0.1") from None
        lengths, files = self.config.lengths, stops(self.place("averages"))
        if not lengths or not files:
            raise ValueError(
                f"{self.folder} kept no averages of which one of length {name} could be made: train with "
                "--set lengths=[0.05,0.1] --set keep=10"
            )
        kept = []
        for path in files:
            tensors, metadata = load_tensors(path, kind="averages")
            for k, each in enumerate(lengths):
                kept.append((each, metadata["step"], under("ema/" if k == 0 else f"power {each:g}/", tensors)))
        return post_hoc(kept, length)

    def sampler(
        self,
        *,
        labels: Tensor | None = None,
        solver: str | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        average: str | None = None,
        model: Denoiser | None = None,
        tuned: bool = True,
    ) -> Sampler:
        """What makes this run's samples: `labels` (k,) come round and round, by default all classes in turn; `average`
        is that of `model`.

        Without a `solver` it is the table that `ornstein tune` made for this budget, guidance and weights, where there
        is one and `tuned` is true, else "dpmpp". "tuned" asks for that table, and is refused without it.
        """
        if solver not in (None, TUNED, *SOLVERS):
            raise ValueError(f"unknown solver {solver!r}; {nearest(str(solver), [*SOLVERS, TUNED])}")
        classes, space = self.config.labels or 0, self.space
        if labels is not None and not classes:
            raise ValueError(f"{self.folder} was trained without labels: ask for none")
        if labels is not None and not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(
                f"label {int(labels[(labels < 0) | (labels >= classes)][0])}: there are 0 to {classes - 1}"
            )
        if guidance != 1 and not (classes and self.config.drop):
            raise ValueError("guidance needs a model trained with labels of which some were dropped (drop > 0)")
        if steps is not None and nfe is not None:
            raise ValueError("give steps or nfe, not both")
        if not math.isfinite(guidance):
            raise ValueError(f"guidance is a number, 1 for none: got {guidance}")
        if max(steps or 0, nfe or 0) > MOST_STEPS:
            raise ValueError(f"a solver takes at most {MOST_STEPS} steps here: got {steps or nfe}")
        model = model or self.model(average)
        if labels is None and classes:
            labels = torch.arange(classes)
        denoiser: BaseDenoiser = model if guidance == 1 else CFG(model, guidance)
        grid = as_grid(LogSNR(), denoiser.process)
        name = NAMED if solver is None or solver == TUNED else solver
        count = steps if nfe is None else steps_within(nfe, SOLVERS[name], denoiser, grid)
        table = SOLVERS[name].compile(denoiser.process, grid(count))
        assert isinstance(table, Table)
        found = None
        if solver == TUNED or (solver is None and tuned):
            found = choose(self.folder, denoiser, table.nfe, guidance, required=solver == TUNED)
        if found is not None:
            name, table = TUNED, found.table
        request: Request = {
            "checkpoint": fingerprint(model.state_dict(), model.process, model.predicts),
            "solver": name,
            "steps": table.steps,
            "guidance": float(guidance),
            "labels": named(labels, classes),
            "seed": seed,
        }
        if found is not None:  # another tuning makes other samples
            request["table"] = digest_of(table.to_json())
        event = self.config.event or ()
        return Sampler(denoiser, table, event, space.complete, labels, space.bounds, seed, request, found)

    def labels_named(self, name: str | None) -> Tensor | None:
        """The labels that a person names: a class by its name or number, `held-out` for those of the held-out data."""
        if name is None:
            return None
        names = self.space.labels
        if name in names:
            return torch.tensor([names.index(name)])
        if name == "held-out":
            if self.split.held_out.labels is None:
                raise ValueError(f"{self.folder} was trained without labels: ask for none")
            return self.split.held_out.labels
        if not name.isdecimal() or any(own.isdecimal() for own in names):  # where names are numbers, no place is meant
            raise ValueError(f"unknown label {name!r}; {nearest(name, [*names, 'held-out'])}")
        if not names:
            raise ValueError(f"{self.folder} was trained without labels: ask for none")
        if len(name) > 18 or int(name) >= len(names):
            raise ValueError(f"label {name}: there are 0 to {len(names) - 1}")
        return torch.tensor([int(name)])

    def sample(self, n: int, *, labels: Tensor | None = None, progress: bool | None = None, **options: Any) -> Samples:
        """n samples in the data's units and bounds, of `labels` (n,), by default of each class in turn; the options are
        those of `sampler`."""
        if n < 1:
            raise ValueError(f"n must be at least 1: got {n}")
        if labels is not None and len(labels) != n:
            raise ValueError(f"{len(labels)} labels for {n} samples: give one a sample")
        return self.sampler(labels=labels, **options)(0, n, progress)

    def job(
        self, n: int, *, out: str | Path | None = None, form: str | None = None, batch: int = 500, **options: Any
    ) -> Job:
        """n samples to be written to `out` by every process that was started; the options are those of `sampler`.

        All is checked but nothing written or evaluated yet: `Job.run` does that.

        Args:
            n, batch: how many samples, and how many at once, which is also how many a shard holds.
            out: a file, or a folder for shards; by default, within the run's samples, one .csv of a table or of series
                and a folder of its own of anything else.
            form: npz, png, csv or parquet, where the ending of `out` does not say it.
        """
        workers = Workers.here()
        sampler = self.sampler(**options)
        sampler.denoiser.to(workers.device or Workers.best())
        if out is None and form is None and self.space.kind in ("table", "series"):
            form = "csv"  # whose shards are in codes
        place = target_of(self.folder, {**sampler.request, "n": n}, None if out is None else Path(out), form)
        return Job(sampler, n, *place, self.space, batch, workers)

    def judged(
        self,
        *,
        solver: str | None = None,
        steps: int = 20,
        guidance: float = 1.0,
        seed: int = 0,
        average: str | None = None,
        batch: int = 500,
        tuned: bool = True,
    ) -> tuple[Judge, Job]:
        """A judge, and the samples that it asks for: as many as are held out, with their labels."""
        judge, labels = judge_of(self.split), self.split.held_out.labels
        options: dict[str, Any] = {"solver": solver, "steps": steps, "guidance": guidance, "seed": seed}
        options |= {"average": average, "tuned": tuned}
        return judge, self.job(judge.n, form="npz", labels=labels, batch=batch, **options)

    def evaluate(self, *, progress: bool | None = None, **options: Any) -> Evaluation:
        """Judge as many samples as are held out, with their labels, and write metrics.json; the options are those of
        `judged`.

        The samples are in a folder of their own within the run's samples; where `sample` made the same, or more that
        begin with the same, those are judged.
        """
        judge, job = self.judged(**options)
        shards = existing(self.place("samples"), job.request) or job.shards()
        job.fill(shards, progress)
        x = torch.cat([x for x, _ in shards.read(judge.n)])
        asked = {key: job.request[key] for key in ("solver", "steps", "guidance", "seed")}
        if options.get("average") is not None:
            asked["average"] = options["average"]
        metrics: dict[str, Any] = {"sampler": {**asked, "nfe": job.sampler.nfe}}
        with bar(2, "judging", progress if job.workers.main else False) as tick:
            metrics["figures"] = judge(x)
            tick()
            metrics["references"] = judge.references()
            tick()
        if job.workers.main:
            with one_line(lambda: f"the samples are in {shards.folder} and stay"):
                write_json(self.place("metrics.json"), metrics)
        return Evaluation(metrics, x, judge, job.workers.main)

    def history(self) -> dict[str, Tensor]:
        """step, loss, grad_norm and lr of every step so far, (steps,) each."""
        seen = load_tensors(self.checkpoint, kind="checkpoint")[0].get("history")
        if seen is None or seen.dim() != 2 or seen.shape[1] != 2:
            raise CheckpointError(f"{self.checkpoint} is damaged: it has no history of (steps, 2)")
        loss, grad_norm = seen.unbind(1)
        config, done = self.config, len(loss)
        factor = factor_of(config.schedule, config.steps, config.warmup)
        lr = torch.tensor([config.lr * factor(k) for k in range(done)], dtype=torch.float64)
        return {"step": torch.arange(1, done + 1), "loss": loss, "grad_norm": grad_norm, "lr": lr}

    def timing(self) -> dict[str, Any] | None:
        """How long the training took since it was last begun, and what was forecast; None if that is not known."""
        path = self.place("timing.json")
        return dict(read_json(path)) if path.exists() else None

    def metrics(self) -> dict[str, Any] | None:
        """What the last evaluation wrote, or None."""
        path = self.place("metrics.json")
        return dict(read_json(path)) if path.exists() else None


def read_data(config: Config) -> Split:
    """The data of a config, split."""
    asked = config.read.model_dump()
    options = {key: value for key, value in asked.items() if value not in (None, ())}
    return load_data(config.data, **options).split(config.held_out)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _differs(name: str, asked: Any, kept: Any) -> bool:
    if isinstance(kept, dict):
        return any(_differs(key, getattr(asked, key), kept[key]) for key in asked.model_fields_set)
    if name in ("event", "labels", "kind") and asked is None:
        return False  # left to the data, as in the config that --show prints
    return bool(asked != kept)
