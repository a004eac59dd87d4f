"""Every method of orn.inverse on the standard tasks of restoration, with trained priors: digits, and MNIST.

    python benchmarks/restoration.py [--mnist RUN --data FILE] [--methods dps mmps ...] [--again] [--plot]

Small on purpose: 16 held-out images (8 of MNIST), 100 evaluations of the network a sample (gradient passes counted),
each method with its published options, one machine. Seven tasks (box and random inpainting, super-resolution x2, blur,
compressed sensing by Hadamard patterns, sparse Fourier, sparse tomography) with noise of 0.05 of the range of the data.
A method that takes a measurement as exact and refuses noise gets it without: its rows say `noise: 0`, and its figures
are of that easier problem. What a method refuses is in `left_out`, with its reason.

  digits  8 x 8, an MLP trained here for two minutes without labels and kept (`--cache`); four samples of each
  mnist   with `--mnist`, in place of them: 28 x 28, a run of `ornstein train`, asked without a label; FILE is an
          .npz with train_images, train_labels, test_images and test_labels; one sample of each

Figures: PSNR and SSIM of the mean of the samples (of MNIST: of the sample) and of a sample, in the range of the data;
`consistency`, |y - A x| as root mean square over that of the true noise (1 is right; without noise: of the range);
label accuracy, the share of samples that a classifier of real images takes for what the image was. Without noise a
perfect sample is not at PSNR infinity: what is hidden stays unknown.

Writes benchmarks/results/restoration-inverse.json, a row as soon as it is there, and restoration-inverse.png. What is
there already stays without `--again`, so new methods join.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import platform
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import ornstein as orn
from ornstein.interop import save
from ornstein.linops import LinearOperator
from ornstein.metrics import LabelClassifier, fit_classifier, label_accuracy, psnr, ssim
from ornstein.report.operators import damaged, method_named, methods, operator_named
from ornstein.report.run import Run

RESULTS = Path(__file__).parent / "results"
PLACE = RESULTS / "restoration-inverse.json"
IMAGES, FEW, NFE, NOISE = 16, 8, 100, 0.05
TASKS = {
    "box inpainting": "box",
    "random inpainting": "random:keep=0.3",
    "super-resolution": "downsample:2",
    "blur": "blur:1",
    "Hadamard": "hadamard:keep=0.25",
    "sparse Fourier": "fourier:keep=0.25",
    "sparse Radon": "radon:views=4",
}
LARGER = {"blur": "blur:2", "sparse Radon": "radon:views=8"}
"""Of MNIST, in place of those."""


@dataclass(frozen=True)
class World:
    """A prior, held-out images of its data with their labels, and a classifier of real ones."""

    name: str
    model: orn.Denoiser
    x: Tensor
    labels: Tensor
    bounds: tuple[float, float]
    judge: LabelClassifier
    samples: int
    cond: dict[str, Tensor] | None = None

    @property
    def range(self) -> float:
        return self.bounds[1] - self.bounds[0]

    def operator(self, task: str) -> LinearOperator:
        spec = TASKS[task] if self.name == "digits" else LARGER.get(task, TASKS[task])
        return operator_named(spec, tuple(self.x.shape[1:]))


def digits(cache: Path) -> World:
    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(data.data)[order].float().reshape(-1, 1, 8, 8) / 16
    y = torch.from_numpy(data.target)[order]
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        net = orn.nets.MLP((1, 8, 8), width=384, depth=4)
        model = orn.Denoiser(net, orn.EDM(), precondition=orn.EDMPrecondition(1.0), scaling=orn.Scaling.of(x[:1500]))
        objective = orn.training.Objective(orn.training.LogNormalSigma(-0.5, 1.2))
        begun = time.process_time()
        options: dict[str, Any] = {"steps": 2500, "batch_size": 256, "lr": 1e-3, "ema": 0.995, "seed": 0}
        orn.fit(model, x[:1500], objective=objective, **options)
        print(f"digits: trained in {time.process_time() - begun:.0f} CPU seconds")
        save(model, cache)
    judge = fit_classifier(x[:1500], y[:1500], seed=0, held_out=(x[1500:], y[1500:]))
    return World("digits", orn.load(cache), x[1500 : 1500 + IMAGES], y[1500 : 1500 + IMAGES], (0.0, 1.0), judge, 4)


def mnist(run: Path, data: Path) -> World:
    with np.load(data, allow_pickle=False) as file:
        train, test = (torch.from_numpy(file[f"{part}_images"])[:6000, None].float() for part in ("train", "test"))
        known, labels = (torch.from_numpy(file[f"{part}_labels"])[:6000].long() for part in ("train", "test"))
    judge = fit_classifier(train, known, seed=0, held_out=(test[FEW:1000], labels[FEW:1000]))
    cond = {"label": torch.full((FEW,), orn.nets.NULL)}
    return World("mnist", Run.open(run).model(), test[:FEW], labels[:FEW], (0.0, 255.0), judge, 1, cond)


def measure(world: World, task: str, name: str) -> tuple[dict[str, Any], Tensor]:
    """The row of a method on a task, and its samples (n, samples, *event)."""
    operator, method, std = world.operator(task), method_named(name), NOISE * world.range
    clean, y = operator(world.x), damaged(operator, world.x, std, 0)
    options: dict[str, Any] = {"method": method, "samples": world.samples, "cond": world.cond, "seed": 0, "nfe": NFE}
    begun = time.process_time()
    try:
        out = orn.restore(world.model, operator, y, noise=std, progress=False, **options)
    except ValueError as error:
        if "exact" not in str(error):
            raise
        y, std = clean, 0.0
        out = orn.restore(world.model, operator, y, noise=std, progress=False, **options)
    seconds = time.process_time() - begun
    (low, high), truth = world.bounds, world.x
    each, mean = out.samples.clamp(low, high), out.mean.clamp(low, high)
    flat, again = each.flatten(0, 1), truth.repeat_interleave(world.samples, 0)
    measured = operator.check_measurement(torch.ones_like(y)).sum()  # as the residual counts
    scale = float(((y - clean).square().sum() / measured).sqrt()) or world.range
    row = {
        "world": world.name, "task": task, "method": name, "noise": std / world.range, "nfe": out.nfe,
        "psnr": psnr(mean, truth, world.bounds), "psnr_of_a_sample": psnr(flat, again, world.bounds),
        "ssim": ssim(mean, truth, world.bounds), "ssim_of_a_sample": ssim(flat, again, world.bounds),
        "consistency": out.residual.square().mean().sqrt() / scale,
        "label_accuracy": label_accuracy(world.judge, flat, world.labels.repeat_interleave(world.samples)),
    }  # fmt: skip
    figures = {k: round(float(v.mean()), 6) if isinstance(v, Tensor) else v for k, v in row.items()}
    errors = psnr(mean, truth, world.bounds)
    figures["psnr_standard_error"] = round(float(errors.std() / math.sqrt(len(errors))), 4)
    return {**figures, "seconds": round(seconds, 1)}, out.samples


def packed(image: Tensor, bounds: tuple[float, float]) -> str:
    low, high = bounds
    pixels = (255 * (image - low) / (high - low)).clamp(0, 255).round().to(torch.uint8)
    return base64.b64encode(zlib.compress(bytes(pixels.flatten().tolist()), 9)).decode()


def unpacked(text: str) -> Any:
    pixels = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return pixels.reshape(math.isqrt(len(pixels)), -1)


def run(world: World, names: Sequence[str], found: dict[str, Any], again: bool) -> None:
    """Every task by every method, written as soon as it is there."""
    pictures = found.setdefault("pictures", {}).setdefault(world.name, {})
    for at, task in enumerate(TASKS):
        operator, i = world.operator(task), (2 * at) % len(world.x)
        y = damaged(operator, world.x, NOISE * world.range, 0)
        back = y if y.shape == world.x.shape else operator.adjoint(y)
        back = back * (world.x.norm() / back.norm())
        shown = pictures.setdefault(task, {})
        shown |= {"truth": packed(world.x[i], world.bounds), "measured": packed(back[i], world.bounds)}
        for name in names:
            key = {"world": world.name, "task": task, "method": name}
            there = [row for row in found["rows"] + found["left_out"] if key.items() <= row.items()]
            if there and not again:
                continue
            for part in ("rows", "left_out"):
                found[part] = [row for row in found[part] if row not in there]
            try:
                row, samples = measure(world, task, name)
                found["rows"].append(row)
                shown[name] = packed(samples[i, 0], world.bounds)
                print(
                    {
                        k: row[k]
                        for k in ("world", "task", "method", "nfe", "psnr", "consistency", "label_accuracy", "seconds")
                    }
                )
            except (ValueError, TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
                found["left_out"].append({**key, "reason": str(error)[:200]})
                print("left out:", found["left_out"][-1])
            PLACE.write_text(json.dumps(found, indent=1) + "\n")


def plot(found: dict[str, Any], path: Path) -> None:
    """Of the largest world a row a task: the truth, what was measured, and a sample of every method that has them all.

    With * the measurement is exact; what is no picture is shown as A^T y."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    world = "mnist" if "mnist" in found["pictures"] else "digits"
    pictures = found["pictures"][world]
    names = sorted(set.intersection(*(set(shown) for shown in pictures.values())) - {"truth", "measured"})
    exact = {row["method"] for row in found["rows"] if row["noise"] == 0}
    columns = ["truth", "measured", *names]
    figure, grid = plt.subplots(
        len(pictures), len(columns), figsize=(0.72 * len(columns), 0.78 * len(pictures) + 0.4), layout="constrained"
    )
    for row, (task, shown) in zip(grid, pictures.items(), strict=True):
        for axis, column in zip(row, columns, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.set_frame_on(False)
            if column in shown:
                axis.imshow(unpacked(shown[column]), cmap="gray_r", vmin=0, vmax=255)
        row[0].set_ylabel(task.replace(" ", "\n"), fontsize=7, rotation=0, ha="right", va="center")
    for axis, column in zip(grid[0], columns, strict=True):
        axis.set_title(f"{column.replace(':', chr(10))}{'*' if column in exact else ''}", fontsize=7, va="bottom")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def summary(found: dict[str, Any], world: str) -> str:
    """Means over the tasks as a table of Markdown, the best PSNR first."""
    head = ["method", "noise", "evaluations", "PSNR", "SSIM", "consistency", "label accuracy"]
    rows = []
    for name in {row["method"] for row in found["rows"] if row["world"] == world}:
        own = [row for row in found["rows"] if row["world"] == world and row["method"] == name]
        mean = {
            k: sum(row[k] for row in own) / len(own) for k in ("psnr", "ssim", "consistency", "label_accuracy", "nfe")
        }
        rows.append((mean["psnr"], [
            f"`{name}`{'' if len(own) == len(TASKS) else f' ({len(own)} tasks)'}", f"{own[0]['noise']:g}",
            f"{mean['nfe']:.0f}", f"{mean['psnr']:.1f}", f"{mean['ssim']:.2f}", f"{mean['consistency']:.2g}",
            f"{mean['label_accuracy']:.2f}",
        ]))  # fmt: skip
    body = [cells for _, cells in sorted(rows, key=lambda row: -row[0])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder of a run of MNIST: that world in place of digits")
    parser.add_argument("--data", type=Path, help="its .npz of images and labels")
    parser.add_argument("--cache", type=Path, default=Path("runs/restoration-digits.safetensors"))
    parser.add_argument("--methods", nargs="*", help="all of orn.inverse by default")
    parser.add_argument("--again", action="store_true", help="measure what is there already too")
    parser.add_argument("--plot", action="store_true", help="picture and tables alone")
    parser.add_argument("--picture", type=Path, default=RESULTS / "restoration-inverse.png")
    args = parser.parse_args()
    if (args.mnist is None) is not (args.data is None):
        parser.error("--mnist and --data go together")
    found = json.loads(PLACE.read_text()) if PLACE.exists() else {"rows": [], "left_out": []}
    if not args.plot:
        machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "platform": platform.machine()}
        found |= {
            "torch": torch.__version__,
            "machine": machine,
            "images": {"digits": IMAGES, "mnist": FEW},
            "evaluations": NFE,
            "noise": NOISE,
        }
        worlds = [mnist(args.mnist, args.data)] if args.mnist else [digits(args.cache)]
        for world in worlds:
            real = label_accuracy(world.judge, world.x, world.labels)
            found.setdefault("real", {})[world.name] = {"classifier": world.judge.accuracy, "these_images": real}
            run(world, args.methods or sorted(methods()), found, args.again)
    plot(found, args.picture)
    for world in found["pictures"]:
        print(f"\n{world}\n{summary(found, world)}")


if __name__ == "__main__":
    main()
