"""`ornstein tune`: tables beside the model, taught once, taken by sample and evaluate while they are of its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ornstein as orn
from ornstein.cli.app import run as cli
from ornstein.errors import CheckpointError
from ornstein.random import derive
from ornstein.report import cost, page, tables
from ornstein.report import tune as command
from ornstein.report.named_tuned import interval, named_tuned
from ornstein.report.run import Run
from ornstein.report.shards import Shards
from ornstein.report.tune import brief, tune_run
from ornstein.solvers.loop import Loop
from ornstein.tuning import TunedTable, teach, tune
from ornstein.tuning.named import named

TUNE = ["--starts", "32", "--nfe"]


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Fewer iterations, a coarser fine flow and four named tables, for the sake of time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ornstein.tuning.named.SOLVERS", (orn.DPMSolverPP(), orn.solvers.UniPC(start="published")))
        patch.setattr("ornstein.tuning.named.GRIDS", (orn.LogSNR(), orn.Karras()))
        patch.setattr(command, "tune", partial(tune, iterations=3))
        patch.setattr(command, "teach", partial(teach, steps=20))
        yield


@pytest.fixture(scope="module")
def tuned(short: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sixty steps on two labelled clusters, with tables of 3 and 4 evaluations, and of 3 with guidance 2."""
    folder = tmp_path_factory.mktemp("tuned")
    rng, y = np.random.default_rng(0), np.arange(60) % 2
    np.savez(folder / "small.npz", x=rng.normal(size=(60, 2)) * 0.3 + 4 * y[:, None], y=y)
    net = {"kind": "mlp", "width": 16, "depth": 1}
    values = {"data": str(folder / "small.npz"), "steps": 60, "batch_size": 16, "net": net, "watch": 0, "lr": 3e-3}
    run = Run.create(folder / "run", values)
    run.train()
    tune_run(run, [4, 3], starts=64)
    tune_run(run, [3], guidance=[2.0], starts=32)
    return folder / "run"


