"""Samples and their quality over network evaluations."""

from __future__ import annotations

from torch import Tensor

from ornstein.report import html
from ornstein.report.cost import BUDGETS, FINE, SOLVERS, Cost
from ornstein.report.figures import chart
from ornstein.report.judge import TITLES
from ornstein.report.names import SOLVER_TITLES
from ornstein.report.show import Show

CHARTS = 2
"""Most figures that are drawn; all are in the table."""
MISSING = "Not measured: <code>ornstein evaluate</code> without <code>--quick</code> does."


def over_nfe(cost: Cost | None, show: Show, deviation: float) -> str:
    """The section of the samples over network evaluations; `deviation` is the standard deviation of the data."""
    if cost is None:
        return html.section("Samples over evaluations", MISSING)
    few = cost.fine[: show.many]
    sets = {str(nfe): x[: len(few)] for nfe, x in cost.shown.items()} | {str(FINE): few}
    said = ""
    if show.space.kind != "table":
        apart = ", ".join(f"{distance(x, cost.fine) / deviation:.3f} ({nfe})" for nfe, x in cost.shown.items())
        said = (
            f" Their root mean square difference from those of {FINE} evaluations, in standard deviations of the data: "
            f"{apart}."
        )
    return html.section(
        "Samples over evaluations",
        f"The same seeds by {SOLVER_TITLES[SOLVERS[0]]}, with more and more network evaluations a sample.{said}",
        show.over(sets, "evaluations"),
    )


def against_cost(cost: Cost | None, guidance: float) -> str:
    """The section of quality against cost: the judge's brief figures of several solvers over network evaluations."""
    if cost is None or not cost.rows:
        return html.section("Quality against cost", MISSING)
    names = [name for name in TITLES if name in cost.real]
    solvers = list(dict.fromkeys(row["solver"] for row in cost.rows))
    drawn = [_chart(cost, name, solvers, wide=len(names) == 1) for name in names[:CHARTS]]
    caption = (
        f"Each point {cost.n:,} samples of one seed" + (f", guidance {guidance:g}" if guidance != 1 else "") + ". "
        "Dashed: as many training samples against the same held-out ones, averaged."
    )
    return html.section(
        "Quality against cost",
        html.figure(drawn[0] if len(drawn) == 1 else html.side_by_side(*drawn), caption),
        html.table(
            ["solver", "evaluations", *(TITLES[name] for name in names)],
            [
                [SOLVER_TITLES[row["solver"]], str(row["nfe"]), *(f"{row[name]:.3f}" for name in names)]
                for row in cost.rows
            ],
            ["real data", "", *(f"{cost.real[name]:.3f}" for name in names)],
        ),
    )


def distance(x: Tensor, fine: Tensor) -> float:
    """Root mean square difference of two sets of samples, one by one."""
    return float((x.double() - fine.double()).square().mean().sqrt())


def _chart(cost: Cost, name: str, solvers: list[str], *, wide: bool) -> str:
    lines = {
        SOLVER_TITLES[solver]: (
            [float(row["nfe"]) for row in cost.rows if row["solver"] == solver],
            [float(row[name]) for row in cost.rows if row["solver"] == solver],
        )
        for solver in solvers
    }
    return chart(
        lines, name=f"cost {name}", x="network evaluations a sample", y=TITLES[name], log="xy",
        ticks=BUDGETS, reference=(cost.real[name], "real data"),
        width=6.4 if wide else 4.4, height=3.4 if wide else 3.0,
    )  # fmt: skip
