"""A run is a folder: config.yaml, checkpoint.safetensors, metrics.json, samples.npz, report.html."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein.denoiser import BaseDenoiser, Denoiser, EDMPrecondition, Scaling
from ornstein.guidance import CFG
from ornstein.io import atomic_write, load_tensors, write_json
from ornstein.nets import MLP, NULL, DiT, UNet
from ornstein.nets.base import Net
from ornstein.processes import EDM, VE, VP, Cosine, Flow, GaussianProcess, SubVP
from ornstein.report.config import Config, make_config, read_config, write_config
from ornstein.report.data import Split, bounds_of, load_split
from ornstein.report.judge import Judge
from ornstein.report.names import nearest
from ornstein.solvers import DDIM, DDPM, DPMSolverPP, Euler, Heun, Samples, Solver, sample
from ornstein.training import Fit, LogNormalSigma, Objective, UniformTime, fit
from ornstein.training.checkpoint import load_into

PROCESSES: dict[str, Callable[[], GaussianProcess]] = {
    "edm": EDM, "flow": Flow, "vp": VP, "subvp": SubVP, "ve": VE, "cosine": Cosine,
}  # fmt: skip

SOLVERS: dict[str, Solver] = {
    "dpmpp": DPMSolverPP(order=2),
    "dpmpp3": DPMSolverPP(order=3),
    "heun": Heun(),
    "ddim": DDIM(),
    "euler": Euler(),
    "ddpm": DDPM(),
}


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: what metrics.json holds, the samples in the data's units, and their judge."""

    metrics: dict[str, Any]
    x: Tensor
    judge: Judge


class Run:
    """One training and what came of it, in `folder`. `Run.create` makes or resumes one, `Run.open` reads one."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self._split: Split | None = None

    @classmethod
    def create(cls, folder: str | Path, values: Mapping[str, Any], source: str = "config") -> Run:
        """The run in `folder`, new with these fields or, if it exists, the old one; a field that differs is refused."""
        folder = Path(folder)
        path = folder / "config.yaml"
        asked = make_config(values, source)
        if path.exists():
            run = cls.open(folder)
            kept = run.config.model_dump()
            if differ := [key for key in asked.model_fields_set if _differs(getattr(asked, key), kept[key])]:
                was = ", ".join(f"{key} = {kept[key]}" for key in sorted(differ))
                raise ValueError(
                    f"{folder} is a run with {was}: leave that as it is to resume, or choose another --out"
                )
            return run
        split = load_split(asked.data, asked.held_out)
        config = asked.model_copy(update={"event": split.event, "labels": split.labels})
        build_net(config)  # what cannot be built is refused before anything is written
        write_config(path, config)
        run = cls(folder, config)
        run._split = split
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
        """The data, split as it was for training."""
        if self._split is None:
            self._split = load_split(self.config.data, self.config.held_out)
        return self._split

    @property
    def checkpoint(self) -> Path:
        """Where the training stands."""
        return self.folder / "checkpoint.safetensors"

    def train(self, progress: bool | None = None) -> tuple[Denoiser, Fit]:
        """Train to the end from wherever the run stands; the model has its averaged weights."""
        model = build(self.config, Scaling.of(self.split.train))
        return model, self.fit(model, self.split.train, self.split.train_labels, self.checkpoint, progress)

    def fit(
        self, model: Denoiser, x: Tensor, labels: Tensor | None, checkpoint: Path, progress: bool | None = None
    ) -> Fit:
        """Train a model on samples and labels as this run's config says."""
        config = self.config
        drop = {"label": config.drop} if labels is not None and config.drop else None
        return fit(
            model,
            x,
            cond=None if labels is None else {"label": labels},
            drop=drop,
            steps=config.steps,
            batch_size=config.batch_size,
            lr=config.lr,
            seed=config.seed,
            ema=config.ema,
            objective=objective_of(config),
            checkpoint=checkpoint,
            every=max(config.steps // 5, 1),
            progress=progress,
        )

    def model(self) -> Denoiser:
        """The model as it was last saved, with averaged weights, also of an unfinished training."""
        if not self.checkpoint.exists():
            raise FileNotFoundError(f"{self.folder} has no checkpoint yet: `ornstein train --out {self.folder}` first")
        tensors, _ = load_tensors(self.checkpoint, kind="checkpoint")
        model = build(self.config, Scaling(torch.zeros(()), torch.ones(())))
        load_into(model, under("model/", tensors) | under("ema/", tensors), str(self.checkpoint))
        return model.eval()

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        solver: str = "dpmpp",
        steps: int | None = None,
        nfe: int | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        model: Denoiser | None = None,
        progress: bool | None = None,
    ) -> Samples:
        """n samples in the data's units and bounds, of `labels` (n,), by default of each class in turn."""
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}; {nearest(solver, SOLVERS)}")
        if n < 1:
            raise ValueError(f"n must be at least 1: got {n}")
        classes = self.config.labels or 0
        if labels is not None and not classes:
            raise ValueError(f"{self.folder} was trained without labels: ask for none")
        if labels is not None and not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(
                f"label {int(labels[(labels < 0) | (labels >= classes)][0])}: there are 0 to {classes - 1}"
            )
        if guidance != 1 and not (classes and self.config.drop):
            raise ValueError("guidance needs a model trained with labels of which some were dropped (drop > 0)")
        if labels is None and classes:
            labels = torch.arange(n) % classes
        model = model or self.model()
        denoiser: BaseDenoiser = model if guidance == 1 else CFG(model, guidance)
        out = sample(
            denoiser,
            (n, *(self.config.event or ())),
            solver=SOLVERS[solver],
            steps=steps,
            nfe=nfe,
            cond=None if labels is None else {"label": labels},
            seed=seed,
            progress=progress,
        )
        bounds = bounds_of(self.config.data)
        return Samples(out.x if bounds is None else out.x.clamp(*bounds), out.nfe, out.seed, out.table)

    def evaluate(self, *, solver: str = "dpmpp", steps: int = 20, guidance: float = 1.0, seed: int = 0) -> Evaluation:
        """Sample as many as are held out, with their labels, judge them, and write metrics.json and samples.npz."""
        judge = Judge(self.split)
        out = self.sample(judge.n, labels=judge.labels, solver=solver, steps=steps, guidance=guidance, seed=seed)
        save_samples(self.folder / "samples.npz", out.x, judge.labels)
        metrics = {
            "sampler": {"solver": solver, "steps": steps, "guidance": guidance, "seed": seed, "nfe": out.nfe},
            "figures": judge(out.x),
            "references": judge.references(),
        }
        write_json(self.folder / "metrics.json", metrics)
        return Evaluation(metrics, out.x, judge)

    def history(self) -> Tensor:
        """The loss of every step so far, (steps,)."""
        return load_tensors(self.checkpoint, kind="checkpoint")[0]["history"][:, 0]


