"""The commands. Nothing heavy is imported until one runs, so that --help answers at once."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ornstein._extras import require
from ornstein.report.names import OPERATORS, SOLVERS, TUNED, nearest

if TYPE_CHECKING:
    from ornstein.training import Forecast

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


_SOLVER = f"{', '.join(SOLVERS)}, or {TUNED}. [{TUNED} where `ornstein tune` made a table for it, else {SOLVERS[0]}]"


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
        str | None,
        typer.Option(help="digits; .npz, .npy, .csv, .parquet; a folder of images; hf:NAME. [digits]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/NAME OF DATA]")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of fields; options override it.")] = None,
    label: Annotated[str | None, typer.Option(help="The column of the class, in a table.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width that images are cut and scaled to.")] = None,
    net: Annotated[str | None, typer.Option(help="auto, mlp, unet or dit. [auto]")] = None,
    width: Annotated[int | None, typer.Option(help="Width of the network.")] = None,
    depth: Annotated[int | None, typer.Option(help="Its layers, or blocks a stage.")] = None,
    process: Annotated[str | None, typer.Option(help="edm, flow, vp, subvp, ve or cosine. [edm]")] = None,
    predicts: Annotated[str | None, typer.Option(help="edm, x0, noise, velocity, v or score. [edm]")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer. [1200]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step, of all processes together. [256]")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate. [0.001]")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the average of the weights. [0.99]")] = None,
    drop: Annotated[float | None, typer.Option(help="Share of labels hidden, for guidance. [0.1]")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. [fp32]")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats the run. [0]")] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--set", help="Any other field: --set loss.kind=hybrid --set accumulate=4")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="All but the first step, and a forecast.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the config with every default, and stop.")] = False,
) -> None:
    """Train a model on your data, or go on with a run that was interrupted.

    The config, with every default filled in, is written to OUT/config.yaml (see --show). If OUT is already a run, it is
    resumed to the same weights, bit for bit. Started by torchrun or accelerate, many processes train together.

      ornstein train --data my.npz --out runs/mine --steps 5000

      ornstein train --data people.csv --label income --check

      torchrun --nproc-per-node 2 -m ornstein train --data photos/ --size 64 --precision bf16
    """
    _needs("pydantic", "yaml", "safetensors")
    from ornstein.report.config import absolute, dumped, make_config, merged, read_values, set_field
    from ornstein.report.run import Run
    from ornstein.training.workers import Workers

    values = read_values(config) if config else {}
    given = {"data": data, "process": process, "predicts": predicts, "steps": steps, "batch_size": batch_size, "lr": lr}
    given |= {"ema": ema, "drop": drop, "precision": precision, "seed": seed}
    nested = {"read": {"label": label, "size": size}, "net": {"kind": net, "width": width, "depth": depth}}
    values = merged(values, {**given, **nested})
    for field in fields or []:
        set_field(values, field)
    if isinstance(values.get("data"), str):
        values["data"] = absolute(values["data"])
    source = str(config or "options")
    if show:
        typer.echo(dumped(make_config(values, source)), nl=False)
        return
    main = Workers.here().main
    name = Path(str(values.get("data", "digits"))).stem.rpartition(":")[2]
    folder = out or Path("runs") / name
    run = Run.create(folder, values, source, check=check)

    def foresee(coming: Forecast) -> None:
        if main:
            typer.echo(f"{folder}: {coming}")
        if check:
            raise _Checked

    try:
        _, fitted = run.train(foresee=foresee)
    except _Checked:
        if main:
            typer.echo("ok: the first step would be next")
        return
    if main:
        tail = fitted.history["loss"][-max(1, fitted.steps // 20) :].mean()
        typer.echo(f"{folder}: {fitted.steps} steps, loss {float(tail):.4g}")
        typer.echo(f"next: ornstein sample {folder}   or   ornstein evaluate {folder}")


class _Checked(Exception):
    """All was checked, and nothing more was asked for."""


@app.command(short_help="Sample a trained run.")
def sample(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    n: Annotated[int, typer.Option("-n", "--number", help="How many samples.")] = 64,
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 20,
    solver: Annotated[str | None, typer.Option(help=_SOLVER)] = None,
    named: Annotated[bool, typer.Option("--named", help="The named solver, also where a table was tuned.")] = False,
    label: Annotated[
        str | None, typer.Option(help="The class to sample; `held-out`: those that evaluate takes. [each in turn]")
    ] = None,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Repeats the samples.")] = 0,
    average: Annotated[
        str | None, typer.Option(help="Which average of the weights: ema, another kept one, raw, or a length.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help=".npz, .png, .csv, .parquet, or a folder. [a folder in RUN/samples]")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="npz, png (one file an image in a folder), csv or parquet.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples at once, and in one shard.")] = 500,
    check: Annotated[bool, typer.Option("--check", help="All but the first network evaluation.")] = False,
) -> None:
    """Sample a trained run, into a file or into a folder of shards (.npz: x, and the labels y).

    Sample i depends on the seed and on i alone, not on the batch or the number of processes. If it is interrupted, the
    same command goes on where it was; started by torchrun or accelerate, many processes share the work. Where
    `ornstein tune` made a table for these steps and this guidance, it is taken; --named or --solver do without.

      ornstein sample runs/digits -n 64 --steps 10 --solver dpmpp3 --label 3 --guidance 2 --out threes.png

      torchrun --nproc-per-node 4 -m ornstein sample runs/digits -n 50000 --out many.npz
    """
    _needs("pydantic", "yaml", "safetensors")
    _known_solver(solver, named)
    if n < 1:
        raise ValueError(f"-n {n}: at least 1 sample")
    if batch < 1:
        raise ValueError(f"--batch {batch}: at least 1 sample")
    from ornstein.report.formats import form_of

    if out is not None:
        form_of(out, form)
    from ornstein.report.run import Run

    opened = Run.open(run)
    options: dict[str, Any] = {"solver": solver, "steps": steps, "guidance": guidance, "seed": seed}
    options |= {"average": average, "tuned": not named}
    job = opened.job(n, out=out, form=form, batch=batch, labels=opened.labels_named(label), **options)
    if check:
        _checked(job)
        return
    job.run()
    if job.workers.main:
        typer.echo(f"{n} samples, {job.sampler.nfe} network evaluations each{_by(job)}: {job.target}")


@app.command(short_help="Find the best samplers of few steps for a trained run.")
def tune(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    nfe: Annotated[str, typer.Option(help="Budgets in evaluations of the model, 2 to 100 each.")] = "4,6,8,10",
    starts: Annotated[int, typer.Option(help="Starts to tune on; a quarter more give the figures.")] = 256,
    guidance: Annotated[str, typer.Option(help="Scales of guidance, each with tables of its own; 1 is none.")] = "1",
    label: Annotated[str | None, typer.Option(help="The class of the starts, as in sample. [each in turn]")] = None,
    seed: Annotated[int, typer.Option(help="Repeats the tables.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda. [cuda where there is one]")] = None,
    again: Annotated[bool, typer.Option("--again", help="Tune anew what is there already.")] = False,
    check: Annotated[bool, typer.Option("--check", help="All but the first network evaluation.")] = False,
) -> None:
    """Find for each budget the table of steps whose samples are closest to the model's own flow, and keep it in RUN.

    The fine flow of some starts is followed once; from the best of the named solvers on, times and weights of each
    table are fitted to it, and judged on starts that had no say in them. `sample` and `evaluate` with as many
    --steps then take the table. What is there already stays, as long as the model is not trained on.

      ornstein tune runs/digits --nfe 4,6,8,10 --guidance 1,2
    """
    _needs("pydantic", "yaml", "safetensors")
    budgets = _numbers(nfe, int, "--nfe", "whole numbers from 2, as 4,6,8,10")
    scales = _numbers(guidance, float, "--guidance", "scales, as 1,2.5")
    from ornstein.report.columns import columns
    from ornstein.report.run import Run
    from ornstein.report.tune import cells, tune_run

    opened = Run.open(run)
    options: dict[str, Any] = {"guidance": scales, "starts": starts, "labels": opened.labels_named(label)}
    found = tune_run(opened, budgets, seed=seed, device=device, again=again, check=check, **options)
    if check:
        typer.echo("ok")
        return
    typer.echo(columns(*cells(found)))
    taught = sum({one.guidance: one.table.tuned_on["evaluations"]["lessons"] for one in found if not one.kept}.values())
    if taught:
        typer.echo(
            f"and {taught:,} network evaluations for the fine flow of {starts + starts // 4} starts, once a scale"
        )
    if kept := sum(one.kept for one in found):
        typer.echo(f"{kept} of {len(found)} were there already and stay: --again tunes them anew")
    typer.echo(f"next: ornstein sample {run} --steps {found[-1].table.nfe}")


def _list(asked: bool) -> bool:
    if not asked:
        return asked
    from ornstein.report.columns import columns
    from ornstein.report.operators import OPERATORS as MADE
    from ornstein.report.operators import listed, methods

    typer.echo(columns(["operator", "options", "what is measured"], listed(MADE)))
    typer.echo()
    typer.echo(columns(["method", "options", ""], listed(methods())))
    raise typer.Exit


@app.command(short_help="Restore what was measured, by a trained run.")
def restore(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    operator: Annotated[str, typer.Option(help=f"{', '.join(OPERATORS)}; with options as downsample:4.")],
    given: Annotated[
        Path | None, typer.Option("--input", help="A .npz, .npy, image, or folder of images. [held-out data]")
    ] = None,
    rows: Annotated[str | None, typer.Option(help="Which of them, as 0-7,12. [all; 0-7 of held-out data]")] = None,
    measured: Annotated[bool, typer.Option("--measured", help="The input is measured, not to be damaged.")] = False,
    noise: Annotated[float, typer.Option(help="Its standard deviation, in the units of the data.")] = 0.0,
    method: Annotated[str | None, typer.Option(help="As ddrm, or dps:zeta=0.3; see --list. [mmps]")] = None,
    samples: Annotated[int, typer.Option(help="Samples of each restoration.")] = 4,
    steps: Annotated[int | None, typer.Option(help="Steps of the method. [what was published]")] = None,
    label: Annotated[str | None, typer.Option(help="The class of all. [none]")] = None,
    seed: Annotated[int, typer.Option(help="Repeats noise and samples.")] = 0,
    average: Annotated[
        str | None, typer.Option(help="Which average of the weights: ema, another kept one, raw, or a length.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder. [RUN/restored/OPERATOR-METHOD]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over results that are there.")] = False,
    check: Annotated[bool, typer.Option("--check", help="All but the first network evaluation.")] = False,
    _listed: Annotated[
        bool,
        typer.Option("--list", help="What operators and methods there are.", is_eager=True, callback=_list),
    ] = False,
) -> None:
    """Restore what was measured, y = A(x) + noise, by a trained run: several samples of what each x may have been.

    Clean input is damaged by the operator and the noise first, as a trial: PSNR is then printed. Writes samples.npz (x,
    their mean and std, y), picture.png and restored.json. Sample k of row i depends on the seed, i and k alone.

      ornstein restore runs/digits --operator box --noise 0.1

      ornstein restore runs/digits --operator downsample:4 --rows 0-15 --method ddrm --steps 50 --samples 8

      ornstein restore runs/digits --operator radon:views=6 --input scans.npz --measured --noise 0.05 --label 3
    """
    _needs("pydantic", "yaml", "safetensors", "matplotlib")
    from ornstein.report.restored import restoration
    from ornstein.report.run import Run

    options: dict[str, Any] = {"rows": rows, "measured": measured, "noise": noise, "method": method}
    options |= {"samples": samples, "steps": steps, "seed": seed, "label": label, "average": average}
    work = restoration(Run.open(run), operator, given=given, out=out, force=force, **options)
    if check:
        typer.echo("ok")
        return
    found = work.run()
    typer.echo(
        f"{found['measurements']} restored by {found['method']}, {found['samples']} samples each, "
        f"{found['nfe']} network evaluations a sample"
    )
    typer.echo(f"off the measurement by {found['residual']:.4g}, root mean square; the noise is {found['noise']:g}")
    for name, title in (("psnr", "PSNR, dB"), ("ssim", "SSIM")):
        if name in found:
            of_mean, of_sample = (_decimals(found[key]) for key in (name, f"{name}_of_a_sample"))
            typer.echo(f"{title:<10} {of_mean:>8} of the mean, {of_sample:>8} of a sample")
    typer.echo(f"picture: {work.out / 'picture.png'}")


@app.command(short_help="Judge a trained run against held-out data.")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Steps of the solver.")] = 20,
    solver: Annotated[str | None, typer.Option(help=_SOLVER)] = None,
    named: Annotated[bool, typer.Option("--named", help="The named solver, also where a table was tuned.")] = False,
    guidance: Annotated[float, typer.Option(help="Scale of classifier-free guidance; 1 is none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Repeats the samples.")] = 0,
    average: Annotated[
        str | None, typer.Option(help="Which average of the weights: ema, another kept one, raw, or a length.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples at once, and in one shard.")] = 500,
    quick: Annotated[bool, typer.Option("--quick", help="Without quality against cost in the report.")] = False,
    check: Annotated[bool, typer.Option("--check", help="All but the first network evaluation.")] = False,
) -> None:
    """Judge a trained run against its held-out data: metrics.json and report.html, the samples in RUN/samples.

    Every figure stands beside what real data score: Fréchet distance, nearest-training distance and, with labels,
    the accuracy of a classifier of real data. Samples that are there already are taken. If it is interrupted, the same
    command goes on where it was; started by torchrun or accelerate, many processes share the sampling.

      ornstein evaluate runs/digits --guidance 1.2
    """
    _needs("pydantic", "yaml", "safetensors", "sklearn", "matplotlib")
    _known_solver(solver, named)
    from ornstein.report.cost import measure
    from ornstein.report.judge import TITLES, goals
    from ornstein.report.page import run_page
    from ornstein.report.run import Run

    opened = Run.open(run)
    options: dict[str, Any] = {"solver": solver, "steps": steps, "guidance": guidance, "seed": seed, "batch": batch}
    options |= {"average": average, "tuned": not named}
    if check:
        _checked(opened.judged(**options)[1])
        return
    found = opened.evaluate(**options)
    if not found.main:
        return
    if found.metrics["sampler"]["solver"] == TUNED:
        typer.echo(f"samples by the table tuned for {found.metrics['sampler']['steps']} evaluations")
    if not quick:
        measure(opened, found.judge, found.metrics["sampler"])
    run_page(opened, found)
    metrics = found.metrics
    references = metrics["references"]
    beside = references.get("baseline", {})
    for name, value in metrics["figures"].items():
        other = f"   {beside['name']} {beside[name]:8.4f}" if name in beside else ""
        typer.echo(f"{TITLES[name]:<27} {value:8.4f}   real data {references[name]:8.4f}{other}")
    _print_goals(goals(metrics["figures"], references))
    typer.echo(f"report: {run / 'report.html'}")


@app.command(short_help="Write the report of a run again.")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
) -> None:
    """Write report.html of a run that was evaluated again, from what lies in its folder; nothing is sampled anew.

    ornstein report runs/digits
    """
    _needs("pydantic", "yaml", "safetensors", "sklearn", "matplotlib")
    from ornstein.report.page import evaluated, run_page
    from ornstein.report.run import Run

    opened = Run.open(run)
    run_page(opened, evaluated(opened))
    typer.echo(f"report: {run / 'report.html'}")


@app.command(short_help="The runs in a folder.")
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
) -> None:
    """The runs in a folder: data, model, how far each is trained, its figures, its size and its last change.

    A run that cannot be read is listed as broken, with the reason.

      ornstein runs runs
    """
    _needs("pydantic", "yaml", "safetensors")
    from ornstein.report.runs import show

    typer.echo(show(folder))


@app.command(short_help="Write a trained run as one file, to load anywhere.")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    out: Annotated[Path | None, typer.Option(help="A .safetensors file. [RUN/model.safetensors]")] = None,
) -> None:
    """Write the model of a trained run as one file: its averaged weights, how it was made, and a card of the run.

    Python loads it by orn.load("digits.safetensors"), without the run or its data. The file holds no code.

      ornstein export runs/digits --out digits.safetensors
    """
    _needs("pydantic", "yaml", "safetensors")
    from ornstein.io import inside

    target = out or inside(run, "model.safetensors")
    if target.suffix != ".safetensors":
        raise ValueError(f"--out {target}: a model is written as .safetensors")
    from ornstein.interop import save
    from ornstein.report.card import card_of
    from ornstein.report.run import Run

    opened = Run.open(run)
    save(opened.model(), target, card=card_of(opened))
    typer.echo(f"{target}: in Python, orn.load({str(target)!r})")


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


@cache
def _command() -> Any:
    """All commands, put together once."""
    return typer.main.get_command(app)


def run(arguments: list[str]) -> int:
    """Run the command line on these arguments; the exit code."""
    debug = "--debug" in arguments
    command = _command()
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
        with warnings.catch_warnings():
            warnings.showwarning = partial(_warn, warnings.showwarning)
            code = command.main([word for word in arguments if word != "--debug"], "ornstein", standalone_mode=False)
        if code == 130:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, EOFError, typer.Abort):
        kept = "nothing was written" if first == "restore" else "the same command goes on where it was"
        return _fail(f"interrupted: {kept}", 130)
    except Exception as error:
        if hasattr(error, "format_message"):  # a wrong use of the command line
            return _fail(error.format_message())
        if debug or not isinstance(error, (ValueError, LookupError, OSError, ImportError, FloatingPointError)):
            raise
        if isinstance(error, OSError) and error.strerror and str(error).startswith("[Errno"):
            where = f": {error.filename}" if error.filename else ""
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
            return _fail(f"{error.strerror}{where}{'; mend that, and the same command goes on' if full else ''}")
        return _fail(str(error) or type(error).__name__)


def _needs(*modules: str) -> None:
    """Refuse now, not after an hour, if a package that the command will want is missing."""
    extras = {"safetensors": "train", "sklearn": "metrics", "matplotlib": "report"}
    for module in modules:
        if find_spec(module) is None:
            require(module, extra=extras.get(module, "cli"))


def _known_solver(name: str | None, named: bool) -> None:
    if name not in (None, TUNED, *SOLVERS):
        raise ValueError(f"unknown solver {name!r}; {nearest(str(name), [*SOLVERS, TUNED])}")
    if name == TUNED and named:
        raise ValueError("--named does without the tuned table that --solver tuned asks for: give one of them")


def _by(job: Any) -> str:
    """What is said of a tuned table, in a word."""
    tuned = job.sampler.tuned
    return "" if tuned is None else f" by the tuned table ({tuned.gain:.2f} of the best named solver's error)"


def _numbers(text: str, kind: type, option: str, example: str) -> list[Any]:
    """Numbers with commas between them."""
    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: give {example}") from None


def _decimals(value: float | None) -> str:
    return "inf" if value is None else f"{value:.3f}"


def _checked(job: Any) -> None:
    """Say that nothing was wrong, once."""
    if job.workers.main:
        typer.echo("ok")


def _print_goals(goals: list[Any]) -> None:
    for goal in goals:
        typer.echo(f"  {'pass' if goal.met else 'FAIL'}  {goal.name:<52} {goal.value:6.3f}   ({goal.bound})")


def _warn(usual: Callable[..., None], message: Warning | str, category: type[Warning], *where: Any) -> None:
    """A warning of this library in one line; of many processes the first says it."""
    if not category.__module__.startswith("ornstein."):
        usual(message, category, *where)
    elif os.environ.get("RANK", "0") == "0":
        typer.echo(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: str, code: int = 2) -> int:
    """Say in one line what is wrong; of a word without end, its beginning."""
    words = (word if len(word) <= 300 else f"{word[:100]}..." for word in message.split())
    typer.echo(f"error: {' '.join(words)}", file=sys.stderr)
    return code
