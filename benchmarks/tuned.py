"""Tuned tables beside the best named sampler of each budget, on starts that neither has seen.

    python benchmarks/tuned.py [--worlds ring digits ...] [--budgets 4 5 ...] [--mnist RUN] [--also]

A 2-D mixture of six modes, a 64-D mixture on images of digits, a low-rank mixture in 256-D, a small network trained on
digits under guidance 3, and a network trained on MNIST by `ornstein train` (`--mnist`, the folder of the run). Truth is
each model's own flow by a fine solver. The opponents (`named.py`, and `peers.py` where installed) are chosen on the
tuning starts, each with its own best grid; a peer, which starts at a level of its own, is judged from there. All are
tried on some of the tuning starts, the best sixty go on, and the choice among these is that of all starts: a sum of
squares over some is no more than over all, so that a candidate is left as soon as its sum over some exceeds the least
over all. The figure is the endpoint RMSE over that of the best
opponent, on fresh starts, with a bootstrap interval of 95 % over them; beside it the sliced Wasserstein distance of the
endpoints to the flow's, its ratio with an interval of the same kind. A row is written as soon as it is there.

`--also`: the guard (tuned on shuffled endpoints), and tables judged where they were not tuned: the network under
guidance 2 by tables of guidance 1 and 3, and on nine classes by tables of one. Writes benchmarks/results/tuned.json
and tuned.png.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
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
from ornstein.report.run import Run
from ornstein.tuning import Lessons, reduce, teach, tune

RESULTS = Path(__file__).parent / "results"
BUDGETS = (4, 5, 6, 8, 10, 15)
F64 = torch.float64
FLOW = orn.Flow()  # by x/alpha it stands for every process
FEW = 64  # starts, and their ends, of which GITS and AYS make grids
PIECES = 64  # the least starts on which an opponent is tried
LONGLIST = 60  # opponents that go on
DEAR = 256  # coordinates from which on an evaluation is dear: 2 starts first, then 30 opponents, 16 starts for grids


@dataclass
class World:
    """A model with its lessons, by a fine solver of `fine` steps."""

    model: orn.BaseDenoiser
    tuning: Lessons
    fresh: Lessons
    fine: int = 200
    truths: dict[Any, Tensor] = field(default_factory=dict)
    grids: dict[str, orn.Grid] | None = None

    @property
    def process(self) -> orn.GaussianProcess:
        return self.tuning.process


every_peer = cache(peers)


def taught(
    model: orn.BaseDenoiser, event: tuple[int, ...], labels: Tensor | None, count: int, seed: int, fine: int
) -> Lessons:
    dtype = next((p.dtype for p in model.parameters()), F64)
    cond = None if labels is None else {"label": labels[torch.arange(count) % len(labels)]}
    return teach(model, (count, *event), cond=cond, seed=seed, steps=fine, dtype=dtype)


def world(
    model: orn.BaseDenoiser,
    event: tuple[int, ...],
    starts: int,
    fresh: int,
    labels: Tensor | None = None,
    fine: int = 200,
) -> World:
    lessons = [taught(model, event, labels, n, i + 1, fine) for i, n in enumerate((starts, fresh))]
    return World(model, *lessons, fine)


def ring() -> World:
    angles = torch.arange(6, dtype=F64) * math.pi / 3
    means = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    own = orn.exact.GaussianMixture(means, torch.full((6,), 0.15, dtype=F64), torch.tensor([1.0, 2, 3, 1, 2, 3]))
    return world(own.denoiser(FLOW), tuple(means.shape[1:]), 2048, 4096)


def digits() -> World:
    data = load_digits()
    means = torch.cat([torch.as_tensor(data.data[data.target == k][:4]) for k in range(10)]) / 8 - 1
    own = orn.exact.GaussianMixture(means, torch.full((40,), 0.15, dtype=F64))
    return world(own.denoiser(FLOW), tuple(means.shape[1:]), 2048, 4096)


def low_rank() -> World:
    rng = torch.Generator().manual_seed(0)
    means = 0.7 * torch.randn(8, 256, generator=rng, dtype=F64)
    factors = torch.randn(8, 256, 8, generator=rng, dtype=F64) * torch.logspace(0, -1, 8, dtype=F64)
    own = orn.exact.GaussianMixture(means, torch.full((8,), 0.1, dtype=F64), factors=factors)
    return world(own.denoiser(FLOW), tuple(means.shape[1:]), 512, 1024)


@cache
def network() -> orn.Denoiser:
    """A network on all digits with their labels."""
    data = load_digits()
    x, y = torch.as_tensor(data.data, dtype=torch.float32) / 8 - 1, torch.as_tensor(data.target)
    torch.manual_seed(0)
    net = orn.nets.MLP(64, labels=10, width=192, depth=3)
    model = orn.Denoiser(net, FLOW, predicts="velocity", null={"label": orn.nets.NULL})
    orn.fit(model, x, cond={"label": y}, drop={"label": 0.1}, steps=3_000, batch_size=256, seed=0, progress=False)
    return model


def trained(scale: float = 3.0, labels: Tensor | None = None, starts: int = 512) -> World:
    model = network()
    own = model if scale == 1 else orn.CFG(model, scale)
    return world(own, (64,), starts, 1024, torch.arange(10) if labels is None else labels)


def saved(folder: str, starts: int) -> World:
    """The network of a run of `ornstein train`, of images."""
    run = Run.open(folder)
    model, event = run.model(), tuple(run.config.event)
    labels = torch.arange(run.config.labels) if run.config.labels else None
    return world(model, event, starts, starts, labels, fine=48)


def fine(own: World, z: Tensor, first: float, last: float, cond: Any) -> Tensor:
    """x/alpha where the flow takes y = first z from one level sigma/alpha to another."""
    process = own.process
    ends = torch.tensor([first, last or math.exp(-6.5)], dtype=F64)
    levels = torch.linspace(*(-2 * ends.log()).tolist(), own.fine + 1, dtype=F64)
    times = process.time(levels)
    grid = process.level(times if last > 0 else torch.cat([times, torch.zeros(1, dtype=F64)]))
    kept: list[Tensor] = []
    solver = orn.solvers.UniPC(order=3, variant="vary_coeff")
    x = first * z * float(grid.alpha[0])
    options: dict[str, Any] = {"x_init": x, "cond": cond, "solver": solver, "grid": grid}
    orn.sample(own.model, **options, hooks=[lambda m: kept.append(m.x)], progress=False)
    return kept[-1] / float(grid.alpha[-1])


def run_peer(own: World, lessons: Lessons, name: str, nfe: int, place: Any) -> tuple[Tensor, Tensor] | None:
    """Where a peer takes the starts within a budget, and where the flow does; None if it takes no so few steps, or
    begins above the model's first level. The flow is followed once for a `place`, which names the starts."""
    z, process = lessons.starts / lessons.start.sigma.to(lessons.starts), own.process
    most = float(lessons.start.sigma / lessons.start.alpha)

    def denoise(y: Tensor, sigma: float) -> Tensor:
        level = process.level(process.time(-2 * torch.tensor(sigma, dtype=F64).log()) if sigma < most else 1.0)
        x = (y * float(level.alpha) if float(level.alpha) > 0 else y).to(lessons.starts)
        with torch.no_grad():
            return own.model(x, level, lessons.cond).x0.to(y)

    for steps in range(nfe, 0, -1):
        calls: list[float] = []
        peer = every_peer()[name]
        try:
            peer(lambda y, sigma, calls=calls: calls.append(sigma) or 0.5 * y, torch.zeros(2, 2, dtype=F64), steps)
        except Exception:  # some take no fewer than their order
            return None
        if len(calls) > nfe:
            continue
        if max(calls) > most * (1 + 1e-6):
            return None
        y, first, last = peer(denoise, z, steps)
        first = first if math.isfinite(first) else 1e6
        key = place, round(first, 6), round(last, 9)
        if key not in own.truths:
            own.truths[key] = fine(own, z, first, last, lessons.cond)
        return y, own.truths[key]
    return None


