"""Tuned tables beside the best named sampler of each budget, on starts that neither has seen.

    python benchmarks/tuned.py [--worlds ring digits ...] [--budgets 4 5 ...] [--mnist RUN]

A 2-D mixture of six modes, a 64-D mixture on images of digits, a low-rank mixture in 256-D, a small network trained on
digits under guidance 3, and a network of one's own trained on MNIST (`--mnist`, a file of `orn.save`). Truth is each
model's own flow by a fine solver. The opponents (`named.py`, and `peers.py` where installed) are chosen on the tuning
starts, each with its own best grid; a peer, which starts at a level of its own, is judged from there. The figure is
the endpoint RMSE over that of the best opponent, on fresh starts, with a bootstrap interval of 95 % over them; beside
it the sliced Wasserstein distance of the endpoints to the flow's. Writes benchmarks/results/tuned.json and tuned.png.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from named import calibrated, tables
from peers import peers
from sklearn.datasets import load_digits
from torch import Tensor

import ornstein as orn
from ornstein.tuning import Distribution, Lessons, reduce, teach, tune

RESULTS = Path(__file__).parent / "results"
BUDGETS = (4, 5, 6, 8, 10, 15)
F64 = torch.float64
FLOW = orn.Flow()  # by x/alpha it stands for every process
FINE = 200
FEW = 64  # starts on which all opponents are tried; the best go on to all


@dataclass
class World:
    """A model with its lessons."""

    model: orn.BaseDenoiser
    data: Tensor
    tuning: Lessons
    fresh: Lessons
    cond: dict[str, Tensor] | None
    truths: dict[int, dict[tuple[float, float], Tensor]] = field(default_factory=dict)


every_peer = cache(peers)


def world(model: orn.BaseDenoiser, data: Tensor, starts: int, fresh: int, labels: int = 0) -> World:
    dtype = next((p.dtype for p in model.parameters()), F64)

    def lessons(count: int, seed: int) -> Lessons:
        cond = {"label": torch.arange(count) % labels} if labels else None
        return teach(model, (count, *data.shape[1:]), cond=cond, seed=seed, steps=FINE, dtype=dtype)

    cond = {"label": torch.arange(len(data)) % labels} if labels else None
    return World(model, data, lessons(starts, 1), lessons(fresh, 2), cond)


def ring() -> World:
    angles = torch.arange(6, dtype=F64) * math.pi / 3
    means = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    own = orn.exact.GaussianMixture(means, torch.full((6,), 0.15, dtype=F64), torch.tensor([1.0, 2, 3, 1, 2, 3]))
    return world(own.denoiser(FLOW), own.sample(64), 2048, 4096)


def digits() -> World:
    data = load_digits()
    means = torch.cat([torch.as_tensor(data.data[data.target == k][:4]) for k in range(10)]) / 8 - 1
    own = orn.exact.GaussianMixture(means, torch.full((40,), 0.15, dtype=F64))
    return world(own.denoiser(FLOW), own.sample(64), 1024, 1024)


def low_rank() -> World:
    rng = torch.Generator().manual_seed(0)
    means = 0.7 * torch.randn(8, 256, generator=rng, dtype=F64)
    factors = torch.randn(8, 256, 8, generator=rng, dtype=F64) * torch.logspace(0, -1, 8, dtype=F64)
    own = orn.exact.GaussianMixture(means, torch.full((8,), 0.1, dtype=F64), factors=factors)
    return world(own.denoiser(FLOW), own.sample(64), 512, 512)


def trained() -> World:
    """A network on all digits with their labels, under guidance 3."""
    data = load_digits()
    x, y = torch.as_tensor(data.data, dtype=torch.float32) / 8 - 1, torch.as_tensor(data.target)
    torch.manual_seed(0)
    net = orn.nets.MLP(64, labels=10, width=192, depth=3)
    model = orn.Denoiser(net, FLOW, predicts="velocity", null={"label": orn.nets.NULL})
    orn.fit(model, x, cond={"label": y}, drop={"label": 0.1}, steps=3_000, batch_size=256, seed=0, progress=False)
    return world(orn.CFG(model, 3.0), x[:60], 512, 512, labels=10)


def saved(path: str) -> World:
    """A model of one's own, whose process is a Gaussian one."""
    model = orn.load(path)
    shape = tuple(model.net.event) if hasattr(model.net, "event") else (1, 28, 28)
    return world(model, torch.randn(32, *shape), 64, 128)


