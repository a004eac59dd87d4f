"""Steps per second of `orn.fit` against a bare PyTorch loop of the same arithmetic, interleaved in one run.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--batch 512] [--steps 40] [--rounds 15]

Both train the same MLP (4 x 256) for the same number of steps: Flow, velocity, uniform times, clipping, fused AdamW,
cosine schedule, EMA. The bare loop knows its process by heart and keeps no seeds a step, no checks, no history. Rounds
run them in turning order, so that a machine that slows down slows all, and the bare loop runs twice in each: the ratio
of its two times is the noise of the measurement. Times are those of the processor, since on a machine shared with
others the wall clock measures them too. The whole call of `fit` counts, its checks before the first step included.
Writes results/training.json and results/training.png beside this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import ornstein as orn
from ornstein.training import fit

RESULTS = Path(__file__).parent / "results"
Train = Callable[[nn.Module, Tensor, int, int], None]


def bare(net: nn.Module, data: Tensor, steps: int, batch: int) -> None:
    """The loop one writes by hand."""
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = [p.detach().clone() for p in parameters]
    order = torch.randperm(len(data))
    for step in range(steps):
        start = step * batch % (len(data) - batch)
        x0 = data.index_select(0, order[start : start + batch])
        t = torch.rand(batch)
        noise = torch.randn_like(x0)
        x = (1 - t)[:, None] * x0 + t[:, None] * noise
        loss = ((net(x, t) - (noise - x0)) ** 2).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-3)


def library(net: nn.Module, data: Tensor, steps: int, batch: int) -> None:
    """The same by the library."""
    fit(orn.Denoiser(net, orn.Flow()), data, steps=steps, batch_size=batch, warmup=0, progress=False)


def seconds(train: Train, net: nn.Module, data: Tensor, steps: int, batch: int) -> float:
    net = copy.deepcopy(net)
    start = time.process_time()
    train(net, data, steps, batch)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    data = torch.randn(20_000, 2)
    net = orn.nets.MLP(features=2, width=256, depth=4)
    machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "platform": platform.machine()}
    results: dict[str, object] = {"torch": torch.__version__, "machine": machine, "steps": args.steps, "runs": {}}
    runs: dict[str, dict[str, object]] = {}
    for batch in args.batch:
        contenders: dict[str, Train] = {"bare": bare, "bare again": bare, "fit": library}
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for train in (bare, library):
            seconds(train, net, data, 5, batch)  # warm-up
        for round_ in range(args.rounds):
            names = list(contenders)
            for name in names[round_ % 3 :] + names[: round_ % 3]:
                times[name].append(seconds(contenders[name], net, data, args.steps, batch))
        rate = {name: args.steps / statistics.median(values) for name, values in times.items()}
        # neighbours in time share the machine's mood: the median of their ratios is steadier than the ratio of medians
        ratio, noise = (
            statistics.median(f / b for f, b in zip(times[name], times["bare"], strict=True))
            for name in ("fit", "bare again")
        )
        runs[str(batch)] = {"steps_per_second": rate, "time_ratio": ratio, "noise_ratio": noise, "seconds": times}
        print(f"batch {batch}: bare {rate['bare']:.1f}, fit {rate['fit']:.1f} steps/s; time {ratio:.3f} ({noise:.3f})")
    results["runs"] = runs
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(runs, args.steps)


def plot(runs: dict[str, dict[str, object]], steps: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(runs), figsize=(3.6 * len(runs), 3), squeeze=False, layout="constrained")
    for axis, (batch, run) in zip(axes[0], runs.items(), strict=True):
        times = run["seconds"]
        assert isinstance(times, dict)
        for place, (name, values) in enumerate(times.items()):
            axis.plot([place] * len(values), [1e3 * v / steps for v in values], "o", alpha=0.4, label=name)
            axis.hlines(1e3 * statistics.median(values) / steps, place - 0.25, place + 0.25, colors="black")
        axis.set(
            title=f"batch {batch}: time ratio {run['time_ratio']:.3f} ({run['noise_ratio']:.3f})",
            ylabel="ms per step",
            ylim=(0, None),
        )
        axis.set_xticks(range(len(times)), list(times))
        axis.set_xlim(-0.6, len(times) - 0.4)
    figure.savefig(RESULTS / "training.png", dpi=110)


if __name__ == "__main__":
    main()