def build(config: Config, scaling: Scaling) -> Denoiser:
    """The untrained model of a config, of the same first weights for the same seed."""
    precondition = EDMPrecondition(1.0) if config.predicts == "edm" else None
    return Denoiser(
        build_net(config),
        PROCESSES[config.process](),
        None if config.predicts == "edm" else config.predicts,
        precondition=precondition,
        null={"label": NULL} if config.labels else None,
        scaling=scaling,
    )


def build_net(config: Config) -> Net:
    """The network of a config; ValueError if it does not fit the data."""
    event, labels, net = config.event or (), config.labels or 0, config.net
    if net.kind != "mlp" and len(event) != 3:
        hint = "store x[:, None], or use mlp" if len(event) == 2 else "use mlp"
        raise ValueError(f"net {net.kind} needs images (channels, height, width), and the data are {event}: {hint}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if net.kind == "mlp":
            return MLP(event, labels, width=net.width, depth=net.depth)
        if net.kind == "unet":
            return UNet(event[0], labels, width=net.width, levels=(1, 2), blocks=net.depth)
        return DiT(event[0], (event[1], event[2]), labels, width=net.width, depth=net.depth, heads=4)


def objective_of(config: Config) -> Objective:
    """Noise levels about the data's own scale, 1, for EDM's preconditioning and noise scales; uniform t otherwise."""
    by_level = config.predicts == "edm" or config.process in ("edm", "ve")
    return Objective(LogNormalSigma(-0.5, 1.2) if by_level else UniformTime())


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def save_samples(path: str | Path, x: Tensor, labels: Tensor | None) -> None:
    """Write x, and y where there are labels, as .npz, whole or not at all."""
    arrays: dict[str, Any] = {"x": x.numpy()} | ({} if labels is None else {"y": labels.numpy()})
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    atomic_write(path, buffer.getvalue())


def _differs(asked: Any, kept: Any) -> bool:
    if isinstance(kept, dict):
        return any(_differs(getattr(asked, key), kept[key]) for key in asked.model_fields_set)
    return bool(asked != kept)