def fine(model: orn.BaseDenoiser, z: Tensor, first: float, last: float, cond: Any) -> Tensor:
    """x/alpha where the flow takes y = first z from one level sigma/alpha to another."""
    times = torch.tensor([v / (1 + v) for v in (first, last)], dtype=F64)
    if last > 0:
        levels = torch.linspace(-2 * math.log(first), -2 * math.log(last), FINE + 1, dtype=F64)
        grid = FLOW.level(FLOW.time(levels))
    else:
        levels = torch.linspace(-2 * math.log(first), 13.0, FINE, dtype=F64)
        grid = FLOW.level(torch.cat([FLOW.time(levels), torch.zeros(1, dtype=F64)]))
    kept: list[Tensor] = []
    solver = orn.solvers.UniPC(order=3, variant="vary_coeff")
    x = first * z * (1 - float(times[0]))
    orn.sample(model, x_init=x, cond=cond, solver=solver, grid=grid, hooks=[lambda m: kept.append(m.x)], progress=False)
    return kept[-1] / (1 - float(times[1]))


def run_peers(own: World, lessons: Lessons, nfe: int, chosen: str | None = None) -> dict[str, Tensor]:
    """Errors of the starts, by peer: of all, or of one."""
    found: dict[str, Tensor] = {}
    truths = own.truths.setdefault(id(lessons), {})

    def denoise(y: Tensor, sigma: float) -> Tensor:
        t = sigma / (1 + sigma) if math.isfinite(sigma) else 1.0
        with torch.no_grad():
            return own.model((y * (1 - t) if t < 1 else y).to(lessons.starts), t, lessons.cond).x0.to(y)

    for name, peer in every_peer().items():
        if (chosen is not None and name != chosen) or "SD" in name:  # levels 14.6 to 0.029 alone are an easier task
            continue
        for steps in range(nfe, 0, -1):
            calls: list[float] = []
            try:
                peer(lambda y, sigma, calls=calls: calls.append(sigma) or 0.5 * y, torch.zeros(2, 2, dtype=F64), steps)
            except Exception:  # some take no fewer than their order
                break
            if len(calls) > nfe:
                continue
            y, first, last = peer(denoise, lessons.starts, steps)
            if not math.isfinite(first):
                first = 1e6
            key = round(first, 6), round(last, 9)
            if key not in truths:
                truths[key] = fine(own.model, lessons.starts, first, last, lessons.cond)
            apart = (y - truths[key]).to(F64)
            if bool(apart.isfinite().all()):
                found[name] = apart.flatten(1).square().mean(1).sqrt()
            break
    return found


def rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


def interval(own: Tensor, other: Tensor, draws: int = 2000) -> tuple[float, float]:
    """95 % of the ratio of the root mean squares, the starts drawn again in pairs."""
    rows = torch.randint(len(own), (draws, len(own)), generator=torch.Generator().manual_seed(0))
    ratio = (own.square()[rows].mean(1) / other.square()[rows].mean(1)).sqrt()
    low, high = torch.quantile(ratio, torch.tensor([0.025, 0.975], dtype=F64)).tolist()
    return low, high


