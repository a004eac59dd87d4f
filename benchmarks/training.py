"""What `orn.fit` costs beside a loop written by hand, and what it reaches beside other libraries' recipes.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--rounds 9] [--seconds 20] [--part loops|recipes]

Loops: examples per second of `fit` and of a bare PyTorch loop of the same arithmetic (Flow, velocity, uniform times,
clipping, fused AdamW, cosine schedule, EMA), for an MLP, a U-Net and a DiT, from a tensor in memory and through a
DataLoader. The bare loop knows its process by heart and keeps no seeds a step, no checks, no history. Rounds run them
in turning order, so that a machine that slows down slows all, and the bare loop runs twice in each: the ratio of its
two times is the noise of the measurement. Times are those of the processor, since on a machine shared with others the
wall clock measures them too. The whole call of `fit` counts, its checks before the first step included.

Recipes: torchcfm's conditional flow matching and diffusers' DDPM training, as their own examples write them, beside
`fit`, with the same network, data and batch, for the same processor time each, in a process each: steps done, peak
memory, and the squared MMD of 4,000 samples (each by its own sampler at 50 evaluations) to fresh data, beside that of
as many data. Writes results/training.json and results/training.png beside this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ornstein as orn
from ornstein.training import fit

RESULTS = Path(__file__).parent / "results"
Train = Callable[[nn.Module, Tensor, int, int], None]

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {  # network, event, batch, steps a round
    "MLP 4 x 256": (lambda: orn.nets.MLP(2, width=256, depth=4), (2,), 512, 40),
    "U-Net 32, 16 x 16": (lambda: orn.nets.UNet(1, width=32, levels=(1, 2), blocks=1), (1, 16, 16), 32, 6),
    "DiT 128, 16 x 16": (lambda: orn.nets.DiT(1, (16, 16), width=128, depth=4, heads=4, patch=4), (1, 16, 16), 64, 6),
}


def loader(data: Tensor, batch: int) -> DataLoader[Any]:
    items: Any = TensorDataset(data)
    return DataLoader(items, batch_size=batch, shuffle=True, drop_last=True)


def batches(data: Tensor, batch: int, through: bool) -> Iterator[Tensor]:
    while True:
        if through:
            for (x,) in loader(data, batch):
                yield x
        else:
            order = torch.randperm(len(data))
            for start in range(0, len(data) - batch + 1, batch):
                yield data.index_select(0, order[start : start + batch])


def bare(through: bool) -> Train:
    """The loop one writes by hand."""

    def train(net: nn.Module, data: Tensor, steps: int, batch: int) -> None:
        parameters = list(net.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        average = [p.detach().clone() for p in parameters]
        source = batches(data, batch, through)
        for step in range(steps):
            x0 = next(source)
            t = torch.rand(batch)
            s = t.reshape(-1, *(1,) * (x0.dim() - 1))
            noise = torch.randn_like(x0)
            loss = ((net((1 - s) * x0 + s * noise, t) - (noise - x0)) ** 2).mean() / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1e-3)

    return train


def library(through: bool) -> Train:
    """The same by the library."""

    def train(net: nn.Module, data: Tensor, steps: int, batch: int) -> None:
        source: Any = loader(data, batch) if through else data
        fit(orn.Denoiser(net, orn.Flow()), source, steps=steps, batch_size=batch, warmup=0, progress=False)

    return train


def seconds(train: Train, net: nn.Module, data: Tensor, steps: int, batch: int) -> float:
    net = copy.deepcopy(net)
    start = time.process_time()
    train(net, data, steps, batch)
    return time.process_time() - start


def loops(rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (make, event, batch, steps) in NETS.items():
        torch.manual_seed(0)
        data, net = torch.randn(max(20_000 // math.prod(event), 40 * batch), *event), make()
        for through in (False, True):
            contenders = {"bare": bare(through), "bare again": bare(through), "fit": library(through)}
            times: dict[str, list[float]] = {key: [] for key in contenders}
            for key in ("bare", "fit"):
                seconds(contenders[key], net, data, 2, batch)  # warm-up
            for k in range(rounds):
                keys = list(contenders)
                for key in keys[k % 3 :] + keys[: k % 3]:
                    times[key].append(seconds(contenders[key], net, data, steps, batch))
            rate = {key: steps * batch / statistics.median(values) for key, values in times.items()}
            # neighbours in time share the machine's mood: the median of their ratios is steadier than that of medians
            ratio, noise = (
                statistics.median(f / b for f, b in zip(times[key], times["bare"], strict=True))
                for key in ("fit", "bare again")
            )
            label = f"{name}, {'DataLoader' if through else 'tensor'}"
            found[label] = {
                "examples_per_second": rate, "time_ratio": ratio, "noise_ratio": noise, "steps": steps, "seconds": times
            }  # fmt: skip
            print(f"{label}: bare {rate['bare']:.0f}, fit {rate['fit']:.0f} examples/s; time {ratio:.3f} ({noise:.3f})")
    return found


# --- recipes ---------------------------------------------------------------------------------------------------------

BATCH, RATE = 512, 1e-3


def world() -> orn.exact.GaussianMixture:
    angle = torch.arange(6) * math.pi / 3
    return orn.exact.GaussianMixture(torch.stack([angle.cos(), angle.sin()], 1), torch.full((6,), 0.15))


def by_fit(net: nn.Module, data: Tensor, limit: float) -> tuple[int, Callable[[int], Tensor]]:
    model = orn.Denoiser(net, orn.Flow())
    start = time.process_time()
    fit(orn.Denoiser(copy.deepcopy(net), orn.Flow()), data, steps=100, batch_size=BATCH, progress=False)
    steps = int(100 * limit / (time.process_time() - start))  # what the time allows, by a trial that is not counted
    fit(model, data, steps=steps, batch_size=BATCH, lr=RATE, progress=False)
    return steps, lambda n: orn.sample(model, (n, 2), nfe=50, seed=1).x


def by_torchcfm(net: nn.Module, data: Tensor, limit: float) -> tuple[int, Callable[[int], Tensor]]:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    matcher, optimizer, steps = ConditionalFlowMatcher(sigma=0.0), torch.optim.Adam(net.parameters(), RATE), 0
    start = time.process_time()
    while time.process_time() - start < limit:
        x1 = data[torch.randint(len(data), (BATCH,))]
        t, xt, ut = matcher.sample_location_and_conditional_flow(torch.randn_like(x1), x1)
        loss = ((net(xt, t) - ut) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1

    @torch.no_grad()
    def draw(n: int) -> Tensor:
        x = torch.randn(n, 2)
        for k in range(50):
            x = x + net(x, torch.full((n,), k / 50)) / 50
        return x

    return steps, draw


def by_diffusers(net: nn.Module, data: Tensor, limit: float) -> tuple[int, Callable[[int], Tensor]]:
    from diffusers import DDIMScheduler, DDPMScheduler
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    noiser = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(net.parameters(), RATE)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, 100_000)
    ema, steps = EMAModel(net.parameters(), decay=0.999), 0
    start = time.process_time()
    while time.process_time() - start < limit:
        x = data[torch.randint(len(data), (BATCH,))]
        noise, at = torch.randn_like(x), torch.randint(1000, (BATCH,))
        loss = nn.functional.mse_loss(net(noiser.add_noise(x, noise, at), at / 1000), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(net.parameters())
        steps += 1
    ema.copy_to(net.parameters())

    @torch.no_grad()
    def draw(n: int) -> Tensor:
        scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
        scheduler.set_timesteps(50)
        x = torch.randn(n, 2)
        for at in scheduler.timesteps:
            x = scheduler.step(net(x, (at / 1000).expand(n)), at, x).prev_sample
        return x

    return steps, draw


RECIPES = {"ornstein": by_fit, "torchcfm": by_torchcfm, "diffusers": by_diffusers}


def recipe(name: str, limit: float, seed: int) -> dict[str, Any]:
    """One recipe in this process."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    net, data = orn.nets.MLP(2, width=256, depth=4), world().sample(20_000, seed=0)
    steps, draw = RECIPES[name](net, data, limit)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fresh, other = world().sample(4_000, seed=1), world().sample(4_000, seed=2)
    mmd = orn.metrics.mmd
    torch.manual_seed(seed + 1)
    made, real = float(mmd(draw(4_000), fresh)), float(mmd(other, fresh))
    return {"steps": steps, "peak_memory_mb": peak / 1e3, "mmd2": made, "data_mmd2": real}


