"""Errors of solvers and grids over the full range, from pure noise to data, on exact mixtures.

    python benchmarks/solvers.py

Two worlds: a ring of six modes in 2-D (standard deviation 0.15), and digits of scikit-learn in 64-D, 300 images blurred
by 0.15. The truth is the world's own flow map (DOP853). An error is the median distance to it over the same starts, in
float64. Writes benchmarks/results/solvers.json, solvers.png and the tables of docs/solvers.md.
"""

from __future__ import annotations

import json
import math
import platform
import re
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import ornstein as orn

ROOT = Path(__file__).parent
BUDGETS = (5, 10, 20, 50)
STARTS = 64
F64 = torch.float64
METHODS: dict[str, tuple[orn.Solver, orn.Grid]] = {
    "Euler, uniform t": (orn.Euler(), orn.Uniform(start=1.0, end=0.0)),
    "DDIM, log-SNR": (orn.DDIM(), orn.LogSNR()),
    "Heun, Karras": (orn.Heun(), orn.Karras()),
    "Heun, log-SNR": (orn.Heun(), orn.LogSNR()),
    "DPM++ 2M, Karras": (orn.DPMSolverPP(order=2), orn.Karras()),
    "DPM++ 2M, log-SNR": (orn.DPMSolverPP(order=2), orn.LogSNR()),
    "DPM++ 2M, log-SNR to 8": (orn.DPMSolverPP(order=2), orn.LogSNR(end=8.0, deepest=-6.0)),
    "DPM++ 3M, log-SNR": (orn.DPMSolverPP(order=3), orn.LogSNR()),
}


def worlds() -> dict[str, orn.exact.GaussianMixture]:
    angles = torch.arange(6, dtype=F64) * math.pi / 3
    ring = 2 * torch.stack([angles.cos(), angles.sin()], 1)
    digits = torch.as_tensor(load_digits().data[:300] / 8 - 1)
    return {
        "ring": orn.exact.GaussianMixture(ring, torch.full((6,), 0.15, dtype=F64)),
        "digits": orn.exact.GaussianMixture(digits, torch.full((300,), 0.15, dtype=F64)),
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for world_name, world in worlds().items():
        for process in (orn.VP(), orn.EDM(), orn.Flow()):
            x = process.prior((STARTS, world.dim), seed=0, dtype=F64)
            truth = world.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)
            for name, (solver, grid) in METHODS.items():
                oracle = world.denoiser(process, predicts="velocity" if name.startswith("Euler") else "x0")
                for nfe in BUDGETS:
                    out = orn.sample(oracle, x_init=x, solver=solver, grid=grid, nfe=nfe)
                    error = float((out.x - truth).flatten(1).norm(dim=1).median())
                    row = {"world": world_name, "process": repr(process), "method": name, "nfe": nfe, "ran": out.nfe}
                    rows.append({**row, "error": float(f"{error:.4g}")})
    machine = {"processor": platform.machine(), "torch": torch.__version__, "starts": STARTS}
    (ROOT / "results" / "solvers.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    plot(rows)
    tables = []
    for world_name in ("ring", "digits"):
        tables.append(f"### {world_name}, Flow\n\n| solver, grid | " + " | ".join(f"{n} NFE" for n in BUDGETS) + " |")
        tables.append("|---|" + "---|" * len(BUDGETS))
        for name in METHODS:
            found = {
                r["nfe"]: r["error"]
                for r in rows
                if (r["world"], r["process"], r["method"]) == (world_name, "Flow()", name)
            }
            tables.append(f"| {name} | " + " | ".join(f"{found[n]:.3g}" for n in BUDGETS) + " |")
        tables.append("")
    page = ROOT.parent / "docs" / "solvers.md"
    marked = re.compile(r"(<!-- errors -->\n).*(<!-- end -->)", re.DOTALL)
    page.write_text(marked.sub(lambda m: m[1] + "\n".join(tables) + m[2], page.read_text()))


def plot(rows: list[dict[str, object]]) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), sharex=True, sharey="row")
    for i, world in enumerate(("ring", "digits")):
        for j, process in enumerate(dict.fromkeys(str(r["process"]) for r in rows)):
            axis = axes[i, j]
            for k, name in enumerate(METHODS):
                own = [r for r in rows if (r["world"], r["process"], r["method"]) == (world, process, name)]
                axis.plot(
                    [r["nfe"] for r in own], [r["error"] for r in own], marker="osD^vP*X"[k], label=name, color=f"C{k}"
                )
            axis.set(xscale="log", yscale="log", title=f"{world}, {process.split('(')[0]}")
            axis.set_xticks(BUDGETS, [str(n) for n in BUDGETS], minor=False)
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            if i == 1:
                axis.set_xlabel("network evaluations")
            if j == 0:
                axis.set_ylabel("median distance to the exact flow")
            axis.set_ylim(top=20)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(ROOT / "results" / "solvers.png", dpi=100)


if __name__ == "__main__":
    main()
