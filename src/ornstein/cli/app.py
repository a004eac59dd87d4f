"""The commands. Nothing heavy is imported until one runs, so that --help answers at once."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from ornstein._extras import require
from ornstein.report.names import SOLVERS, nearest

app = typer.Typer(
    name="ornstein",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Generative modelling by stochastic processes: train a model, sample it, and know how good it is.

    Begin with `ornstein quickstart`. A run is a folder: config, checkpoint, metrics, samples, report.
    """,
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="On an error, show where it happened.")] = False,
) -> None:
    """Read by `run`, before the command."""


@app.command(short_help="Train on real digits, sample, judge, and show.")
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Repeats everything: weights, data order, noise.")] = 0,
    fast: Annotated[bool, typer.Option("--fast", help="A smoke run of seconds; the samples are noise.")] = False,
) -> None:
    """Train on real digits, sample, judge, restore damaged ones: a report in about two minutes.

    Writes OUT/report.html, one page with everything, and says whether the samples meet their three goals. If it is
    interrupted, the same command goes on where it was.

      ornstein quickstart --out runs/first --seed 1
    """
    _needs("pydantic", "yaml", "safetensors", "sklearn", "matplotlib")
    from ornstein.report.quickstart import FULL, SMOKE
    from ornstein.report.quickstart import quickstart as work

    goals, metrics = work(out, seed=seed, size=SMOKE if fast else FULL, say=typer.echo)
    typer.echo("\nsolver       evaluations  Fréchet ratio  label accuracy")
    for row in metrics["solvers"]:
        typer.echo(
            f"{row['solver']:<12} {row['nfe']:>11}  {row['frechet_ratio']:>13.2f}  {row['label_accuracy']:>14.3f}"
        )
    sampler, real = metrics["sampler"], metrics["references"]["label_accuracy"]
    typer.echo(
        f"\none set of samples ({sampler['solver']}, {sampler['steps']} steps, guidance {sampler['guidance']:g}, "
        f"seed {sampler['seed']}); the classifier is right on {real:.3f} of held-out data"
    )
    _print_goals(goals)
    typer.echo(f"\n{metrics['seconds']['all']:.0f} s, {metrics['seconds']['training']:.0f} of them the first training")
    typer.echo(f"report: {out / 'report.html'}")