def recipes(limit: float, seeds: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: [] for name in RECIPES}
    for seed in range(seeds):
        for name in RECIPES:
            command = [sys.executable, __file__, "--recipe", name, "--seconds", str(limit), "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, found[name][-1])
    return {"seconds": limit, "batch": BATCH, "runs": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("loops", "recipes"))
    parser.add_argument("--recipe", choices=tuple(RECIPES), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.recipe:
        print(json.dumps(recipe(args.recipe, args.seconds, args.seed)))
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    path = RESULTS / "training.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results = {key: value for key, value in results.items() if key in ("loops", "recipes")}
    results["torch"] = torch.__version__
    results["machine"] = {
        "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "platform": platform.machine()
    }  # fmt: skip
    if args.part != "recipes":
        results["loops"] = loops(args.rounds)
    if args.part != "loops":
        results["recipes"] = recipes(args.seconds, args.seeds)
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    plot(results)


def plot(results: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    runs = results.get("loops", {})
    for place, run in enumerate(runs.values()):
        ratios = [f / b for f, b in zip(run["seconds"]["fit"], run["seconds"]["bare"], strict=True)]
        left.plot(ratios, [place] * len(ratios), "o", color="C0", alpha=0.4)
        left.plot([run["time_ratio"]], [place], "|", color="black", markersize=16)
    left.axvline(1.05, color="C3", ls="--", lw=1)
    left.set_yticks(range(len(runs)), list(runs))
    left.set(xlabel="time of fit / bare loop (line: 1.05)")
    both = results.get("recipes", {}).get("runs", {})
    for place, (name, values) in enumerate(both.items()):
        right.plot([place] * len(values), [max(v["mmd2"], 1e-6) for v in values], "o", label=name)
    if both:
        right.axhline(max(1e-6, next(iter(both.values()))[0]["data_mmd2"]), color="black", ls="--", lw=1)
        right.set_xticks(range(len(both)), list(both))
        right.set(ylabel=f"squared MMD after {results['recipes']['seconds']:g} s (line: data)", yscale="log")
    figure.savefig(RESULTS / "training.png", dpi=110)


if __name__ == "__main__":
    main()