Rival = Callable[[Lessons, Any], "tuple[Tensor, Tensor] | None"]


def rivals(own: World, nfe: int, with_peers: bool) -> tuple[dict[str, Rival], dict[str, orn.Table]]:
    """Every opponent within a budget, as a function of lessons and of the name of their starts: its ends and the
    flow's."""
    if own.grids is None:
        few = own.tuning.take(torch.arange(16 if _dear(own.tuning) else FEW))
        own.grids = calibrated(own.model, few, few.ends, few.cond, BUDGETS)
    named = tables(own.process, nfe, own.grids)
    found: dict[str, Rival] = {
        name: lambda lessons, place, table=table: (lessons.run(table), lessons.ends) for name, table in named.items()
    }
    for name in every_peer() if with_peers else ():
        if "SD" not in name:  # levels 14.6 to 0.029 alone are an easier task
            found[name] = lambda lessons, place, name=name: run_peer(own, lessons, name, nfe, place)
    return found, named


def _dear(lessons: Lessons) -> bool:
    return lessons.starts[0].numel() > DEAR


def squares(ends: tuple[Tensor, Tensor] | None) -> float:
    """The sum over the starts of the mean square over the event; infinite where it diverges or there is none."""
    total = math.inf if ends is None else float((ends[0] - ends[1]).to(F64).flatten(1).square().mean(1).sum())
    return total if math.isfinite(total) else math.inf