@pytest.fixture
def folder(tuned: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(tuned, tmp_path / "run"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command line refuses these arguments."""
    capsys.readouterr()
    assert cli(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ")
    return err


def other_weights(folder: Path) -> None:
    """Train the run anew, from another seed."""
    run = Run.open(folder)
    run.checkpoint.unlink()
    Run(folder, run.config.model_copy(update={"seed": 9, "steps": 4})).train()


def test_tables_lie_beside_the_model(tuned: Path) -> None:
    names = ["3-g2.safetensors", "3.safetensors", "4.safetensors"]
    assert sorted(path.name for path in (tuned / "tuned").iterdir()) == names
    for nfe, guidance in ((3, 1.0), (4, 1.0), (3, 2.0)):
        found = tables.read(tuned, nfe, guidance)
        assert found is not None
        assert found.nfe == nfe
        fine = orn.solvers.UniPC(order=3, variant="vary_coeff")
        each = fine.compile(orn.EDM(), orn.LogSNR()(orn.EDM(), 20)).nfe
        assert found.tuned_on["evaluations"]["lessons"] == (40 * 2 if guidance == 2 else 80) * each
        assert len(found.errors) == (8 if guidance == 2 else 16)
        assert found.tuned_on["labels"] == "in turn"
        assert found.gain < 1


def test_the_figures_are_those_of_starts_that_had_no_say(tuned: Path) -> None:
    """The errors are those of the 16 starts behind the 64 that were tuned on (of those a part chose when to stop), of
    this table and of the named one, to the bit; the rival, the last of the 64, has others."""
    run, found = Run.open(tuned), tables.read(tuned, 4, 1.0)
    assert found is not None
    made = run.sampler(solver="tuned", steps=4)
    cond = {"label": torch.arange(80) % 2}
    lessons = teach(made.denoiser, (80, 2), cond=cond, seed=derive(0, "tune"), steps=20)
    before = named(lessons.process, 4)[found.tuned_on["named"]]
    fresh, rival = lessons.take(torch.arange(64, 80)), lessons.take(torch.arange(48, 64))
    torch.testing.assert_close(found.errors, fresh.errors(found.table), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.named_errors, fresh.errors(before), rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found.errors, rival.errors(found.table), rtol=0.1)


def test_lessons_are_taught_once_and_only_what_is_missing_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taught: list[int] = []
    original = partial(teach, steps=20)

    def counted(*args: Any, **kwargs: Any) -> Any:
        taught.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(command, "teach", counted)
    before = {nfe: tables.place_of(folder, nfe, 1).read_bytes() for nfe in (3, 4)}
    assert cli(["tune", str(folder), *TUNE, "4,3"]) == 0
    assert taught == []
    said = capsys.readouterr().out
    assert "2 of 2 were there already" in said
    assert [line.split()[0] for line in said.splitlines()[:3]] == ["evaluations", "3", "4"]
    tables.place_of(folder, 3, 1).write_bytes(b"damaged")
    tables.place_of(folder, 4, 1).unlink()
    assert cli(["tune", str(folder), "--starts", "64", "--nfe", "3,4"]) == 0
    assert taught == [1]
    said, err = capsys.readouterr()
    assert err == ""  # no bar: this is no terminal
    assert "network evaluations for the fine flow of 80 starts, once a scale" in said
    for nfe, old in before.items():  # the same command makes the same tables
        again = tables.read(folder, nfe, 1)
        assert again is not None
        path = folder / "old.safetensors"
        path.write_bytes(old)
        assert str(again.table) == str(TunedTable.load(path).table)
        row = next(line for line in said.splitlines() if line.split()[0] == str(nfe))
        assert f"{again.error:.4g}" in row.split()
        assert f"{again.named_error:.4g}" in row.split()
        assert f"{again.gain:.3f}" in row.split()
    assert cli(["tune", str(folder), *TUNE, "3", "--again", "--seed", "1"]) == 0
    assert taught == [1, 1]
    assert tables.place_of(folder, 3, 1).read_bytes() != before[3]
    other_weights(folder)
    assert cli(["tune", str(folder), *TUNE, "3", "--check"]) == 0
    assert len(taught) == 2
    assert cli(["tune", str(folder), *TUNE, "3"]) == 0  # the one there is of other weights
    assert len(taught) == 3
    assert Run.open(folder).sampler(steps=3).tuned is not None


def test_sample_takes_the_table(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The samples are those of the table, each with the seed that it always has; --named and --solver do without."""
    run = Run.open(tuned)
    found = tables.read(tuned, 4, 1.0)
    assert found is not None
    seeds, cond = [derive(0, i) for i in range(6)], {"label": torch.arange(6) % 2}
    alone = orn.sample(run.model(), (6, 2), table=found.table, cond=cond, seed=seeds).x
    torch.testing.assert_close(run.sample(6, steps=4).x, alone, rtol=0, atol=0)
    plain = orn.sample(run.model(), (6, 2), solver=orn.DPMSolverPP(order=2), steps=4, cond=cond, seed=seeds).x
    without: tuple[dict[str, Any], ...] = ({"tuned": False}, {"solver": "dpmpp"})
    for options in without:
        torch.testing.assert_close(run.sample(6, steps=4, **options).x, plain, rtol=0, atol=0)
    assert float((plain - alone).abs().max()) > 1e-3
    # a budget or a guidance of which there is none
    others: tuple[dict[str, Any], ...] = ({"steps": 5}, {"steps": 4, "guidance": 2.0})
    for options in others:
        assert run.sampler(**options).tuned is None
    assert run.sampler(steps=3, guidance=2.0).nfe == 6
    assert run.sampler(nfe=7, guidance=2.0).tuned is not None  # three evaluations of two branches
    for words, said in (([], "by the tuned table"), (["--named"], "each: "), (["--solver", "heun"], "each: ")):
        out = tmp_path / f"{len(words)}{said[:2]}.npz"
        assert cli(["sample", str(tuned), "-n", "6", "--steps", "4", *words, "--out", str(out)]) == 0
        assert said in capsys.readouterr().out


def test_a_stale_table_is_left_with_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_weights(folder)
    capsys.readouterr()
    assert cli(["sample", str(folder), "-n", "4", "--steps", "4", "--out", str(folder / "x.npz")]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("warning: the table tuned for 4 evaluations is of other weights")
    assert err.count("\n") == 1
    assert "tuned" not in out
    assert "anew" in refused(capsys, "sample", str(folder), "--steps", "4", "--solver", "tuned")
    with pytest.warns(tables.StaleTableWarning, match="other weights"):
        assert Run.open(folder).sampler(steps=4).tuned is None
    assert cli(["sample", str(folder), "-n", "4", "--steps", "4", "--named", "--out", str(folder / "y.npz")]) == 0
    assert capsys.readouterr().err == ""
    # another average of the weights is another model too
    with pytest.warns(tables.StaleTableWarning, match="another average"):
        Run.open(folder).sampler(steps=4, average="raw")


def test_a_resumed_job_keeps_its_sampler(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What began with the named solver is not continued with a table, nor with another table than it began with."""
    run, asked = Run.open(folder), ["sample", str(folder), "-n", "6", "--batch", "2", "--steps", "4"]
    many = folder / "many"
    job = run.job(6, batch=2, steps=4, out=many, tuned=False)
    Shards.open(many, job.request, 2).fill(
        lambda a, b: (job.sampler(a, b, False).x, None), batch=2, workers=job.workers
    )
    (many / "shard-00001.npz").unlink()
    assert "solver was dpmpp, is tuned" in refused(capsys, *asked, "--out", str(many))
    assert cli([*asked, "--named", "--out", str(many)]) == 0
    other = folder / "other"
    assert cli([*asked, "--out", str(other)]) == 0
    request = json.loads((other / "manifest.json").read_text())["request"]
    assert request["solver"] == "tuned"
    (other / "shard-00001.npz").unlink()
    assert cli([*asked, "--out", str(other)]) == 0
    x = torch.cat([x for x, _ in Shards.read_only(other).read()])
    torch.testing.assert_close(x, run.sample(6, steps=4, progress=False).x, rtol=0, atol=1e-5)
    tune_run(run, [4], starts=32, seed=1, again=True)
    assert "table was" in refused(capsys, *asked, "--out", str(other))
    (folder / "tuned" / "4.safetensors").unlink()
    assert "solver was tuned, is dpmpp" in refused(capsys, *asked, "--out", str(other))


def test_evaluate_and_report(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The evaluation is by the table, its report finds the samples again, and sets tuned against named."""
    few = ("Are the samples good?", "Quality against cost", "Named against tuned")
    monkeypatch.setattr(page, "PARTS", {heading: page.PARTS[heading] for heading in few})
    for name, value in (("BUDGETS", (4, 8)), ("FINE", 8), ("SOLVERS", ("dpmpp",))):
        monkeypatch.setattr(cost, name, value)
    assert cli(["evaluate", str(folder), "--steps", "4"]) == 0
    assert "samples by the table tuned for 4 evaluations" in capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["sampler"]["solver"], metrics["sampler"]["nfe"]) == ("tuned", 4)
    text = (folder / "report.html").read_text()
    assert "tuned table, 4 steps, 4 network evaluations each" in text
    section = text[text.index('<section id="named-against-tuned"') :].split("</section>")[0]
    assert "<svg" in section
    for nfe, guidance in ((3, 1.0), (4, 1.0), (3, 2.0)):
        found = tables.read(folder, nfe, guidance)
        assert found is not None
        row = f"<td>{found.named_error:.4g}</td><td>{found.error:.4g}</td><td>{found.gain:.2f} ("
        assert row in section
    assert "of other weights" not in section
    assert "<td>tuned table</td><td>4</td>" in text  # beside the others, in quality against cost
    assert "<td>tuned table</td><td>8</td>" not in text
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", lambda *args, **kwargs: pytest.fail("sampled anew"))
        assert cli(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == text
    run = Run.open(folder)
    place = tables.place_of(folder, 3, 2.0)
    whole = place.read_bytes()
    place.write_bytes(whole[:-9])  # of a damaged file a line says so, and the rest stands
    with_one_left = named_tuned(folder, run.model())
    assert "Left out: " in with_one_left
    assert str(place.name) in with_one_left
    assert with_one_left.count("<td>") < section.count("<td>")
    found = tables.read(folder, 4, 1.0)
    assert found is not None
    assert f"<td>{found.error:.4g}</td>" in with_one_left
    assert cli(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert "could not be made" not in text
    assert "<td>tuned table</td><td>4</td>" in text
    place.write_bytes(whole)
    before = page.evaluated(run)
    other_weights(folder)
    assert "of other weights" in named_tuned(folder, run.model())
    shutil.rmtree(folder / "tuned")
    page.run_page(run, before, False)
    assert "amed against" not in (folder / "report.html").read_text()


def test_the_interval_is_that_of_a_ratio_of_means() -> None:
    """Both errors of one start are drawn together: a table that halves every error has gain 0.5, surely; drawn apart
    the ratio of these, whose squares spread over six decades, would range over more than a factor of two."""
    errors = torch.logspace(-3, 0, 40, dtype=torch.float64)
    whole = orn.DDIM().compile(orn.Flow(), orn.Uniform()(orn.Flow(), 2))
    low, high = interval(TunedTable(whole, errors / 2, errors, {}))
    assert (low, high) == pytest.approx((0.5, 0.5), rel=1e-12)
    low, high = interval(TunedTable(whole, errors.flip(0), errors, {}))
    assert low < 0.7
    assert high > 1.4
    # a hundred in five hundred errors are ten times the others: 1/sqrt(0.8 + 0.2 100) of the root mean squares, where
    # the means would give 1/2.8 = 0.36; their share is 0.2 within two standard deviations of 0.018
    errors = torch.where(torch.arange(500) % 5 == 0, 10.0, 1.0)
    low, high = interval(TunedTable(whole, torch.ones(500), errors, {}))
    assert 0.19 < low < 20.8**-0.5 < high < 0.25


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nfe", "4,x"], "--nfe 4,x: give whole numbers from 2"),
        (["--nfe", "4.5"], "--nfe 4.5: give whole numbers"),
        (["--nfe", "1,4"], "from 2 to 100: got 1, 4"),
        (["--nfe", "4,1000"], "from 2 to 100"),
        (["--guidance", "1,two"], "--guidance 1,two: give scales"),
        (["--guidance", "nan"], "guidance"),
        (["--starts", "3"], "starts=3"),
        (["--label", "7"], "unknown label '7'"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--stats", "3"], "did you mean '--starts'"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(
    words: list[str], message: str, tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Loop, "run", lambda *args, **kwargs: pytest.fail("evaluated"))
    before = sorted(tuned.rglob("*"))
    assert message in refused(capsys, "tune", str(tuned), *words)
    assert sorted(tuned.rglob("*")) == before


def test_no_run_no_labels_no_single_state(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no run" in refused(capsys, "tune", str(tmp_path / "absent"))
    assert "--named does without" in refused(capsys, "sample", str(tuned), "--named", "--solver", "tuned")
    assert "has no table tuned for 9" in refused(capsys, "sample", str(tuned), "--steps", "9", "--solver", "tuned")
    np.save(tmp_path / "bare.npy", np.random.default_rng(0).normal(size=(40, 2)))
    net = {"kind": "mlp", "width": 8, "depth": 1}
    bare = Run.create(tmp_path / "bare", {"data": str(tmp_path / "bare.npy"), "steps": 1, "batch_size": 8, "net": net})
    assert "no checkpoint yet" in refused(capsys, "tune", str(bare.folder))
    bare.train()
    assert "guidance needs a model trained with labels" in refused(capsys, "tune", str(bare.folder), "--guidance", "2")


def test_a_strangers_folder(folder: Path, tmp_path: Path) -> None:
    """A table of another budget than its name says, a link out of the run, names that are none."""
    place = tables.place_of(folder, 4, 1.0)
    shutil.copy(place, folder / "tuned" / "5.safetensors")
    with pytest.raises(CheckpointError, match="no table that `ornstein tune` wrote for 5"):
        Run.open(folder).sampler(steps=5)
    for name in ("04.safetensors", "4-g1.safetensors", "4-g2.0.safetensors", "4-g1e.safetensors", "x.safetensors"):
        shutil.copy(place, folder / "tuned" / name)
    assert [(nfe, g) for nfe, g, _ in tables.named(folder)] == [(3, 1.0), (4, 1.0), (5, 1.0), (3, 2.0)]
    place.unlink()
    place.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="leads out of"):
        Run.open(folder).sampler(steps=4)


def test_names_are_short() -> None:
    name = "UniPC(order=3, variant='bh1', predicts='x0', corrector=True, start='published') on LogSNR(start=None, "
    assert brief(f"{name}end=4.0, deepest=-3.0, to_data=True)") == (
        "UniPC(order=3, variant='bh1', start='published') on LogSNR(end=4.0, deepest=-3.0)"
    )
    assert brief("the start given") == "the start given"
