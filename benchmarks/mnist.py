"""MNIST, class by class, by `ornstein train` on two cores, judged in the features of a classifier trained here.

    python benchmarks/mnist.py --data mnist.npz [--steps 3000] [--out runs/mnist]

The file holds train_images, train_labels, test_images and test_labels, the images (n, 28, 28) in uint8. A U-Net of
0.7 million parameters is trained by the same code as the command

    ornstein train --data mnist-train.npz --steps 3000 --batch-size 128 --lr 2e-3 --set net.width=32 \\
        --set net.depth=1 --set precision=bf16 --set drop=0.1 --set ema=0.995

and sampled with a label each. A small convolutional classifier is trained on the training images; the Fréchet distance
is of its 64 features, of 2,000 samples to the 2,000 test images whose labels they carry. Beside it stands what as many
real images score (of the training set to the test set, and of another part of the test set), and the same model after a
tenth of the training. Memorisation: the distance of a sample to its
nearest training image, over that of test images, in pixels. Writes results/mnist.json beside this file and
docs/mnist.png; an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ornstein.metrics import frechet_distance, nearest_neighbour_ratio
from ornstein.report.figures import image
from ornstein.report.run import Run

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "mnist.png"


def arrays(path: Path) -> list[Tensor]:
    """Training images, their labels, test images and theirs, the images (n, 1, 28, 28) in uint8."""
    with np.load(path, allow_pickle=False) as file:
        train, test = (torch.from_numpy(file[f"{part}_images"])[:, None] for part in ("train", "test"))
        return [
            train,
            torch.from_numpy(file["train_labels"]).long(),
            test,
            torch.from_numpy(file["test_labels"]).long(),
        ]


def classifier(x: Tensor, y: Tensor, path: Path) -> nn.Sequential:
    """A classifier whose last features are 64 numbers, trained on all training images, three times over."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2, padding=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    from ornstein.training import load_weights, save_weights

    if path.exists():
        load_weights(net, path)
        return net.eval()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    steps = 3 * len(x) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        index = torch.randint(len(x), (128,))
        loss = nn.functional.cross_entropy(net(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    save_weights(net, path)
    return net.eval()


@torch.no_grad()
def features(net: nn.Sequential, x: Tensor) -> Tensor:
    return torch.cat([net[:-1](part) for part in x.split(1000)])


@torch.no_grad()
def right(net: nn.Sequential, x: Tensor, y: Tensor) -> float:
    return float((torch.cat([net(part) for part in x.split(1000)]).argmax(1) == y).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--n", type=int, default=2_000)
    args = parser.parse_args()
    x, y, test_x, test_y = arrays(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    source = args.out / "mnist-train.npz"
    if not source.exists():
        np.savez(source, x=x[:, 0].numpy(), y=y.numpy())
    x, test_x = x / 255, test_x / 255
    judge = classifier(x, y, args.out / "classifier.safetensors")
    real = features(judge, test_x[: args.n])
    held: dict[str, Any] = {}
    for name, steps in (("model", args.steps), ("a tenth of the training", args.steps // 10)):
        values = {
            "data": str(source.resolve()), "held_out": 0.02, "net": {"kind": "unet", "width": 32, "depth": 1},
            "steps": steps, "batch_size": 128, "lr": 2e-3, "ema": 0.995, "precision": "bf16", "drop": 0.1,
        }  # fmt: skip
        run = Run.create(args.out / name.replace(" ", "-"), values)
        begun = time.time()
        run.train()
        seconds = time.time() - begun
        kept = args.out / name.replace(" ", "-") / "seconds.json"
        if seconds > 30:  # a complete run returns at once, and is not timed again
            kept.write_text(json.dumps(seconds))
        seconds = json.loads(kept.read_text()) if kept.exists() else seconds
        rows = []
        for guidance in (1.0, 1.5) if name == "model" else (1.0,):
            begun = time.time()
            with torch.autocast("cpu", torch.bfloat16):  # as it was trained; the state stays in float32
                made = run.sample(args.n, labels=test_y[: args.n], steps=16, guidance=guidance, seed=0)
            samples = made.x / 255
            rows.append(
                {
                    "guidance": guidance,
                    "nfe": made.nfe,
                    "frechet": frechet_distance(features(judge, samples), real),
                    "label_accuracy": right(judge, samples, test_y[: args.n]),
                    "nearest_ratio": nearest_neighbour_ratio(samples, x, test_x),
                    "sampling_seconds": time.time() - begun,
                }
            )
            print(name, rows[-1])
            if name == "model" and guidance == 1.0:
                order = torch.cat([(test_y[: args.n] == k).nonzero()[:10, 0] for k in range(10)])
                PICTURE.write_bytes(image(samples[order], columns=10, bounds=(0.0, 1.0)))
        held[name] = {"steps": steps, "training_seconds": seconds, "samples": rows}
    pick = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: args.n]
    other = features(judge, test_x[args.n : 2 * args.n])
    results = {
        "torch": torch.__version__,
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "platform": platform.machine()},
        "models": held,
        "real": {
            "frechet_training_to_test": frechet_distance(features(judge, x[pick]), real),
            "frechet_within_test": frechet_distance(other, real),
            "classifier_accuracy": right(judge, test_x, test_y),
        },
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "mnist.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["real"]))


if __name__ == "__main__":
    main()
