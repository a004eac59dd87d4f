"""Restoring measurements with a trained run: what was measured, the samples of what it may be, and their picture."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein._extras import require
from ornstein.data import ImageSpace, Space
from ornstein.data.array import check_numbers, read_arrays
from ornstein.data.images import SUFFIXES, Files, read_folder, read_images
from ornstein.data.space import write_arrays
from ornstein.denoiser import Denoiser
from ornstein.inverse import Measurement, Method, Restored, restore
from ornstein.io import atomic_write, inside, write_json
from ornstein.linops import LinearOperator
from ornstein.metrics import psnr, ssim
from ornstein.nets import NULL
from ornstein.random import derive
from ornstein.report.operators import damaged, method_named, operator_named
from ornstein.report.run import Run
from ornstein.training.workers import Workers

FILES = ("samples.npz", "picture.png", "restored.json")
ROWS = "0-7"
"""The held-out samples that are damaged for a trial where nothing else is asked."""
METHOD = "mmps"
"""The method that is taken where none is asked for: the law of a Gaussian prior is exact, whatever the operator."""
SHOWN = 8
"""Most measurements in the picture."""
DRAWN = 4
"""Most samples of each in the picture."""


@dataclass(frozen=True)
class Restoration:
    """x ~ p(x0 | y), y = A(x0) + noise, for measurements y (n, *measured) in the data's units. Made by `restoration`,
    which checks all that can be known before; `run` evaluates the network and writes."""

    model: Denoiser = field(repr=False)
    space: Space
    operator: LinearOperator
    y: Tensor = field(repr=False)
    truth: Tensor | None = field(repr=False)
    noise: float
    method: Method
    samples: int
    steps: int
    seed: int
    cond: dict[str, Tensor] | None = field(repr=False)
    asked: Mapping[str, Any]
    out: Path

    def run(self, progress: bool | None = None) -> dict[str, Any]:
        """Restore, and write samples.npz, picture.png and restored.json; the figures of the last."""
        options: dict[str, Any] = {"steps": self.steps, "progress": progress}
        found = restore(
            self.model,
            self.operator,
            self.y,
            method=self.method,
            noise=self.noise,
            samples=self.samples,
            cond=self.cond,
            seed=self.seed,
            **options,
        )
        residual = float(found.residual.square().mean().sqrt())
        figures: dict[str, Any] = {**self.asked, "nfe": found.nfe, "residual": residual}
        if self.truth is not None:
            figures |= self._judged(found, self.truth)
        arrays = {"x": found.samples, "mean": found.mean, "y": self.y}
        arrays |= {} if self.samples == 1 else {"std": found.std}
        arrays |= {} if self.truth is None else {"truth": self.truth}
        samples, picture, record = (inside(self.out, name) for name in FILES)
        record.unlink(missing_ok=True)  # it is the last one written: with it all three belong together
        write_arrays(samples, {name: value.numpy() for name, value in arrays.items()})
        atomic_write(picture, self._picture(found))
        write_json(record, figures)
        return figures

    def _judged(self, found: Restored, truth: Tensor) -> dict[str, Any]:
        """PSNR and, of images, SSIM of means and samples cut to the data's bounds."""
        low, high = self.space.bounds or (float(truth.min()), float(truth.max()))
        bounds = (low, high if high > low else low + 1.0)
        figures: dict[str, Any] = {}
        for name, x in (("", found.mean), ("_of_a_sample", found.samples.flatten(0, 1))):
            x, true = x.clamp(low, high), truth.repeat_interleave(len(x) // len(truth), 0)
            figures[f"psnr{name}"] = _mean(psnr(x, true, bounds))
            if _pictures(truth):
                figures[f"ssim{name}"] = _mean(ssim(x, true, bounds))
        return figures

    def _picture(self, found: Restored) -> bytes:
        """A row for each measurement: the truth where it is known, what was measured, samples, mean and deviation."""
        figures = require("matplotlib.figure", extra="report")
        n = min(len(self.y), SHOWN)
        back, title = self.y, "measured"
        if not _pictures(back):
            back, title = self.operator.adjoint(self.y), "measured, $A^T y$"
        columns = {} if self.truth is None else {"truth": self.truth}
        columns |= {title: back}
        columns |= {f"sample {k + 1}": found.samples[:, k] for k in range(min(self.samples, DRAWN))}
        columns |= {} if self.samples == 1 else {"mean": found.mean, "deviation": found.std}
        drawn = _pictures(found.mean)
        width = 1.1 if drawn else 2.2
        wide, high = width * len(columns), 1.1 * n + 0.25
        figure = figures.Figure(figsize=(wide, high))
        edges = {"left": 0.02, "right": 0.98, "bottom": 0.05 / high, "top": 1 - 0.25 / high}
        grid = figure.subplots(n, len(columns), squeeze=False, gridspec_kw={**edges, "wspace": 0.1, "hspace": 0.1})
        bounds = self.space.bounds or (float(found.mean.min()), float(found.mean.max()))
        for column, (name, values) in zip(grid.T, columns.items(), strict=True):
            column[0].set_title(name, fontsize=8)
            for axis, value in zip(column, values[:n], strict=True):
                if not drawn:
                    axis.plot(value.flatten().numpy(), lw=1)
                    axis.tick_params(labelsize=5)
                    continue
                axis.set_axis_off()
                low, top = bounds
                if name in (title, "deviation"):  # each on a scale of its own
                    low = min(float(value.min()), 0.0)
                    top = max(float(value.max()), low + 1e-12)
                scaled = ((value - low) / (top - low)).clamp(0, 1)
                axis.imshow(scaled.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


def restoration(
    run: Run,
    operator: str,
    *,
    given: str | Path | None = None,
    rows: str | None = None,
    measured: bool = False,
    noise: float = 0.0,
    method: str | None = None,
    samples: int = 4,
    steps: int | None = None,
    seed: int = 0,
    label: str | None = None,
    average: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> Restoration:
    """What is to be restored, checked.

    Args:
        operator, method: a name and options, as `downsample:4` and `dps:zeta=0.3`.
        given: a file (.npz, .npy, an image) or a folder of images: clean samples to be damaged for a trial, or with
            `measured` what was measured. Without it, held-out samples of the run.
        rows: which of them, as 0-7,12; of held-out ones the first eight by default.
        noise: standard deviation, in the units of the data.
        steps: of the method; its published number by default.
        label: the class of all, by its name or number; by default none, where the model was trained to do without.

    Errors: ValueError for what does not fit the run, each other, or the method; FileExistsError for results that are
    there already, without `force`.
    """
    if run.space.kind not in ("images", "array"):
        raise ValueError(f"{run.folder} is of {run.space.kind}: images and arrays are restored")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is a standard deviation, 0 for none: got {noise}")
    if samples < 1 or (steps is not None and steps < 1):
        raise ValueError(f"at least 1 sample and 1 step are needed: got samples={samples}, steps={steps}")
    if measured and given is None:
        raise ValueError("what was measured is in a file: give --input")
    word = method or METHOD
    chosen, event = method_named(word), run.space.event
    made = operator_named(operator, event)
    target = Path(out) if out is not None else run.place("restored") / f"{_word(operator)}-{_word(word)}"
    if target.exists() and not target.is_dir():
        raise ValueError(f"--out {target} is a file: give a folder")
    if (there := [name for name in FILES if (target / name).exists()]) and not force:
        raise FileExistsError(f"{target / there[0]} is there already: choose another --out, or give --force")
    if given is None:
        x = run.split.held_out.rows(_numbered(rows or ROWS, len(run.split.held_out), "held-out samples"))[0]
    else:
        x = read_events(Path(given), made.measured if measured else event, run.space, measured)
        x = x if rows is None else x[_numbered(rows, len(x), f"samples in {given}")]
    truth = None if measured else x
    y = x if measured else damaged(made, x, noise, [derive(seed, "damage", i) for i in range(len(x))])
    model = run.model(average).to(Workers.best())
    cond = _cond(run, len(x), label)
    checked = Measurement.of(model, made, y, noise)
    chosen.check(model, checked)
    count = chosen.steps if steps is None else steps
    asked = {
        "operator": operator,
        "method": repr(chosen),
        "noise": noise,
        "steps": count,
        "measurements": len(y),
        "samples": samples,
        "seed": seed,
        "input": "held-out" if given is None else str(given),
        "rows": rows or (ROWS if given is None else "all"),
        "label": label,
    }
    where = next(model.parameters()).device
    moved = {name: value.to(where) for name, value in cond.items()} or None
    return Restoration(model, run.space, made, y, truth, noise, chosen, samples, count, seed, moved, asked, target)


def read_events(path: Path, shape: tuple[int, ...], space: Space, measured: bool = False) -> Tensor:
    """What a file or a folder of images holds, (n, *shape) in the data's units.

    Of an .npz the array x is taken (of what was measured also y, if its shape is right); one sample may stand alone,
    grey images without their channel, colours last.
    """
    path = path.expanduser()
    if not path.exists():
        raise FileNotFoundError(f"--input {path}: there is no such file or folder")
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return _from_images(path, shape, space, measured)
    if path.suffix.lower() not in (".npz", ".npy"):
        raise ValueError(f"--input {path}: give .npz, .npy, an image ({', '.join(SUFFIXES)}) or a folder of images")
    x = None
    if measured and path.suffix.lower() == ".npz":
        x = _array(path, "y", shape)
    x = read_arrays(path)[0] if x is None else x
    if (own := tuple(x.shape)) in (shape, shape[1:] if shape[0] == 1 else shape):
        x = x.reshape(1, *shape)
    elif shape[0] == 1 and own[1:] == shape[1:]:
        x = x[:, None]
    elif len(shape) == 3 and own[1:] == (*shape[1:], shape[0]):
        x = np.moveaxis(x, -1, 1)
    if x.shape[1:] != shape or not len(x):
        what = "a measurement by this operator is" if measured else "a sample of the run is"
        raise ValueError(f"--input {path}: {what} {shape}, and the file holds {own}")
    return check_numbers(str(path), x)


def _array(path: Path, name: str, shape: tuple[int, ...]) -> Any:
    """An array of an .npz if it is there in such a shape."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = file[name]
            return found if found.shape[1:] == shape else None
    except Exception:  # `read_arrays` says what is wrong with the file
        return None


def _from_images(path: Path, shape: tuple[int, ...], space: Space, measured: bool) -> Tensor:
    if len(shape) != 3 or shape[0] not in (1, 3) or not isinstance(space, ImageSpace):
        raise ValueError(f"--input {path}: pictures are no samples of shape {shape}: give .npz or .npy")
    if space.bounds is None:
        raise ValueError(f"--input {path}: what black and white are in the run's data is not known: give .npz or .npy")
    options: dict[str, Any] = {"size": shape[1:], "channels": shape[0]}
    if path.is_dir():
        data = read_folder(path, **options)
    else:
        data = read_images(Files([path]), None, (), name=str(path), **options)
    if measured and data.notes:
        raise ValueError(f"--input {path}: measured are {shape} as they are, but {data.notes[0]}")
    low, high = space.bounds
    return low + (high - low) * data.rows()[0]


def _cond(run: Run, n: int, label: str | None) -> dict[str, Tensor]:
    """The conditions of n restorations."""
    whole = run.space.complete(n)
    if not run.config.labels:
        if label is not None:
            raise ValueError(f"{run.folder} was trained without labels: ask for none")
        return whole
    if label is None:
        if not run.config.drop:
            raise ValueError(f"{run.folder} was trained with a label always (drop = 0): give --label")
        return {**whole, "label": torch.full((n,), NULL)}
    labels = run.labels_named(label)
    if labels is None or len(labels) != 1:
        raise ValueError(f"--label {label}: one class, by its name or number")
    return {**whole, "label": labels.expand(n)}


def _numbered(text: str, n: int, what: str) -> Tensor:
    """0-2,5 -> 0, 1, 2, 5, each below n."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ValueError(f"--rows {text}: give numbers from 0 and ranges of them, as 0-7,12")
        low, high = int(first), int(last if dash else first)
        if high >= n:
            raise ValueError(f"--rows {text}: there are {n} {what}, 0 to {n - 1}")
        found += range(low, high + 1)
    return torch.tensor(found)


def _word(text: str) -> str:
    """A name with its options, as part of a file's name."""
    return "".join(c if c.isalnum() or c in ".-=" else "_" for c in text)[:60]


def _pictures(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[1] in (1, 3)


def _mean(values: Tensor) -> float | None:
    """The mean, None where it is not finite: JSON has no such number."""
    mean = float(values.mean())
    return round(mean, 4) if math.isfinite(mean) else None
