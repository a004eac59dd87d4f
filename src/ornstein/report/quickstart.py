"""The quickstart: train on real digits, sample, judge, restore, and show it all on one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ornstein.io import atomic_write, write_json
from ornstein.report import html
from ornstein.report.beside import beside
from ornstein.report.curves import loss
from ornstein.report.figures import chart, picture
from ornstein.report.judge import Goal, Judge, goals
from ornstein.report.names import SOLVER_TITLES as TITLES
from ornstein.report.restoration import REFERENCE, Restoration, restore
from ornstein.report.run import NAMED, Run
from ornstein.report.sections import quality
from ornstein.report.show import show_of
from ornstein.report.wrong_labels import guide

COMPARED = ("ddim", "heun", "dpmpp", "dpmpp3", "ddpm")
GUIDANCE = 1.2


@dataclass(frozen=True)
class Size:
    """How much work a quickstart does."""

    steps: int = 1200
    width: int = 256
    restoration_steps: int = 800
    budgets: tuple[int, ...] = (5, 10, 20, 50)
    short_budgets: tuple[int, ...] = (5, 10, 20)


FULL = Size()
SMOKE = Size(steps=12, width=32, restoration_steps=12, budgets=(5, 10), short_budgets=(5, 10))


def quickstart(
    folder: str | Path,
    *,
    seed: int = 0,
    size: Size = FULL,
    say: Callable[[str], object] = print,
    progress: bool | None = None,
) -> tuple[list[Goal], dict[str, Any]]:
    """Fill `folder` with a run and its report; the goals of its one set of samples, and all figures.

    A quickstart that was interrupted goes on where it was: each of its three trainings has its own checkpoint. It
    computes on one thread: networks this small gain little from two, and lose much where the cores are shared.
    """
    with _one_thread():
        return _work(folder, seed, size, say, progress)


def _work(
    folder: str | Path, seed: int, size: Size, say: Callable[[str], object], progress: bool | None
) -> tuple[list[Goal], dict[str, Any]]:
    begun = time.monotonic()
    net = {"kind": "mlp", "width": size.width, "depth": 3}
    run = Run.create(folder, {"data": "digits", "net": net, "steps": size.steps, "seed": seed}, "quickstart")
    classes = f"{len(run.split.train)} digits to train on, {len(run.split.held_out)} held out"
    say(f"1/4  training a class-conditional model: {classes}, {size.steps} steps")
    model, fitted = run.train(progress)
    training = time.monotonic() - begun

    say("2/4  sampling and judging")
    found = run.evaluate(steps=20, guidance=GUIDANCE, seed=seed, solver=NAMED)
    metrics, judge = found.metrics, found.judge
    speed = []
    for solver in COMPARED:
        for budget in size.budgets:
            out = run.sample(
                judge.n, labels=judge.labels, solver=solver, nfe=budget, seed=seed, model=model, progress=False
            )
            speed.append({"solver": solver, "nfe": out.nfe, **judge(out.x)})

    say(f"3/4  what guidance does: a second model, trained with 30 % wrong labels, {size.steps} steps")
    guided = guide(run, judge, progress=progress)
    say(f"4/4  restoring damaged digits: a third model, {size.restoration_steps} steps")
    restored = restore(run, run.split, steps=size.restoration_steps, budgets=size.short_budgets, progress=progress)

    metrics |= {
        "solvers": speed,
        "guidance": [{key: value for key, value in row.items() if key != "x"} for row in guided],
        "restoration": {"damaged_psnr": restored.damaged_psnr, "runs": restored.rows},
        "seconds": {"training": round(training, 1), "all": round(time.monotonic() - begun, 1)},
    }
    write_json(run.place("metrics.json"), metrics)
    sampler = f"DPM-Solver++ 2, 20 steps, guidance {GUIDANCE:g}, seed {seed}, {metrics['sampler']['nfe']} evaluations"
    lead = (
        f"scikit-learn's digits, 8 x 8 pixels: {classes}. A residual MLP, trained for {size.steps} steps "
        f"({training:.0f} s) with EDM's process and preconditioning."
    )
    parts = [
        quality(metrics, sampler, judge.says),
        beside(run.split, found.x, judge, replace(show_of(run.split), ink=True)),
        html.section("Training loss", loss(fitted.history["loss"])),
        _speed(speed, metrics["references"], size.budgets),
        _guidance(guided, metrics["references"], judge),
        _restoration(restored, size.short_budgets),
        html.section("Again", f"<p><code>ornstein quickstart --seed {seed}</code> with torch {torch.__version__}.</p>"),
    ]
    atomic_write(run.place("report.html"), html.page("Ornstein quickstart", lead, parts).encode())
    return goals(metrics["figures"], metrics["references"]), metrics


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _speed(rows: list[dict[str, Any]], references: Mapping[str, Any], budgets: tuple[int, ...]) -> str:
    lines = {
        TITLES[name]: _columns([row for row in rows if row["solver"] == name], "nfe", "frechet_ratio")
        for name in COMPARED
    }
    svg = chart(
        lines, name="speed", x="network evaluations a sample", y="Fréchet ratio (real data: 1)", log="xy",
        ticks=budgets, reference=(1.0, "training data against held-out"),
    )  # fmt: skip
    return html.section(
        "Quality against evaluations",
        html.figure(
            svg,
            "Fréchet distance to held-out data over that of training data, without guidance, each point as many "
            "samples as are held out, from one seed. Each solver stays within the budget: Heun takes two evaluations a "
            "step, and the matched start of DPM-Solver++ 3 one more.",
        ),
        html.table(
            ["solver", "evaluations", "Fréchet distance", "Fréchet ratio", "label accuracy", "nearest ratio"],
            [
                [
                    TITLES[row["solver"]],
                    str(row["nfe"]),
                    f"{row['frechet']:.3f}",
                    f"{row['frechet_ratio']:.2f}",
                    f"{row['label_accuracy']:.3f}",
                    f"{row['nearest_ratio']:.3f}",
                ]
                for row in rows
            ],
            ["real data", "", f"{references['frechet']:.3f}", "1.00", f"{references['label_accuracy']:.3f}", "1.000"],
        ),
    )


def _guidance(rows: list[dict[str, Any]], references: Mapping[str, Any], judge: Judge) -> str:
    accuracy, spread = _columns(rows, "scale", "label_accuracy"), _columns(rows, "scale", "diversity")
    svg = chart(
        {"label accuracy": accuracy, "diversity within a class": spread},
        name="guidance", x="guidance scale", y="share of real data's", reference=(1.0, "real data"), height=3.0,
    )  # fmt: skip
    assert judge.labels is not None
    plates = []
    for row in rows:
        if row["scale"] in (1.0, 2.0, 4.0):
            chosen = torch.cat([row["x"][judge.labels == k][:2] for k in range(10)])
            shown = picture(chosen, f"samples at scale {row['scale']:g}", bounds=(0.0, 1.0), zoom=3)
            plates.append([f"{row['scale']:g}", html.Markup(shown)])
    return html.section(
        "What guidance does",
        "A second model saw 30 % of its labels wrong, so it puts some of every digit into every class. Guidance moves "
        "away from what all classes share, towards what sets one apart: the labels come right, and samples of a class "
        "grow alike.",
        html.figure(
            svg,
            "Label accuracy, and the mean distance of two samples of one class over that of held-out data, against the "
            f"scale w of D_null + w (D_label - D_null). The classifier itself is right on "
            f"{references['label_accuracy']:.1%} of held-out data.",
        ),
        html.plates(plates, ["scale", "two samples of each class, 0 to 9"]),
        html.table(
            ["scale", "label accuracy", "diversity", "Fréchet ratio"],
            [
                [f"{r['scale']:g}", f"{r['label_accuracy']:.3f}", f"{r['diversity']:.3f}", f"{r['frechet_ratio']:.2f}"]
                for r in rows
            ],
            ["real data", f"{references['label_accuracy']:.3f}", "1.000", "1.00"],
        ),
    )


def _restoration(found: Restoration, budgets: tuple[int, ...]) -> str:
    fast = [row for row in found.rows if row["solver"] != REFERENCE]
    lines = {
        TITLES[name]: _columns([row for row in fast if row["solver"] == name], "nfe", "distance")
        for name in dict.fromkeys(row["solver"] for row in fast)
    }
    svg = chart(
        lines, name="restoration", x="network evaluations a sample", y="distance to Euler, 100 steps", log="xy",
        ticks=budgets, height=3.0,
    )  # fmt: skip
    n = 14
    shown = {
        "damaged": found.damaged,
        "DPM-Solver++ 2, 10 evaluations": found.restored["dpmpp, 10"],
        REFERENCE: found.restored[REFERENCE],
        "truth": found.truth,
    }
    plates = [[name, html.Markup(picture(x[:n], name, bounds=(0.0, 1.0), zoom=4))] for name, x in shown.items()]
    return html.section(
        "Restoring damaged digits",
        "A third model restores digits of which a square of 3 x 3 pixels was erased, with noise on the rest. Its "
        "process reverts to the damaged digit, so that sampling starts from there: each answer is one draw of what the "
        "digit may have been.",
        html.plates(plates, ["", f"{n} held-out digits"]),
        html.figure(
            svg,
            "Root mean square distance to the answer of Euler's method with 100 steps, from the same noise, in units "
            "of the pixels' range.",
        ),
        html.table(
            ["solver", "evaluations", "PSNR against the truth, dB", f"distance to {REFERENCE}"],
            [[TITLES[row["solver"]], str(row["nfe"]), f"{row['psnr']:.2f}", f"{row['distance']:.4f}"] for row in fast],
            [REFERENCE, str(found.rows[0]["nfe"]), f"{found.rows[0]['psnr']:.2f}", "0"],
        ),
        f"The damaged digits themselves have {found.damaged_psnr:.2f} dB.",
    )


def _columns(rows: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    return [float(row[x]) for row in rows], [float(row[y]) for row in rows]
