"""Errors of deterministic samplers on exact worlds: ours beside those of other libraries, at equal evaluations.

    python benchmarks/solvers.py [--workers 2]

Four worlds (a ring and two moons in 2-D, images of digits in 64-D, low-rank components in 16-D), whose denoiser and
flow are exact. Every contender starts from its own first level at the same normal numbers and is judged by the exact
flow (DOP853) from its first level to its last: median distance in y = x/alpha over the same starts, in float64. A
budget is the number of evaluations that may be spent; each contender takes the most steps that stay within it. Peers
that are not installed are left out, and said so. Writes benchmarks/results/solvers.json and solvers.png,
and the tables and the picture of docs/choosing-a-solver.md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import logging
import math
import multiprocessing
import platform
import re
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from peers import azula, diffusers, flow_matching, k_diffusion, peers
from sklearn.datasets import load_digits

import ornstein as orn

RESULTS = Path(__file__).parent / "results"
BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
STARTS = 32
F64 = torch.float64
FLOW = orn.Flow()  # by x/alpha it stands for every process, but for solvers in t
S = orn.solvers
Rows = dict[str, dict[int, float]]  # contender: budget: error


def worlds() -> dict[str, orn.exact.GaussianMixture]:
    angles = torch.arange(6, dtype=F64) * math.pi / 3
    ring = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    half = torch.linspace(0, math.pi, 12, dtype=F64)
    upper = torch.stack([half.cos() - 0.5, half.sin() - 0.25], 1)
    data = load_digits()
    digits = torch.cat([torch.as_tensor(data.data[data.target == k][:4]) for k in range(10)]) / 8 - 1
    rng = torch.Generator().manual_seed(0)
    means = 0.7 * torch.randn(4, 16, generator=rng, dtype=F64)
    factors = torch.randn(4, 16, 3, generator=rng, dtype=F64) * torch.tensor([1.0, 0.5, 0.25], dtype=F64)

    def mixture(means: torch.Tensor, std: float, weights: Iterable[float] | None = None, **more: torch.Tensor) -> Any:
        own = None if weights is None else torch.tensor(list(weights), dtype=F64)
        return orn.exact.GaussianMixture(means, torch.full((len(means),), std, dtype=F64), own, **more)

    return {
        "ring, 2-D": mixture(ring, 0.15, [1, 2, 3, 1, 2, 3]),
        "moons, 2-D": mixture(torch.cat([upper, -upper]), 0.12, [3.0] * 12 + [1.0] * 12),
        "digits, 64-D": mixture(digits, 0.15),
        "low rank, 16-D": mixture(means, 0.1, [4, 3, 2, 1], factors=factors),
    }


def ours() -> dict[str, tuple[orn.Solver, orn.Grid]]:
    """What may stand for this library, fixed-step and uncalibrated: each solver on each grid."""
    adams = {f"Adams-Bashforth {k} in t": S.AdamsBashforth(k, "t", "published") for k in (2, 3, 4)}
    unipc = {f"UniPC {k} {b}": S.UniPC(order=k, variant=b, start="published") for k in (2, 3) for b in ("bh1", "bh2")}
    solvers: dict[str, orn.Solver] = {
        "DDIM": orn.DDIM(),
        "DPM++ 2M": orn.DPMSolverPP(order=2),
        "DPM++ 3M": orn.DPMSolverPP(order=3),
        "DPM++ 3M published": orn.DPMSolverPP(order=3, start="published", variant="published"),
        "DPM 2M": S.DPMSolver(order=2),
        "DPM 3M": S.DPMSolver(order=3, start="published"),
        **unipc,
        "UniPC 2 exact": S.UniPC(order=2, variant="vary_coeff"),
        "UniPC 3 noise": S.UniPC(order=3, predicts="noise", start="published"),
        "DEIS 3 tAB": S.DEIS(order=3, start="published"),
        "Heun": orn.Heun(),
        "Euler": orn.Euler(),
        "midpoint in t": S.Midpoint("t"),
        "Kutta 3 in t": S.Kutta3("t"),
        "RK4 in t": S.RK4("t"),
        "Kutta 3/8 in t": S.Kutta38("t"),
        "GHVB 2 in t": S.GHVB(variable="t"),
        **adams,
    }
    whole, part = ((80.0, 0.002), (80.0, 0.01)), (14.615, 0.0292)  # sigma/alpha at the ends
    (first, last), fine = ([v / (1 + v) for v in ends] for ends in (part, whole[0]))  # as times of the flow
    grids: dict[str, orn.Grid] = {
        "log-SNR": orn.LogSNR(),
        "log-SNR -6 to 8": orn.LogSNR(end=8.0, deepest=-6.0),
        "log-SNR 80 to 0.01": between(*whole[1], to_data=False),
        "Karras": orn.Karras(),
        "cosine": S.CosineGrid(sigma_data=0.5),
        "cosine 80 to 0.002": S.CosineGrid(0.5, *fine),
        "uniform": orn.Uniform(),
        "uniform 80 to 0.002": orn.Uniform(*fine),
        "quadratic": orn.Quadratic(),
        "SD log-SNR": between(*part, to_data=False),
        "SD log-SNR to data": between(*part),
        "SD uniform": orn.Uniform(first, last),
    }
    return {f"{solver}, {grid}": (made, placed) for solver, made in solvers.items() for grid, placed in grids.items()}


def between(first: float, last: float, to_data: bool = True) -> orn.LogSNR:
    """Equal steps of log-SNR from one sigma/alpha to another."""
    return orn.LogSNR(start=-2 * math.log(first), end=-2 * math.log(last), to_data=to_data)


RECOMMENDED = ("DPM++ 2M, log-SNR", "UniPC 2 exact, log-SNR", "Adams-Bashforth 4 in t, uniform")

# "SD" in a name: only the levels of latent diffusion, 14.6 to 0.029, an easier task by its reference
RANGES: dict[str, Callable[[str], bool]] = {
    "any range": lambda name: True,
    "whole range": lambda name: "SD" not in name,
    "SD range": lambda name: "SD" in name,
}


# the same formula on the same levels as a peer: (peer, ours, evaluations of the peer for each step)
def pairs() -> dict[str, tuple[Callable[[], Any], orn.Solver, int]]:
    karras = ("karras", 0.002, 80.0)
    off = {"prediction_type": "epsilon", "lower_order_final": False, "final_sigmas_type": "sigma_min"}
    silent = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    return {
        "k-diffusion euler": (lambda: k_diffusion("euler", *karras), orn.DDIM(), 1),
        "k-diffusion heun": (lambda: k_diffusion("heun", *karras), orn.Heun(), 2),
        "k-diffusion dpm_2": (lambda: k_diffusion("dpm_2", *karras), S.DPM2(), 2),
        "k-diffusion lms": (lambda: k_diffusion("lms", *karras), S.AdamsBashforth(4, start="published"), 1),
        "k-diffusion dpmpp_2m": (lambda: k_diffusion("dpmpp_2m", *karras), orn.DPMSolverPP(order=2), 1),
        "k-diffusion dpmpp_2s, eta 0": (
            lambda: k_diffusion("dpmpp_2s_ancestral", *karras, **silent),
            orn.DPMSolverPP(order=2, mode="singlestep"),
            2,
        ),
        "k-diffusion dpmpp_2m_sde, eta 0": (
            lambda: k_diffusion("dpmpp_2m_sde", *karras, **silent),
            orn.DPMSolverPP(order=2),
            1,
        ),
        "k-diffusion dpmpp_3m_sde, eta 0": (
            lambda: k_diffusion("dpmpp_3m_sde", *karras, **silent),
            orn.DPMSolverPP(order=3, start="published", variant="published"),
            1,
        ),
        "diffusers DDIM": (
            lambda: diffusers("DDIMScheduler", prediction_type="epsilon", clip_sample=False),
            orn.DDIM(),
            1,
        ),
        "diffusers Euler": (lambda: diffusers("EulerDiscreteScheduler"), orn.DDIM(), 1),
        "diffusers DPM++ 2M": (
            lambda: diffusers("DPMSolverMultistepScheduler", solver_order=2, **off),
            orn.DPMSolverPP(order=2),
            1,
        ),
        "diffusers DPM++ 3M": (
            lambda: diffusers("DPMSolverMultistepScheduler", solver_order=3, **off),
            orn.DPMSolverPP(order=3, start="published", variant="published"),
            1,
        ),
        "diffusers UniPC 2": (
            lambda: diffusers("UniPCMultistepScheduler", solver_order=2, **off),
            S.UniPC(order=2, start="published"),
            1,
        ),
        "diffusers UniPC 3": (
            lambda: diffusers("UniPCMultistepScheduler", solver_order=3, **off),
            S.UniPC(order=3, start="published"),
            1,
        ),
        "diffusers DEIS 3": (
            lambda: diffusers(
                "DEISMultistepScheduler", solver_order=3, lower_order_final=False, prediction_type="epsilon"
            ),
            S.DEIS(order=2, method="lambdaAB", start="published"),
            1,
        ),
        "azula DDIM": (lambda: azula("DDIMSampler", "VPSchedule"), orn.DDIM(), 1),
        "azula xEAB 2": (
            lambda: azula("xEABSampler", "VPSchedule", order=2),
            S.UniPC(order=2, variant="vary_coeff", corrector=False),
            1,
        ),
        "azula zEAB 2": (
            lambda: azula("zEABSampler", "VPSchedule", order=2),
            S.UniPC(order=2, variant="vary_coeff", corrector=False, predicts="noise"),
            1,
        ),
        "azula zAB 2": (lambda: azula("zABSampler", "VPSchedule", order=2), S.AdamsBashforth(2, start="published"), 1),
        "flow_matching euler": (lambda: flow_matching("euler"), orn.Euler(), 1),
        "flow_matching midpoint": (lambda: flow_matching("midpoint"), S.Midpoint("t"), 2),
    }


class Judge:
    """One world, its starts, and the exact flow between any two levels, computed once."""

    def __init__(self, world: orn.exact.GaussianMixture) -> None:
        self.world, self.oracle = world, world.denoiser(FLOW)
        self.z = torch.randn(STARTS, world.dim, generator=torch.Generator().manual_seed(1), dtype=F64)
        self.truths: dict[tuple[float, float], torch.Tensor] = {}
        self.calls = 0

    def denoise(self, y: torch.Tensor, sigma: float) -> torch.Tensor:
        """E[x0 | y] for y = x0 + sigma noise; y is the noise itself where sigma is infinite."""
        self.calls += 1
        t = sigma / (1 + sigma) if math.isfinite(sigma) else 1.0
        x = y * (1 - t) if t < 1 else y
        answer: torch.Tensor = self.oracle.bind(FLOW.level(t)[None], x, None)[0](x)  # type: ignore[assignment]
        return answer

    def error(self, y: torch.Tensor, first: float, last: float) -> float:
        key = (round(first, 6) if math.isfinite(first) else first, round(last, 9))
        if key not in self.truths:
            t, s = (v / (1 + v) if math.isfinite(v) else 1.0 for v in key)
            x = self.z * (key[0] * (1 - t) if t < 1 else 1.0)
            self.truths[key] = self.world.flow(FLOW, x, t, s, rtol=1e-8, atol=1e-9) / (1 - s)
        return float((y - self.truths[key]).norm(dim=1).median())


def within(budgets: Iterable[int], cost: Callable[[int], int]) -> dict[int, int]:
    """The most steps for each budget, for a cost that rises with steps; budgets that allow none are left out."""
    found = {}
    for budget in budgets:
        steps = next((n for n in range(budget, 0, -1) if cost(n) <= budget), None)
        if steps is not None:
            found[budget] = steps
    return found


def run_peers(judges: dict[str, Judge], share: slice) -> dict[str, Rows]:
    found: dict[str, Rows] = {name: {} for name in judges}
    z = torch.zeros(2, 2, dtype=F64)
    for label, peer in list(peers().items())[share]:
        known: dict[int, int] = {}

        def cost(steps: int, peer: Any = peer, known: dict[int, int] = known, label: str = label) -> int:
            if steps not in known:
                calls = []
                try:
                    peer(lambda y, sigma: calls.append(sigma) or 0.5 * y, z, steps)
                    known[steps] = len(calls)
                except Exception:  # some take no fewer than their order
                    known[steps] = 10**9
            return known[steps]

        for budget, steps in within(BUDGETS, cost).items():
            for name, judge in judges.items():
                error = judge.error(*peer(judge.denoise, judge.z, steps))
                if math.isfinite(error):
                    found[name].setdefault(label, {})[budget] = error
    return found


def run_ours(judges: dict[str, Judge], share: slice) -> dict[str, Rows]:
    found: dict[str, Rows] = {name: {} for name in judges}
    for label, (solver, grid) in list(ours().items())[share]:
        tables: dict[int, Any] = {}

        def compiled(steps: int, own: Any = (solver, grid), tables: dict[int, Any] = tables) -> Any:
            if steps not in tables:
                tables[steps] = own[0].compile(FLOW, own[1](FLOW, steps))
            return tables[steps]

        # two lengths show the cost of a step, where it is the same for all
        per = compiled(7).nfe - compiled(6).nfe
        for budget in BUDGETS:
            steps = max(1, (budget - compiled(6).nfe) // per + 6)
            while steps > 1 and compiled(steps).nfe > budget:
                steps -= 1
            if compiled(steps).nfe > budget:
                continue
            table = compiled(steps)
            for name, judge in judges.items():
                oracle = judge.world.denoiser(FLOW, "velocity")
                out = orn.sample(oracle, x_init=judge.z * float(table.start.sigma), table=table, progress=False)
                ends = [float(level.sigma / level.alpha) for level in (table.start, table.end)]
                found[name].setdefault(label, {})[budget] = judge.error(out.x / float(table.end.alpha), *ends)
    return found


def run_pairs(judges: dict[str, Judge], share: slice) -> list[dict[str, Any]]:
    """Errors of the same formula on the same levels, those that the peer was seen to ask."""
    rows = []
    for name, (make, solver, stride) in list(pairs().items())[share]:
        try:
            peer = make()
        except Exception as error:
            print(f"left out: {name}: {type(error).__name__}: {error}")
            continue
        for steps in (10, 20):
            for world, judge in judges.items():
                asked: list[float] = []

                def denoise(y: torch.Tensor, sigma: float, asked: list[float] = asked, judge: Any = judge) -> Any:
                    asked.append(sigma)
                    return judge.denoise(y, sigma)

                y, first, last = peer(denoise, judge.z, steps)
                sigmas = torch.tensor([*asked[::stride], last], dtype=F64)
                if name.endswith("heun"):  # which asks for both ends of a step
                    sigmas = torch.tensor([*dict.fromkeys(round(v, 12) for v in asked), last], dtype=F64)
                times = torch.where(sigmas.isfinite(), sigmas / (1 + sigmas), 1.0)
                grid = FLOW.level(times)
                oracle = judge.world.denoiser(FLOW, "velocity" if math.isinf(first) else "x0")
                out = orn.sample(
                    oracle, x_init=judge.z * float(grid.sigma[0]), solver=solver, grid=grid, progress=False
                )
                theirs = judge.error(y, first, last)
                own = judge.error(out.x / float(grid.alpha[-1]), first, last)
                row = {"peer": name, "ours": repr(solver), "world": world, "steps": steps}
                rows.append({**row, "theirs": theirs, "own": own, "ratio": own / theirs})
    return rows


def best(rows: Rows, budget: int) -> tuple[str, float]:
    return min(((name, found[budget]) for name, found in rows.items() if budget in found), key=lambda pair: pair[1])


def compare(own: dict[str, Rows], theirs: dict[str, Rows]) -> list[dict[str, Any]]:
    """Our best over the peers' best for each budget, and the one of ours that is nearest to the best everywhere."""
    rows = []
    for budget in BUDGETS:
        if not all(any(budget in found for found in theirs[world].values()) for world in own):
            continue  # no peer at all
        ratios, names = {}, {}
        for world in own:
            (mine, a), (other, b) = best(own[world], budget), best(theirs[world], budget)
            ratios[world], names[world] = a / b, {"ours": mine, "error": a, "peer": other, "their_error": b}
        common = [name for name in next(iter(own.values())) if all(budget in own[w].get(name, {}) for w in own)]

        def distance(name: str, budget: int = budget) -> float:
            """Geometric mean over worlds of the error over that of the peers' best there."""
            logs = [math.log(own[w][name][budget] / best(theirs[w], budget)[1]) for w in own]
            return math.exp(statistics.fmean(logs))

        choice = min(common, key=distance)
        rows.append(
            {
                "budget": budget,
                "median": statistics.median(ratios.values()),
                "worst": max(ratios.values()),
                "ratios": ratios,
                "best": names,
                "one_for_all": {"name": choice, "over_peers_best": distance(choice)},
            }
        )
    return rows