def best_of(found: dict[str, Rival], lessons: Lessons) -> tuple[list[str], int]:
    """(names, rank): the opponents in the order of their errors on all starts, as far as they were run to their end,
    the first of which is the best; and which it was on the first piece. In pieces of starts that double: what exceeds
    over the pieces so far the least sum over all is left."""
    pieces, most = (2, LONGLIST // 2) if _dear(lessons) else (PIECES, LONGLIST)
    places, at = list[Any](), 0
    while at < len(lessons):
        places.append((at, min(len(lessons), max(pieces, 2 * at))))
        at = places[-1][1]
    parts = [lessons.take(torch.arange(*place)) for place in places]
    sums = {name: squares(rival(parts[0], places[0])) for name, rival in found.items()}
    whole: dict[str, float] = {}
    longlist = sorted((n for n in sums if sums[n] < math.inf), key=sums.__getitem__)[:most]
    for name in longlist:
        least, total = min(whole.values(), default=math.inf), sums[name]
        for part, place in zip(parts[1:], places[1:], strict=True):
            if total >= least:
                break
            total += squares(found[name](part, place))
        else:
            whole[name] = total
    names = sorted(whole, key=whole.__getitem__)
    return names, 1 + longlist.index(names[0])


def rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


def interval(own: Tensor, other: Tensor, draws: int = 2000) -> tuple[float, float]:
    """95 % of the ratio of the root mean squares, the starts drawn again in pairs."""
    rows = torch.randint(len(own), (draws, len(own)), generator=torch.Generator().manual_seed(0))
    ratio = (own.square()[rows].mean(1) / other.square()[rows].mean(1)).sqrt()
    low, high = torch.quantile(ratio, torch.tensor([0.025, 0.975], dtype=F64)).tolist()
    return low, high


def distances(own: Tensor, truth: Tensor, other: Tensor, others: Tensor, draws: int = 200) -> dict[str, float]:
    """The sliced distances of both to their truths, and their ratio with 95 % of it, the starts drawn again in pairs:
    of draws about their own median, for a draw repeats starts and is further from its law than the starts are."""
    u = torch.randn(truth[0].numel(), 128, generator=torch.Generator().manual_seed(1), dtype=F64)
    lines = [x.flatten(1).to(F64) @ (u / u.norm(dim=0)) for x in (own, truth, other, others)]
    rng = torch.Generator().manual_seed(2)

    def both(rows: Tensor) -> tuple[float, float]:
        a, b, c, d = (line[rows].sort(0).values for line in lines)
        return float((a - b).square().mean().sqrt()), float((c - d).square().mean().sqrt())

    one, two = both(torch.arange(len(own)))
    drawn = torch.tensor([both(torch.randint(len(own), (len(own),), generator=rng)) for _ in range(draws)], dtype=F64)
    logs = drawn.log() @ torch.tensor([1.0, -1.0], dtype=F64)
    share = torch.tensor([0.025, 0.975], dtype=F64)
    low, high = (one / two * (torch.quantile(logs, share) - logs.median()).exp()).tolist()
    return {
        "distribution": one,
        "opponent_distribution": two,
        "distribution_ratio": one / two,
        "distribution_low": low,
        "distribution_high": high,
    }


def judge(table: orn.Table, rival: Rival, fresh: Lessons) -> dict[str, float]:
    """The figures of a table beside an opponent on fresh starts."""
    theirs = rival(fresh, "fresh")
    assert theirs is not None
    ends = fresh.run(table)
    errors, others = (
        (x - truth).to(F64).flatten(1).square().mean(1).sqrt() for x, truth in ((ends, fresh.ends), theirs)
    )
    low, high = interval(errors, others)
    return {
        "opponent_error": rms(others),
        "error": rms(errors),
        "ratio": rms(errors) / rms(others),
        "low": low,
        "high": high,
        "median_ratio": float(errors.median() / others.median()),
        **distances(ends, fresh.ends, *theirs),
    }


def said(row: dict[str, Any]) -> str:
    return (
        f"{row['world']}, {row['nfe']} evaluations: {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of "
        f"{row['opponent']} ({row['opponent_error']:.4g}), median {row['median_ratio']:.3f}, distribution "
        f"{row['distribution_ratio']:.3f} [{row['distribution_low']:.3f}, {row['distribution_high']:.3f}]"
    )


def compare(
    name: str, own: World, budgets: tuple[int, ...], with_peers: bool, limit: int | None, from_best: bool
) -> Iterator[dict[str, Any]]:
    """A row for each budget."""
    for nfe in budgets:
        began = time.perf_counter()
        found, named = rivals(own, nfe, with_peers)
        order, rank = best_of(found, own.tuning)
        chosen = time.perf_counter() - began
        begun = time.perf_counter()
        # begun with what `tune` finds itself, and with the best of the opponents that are of the form
        start = next((named[n] for n in order if n in named and _fits(named[n], nfe)), None)
        begins = [None] if start is None else [start] if from_best else [None, start]
        made = [tune(own.model, nfe=nfe, lessons=own.tuning, start=begin, evaluations=limit) for begin in begins]
        tuned = min(made, key=lambda t: own.tuning.endpoint_error(t.table))
        row = {
            "world": name,
            "nfe": nfe,
            "opponent": order[0],
            "opponents": len(found),
            "rank_of_the_opponent_on_the_first_starts": rank,
            **judge(tuned.table, found[order[0]], own.fresh),
            "from": tuned.tuned_on["named"],
            "starts": len(own.tuning),
            "fresh": len(own.fresh),
            "seconds": round(time.perf_counter() - begun, 1),
            "seconds_for_the_opponents": round(chosen, 1),
            "evaluations": {
                "lessons": own.tuning.evaluations,
                "tuning": sum(t.tuned_on["evaluations"]["tuning"] for t in made),
            },
        }
        yield row
        print(f"{said(row)}; {row['seconds']} s, {row['evaluations']['tuning']} network evaluations", flush=True)


def _fits(table: orn.Table, nfe: int) -> bool:
    """Whether tuning can begin with it."""
    try:
        reduce(table)
    except orn.TableError:
        return False
    return table.nfe == nfe


def guard(budgets: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Tuned on endpoints that belong to other starts: no better than the best opponent."""
    own = digits()
    rows = torch.randperm(len(own.tuning), generator=torch.Generator().manual_seed(5))
    wrong = replace(own.tuning, ends=own.tuning.ends[rows])
    for nfe in budgets:
        found, _ = rivals(own, nfe, with_peers=False)
        best = best_of(found, own.tuning)[0][0]
        table = tune(own.model, nfe=nfe, lessons=wrong).table
        yield {
            "world": "guard: shuffled endpoints, digits, 64-D",
            "nfe": nfe,
            "opponent": best,
            **judge(table, found[best], own.fresh),
        }


def elsewhere(budgets: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Tables judged where they were not tuned, beside the opponent that is best there."""
    alone, half = trained(1.0, starts=256), trained(3.0, starts=256)
    between = trained(2.0)
    one = torch.tensor([3])
    others = torch.tensor([k for k in range(10) if k != int(one)])
    single, rest = trained(3.0, one), trained(3.0, others)
    cases: list[tuple[str, World, list[Lessons]]] = [
        ("guidance 2, tuned on 1 and 3", between, [alone.tuning, half.tuning]),
        ("nine classes, tuned on one", rest, [single.tuning]),
    ]
    for name, where, lessons in cases:
        for nfe in budgets:
            found, _ = rivals(where, nfe, with_peers=False)
            best = best_of(found, where.tuning)[0][0]
            table = tune(where.model, nfe=nfe, lessons=lessons).table
            yield {"world": name, "nfe": nfe, "opponent": best, **judge(table, found[best], where.fresh)}


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
    left.set(ylabel="endpoint RMSE, tuned over the best named", ylim=(0, 1.3))
    right.set(ylabel="endpoint RMSE: best named dotted, tuned solid", yscale="log")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="network evaluations")
        axis.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    left.legend(frameon=False, loc="upper right", ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


WORLDS: dict[str, Callable[[], World]] = {
    "ring, 2-D": ring,
    "digits, 64-D": digits,
    "low rank, 256-D": low_rank,
    "trained digits, guidance 3": trained,
}


def markdown(rows: list[dict[str, Any]], figure: str, low: str, high: str) -> str:
    """A table of worlds by budgets: a figure with its interval."""
    budgets = sorted({row["nfe"] for row in rows})
    lines = [f"| | {' | '.join(map(str, budgets))} |", "|---" * (len(budgets) + 1) + "|"]
    for name in dict.fromkeys(row["world"] for row in rows):
        own = {row["nfe"]: row for row in rows if row["world"] == name and figure in row}
        cells = [f"{r[figure]:.2f} ({r[low]:.2f} to {r[high]:.2f})" if (r := own.get(n)) else "" for n in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="*", help="words in the names of worlds, all by default, none without a word")
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS)
    parser.add_argument("--mnist", help="the folder of a run of `ornstein train`")
    parser.add_argument("--starts", type=int, default=64, help="of that network, to tune on and as many to judge on")
    parser.add_argument("--from-best", action="store_true", help="begin with the best opponent alone: it is cheaper")
    parser.add_argument("--evaluations", type=int, help="bound on the network evaluations of one tuning")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--also", action="store_true", help="the guard, and tables where they were not tuned")
    parser.add_argument("--table", action="store_true", help="print what results/tuned.json holds, and run nothing")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    path = RESULTS / "tuned.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if arguments.table:
        for part in ("rows", "also"):
            for names in (("ratio", "low", "high"), ("distribution_ratio", "distribution_low", "distribution_high")):
                print(f"{names[0]}\n{markdown(kept.get(part, []), *names)}\n")
        return
    made = {**WORLDS, **({"MNIST": lambda: saved(arguments.mnist, arguments.starts)} if arguments.mnist else {})}
    order = {world: i for i, world in enumerate([*WORLDS, "MNIST"])}

    def keep(part: str, new: dict[str, Any]) -> None:
        rows = [row for row in kept.get(part, []) if (row["world"], row["nfe"]) != (new["world"], new["nfe"])]
        kept[part] = sorted([*rows, new], key=lambda row: (order.get(row["world"], 99), row["world"], row["nfe"]))
        path.write_text(json.dumps({**kept, "budgets": BUDGETS}, indent=1) + "\n")
        plot(kept.get("rows", []), RESULTS / "tuned.png")

    budgets = tuple(arguments.budgets)
    for name, make in made.items():
        if arguments.worlds is None or any(word in name for word in arguments.worlds):
            options = not arguments.no_peers, arguments.evaluations, arguments.from_best
            for new in compare(name, make(), budgets, *options):
                keep("rows", new)
    for new in (row for rows in (guard, elsewhere) for row in rows(budgets)) if arguments.also else ():
        print(said(new), flush=True)
        keep("also", new)


if __name__ == "__main__":
    main()
