"""The conformance table of the solvers: docs/conformance.json, and the tables between the marks in docs/solvers.md.

    python scripts/conformance.py [--only UniPC]

Claimed orders are written here and measured by the protocol of tests/orders.py: deterministic solvers against DOP853 on
the ring, from log-SNR 0 to 5, by the slopes of the last two halvings that stay above 1e-9; stochastic ones by the exact
variance of Gaussian data under the table (`orn.response`). Errors are those of 64 starts over the full range.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import ornstein as orn
from ornstein.solvers.table import Output

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

orders: Any = import_module("orders")

F64 = torch.float64
S = orn.solvers
WORLD = orders.WORLDS["ring"]
MIDDLE = orders.MIDDLE
WEAK = orn.LogSNR(start=-4.0, end=6.0, to_data=False)
BUDGETS = (5, 10, 20, 50)
FIXED = orn.LogSNR(end=8.0, deepest=-6.0)
PROCESSES = {
    p.__class__.__name__: p
    for p in (orn.VP(), orn.EDM(), orn.Flow(), orn.MeanReverting(), orn.SubVP(), orn.VE(), orn.Cosine())
}


@dataclass(frozen=True)
class Claim:
    """A solver, its order (None: it claims none) and its published form where that is another."""

    solver: orn.Solver
    order: int | None
    published: orn.Solver | None = None
    published_order: int | None = None


CLAIMS = (
    Claim(orn.Euler(), 1),
    Claim(S.Midpoint(), 2),
    Claim(S.Ralston(), 2),
    Claim(orn.Heun(), 2),
    Claim(S.DPM2(), 2),
    Claim(S.Kutta3(), 3),
    Claim(S.RK4(), 4),
    Claim(S.Kutta38(), 4),
    Claim(orn.DDIM(), 1),
    Claim(S.Conjugate(rate=0.5), 1),
    Claim(S.AcceleratedDDIM(), 2),
    Claim(S.DPMSolver(order=2), 2),
    Claim(S.DPMSolver(order=3), 3, S.DPMSolver(order=3, variant="published"), 2),
    Claim(S.DPMSolver(order=3, mode="singlestep"), 3),
    Claim(orn.DPMSolverPP(order=2), 2),
    Claim(orn.DPMSolverPP(order=3), 3, orn.DPMSolverPP(order=3, variant="published"), 2),
    Claim(orn.DPMSolverPP(order=2, mode="singlestep"), 2),
    Claim(orn.DPMSolverPP(order=3, mode="singlestep"), 3),
    Claim(S.UniPC(order=1), 2),
    Claim(S.UniPC(order=2), 3),
    Claim(S.UniPC(order=3), 4, S.UniPC(order=3, start="published"), 3),
    Claim(S.DPMSolverV3(order=2), 3),
    Claim(S.EVODiff(), 2, S.EVODiff(variant="published"), 1),
    Claim(S.DEIS(order=1), 2),
    Claim(S.DEIS(order=2), 3),
    Claim(S.DEIS(order=3), 4, S.DEIS(order=3, start="published"), 2),
    Claim(S.DEIS(order=3, method="rhoRK"), 4),
    Claim(S.AdamsBashforth(order=2), 2),
    Claim(S.AdamsBashforth(order=3), 3),
    Claim(S.AdamsBashforth(order=4), 4, S.AdamsBashforth(order=4, start="published"), 2),
    Claim(S.PNDM(), 2),
    Claim(S.HB(), 1),
    Claim(S.GHVB(), 2),
    Claim(S.SASolver(predictor=2, corrector=2, tau=0.0), 3),
    Claim(S.Embedded(orn.DDIM()), 1),
    Claim(S.Doubled(orn.DDIM()), 1),
    Claim(orn.DDPM(), 1),
    Claim(orn.DDIM(eta=1.0), 1),
    Claim(S.AcceleratedDDPM(), 2),
    Claim(S.EulerMaruyama(), 1),
    Claim(S.StochasticHeun(), 2),
    Claim(S.SDEDPMSolverPP(order=1), 1),
    Claim(S.SDEDPMSolverPP(order=2), 2),
    Claim(S.SASolver(), 2),
    Claim(S.Churn(churn=20.0), 2),
    Claim(S.Restart(intervals=((0.3, 1.5, 2),)), 2),
    Claim(S.PredictorCorrector(), None),
)


def label(solver: orn.Solver) -> str:
    """The solver with the options that are not its defaults."""
    own: Any = solver
    if isinstance(solver, (S.Embedded, S.Doubled)):
        return f"{type(solver).__name__}({label(own.solver)})"
    options = [f.name for f in fields(own) if f.name == "order" or getattr(own, f.name) != getattr(type(own)(), f.name)]
    return f"{type(solver).__name__}({', '.join(f'{name}={getattr(own, name)!r}' for name in options)})"


def paper(solver: orn.Solver) -> str:
    """The arXiv numbers of the docstring's source."""
    text = (type(solver).__doc__ or "").split("Source:")
    numbers = re.findall(r"\b(\d{4}\.\d{5})\b", text[-1]) if len(text) > 1 else []
    return ", ".join(f"[{n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(numbers))


def calibrated(solver: orn.Solver, world: orn.exact.GaussianMixture, process: orn.GaussianProcess) -> orn.Solver:
    """The solver, ready for a world."""
    if not isinstance(solver, S.DPMSolverV3):
        return solver
    data = world.sample(500, seed=3).to(F64)
    cond = {"mean": torch.zeros_like(data)} if isinstance(process, orn.MeanReverting) else None
    return solver.calibrate(world.denoiser(process), data, cond, points=40)


def flow_error(solver: orn.Solver, name: str, steps: int) -> float:
    return float(orders.errors(name, orn.VP(), solver, (steps,), MIDDLE)[0])


def weak_error(solver: orn.Solver, steps: int) -> float:
    """Distance of the variances at the end, for three variances of the data at once."""
    process, c = orn.VP(), torch.tensor([0.1, 0.7, 5.0], dtype=F64)
    grid = WEAK(process, steps)
    table = solver.compile(process, grid)
    assert isinstance(table, orn.Table)
    start, end = (level.alpha**2 * c + level.sigma**2 for level in (grid[0], grid[-1]))
    return float((orn.response(table, 0.3, c).variance(start) - end).norm())


def slopes(error: Callable[[int], float], order: int) -> list[float]:
    """The slopes of two halvings: at the least steps from 20 on at which both are within 0.1, or at the finest."""
    found: list[float] = []
    known: dict[int, float] = {}
    for steps in ([10 * 2**k, 20 * 2**k, 40 * 2**k] for k in range(1, 5)):
        for n in steps:
            known.setdefault(n, error(n))
        if known[steps[-1]] < 1e-9:
            break
        found = [round(math.log2(known[a] / known[b]), 2) for a, b in itertools.pairwise(steps)]
        if max(abs(v - order) for v in found) <= 0.1:
            break
    return found


def full_range(solver: orn.Solver) -> tuple[dict[str, float | None], float | None]:
    """Errors on the default grid at each budget, and what a grid of fixed ends leaves at 400 evaluations; None where
    steps are longer than an error bar allows."""
    process = orn.Flow()
    x = process.prior((64, 2), seed=0, dtype=F64)
    truth, oracle = _truth(), WORLD.denoiser(process)

    def error(nfe: int, grid: orn.Grid) -> float | None:
        try:
            out = orn.sample(oracle, x_init=x, solver=solver, grid=grid, nfe=nfe, progress=False)
        except ValueError as refused:
            if "no error bar" not in str(refused):
                raise
            return None
        return float(f"{float((out.x - truth).norm(dim=1).median()):.3g}")

    return {str(n): error(n, orn.LogSNR()) for n in BUDGETS}, error(400, FIXED)


@cache
def _truth() -> torch.Tensor:
    process = orn.Flow()
    x = process.prior((64, 2), seed=0, dtype=F64)
    truth: torch.Tensor = WORLD.flow(process, x, 1.0, 0.0, rtol=1e-8, atol=1e-9)
    return truth


def serves(solver: orn.Solver) -> list[str]:
    """The processes on which it runs from the end law to data and gives finite samples."""
    found = []
    for name, process in PROCESSES.items():
        cond = {"mean": torch.zeros(4, 2, dtype=F64)} if name == "MeanReverting" else None
        try:
            ready = calibrated(solver, WORLD, process)
            oracle = WORLD.denoiser(process)
            orn.sample(oracle, (4, 2), cond=cond, solver=ready, steps=12, seed=0, dtype=F64, progress=False)
        except (ValueError, orn.NonFiniteError, orn.TableError, orn.ViewError) as error:
            print(f"  {label(solver)} does not serve {name}: {error}")
            continue
        found.append(name)
    return found


def measured(solver: orn.Solver, order: int, stochastic: bool) -> dict[str, list[float]]:
    """Slopes on each world of the protocol, or of the variance."""
    if stochastic:
        return {"law": slopes(partial(weak_error, solver), order)}
    found = {}
    for name, world in orders.WORLDS.items():
        ready = calibrated(solver, world, orn.VP())
        found[name] = slopes(partial(flow_error, ready, name), order)
    return found


def measure(claim: Claim) -> dict[str, Any]:
    solver = calibrated(claim.solver, WORLD, orn.Flow())
    short, long = (solver.compile(orn.Flow(), WEAK(orn.Flow(), n)) for n in (20, 30))
    assert isinstance(short, orn.Table)
    stochastic = bool(short.noises)
    row: dict[str, Any] = {
        "class": type(solver).__name__,
        "solver": label(claim.solver),
        "paper": paper(solver),
        "stochastic": stochastic,
        "claimed": claim.order,
        "nfe_per_step": (long.nfe - short.nfe) / 10,
        "views": sorted({a.view for r in short.rows for a in r.terms if isinstance(a, Output)}),
        "processes": serves(claim.solver),
    }
    if claim.order is not None:
        row["measured"] = measured(claim.solver, claim.order, stochastic)
    if not stochastic:
        errors, floor = full_range(solver)
        row |= {"errors": errors, "floor": floor}
    if claim.published is not None and claim.published_order is not None:
        row["published"] = {
            "solver": label(claim.published),
            "claimed": claim.published_order,
            "measured": measured(claim.published, claim.published_order, stochastic),
            "errors": full_range(claim.published)[0],
        }
    return row


COLUMNS = (
    "solver",
    "paper",
    "order claimed",
    "measured, 2-D",
    "64-D",
    "NFE a step",
    "reads",
    *(f"{n} NFE" for n in BUDGETS),
    "floor",
    "serves",
)
NOT_TABLES = ("AdaptiveRungeKutta", "GottaGoFast")


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def served(row: dict[str, Any]) -> str:
    missing = [name for name in PROCESSES if name not in row["processes"]]
    return "all" if not missing else "all but " + ", ".join(missing)


def order_cells(row: dict[str, Any]) -> list[str]:
    if row["claimed"] is None:
        return ["none", *("-" for _ in range(1 if row.get("stochastic") else 2))]
    return [str(row["claimed"]), *(", ".join(f"{v:.2f}" for v in found) for found in row["measured"].values())]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(rows: list[dict[str, Any]]) -> str:
    """The generated part of docs/solvers.md."""
    flow, noisy = ([r for r in rows if r["stochastic"] is kind] for kind in (False, True))

    def common(row: dict[str, Any]) -> list[str]:
        return [
            f"`{row['solver']}`",
            row["paper"] or "-",
            *order_cells(row),
            f"{row['nfe_per_step']:g}",
            ", ".join(row["views"]),
        ]

    parts = ["## Deterministic", ""]
    parts.append(
        table(
            COLUMNS,
            [[*common(r), *(number(e) for e in r["errors"].values()), number(r["floor"]), served(r)] for r in flow],
        )
    )
    parts += ["", "## Stochastic", "", "Orders are weak: those of the law.", ""]
    parts.append(table((*COLUMNS[:3], "measured", *COLUMNS[5:7], "serves"), [[*common(r), served(r)] for r in noisy]))
    parts += ["", "## As published", ""]
    parts.append("Where the published form is another than ours, both; ours is the default.")
    both = []
    for r in rows:
        if "published" in r:
            other = r["published"]
            both.append([f"`{r['solver']}`", *order_cells(r), *(number(e) for e in r["errors"].values())])
            both.append([f"`{other['solver']}`", *order_cells(other), *(number(e) for e in other["errors"].values())])
    parts += ["", table(("solver", "order claimed", "measured, 2-D", "64-D", *(f"{n} NFE" for n in BUDGETS)), both)]
    parts += ["", "## Not tables", ""]
    for name in NOT_TABLES:
        first = (getattr(S, name).__doc__ or "").strip().split("\n")[0]
        parts.append(f"- `{name}`: {first}")
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure the solvers whose name begins so, and keep the others")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    path = ROOT / "docs" / "conformance.json"
    kept = {row["solver"]: row for row in json.loads(path.read_text())["rows"]} if only else {}
    rows = []
    for claim in CLAIMS:
        name = label(claim.solver)
        rows.append(kept[name] if name in kept and not name.startswith(only) else measure(claim))
        r = rows[-1]
        print(name, r["claimed"], r.get("measured"), r.get("errors"), r.get("floor"), flush=True)
    path.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    write(rows)


def write(rows: list[dict[str, Any]]) -> None:
    path = ROOT / "docs" / "solvers.md"
    marked = re.compile(r"(<!-- conformance -->\n).*(<!-- end -->)", re.DOTALL)
    text = path.read_text()
    if not marked.search(text):
        raise SystemExit(f"{path.name} has no marks <!-- conformance --> and <!-- end -->")
    path.write_text(marked.sub(lambda m: m[1] + page(rows) + m[2], text))


if __name__ == "__main__":
    main()