def only(rows: dict[str, Rows], kind: str) -> dict[str, Rows]:
    """The contenders of a range."""
    return {world: {n: found for n, found in rows[world].items() if RANGES[kind](n)} for world in rows}


def plot(own: dict[str, Rows], theirs: dict[str, Rows], summaries: dict[str, list[dict[str, Any]]], path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(15, 9))
    own, theirs = only(own, "whole range"), only(theirs, "whole range")
    libraries = {"diffusers": "#ff7f0e", "k-diffusion": "#d62728", "azula": "#9467bd", "flow_matching": "#8c564b"}
    colours = dict(zip(RECOMMENDED, ("#1f77b4", "#2ca02c", "#17becf"), strict=True))
    for axis, world in zip(axes[:, :2].flat, own, strict=True):
        for library, colour in libraries.items():
            rows = {name: found for name, found in theirs[world].items() if name.startswith(library)}
            budgets = [n for n in BUDGETS if any(n in found for found in rows.values())]
            if not budgets:
                continue
            axis.plot(budgets, [best(rows, n)[1] for n in budgets], "o--", color=colour, ms=4, label=f"{library}, best")
        axis.plot(BUDGETS, [best(own[world], n)[1] for n in BUDGETS], "k-", lw=2.5, label="ornstein, best")
        for name, colour in colours.items():
            found = own[world][name]
            axis.plot(list(found), list(found.values()), "s-", color=colour, ms=4, lw=1, label=f"ornstein: {name}")
        axis.set(title=f"{world}, whole range", ylabel="median distance to the exact flow", yscale="log")
    above, below = axes[:, 2]
    for (kind, summary), colour in zip(summaries.items(), ("k", "#1f77b4", "#d62728"), strict=True):
        budgets = [row["budget"] for row in summary]
        above.plot(budgets, [row["median"] for row in summary], "-", color=colour, lw=2, label=f"{kind}, median")
        above.plot(budgets, [row["worst"] for row in summary], ":", color=colour, lw=2, label=f"{kind}, worst world")
    above.set(title="our best over the peers' best", ylabel="ratio of errors", ylim=(0, None))
    budgets = [row["budget"] for row in summaries["whole range"]]
    for name, colour in colours.items():
        ratios = [
            statistics.geometric_mean(own[w][name][n] / best(theirs[w], n)[1] for w in own if n in own[w][name])
            for n in budgets
        ]
        below.plot(budgets, ratios, "s-", color=colour, ms=4, label=name)
    single = [row["one_for_all"]["over_peers_best"] for row in summaries["whole range"]]
    below.plot(budgets, single, "k-", lw=2, label="the one of ours that is best on the mean")
    below.set(title="one of ours in all worlds over\nthe peers' best in each, whole range", yscale="log")
    below.set_ylabel("ratio of errors, geometric mean")
    below.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="network evaluations")
        axis.set_xticks(BUDGETS, [str(n) for n in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in (above, below):
        axis.axhline(1, color="grey", lw=1)
        axis.legend(fontsize=8, frameon=False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_page(found: dict[str, Any]) -> None:
    """The tables and the picture of docs/choosing-a-solver.md."""
    docs = Path(__file__).parent.parent / "docs"
    same, count = found["same_formula"], found["contenders"]
    lines = [
        f"{count['ours']} of ours (each solver on each grid) and {count['peers']} of theirs. The same formula on",
        f"the same levels was compared {len(same)} times, and the errors agree to "
        f"{max((abs(row['ratio'] - 1) for row in same), default=0.0):.1e} of them at worst.",
    ]
    for kind in ("any range", "whole range"):
        lines += ["", f"**{kind.capitalize()}:** our best over the peers' best", ""]
        lines += [
            "| evaluations | median over worlds | worst world | one of ours in all worlds | over the peers' best |"
        ]
        lines += ["|---" * 5 + "|"]
        for row in found["summary"][kind]:
            choice = row["one_for_all"]
            lines.append(
                f"| {row['budget']} | {row['median']:.2f} | {row['worst']:.2f} | {choice['name']} | "
                f"{choice['over_peers_best']:.2f} |"
            )
    page = docs / "choosing-a-solver.md"
    marked = re.compile(r"(<!-- benchmark -->\n).*(<!-- end -->)", re.DOTALL)
    page.write_text(marked.sub(lambda m: m[1] + "\n".join(lines) + "\n\n" + m[2], page.read_text()))
    shutil.copy(RESULTS / "solvers.png", docs / "solvers.png")


def run_share(share: slice) -> tuple[list[dict[str, Any]], dict[str, Rows], dict[str, Rows], float]:
    """One process's part of the work, and the seconds that it took."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    judges = {name: Judge(world) for name, world in worlds().items()}
    same = run_pairs(judges, share)
    return same, run_ours(judges, share), run_peers(judges, share), time.process_time()


def merged(parts: Iterable[dict[str, Rows]]) -> dict[str, Rows]:
    total: dict[str, Rows] = {}
    for part in parts:
        for world, rows in part.items():
            total.setdefault(world, {}).update(rows)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes that share the contenders")
    parser.add_argument("--show", action="store_true", help="draw and print the results there are")
    arguments = parser.parse_args()
    if not arguments.show:
        run(arguments.workers)
    show()


def run(workers: int) -> None:
    shares = [slice(i, None, workers) for i in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = list(pool.map(run_share, shares))
    same = [row for part in parts for row in part[0]]
    own, theirs = merged(part[1] for part in parts), merged(part[2] for part in parts)
    machine = {
        "processor": platform.machine(),
        "torch": torch.__version__,
        "starts": STARTS,
        "seconds": round(sum(part[3] for part in parts)),
    }
    packages = {}
    for name in ("diffusers", "k-diffusion", "azula", "flow-matching"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)

    def written(rows: dict[str, Rows]) -> dict[str, dict[str, str]]:
        return {
            world: {
                name: " ".join(f"{found[n]:.4g}" if n in found else "-" for n in BUDGETS)
                for name, found in contenders.items()
            }
            for world, contenders in rows.items()
        }

    summaries = {kind: compare(only(own, kind), only(theirs, kind)) for kind in RANGES}
    found = {
        "machine": machine,
        "packages": packages,
        "contenders": {"ours": len(ours()), "peers": len(theirs[next(iter(theirs))])},
        "budgets": list(BUDGETS),
        "summary": json.loads(json.dumps(summaries), parse_float=lambda v: float(f"{float(v):.4g}")),
        "same_formula": json.loads(json.dumps(same), parse_float=lambda v: float(f"{float(v):.6g}")),
        "ours": written(own),
        "peers": written(theirs),
    }
    (RESULTS / "solvers.json").write_text(json.dumps(found, indent=1) + "\n")


def show() -> None:
    """The picture, the page's tables, and the summary in words, from the data."""
    found = json.loads((RESULTS / "solvers.json").read_text())

    def read(rows: dict[str, dict[str, str]]) -> dict[str, Rows]:
        return {
            world: {
                name: {n: float(v) for n, v in zip(found["budgets"], text.split(), strict=True) if v != "-"}
                for name, text in contenders.items()
            }
            for world, contenders in rows.items()
        }

    same, summaries = found["same_formula"], found["summary"]
    plot(read(found["ours"]), read(found["peers"]), summaries, RESULTS / "solvers.png")
    write_page(found)
    off = [row for row in same if not abs(row["ratio"] - 1) <= 0.02]
    print(f"same formula and levels: {len(same)} comparisons, {len(off)} beyond 2 %")
    for row in off:
        print(f"  {row['peer']} against {row['ours']}, {row['world']}, {row['steps']} steps: {row['ratio']:.3f}")
    for kind, summary in summaries.items():
        print(kind)
        for row in summary:
            choice = row["one_for_all"]
            print(
                f"{row['budget']:4d} evaluations: our best over the peers' best, median {row['median']:.3f}, worst "
                f"{row['worst']:.3f}; one of ours in all worlds: {choice['name']}, {choice['over_peers_best']:.2f}"
            )


if __name__ == "__main__":
    main()