@app.command(short_help="Train a model on your data, or resume.")
def train(
    data: Annotated[
        str | None, typer.Option(help="digits, an .npz (x of shape (n, ...), and y for labels) or an .npy. [digits]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/NAME OF DATA]")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of fields; options override it.")] = None,
    net: Annotated[str | None, typer.Option(help="mlp, unet or dit. [mlp]")] = None,
    process: Annotated[str | None, typer.Option(help="edm, flow, vp, subvp, ve or cosine. [edm]")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer. [1200]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step. [256]")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate. [0.001]")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats the run. [0]")] = None,
) -> None:
    """Train a model on your data, or go on with a run that was interrupted.

    The config, with every default filled in, is written to OUT/config.yaml; its fields are those of --config:
    data, held_out, net (kind, width, depth), process, predicts, drop, steps, batch_size, lr, ema, seed. If OUT is
    already a run, it is resumed to the same weights, bit for bit.

      ornstein train --data my.npz --out runs/mine --steps 5000
    """
    _needs("pydantic", "yaml", "safetensors")
    from ornstein.report.config import absolute, read_values
    from ornstein.report.run import Run

    given = {"data": data, "process": process, "steps": steps, "batch_size": batch_size, "lr": lr, "seed": seed}
    values = (read_values(config) if config else {}) | {key: value for key, value in given.items() if value is not None}
    if net is not None:
        values["net"] = {**values.get("net", {}), "kind": net}
    if isinstance(values.get("data"), str):
        values["data"] = absolute(values["data"])
    folder = out or Path("runs") / Path(values.get("data", "digits")).stem
    run = Run.create(folder, values, str(config or "options"))
    _, fitted = run.train()
    tail = fitted.history["loss"][-max(1, fitted.steps // 20) :].mean()
    typer.echo(f"{folder}: {fitted.steps} steps, loss {float(tail):.4g}")
    typer.echo(f"next: ornstein sample {folder} --out samples.npz   or   ornstein evaluate {folder}")


@app.command(short_help="Sample a trained run.")
def sample(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    n: Annotated[int, typer.Option("-n", "--number", help="How many samples.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 20,
    solver: Annotated[str, typer.Option(help=f"{', '.join(SOLVERS)}.")] = "dpmpp",
    label: Annotated[int | None, typer.Option(help="The class to sample; without it, each in turn.")] = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Repeats the samples.")] = 0,
    out: Annotated[Path | None, typer.Option(help=".npz, or .png for images. [RUN/samples.npz]")] = None,
) -> None:
    """Sample a trained run, into arrays (x, and the labels y) or a picture.

    ornstein sample runs/digits -n 64 --steps 10 --solver dpmpp3 --label 3 --guidance 2 --out threes.png
    """
    _needs("pydantic", "yaml", "safetensors")
    _known_solver(solver)
    if n < 1:
        raise ValueError(f"-n {n}: at least 1 sample")
    target = out or run / "samples.npz"
    if target.suffix not in (".npz", ".png"):
        raise ValueError(f"--out {target}: samples are written as .npz or .png")
    import torch

    from ornstein.io import atomic_write
    from ornstein.report.data import bounds_of
    from ornstein.report.figures import image
    from ornstein.report.run import Run, save_samples

    opened = Run.open(run)
    classes = opened.config.labels
    labels = torch.full((n,), label) if label is not None else torch.arange(n) % classes if classes else None
    done = opened.sample(n, labels=labels, solver=solver, steps=steps, guidance=guidance, seed=seed)
    if target.suffix == ".npz":
        save_samples(target, done.x, labels)
    else:
        atomic_write(target, image(done.x, columns=max(1, round(n**0.5)), bounds=bounds_of(opened.config.data)))
    typer.echo(f"{n} samples, {done.nfe} network evaluations each: {target}")


@app.command(short_help="Judge a trained run against held-out data.")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 20,
    solver: Annotated[str, typer.Option(help=f"{', '.join(SOLVERS)}.")] = "dpmpp",
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Repeats the samples.")] = 0,
) -> None:
    """Judge a trained run against its held-out data: metrics.json, samples.npz and report.html.

    Every figure stands beside what real data score: Fréchet distance, nearest-training distance and, with labels,
    the accuracy of a classifier of real data.

      ornstein evaluate runs/digits --guidance 1.2
    """
    _needs("pydantic", "yaml", "safetensors", "sklearn", "matplotlib")
    _known_solver(solver)
    from ornstein.report.judge import goals
    from ornstein.report.run import Run
    from ornstein.report.sections import run_page

    opened = Run.open(run)
    found = opened.evaluate(solver=solver, steps=steps, guidance=guidance, seed=seed)
    run_page(opened, found)
    metrics = found.metrics
    for name, value in metrics["figures"].items():
        typer.echo(f"{name:<16} {value:8.4f}   real data {metrics['references'][name]:8.4f}")
    _print_goals(goals(metrics["figures"], metrics["references"]))
    typer.echo(f"report: {run / 'report.html'}")


@app.command(short_help="The published systems, and how far each is proven.")
def papers(
    name: Annotated[str | None, typer.Argument(help="One system; without it, all of them.")] = None,
    status: Annotated[str | None, typer.Option(help="Only those that are proven, negative or partial.")] = None,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="BibTeX entries.")] = False,
) -> None:
    """The published systems that the library implements: paper, class, test, and how far each is proven.

    ornstein papers dpm-solver-pp --bibtex
    """
    from ornstein.papers import paper, papers_table

    if name is not None and status is not None:
        raise ValueError("--status chooses among all systems: give it, or a name, not both")
    typer.echo(papers_table(status=status, as_bibtex=bibtex) if name is None else paper(name, as_bibtex=bibtex))


@app.command(short_help="Check anyone's sampler against ground truth.")
def certify(
    sampler: Annotated[str, typer.Argument(help="PKG:OBJECT, PKG a module or a .py file.")],
    adaptor: Annotated[str, typer.Option(help="auto, callable, k-diffusion, azula, diffusers or solver.")] = "auto",
    order: Annotated[int | None, typer.Option(help="The order that is claimed; else what the object says.")] = None,
    options: Annotated[str | None, typer.Option(help="JSON passed to the sampler: '{\"solver_order\": 3}'.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one check may take.")] = 120.0,
    out: Annotated[Path | None, typer.Option(help="Folder for report.json and report.html.")] = None,
) -> None:
    """Check anyone's sampler against ground truth: order, law, limits, evaluations, batches, seeds, precision, ends.

    The sampler may be a scheduler of diffusers, a function of k-diffusion, a sampler class of azula, a solver of ours,
    or a function fn(denoise, x, sigmas) -> x. It may crash or hang: that is reported. The exit code is 1 if a check
    fails.

      ornstein certify diffusers:UniPCMultistepScheduler --options '{"use_karras_sigmas": true}' --out runs/unipc
    """
    import json

    try:
        given = json.loads(options) if options else {}
    except ValueError as error:
        raise ValueError(f"--options {options} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"--options {options}: give an object, as in '{{\"solver_order\": 3}}'")
    sys.path.insert(0, "")  # modules of the folder one stands in
    from ornstein.referee import Claims, adapt, load_object
    from ornstein.referee import certify as work

    report = work(adapt(load_object(sampler), adaptor, Claims(order=order), **given), timeout=timeout)
    typer.echo(report.table())
    if out is not None:
        typer.echo(f"\nreport: {report.save(out)}")
    if not report.passed:
        raise typer.Exit(1)


def run(arguments: list[str]) -> int:
    """Run the command line on these arguments; the exit code."""
    debug = "--debug" in arguments
    command: Any = typer.main.get_command(app)
    known = command.commands
    if first := next((word for word in arguments if not word.startswith("-")), None):
        if first not in known:
            return _fail(f"unknown command {first!r}; {nearest(first, known)}")
        asked = [word.split("=")[0] for word in arguments if word.startswith("--")]
        options = [option for parameter in known[first].params for option in parameter.opts if option[:2] == "--"]
        options += ["--help", "--debug"]
        for word in asked:
            if word != "--" and word not in options:
                return _fail(f"{first} has no option {word}; {nearest(word, options)}")
    try:
        code = command.main([word for word in arguments if word != "--debug"], "ornstein", standalone_mode=False)
        if code == 130:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, EOFError):
        return _fail("interrupted: the same command goes on where it was", 130)
    except typer.Abort:
        return _fail("interrupted: the same command goes on where it was", 130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong use of the command line
            return _fail(" ".join(error.format_message().split()))
        if debug or not isinstance(error, (ValueError, LookupError, OSError, ImportError, FloatingPointError)):
            raise
        return _fail(" ".join(str(error).split()))


def _needs(*modules: str) -> None:
    """Refuse now, not after an hour, if a package that the command will want is missing."""
    extras = {"safetensors": "train", "sklearn": "metrics", "matplotlib": "report"}
    for module in modules:
        if find_spec(module) is None:
            require(module, extra=extras.get(module, "cli"))


def _known_solver(name: str) -> None:
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; {nearest(name, SOLVERS)}")


def _print_goals(goals: list[Any]) -> None:
    for goal in goals:
        typer.echo(f"  {'pass' if goal.met else 'FAIL'}  {goal.name:<52} {goal.value:6.3f}   ({goal.bound})")


def _fail(message: str, code: int = 2) -> int:
    typer.echo(f"error: {message}", file=sys.stderr)
    return code
