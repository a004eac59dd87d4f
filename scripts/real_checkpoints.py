"""Published checkpoints with their own scheduler and with our solvers: same pipeline, same seeds, same steps.

Runs wherever the hub can be reached or its cache holds the checkpoint, and resumes: a run that was finished is not done
again. For each checkpoint the folder gets `results.json` (distances to a fine reference of the same model from the same
noise, seconds, device, versions), `images.png` (one row a run, one column a seed) and the images themselves as .npy.
What it finds holds for the machine, the versions and the checkpoints that it names, and for nothing else.

    python scripts/real_checkpoints.py [--checkpoint NAME-or-folder ...] [--steps 10,20] [--seeds 4] [--device cuda]
        [--dtype float16] [--reference 200] [--offline] [--out runs/checkpoints]

A distance is the root mean square over the pixels of an image in [0, 1], its median over the seeds. The reference is
our DPM-Solver++ of order 2 in many steps; the row "half the reference" says how far it can be trusted. Samplers that
draw fresh noise (DDPM) reach another image of the same law: their distance is not an error, and is marked.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

import ornstein as orn
from ornstein._extras import require
from ornstein.interop import OrnsteinScheduler
from ornstein.io.json import read_json, write_json

CHECKPOINTS = (
    "google/ddpm-cifar10-32",
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "black-forest-labs/FLUX.1-schnell",
    "facebook/DiT-XL-2-256",
)
PROMPTS = (
    "a red fox asleep in fresh snow, photograph",
    "a small harbour at dawn, oil painting",
    "a bowl of lemons on a blue table",
    "an old observatory under the milky way",
)
CLASSES = (207, 360, 387, 974)  # golden retriever, otter, red panda, geyser
SOLVERS: dict[str, orn.Solver] = {"ours, DPM++ 2M": orn.DPMSolverPP(), "ours, UniPC": orn.solvers.UniPC()}
FRESH_NOISE = ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Images = NDArray[np.float32]
Inputs = Callable[[int], dict[str, Any]]


def _texts(**options: Any) -> Inputs:
    return lambda n: {"prompt": [PROMPTS[i % len(PROMPTS)] for i in range(n)], **options}


INPUTS: dict[str, Inputs] = {
    "DDPMPipeline": lambda n: {"batch_size": n},
    "DiTPipeline": lambda n: {"class_labels": [CLASSES[i % len(CLASSES)] for i in range(n)], "guidance_scale": 4.0},
    "StableDiffusionPipeline": _texts(guidance_scale=7.5),
    "StableDiffusionXLPipeline": _texts(guidance_scale=5.0),
    "FluxPipeline": _texts(),
}
"""What a pipeline is asked for n images, beside their seeds."""


@dataclass
class Run:
    """One way to sample: a scheduler and its number of steps."""

    method: str
    steps: int
    scheduler: Any

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "-", f"{self.method} {self.steps}").lower()


def plan(original: Any, steps: Sequence[int], reference: int) -> list[Run]:
    """The reference first, then the published scheduler and ours at each number of steps."""

    def ours(solver: orn.Solver) -> Any:
        return OrnsteinScheduler.from_config(original, solver=solver, grid=orn.LogSNR())

    runs = [Run("reference", reference, ours(orn.DPMSolverPP()))]
    runs.append(Run("half the reference", reference // 2, ours(orn.DPMSolverPP())))
    for n in steps:
        runs.append(Run(f"published, {type(original).__name__}", n, original))
        runs += [Run(name, n, ours(solver)) for name, solver in SOLVERS.items()]
    return runs


def sample(pipe: Any, run: Run, seeds: int) -> tuple[Images, float]:
    """Images (n, height, width, channels) in [0, 1], one seed each, and the seconds that they took."""
    pipe.scheduler = run.scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    inputs = INPUTS[type(pipe).__name__](seeds)
    begun = time.perf_counter()
    images = pipe(**inputs, generator=generators, num_inference_steps=run.steps, output_type="np").images
    return np.asarray(images, dtype=np.float32), time.perf_counter() - begun  # on the host: the device has finished


def distance(images: Images, reference: Images) -> list[float]:
    """Root mean square over the pixels, one an image."""
    squared = (images.astype(np.float64) - reference) ** 2
    return [float(f"{value:.4g}") for value in np.sqrt(squared.reshape(len(images), -1).mean(1))]


def settings_of(pipe: Any, asked: argparse.Namespace, name: str) -> dict[str, Any]:
    """What every row of a results file has in common."""
    device = torch.device(asked.device)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "checkpoint": name,
        "revision": asked.revision,
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "seeds": asked.seeds,
        "reference_steps": asked.reference,
        "dtype": asked.dtype,
        "device": f"{device.type}, {named}",
        "ornstein": orn.__version__,
        "torch": torch.__version__,
        "diffusers": require("diffusers", extra="diffusers").__version__,
    }


def judge(name: str, asked: argparse.Namespace) -> Path:
    """Sample one checkpoint in every way that is not done yet; the folder of its results.

    Raises FileNotFoundError where the checkpoint cannot be had, ValueError where it is none that is known here, or the
    folder holds results of other settings.
    """
    options: dict[str, Any] = {}
    if not Path(name).exists():
        options = {"local_files_only": asked.offline, "revision": asked.revision}
    loaded: Any = orn.load(name, dtype=DTYPES[asked.dtype], device=asked.device, **options)
    pipe = loaded.pipeline
    if type(pipe).__name__ not in INPUTS:
        kind = "no pipeline" if pipe is None else f"a {type(pipe).__name__}"
        raise ValueError(f"{name} is {kind}: this script knows {', '.join(INPUTS)}")
    pipe.set_progress_bar_config(disable=True)
    folder = Path(asked.out) / re.sub(r"\W+", "-", name).strip("-")
    file = folder / "results.json"
    settings = settings_of(pipe, asked, name)
    found: dict[str, Any] = read_json(file) if file.exists() else {"settings": settings, "rows": {}}
    if found["settings"] != settings:
        other = [key for key in settings if found["settings"].get(key) != settings[key]]
        raise ValueError(
            f"{folder} holds results of other settings ({', '.join(other)}): give another --out, or delete the folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    reference: Images | None = None
    runs = plan(pipe.scheduler, asked.steps, asked.reference)
    for run in runs:
        path = folder / f"{run.name}.npy"
        if run.name in found["rows"] and path.exists():
            images = cast(Images, np.load(path))
        else:
            images, seconds = sample(pipe, run, asked.seeds)
            np.save(path, images)  # before its row, so that a row always has its images
            row = {"method": run.method, "steps": run.steps, "seconds": float(f"{seconds:.4g}")}
            if reference is not None:
                each = distance(images, reference)
                row |= {"distance": float(f"{np.median(each):.4g}"), "distances": each}
                row |= {"fresh_noise": type(run.scheduler).__name__ in FRESH_NOISE}
            found["rows"][run.name] = row
            write_json(file, found)
        reference = images if reference is None else reference
        show(found["rows"][run.name])
    picture(folder, runs, asked.seeds)
    return folder


def show(row: dict[str, Any]) -> None:
    """One line about one run."""
    how = f"distance {row['distance']:.4f}" if "distance" in row else ""
    how += "  (fresh noise: another image)" if row.get("fresh_noise") else ""
    print(f"  {row['method']:<40} {row['steps']:>4} steps  {row['seconds']:>8.4g} s  {how}", flush=True)


def picture(folder: Path, runs: Sequence[Run], seeds: int) -> None:
    """All images: one row a run, one column a seed."""
    plt = require("matplotlib.pyplot", extra="report")
    figure, axes = plt.subplots(
        len(runs), seeds, figsize=(2 * seeds + 3, 2 * len(runs)), squeeze=False, layout="constrained"
    )
    for row, run in zip(axes, runs, strict=True):
        for axis, image in zip(row, np.load(folder / f"{run.name}.npy"), strict=True):
            axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"{run.method}\n{run.steps} steps", rotation=0, ha="right", va="center", fontsize=9)
    figure.savefig(folder / "images.png", dpi=100)
    plt.close(figure)


def _steps(text: str) -> list[int]:
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError:
        steps = [0]
    if min(steps) < 1:
        raise argparse.ArgumentTypeError(f"steps are positive numbers such as 10,20: got {text!r}")
    return steps


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge the checkpoints, one after the other; 1 if one of them could not be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checkpoint", nargs="+", default=CHECKPOINTS, help="hub names or folders (default: five)")
    parser.add_argument("--steps", type=_steps, default=[10, 20], help="numbers of steps, e.g. 10,20")
    parser.add_argument("--seeds", type=int, default=4, help="images of each run")
    parser.add_argument("--reference", type=int, default=200, help="steps of the reference")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--revision", help="of the checkpoints on the hub")
    parser.add_argument("--offline", action="store_true", help="only what the hub's cache holds")
    parser.add_argument("--out", default="runs/checkpoints", help="folder of the results")
    asked = parser.parse_args(arguments)
    missing = []
    for name in asked.checkpoint:
        print(name, flush=True)
        try:
            print(f"  -> {judge(name, asked)}")
        except (FileNotFoundError, ValueError) as error:
            missing.append(name)
            print(f"  not judged: {str(error).partition(' (')[0]}", file=sys.stderr)
            if isinstance(error, FileNotFoundError):
                print(
                    "  It needs the hub (huggingface.co), a cache that holds the checkpoint (HF_HOME), or its folder: "
                    "--checkpoint path/to/folder. Gated checkpoints need a login there.",
                    file=sys.stderr,
                )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
