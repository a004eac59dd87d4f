"""What a run keeps while it trains: samples at every stop, and the averages from which another may be made."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ornstein.denoiser import BaseDenoiser
from ornstein.errors import CheckpointError
from ornstein.io import inside, load_tensors, save_tensors, write_json
from ornstein.training import Training
from ornstein.training.workers import whole


@dataclass
class Watch:
    """A callback of `fit`: the same samples of the averaged model at every stop, in FOLDER/step-000500.safetensors.

    draw: makes the samples of a model, (n, *event) in the user's numbers.
    """

    folder: Path
    draw: Callable[[BaseDenoiser], Tensor]

    def __call__(self, step: int, training: Training) -> None:
        if _path(self.folder, step).exists():
            return
        with training.average() as model:
            x = self.draw(model)
        training.workers.wait()  # so that none finds the file of this step before it has asked
        if training.main:
            save_tensors(_path(self.folder, step), {"x": x.cpu()}, {"step": step}, kind="samples")


@dataclass
class Timing:
    """A callback of `fit`: how long the steps took since the training was last begun, in one JSON file.

    {"from", "to", "seconds", "device", "processes", "forecast_seconds"}; the first call of one that was `resumed` is
    for the step it goes on from.
    """

    path: Path
    resumed: bool
    forecast: float | None = None
    _first: int = 0
    _begun: float = field(default_factory=time.monotonic)

    def __call__(self, step: int, training: Training) -> None:
        if self.resumed:
            self._first, self._begun, self.resumed = step, time.monotonic(), False
        elif training.main:
            where = next(training.model.parameters()).device
            name = torch.cuda.get_device_name(where) if where.type == "cuda" else "the processor"
            seconds = round(time.monotonic() - self._begun, 1)
            found = {"from": self._first, "to": step, "seconds": seconds, "device": name}
            write_json(self.path, {**found, "processes": training.workers.count, "forecast_seconds": self.forecast})


@dataclass
class Keep:
    """A callback of `fit`: the averages of the weights at the last `last` stops, in FOLDER/step-000500.safetensors."""

    folder: Path
    last: int

    def __call__(self, step: int, training: Training) -> None:
        tensors = {
            f"{key}/{name}": tensor
            for key, average in training.averages.items()
            for name, tensor in whole(average.state_dict()).items()
        }
        if training.main:
            save_tensors(_path(self.folder, step), tensors, {"step": step}, kind="averages")
            for path in stops(self.folder)[: -self.last]:
                path.unlink(missing_ok=True)


def stops(folder: Path) -> list[Path]:
    """The files of a folder of stops, the earliest first; files of other names are none of ours."""
    found = {int(path.stem[5:]): path for path in folder.glob("step-*.safetensors") if path.stem[5:].isdecimal()}
    return [found[step] for step in sorted(found)]


def watched(folder: Path) -> list[tuple[int, Tensor]]:
    """(step, samples) of every stop."""
    found = []
    for path in stops(folder):
        tensors, _ = load_tensors(path, kind="samples")
        if "x" not in tensors:
            raise CheckpointError(f"{path} is damaged: it has no samples x")
        found.append((int(path.stem[5:]), tensors["x"]))
    return found


def _path(folder: Path, step: int) -> Path:
    return inside(folder, f"step-{step:06d}.safetensors")