def compare(name: str, own: World, budgets: tuple[int, ...], with_peers: bool) -> Iterator[dict[str, Any]]:
    """A row for each budget."""
    few = own.tuning.take(torch.arange(FEW))
    grids = calibrated(own.model, few, own.data, own.cond, BUDGETS)
    for nfe in budgets:
        found = tables(FLOW, nfe, grids)
        first = sorted(found, key=lambda n: few.endpoint_error(found[n]))[:10]
        best = min(first, key=lambda n: own.tuning.endpoint_error(found[n]))
        errors, score = own.fresh.errors(found[best]), own.tuning.endpoint_error(found[best])
        opponent, opponents = best, len(found)
        if with_peers:
            theirs = run_peers(own, few, nfe)
            opponents += len(theirs)
            ahead = min(theirs, key=lambda n: rms(theirs[n]), default=None)
            if ahead is not None and rms(run_peers(own, own.tuning, nfe, ahead)[ahead]) < score:
                opponent, errors = ahead, run_peers(own, own.fresh, nfe, ahead)[ahead]
        began = time.perf_counter()
        start = found[best] if _fits(found[best], nfe) else None
        made = [tune(own.model, nfe=nfe, lessons=own.tuning)]
        made += [tune(own.model, nfe=nfe, lessons=own.tuning, start=start)] if start is not None else []
        tuned = min(made, key=lambda t: own.tuning.endpoint_error(t.table))
        seconds = time.perf_counter() - began
        after = own.fresh.errors(tuned.table)
        low, high = interval(after, errors)
        judge = Distribution(256)
        row = {
            "world": name,
            "nfe": nfe,
            "opponent": opponent,
            "opponents": opponents,
            "opponent_error": rms(errors),
            "error": rms(after),
            "ratio": rms(after) / rms(errors),
            "low": low,
            "high": high,
            "median_ratio": float(after.median() / errors.median()),
            "distribution": judge.value(own.fresh.run(tuned.table), own.fresh.ends),
            "opponent_distribution": judge.value(own.fresh.run(found[best]), own.fresh.ends),
            "from": tuned.tuned_on["named"],
            "seconds": round(seconds, 1),
            "evaluations": {**tuned.tuned_on["evaluations"], "tuning": _spent(made)},
        }
        yield row
        print(
            f"{name}, {nfe} evaluations: {row['ratio']:.3f} [{low:.3f}, {high:.3f}] of {opponent} "
            f"({row['opponent_error']:.4g}), median {row['median_ratio']:.3f}, distribution "
            f"{row['distribution']:.4g} to {row['opponent_distribution']:.4g}; {seconds:.0f} s, "
            f"{_spent(made)} network evaluations",
            flush=True,
        )


def _spent(made: list[Any]) -> int:
    return sum(t.tuned_on["evaluations"]["tuning"] for t in made)


def _fits(table: orn.Table, nfe: int) -> bool:
    """Whether tuning can begin with it."""
    try:
        reduce(table)
    except orn.TableError:
        return False
    return table.nfe == nfe


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for i, name in enumerate(dict.fromkeys(row["world"] for row in rows)):
        own = [row for row in rows if row["world"] == name]
        x = [row["nfe"] * (1 + 0.01 * i) for row in own]
        ratio = [row["ratio"] for row in own]
        spread = [[row["ratio"] - row["low"] for row in own], [row["high"] - row["ratio"] for row in own]]
        left.errorbar(x, ratio, yerr=spread, fmt="o-", capsize=3, ms=4, label=name)
        right.plot(x, [row["opponent_error"] for row in own], "o:", color=f"C{i}", ms=4)
        right.plot(x, [row["error"] for row in own], "s-", color=f"C{i}", ms=4, label=name)
    left.axhline(1, color="grey", lw=1)
    left.set(ylabel="endpoint RMSE, tuned over the best named", ylim=(0, 1.1))
    right.set(ylabel="endpoint RMSE: best named dotted, tuned solid", yscale="log")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="network evaluations")
        axis.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


WORLDS: dict[str, Callable[[], World]] = {
    "ring, 2-D": ring,
    "digits, 64-D": digits,
    "low rank, 256-D": low_rank,
    "trained digits, guidance 3": trained,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", default=[], help="words in the names of worlds, all by default")
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS)
    parser.add_argument("--mnist", help="a model saved by orn.save")
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    path = RESULTS / "tuned.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    made = {**WORLDS, **({"MNIST": lambda: saved(arguments.mnist)} if arguments.mnist else {})}
    for name, make in made.items():
        if arguments.worlds and not any(word in name for word in arguments.worlds):
            continue
        order = {world: i for i, world in enumerate(made)}
        for new in compare(name, make(), tuple(arguments.budgets), not arguments.no_peers):
            rows = [row for row in rows if (row["world"], row["nfe"]) != (name, new["nfe"])] + [new]
            rows.sort(key=lambda row: (order.get(row["world"], 99), row["nfe"]))
            path.write_text(json.dumps({"budgets": BUDGETS, "fine_steps": FINE, "rows": rows}, indent=1) + "\n")
            plot(rows, RESULTS / "tuned.png")


if __name__ == "__main__":
    main()
