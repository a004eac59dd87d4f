"""The report of a run: every part for every kind of data, its numbers those that were measured, whole in itself."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ornstein.cli.app import run as cli
from ornstein.data import load_data
from ornstein.io import read_json
from ornstein.report import cost, html, judge, over_nfe, page
from ornstein.report.beside import beside
from ornstein.report.config import Config
from ornstein.report.curves import training_curves, windowed
from ornstein.report.drawing import bars, curves, dots
from ornstein.report.during import Timing
from ornstein.report.judge import TITLES, judge_of
from ornstein.report.memorisation import copied, law, memorisation
from ornstein.report.over_training import spread
from ornstein.report.run import Evaluation, Run
from ornstein.report.sampler import Sampler
from ornstein.report.sections import quality
from ornstein.report.settings import in_words, settings
from ornstein.report.show import frame, show_of
from ornstein.report.the_data import histogram, the_data
from ornstein.training import Training

KINDS = ("array", "images", "table", "series")
HEADINGS = (
    "Are the samples good?",
    "The data",
    "Samples over training",
    "Samples over evaluations",
    "Quality against cost",
    "Memorisation",
    "Training",
    "Settings",
)
NETWORK = {"net": {"kind": "mlp", "width": 8, "depth": 1}, "steps": 4, "batch_size": 8, "every": 2, "watch": 3}


class Page(HTMLParser):
    """A page as its sections: heading -> {"text", "rows" of its tables, "images", "alts"}; every attribute and tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, dict[str, Any]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: set[str] = set()
        self.named = True
        self._now: dict[str, Any] | None = None
        self._heading: str | None = None
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in found.items()]
        if tag in ("img", "svg"):
            self.named &= bool(found.get("alt") or found.get("aria-label"))
        if tag == "h2":
            self._heading = ""
        if self._now is None:
            return
        if tag == "tr":
            self._now["rows"].append([])
        if tag in ("td", "th"):
            self._now["rows"][-1].append("")
            self._cell = True
        if tag == "img":
            self._now["images"].append((found["alt"], found["src"]))
        if tag == "svg":
            self._now["alts"].append(found["aria-label"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "h2" and self._heading is not None:
            self._now = self.sections[self._heading] = {"text": "", "rows": [], "images": [], "alts": []}
            self._heading = None
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._heading is not None:
            self._heading += data
        elif self._now is not None:
            self._now["text"] += data
            if self._cell:
                self._now["rows"][-1][-1] += data

    def row(self, heading: str, first: str, second: str = "") -> list[str]:
        """The row of a section's tables that begins with this word, or with these two."""
        rows = (row for row in self.sections[heading]["rows"] if row and row[0].strip() == first)
        return next(row for row in rows if second in ("", row[1]))


def pixels(src: str) -> Any:
    """The picture of a data address, as an array."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.removeprefix("data:image/png;base64,")))))


def write(kind: str, folder: Path) -> str:
    """Sixty samples of a kind of data."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    if kind == "array":
        np.savez(folder / "array.npz", x=rng.normal(size=(60, 2)) + 4 * y[:, None], y=y)
    elif kind == "images":
        for i in range(60):
            path = folder / "images" / ("a<b", "c", 'd"e')[y[i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (6, 6), dtype=np.uint8)).save(path)
        return str(folder / "images")
    elif kind == "table":
        lines = ["size,colour <i>,day"]
        for i in range(60):
            size = "" if i % 6 == 0 else f"{rng.normal(10, 2):.2f}"
            lines.append(f"{size},{('red', 'green', 'blue')[y[i]]},2024-01-{1 + i % 28:02d}")
        (folder / "table.csv").write_text("\n".join(lines))
        return str(folder / "table.csv")
    else:
        x = np.cumsum(rng.normal(size=(60, 2, 9)), 2)
        x[rng.random(x.shape) < 0.2] = np.nan
        np.savez(folder / "series.npz", x=x)
    return str(folder / f"{kind}.npz")


@pytest.fixture(scope="module", autouse=True)
def fewer() -> Iterator[None]:
    """Fewer budgets, to be quick."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (cost, over_nfe):
            patch.setattr(module, "BUDGETS", (4, 8))
            patch.setattr(module, "FINE", 16)
        yield


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Evaluation, Page]:
    """A run of each kind of data, trained, evaluated and reported, by the commands that people give."""
    folder = tmp_path_factory.mktemp(request.param)
    source = write(request.param, folder)
    run = Run.create(folder / "run", {**NETWORK, "data": source})
    run.train(progress=False, foresee=lambda coming: None)
    assert cli(["evaluate", str(run.folder), "--steps", "3"]) == 0
    return run, page.evaluated(run), Page((run.folder / "report.html").read_text())


def test_every_part_is_there(made: tuple[Run, Evaluation, Page]) -> None:
    run, _, shown = made
    assert set(HEADINGS) <= set(shown.sections)
    assert {"Samples beside data", "Samples by class"} & set(shown.sections)
    text = (run.folder / "report.html").read_text()
    assert "could not be made" not in text
    assert "Not measured" not in text
    assert len(text) < 500_000
    part = shown.sections["Samples over training"]
    steps = {f"step {row[0]}" for row in part["rows"] if row} | {part["text"]}
    assert all(any(step in text for text in steps) for step in ("step 2", "step 4"))
    assert "Steps 1 to 4 took" in shown.sections["Settings"]["text"]
    assert "the forecast was" in shown.sections["Settings"]["text"]
    assert shown.row("Settings", "net.width")[1:] == ["8", "auto"]
    assert shown.row("Settings", "lr")[1:] == ["0.001", ""]


def test_the_page_is_whole_in_itself(made: tuple[Run, Evaluation, Page]) -> None:
    _, _, shown = made
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & shown.tags
    for tag, name, value in shown.attributes:
        if name in ("src", "href", "data", "action", "srcset", "poster"):
            assert value.startswith("data:image/png;base64," if tag == "img" else "#"), (tag, name, value[:40])
        assert not name.startswith("on")
        assert "http" not in value
    assert shown.named  # every picture and drawing says in words what it shows
    ids = [value for tag, name, value in shown.attributes if name == "id" and tag in ("clippath", "section")]
    assert len(ids) == len(set(ids))
    links = {value.removeprefix("#") for tag, name, value in shown.attributes if tag == "a" and name == "href"}
    assert links == {value for tag, name, value in shown.attributes if tag == "section" and name == "id"}
    for part in shown.sections.values():
        for _, src in part["images"]:
            assert pixels(src).ndim == 3


def test_figures_are_those_of_metrics_json(made: tuple[Run, Evaluation, Page]) -> None:
    run, _, shown = made
    metrics = read_json(run.folder / "metrics.json")
    head = next(row for row in shown.sections["Are the samples good?"]["rows"] if row)
    names = {title: name for name, title in TITLES.items()}
    assert {names[title] for title in head[1:]} == set(metrics["figures"])
    rows = {"samples": metrics["figures"], "real data": metrics["references"]}
    if "baseline" in metrics["references"]:
        rows["Gaussian copula"] = metrics["references"]["baseline"]
    assert ("Gaussian copula" in rows) == (run.split.space.kind == "table")
    for who, figures in rows.items():
        row = shown.row("Are the samples good?", who)
        for title, value in zip(head[1:], row[1:], strict=True):
            assert value == (f"{figures[names[title]]:.3f}" if names[title] in figures else "")


def test_the_data_are_counted(made: tuple[Run, Evaluation, Page]) -> None:
    run, _, shown = made
    split, part = run.split, shown.sections["The data"]
    assert f"{len(split.train)} to train on, {len(split.held_out)} held out" in part["text"]
    for note in split.train.notes:
        assert note in part["text"]
    if split.train.labels is not None and split.held_out.labels is not None:
        for k, name in enumerate(split.space.labels):
            counts = [int((labels == k).sum()) for labels in (split.train.labels, split.held_out.labels)]
            assert shown.row("The data", name)[1:] == [str(count) for count in counts]
    x = split.train.rows()[0]
    if split.space.kind == "table":
        row = shown.row("The data", "size", "number")
        held = x[:, 0][~x[:, 0].isnan()]
        assert row[2] == f"{float(x[:, 0].isnan().double().mean()):.1%}"
        assert row[3] == f"{float(held.min()):.6g} to {float(held.max()):.6g}, median {float(held.median()):.6g}"
        assert "2024-01-" in shown.row("The data", "day", "time")[3]
        assert "green" in shown.row("The data", "colour <i>", "category")[3]
    if split.space.kind == "series":
        held = x[:, 1][~x[:, 1].isnan()]
        row = next(row for row in part["rows"] if row and row[0].endswith("x1"))
        assert row[1:4] == [f"{float(x[:, 1].isnan().double().mean()):.1%}", f"{float(held.min()):.4g}",
                            f"{float(held.double().mean()):.4g}"]  # fmt: skip


def test_pictures_are_the_images_as_they_are(made: tuple[Run, Evaluation, Page]) -> None:
    run, found, shown = made
    if run.split.space.kind != "images":
        assert not any(part["images"] for part in shown.sections.values())
        return
    ((_, src),) = shown.sections["The data"]["images"]
    image = pixels(src)[:6, :6, 0].astype(float)
    first = (run.split.train.rows(slice(1))[0][0, 0] * 255).numpy()
    assert np.abs(image - first).max() <= 1  # not as ink on paper, which would be 255 - it
    # between them the page shows through
    assert (pixels(src)[:, 6, 3] == 0).all()
    by_class = shown.sections["Samples by class"]["images"]
    assert len(by_class) == 6  # three classes, held out and made
    assert by_class[0][0] == "held-out data, class a<b"
    assert found.judge.labels is not None
    sample = found.x[found.judge.labels == 0][0, 0].clamp(0, 1) * 255
    assert np.abs(pixels(by_class[1][1])[:6, :6, 0] - sample.numpy()).max() <= 1


def test_cost_is_what_the_judge_says(made: tuple[Run, Evaluation, Page], monkeypatch: pytest.MonkeyPatch) -> None:
    run, found, shown = made
    sampler = found.metrics["sampler"]
    kept = cost.read(run, found.judge, sampler)
    assert kept is not None
    assert kept.n == found.judge.n
    assert {row["solver"] for row in kept.rows} == {"dpmpp", "heun", "ddim"}
    assert all(row["nfe"] <= 32 for row in kept.rows)
    labels = found.judge.labels
    x = run.sample(kept.n, labels=labels, solver="ddim", nfe=8, progress=False).x
    (row,) = [row for row in kept.rows if (row["solver"], row["nfe"]) == ("ddim", 8)]
    figures = found.judge.brief(x, labels)
    assert {name: row[name] for name in figures} == figures
    line = next(row for row in shown.sections["Quality against cost"]["rows"] if row[:2] == ["DDIM", "8"])
    assert line[2:] == [f"{figures[name]:.3f}" for name in TITLES if name in figures]
    fine = run.sample(len(kept.fine), labels=None if labels is None else labels[: len(kept.fine)], nfe=16,
                      progress=False).x  # fmt: skip
    torch.testing.assert_close(fine, kept.fine, rtol=0, atol=0, equal_nan=True)
    # as many training samples against the same held-out ones: 48 make four sets of 12, and each counts
    n, train = kept.n, run.split.train
    assert len(train) == 4 * n
    parts = [found.judge.brief(*train.rows(slice(i * n, (i + 1) * n))) for i in range(4)]
    for name, value in kept.real.items():
        assert value == pytest.approx(sum(part[name] for part in parts) / 4, rel=1e-12)

    # what is there is read, and nothing is evaluated; of another seed there is nothing
    monkeypatch.setattr(Sampler, "__call__", lambda *args: pytest.fail("sampled anew"))
    again = cost.measure(run, found.judge, sampler)
    assert again.rows == kept.rows
    assert cost.read(run, found.judge, {**sampler, "seed": 7}) is None


def test_a_report_is_written_again_as_it_was(
    made: tuple[Run, Evaluation, Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run, _, _ = made
    if run.split.space.kind != "series":
        return
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    monkeypatch.setattr(Sampler, "__call__", lambda *args: pytest.fail("sampled anew"))
    assert cli(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == before

    # what is gone or damaged is said, and the rest stands
    shutil.rmtree(folder / "watch")
    (folder / "cost.safetensors").write_bytes(b"torn")
    (folder / "timing.json").write_text("{")
    assert cli(["report", str(folder)]) == 0
    shown = Page((folder / "report.html").read_text())
    assert "None were kept" in shown.sections["Samples over training"]["text"]
    assert "Not measured" in shown.sections["Quality against cost"]["text"]
    assert "Not measured" in shown.sections["Samples over evaluations"]["text"]
    assert "could not be made" in shown.sections["Settings"]["text"]
    assert shown.row("Are the samples good?", "samples")
    assert "0.001" in shown.sections["Training"]["text"]

    capsys.readouterr()
    shutil.rmtree(folder / "samples")
    assert cli(["report", str(folder)]) == 2
    assert "ornstein evaluate" in capsys.readouterr().err
    (folder / "metrics.json").unlink()
    assert cli(["report", str(folder)]) == 2
    assert "not evaluated yet" in capsys.readouterr().err


def test_copies_are_found(made: tuple[Run, Evaluation, Page]) -> None:
    """Training samples given out as samples are all nearer than the nearest 1 % of held-out data, and held-out data
    themselves are so in that share: with 12 of them the 1 % quantile lies between the two nearest, so in 1 of 12."""
    run, found, _ = made
    split, verdict = run.split, found.judge
    n = verdict.n
    whole = torch.where(verdict.real.isnan(), 0.0, 1.0)
    train, labels = split.train.rows(slice(n))
    distances, places = verdict.nearest(train.nan_to_num(0.0) if split.space.kind == "series" else train, labels)
    if split.space.kind == "series":  # complete ones, as samples are: the gaps of training data are not compared
        assert (distances < 1e-6).sum() >= (train.isnan().flatten(1).sum(1) == 0).sum()
        assert (whole.shape[0], places.max() < len(split.train)) == (n, True)
    else:
        assert (distances < 1e-6).all()
        assert places.tolist() == list(range(n))
        copy = memorisation(verdict, train, split, show_of(split))
        if labels is None or torch.equal(labels, verdict.labels):
            assert f"100.0% of {n}" in copy
    mine, _ = verdict.nearest(verdict.real, verdict.labels)
    torch.testing.assert_close(mine, verdict.near)
    assert copied(verdict.near, verdict.near) == pytest.approx(1 / n)


def test_nearest_over_pieces(made: tuple[Run, Evaluation, Page], monkeypatch: pytest.MonkeyPatch) -> None:
    _, found, _ = made
    whole = found.judge.nearest(found.x)
    monkeypatch.setattr(judge, "PIECE", 7)
    pieces = found.judge.nearest(found.x)
    torch.testing.assert_close(pieces[0], whole[0])
    assert torch.equal(pieces[1], whole[1])


def test_history_is_that_of_the_training(made: tuple[Run, Evaluation, Page]) -> None:
    run, _, _ = made
    _, fitted = run.train(progress=False)
    history = run.history()
    assert set(history) == set(fitted.history)
    for name, values in fitted.history.items():
        torch.testing.assert_close(history[name], values)


def test_large_images_of_noise_stay_small(tmp_path: Path) -> None:
    """The largest page there is: colour images of which no PNG takes less than their bytes, in many classes."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "noise.npz", x=rng.integers(0, 255, (120, 3, 96, 96), dtype=np.uint8), y=np.arange(120) % 12)
    values = {"data": str(tmp_path / "noise.npz"), "net": {"kind": "mlp", "width": 4, "depth": 1}, "watch": 8}
    run = Run.create(tmp_path / "run", {**values, "steps": 8, "every": 1, "batch_size": 2})
    run.train(progress=False)
    verdict, show = judge_of(run.split), show_of(run.split)
    few = verdict.real[:16]
    shown = dict.fromkeys((4, 8, 16, 32), few)
    parts = [
        the_data("noise", run.split, show),
        beside(run.split, verdict.real, verdict, show),
        memorisation(verdict, verdict.real, run.split, show),
        page.over_training(run.folder / "watch", show, 1),
        page.over_nfe(cost.Cost([], {}, shown, few, 16), show, 1.0),
    ]
    size = sum(len(part) for part in parts)
    assert 500_000 < size < 2_700_000  # curves, charts and style are 100 to 150 kB


def test_drawings() -> None:
    x = torch.tensor([[0.0, 1.0, float("nan"), 1.0, float("nan"), 0.0, 0.5]])
    drawn = curves(x, torch.tensor([0.0]), torch.tensor([1.0]), 'a "b"', width=64, height=44)
    # two lines of two points, and between the gaps a dot; low is at the bottom, 2 from it, high at the top
    assert drawn.count("<polyline") == 2
    assert 'points="2,42 12,2"' in drawn
    assert 'points="52,42 62,22"' in drawn
    assert '<circle cx="32" cy="2"' in drawn
    assert 'aria-label="a &quot;b&quot;"' in drawn
    drawn = bars([1.0, 0.0, 3.0], "counts", top=4.0, width=30, height=40)
    assert drawn.count("<rect") == 2
    assert '<rect x="0" y="30" width="9" height="10"/>' in drawn
    assert '<rect x="20" y="10" width="9" height="30"/>' in drawn
    corner = dots(torch.tensor([[0.0, 1.0], [9.0, 0.0]]), torch.zeros(2), torch.ones(2), "points", size=104)
    assert corner.count("<circle") == 1
    assert 'cx="2" cy="2"' in corner
    long = curves(torch.zeros(1, 1000), torch.zeros(1), torch.ones(1), "long")
    assert len(long) < 3000


def test_numbers_behind_the_drawings() -> None:
    column = torch.tensor([0.0, 0.0, 2.0, float("nan")])
    assert histogram(column, True, 0.0, 2.0) == pytest.approx([2 / 3, 0, 1 / 3])
    shares = histogram(torch.tensor([0.0, 0.1, 1.0, 5.0]), False, 0.0, 1.0)
    assert shares[0] == 0.25
    assert shares[1] == 0.25
    assert shares[-1] == 0.5  # what lies beyond is counted at the end
    at, means = windowed(torch.arange(1.0, 241.0))  # windows of four steps: 1 to 4 is about step 2.5
    assert at[:2] == [2.5, 6.5]
    assert means == at
    values, share = law(torch.tensor([3.0, 1.0, 2.0]))
    assert (values[0], values[50], values[100]) == (1.0, 2.0, 3.0)
    assert share[50] == 0.5
    assert list(spread(3, 8)) == [0, 1, 2]
    assert list(spread(15, 8)) == [0, 2, 4, 6, 8, 10, 12, 14]
    history = {name: torch.ones(3) for name in ("loss", "grad_norm", "lr")}
    assert "stopped at 3 of 10 steps" in training_curves(history, 10, 1.0)
    assert "stopped" not in training_curves(history, 3, None)


def test_times_count_from_where_it_went_on(
    made: tuple[Run, Evaluation, Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(made[0].model(), {}, lambda k: 1.0, 40)
    clock = [100.0]
    monkeypatch.setattr("ornstein.report.during.time.monotonic", lambda: clock[0])
    timing = Timing(tmp_path / "timing.json", resumed=True, forecast=9.0)
    clock[0] = 103.0
    timing(20, training)
    assert not (tmp_path / "timing.json").exists()
    clock[0] = 110.5
    timing(40, training)
    found = read_json(tmp_path / "timing.json")
    assert (found["from"], found["to"], found["seconds"], found["forecast_seconds"]) == (20, 40, 7.5, 9.0)


def test_bars_on_a_terminal_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write("array", tmp_path)
    run = Run.create(tmp_path / "run", {**NETWORK, "data": source})
    for progress in (None, True):
        shutil.rmtree(tmp_path / "run" / "samples", ignore_errors=True)
        for path in ("checkpoint.safetensors", "cost.safetensors"):
            (run.folder / path).unlink(missing_ok=True)
        capsys.readouterr()
        run.train(progress=progress)
        found = run.evaluate(steps=3, batch=4, progress=progress)
        cost.measure(run, found.judge, found.metrics["sampler"], progress)
        page.run_page(run, found, progress)
        shown = capsys.readouterr().err
        for name in ("fit", "samples", "judging", "quality against cost", "report"):
            assert (f"{name}:" in shown) is (progress is True), name


def test_no_markup_comes_from_metrics_json() -> None:
    """Text of a stranger's metrics.json stands on the page as text: the baseline's name, the sampler's numbers."""
    evil = "<script>alert(1)</script>"
    figures = {"frechet": 1.0, "nearest_ratio": 1.0}
    metrics = {"figures": figures, "references": {"samples": 9, **figures, "baseline": {"name": evil, "frechet": 2.0}}}
    sampler: dict[str, Any] = {"solver": "ddim", "steps": evil, "nfe": evil, "guidance": 1.0, "seed": evil}
    sampler["average"] = evil
    pages = [
        quality(metrics, in_words(sampler), "Says."),
        settings(Config(), sampler, None, 7),
        html.table([evil], [[evil, html.Markup("<b>ours</b>")]], [evil]),
    ]
    for text in pages:
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<td><b>ours</b></td>" in pages[2]


def test_rows_of_a_table_are_read_at_a_glance() -> None:
    """A column's numbers have one count of decimals, missing ones a dash; what belongs together ends with a line; long
    names may break; no name or value is markup."""
    values = pd.DataFrame({"body_mass": [1.5, 2.0, None, 0.25], "n": [1, 2, 3, 4], "<i>": ["a<b", "c", "d", "e"]})
    text = frame(values, "step", ("1", "2", "1", "2"), group=2)
    for shown in (
        "<td>1.50</td>",
        "<td>2.00</td>",
        "<td>0.25</td>",
        "<td>3</td>",
        ">–<",
        "a&lt;b",
        "&lt;i&gt;",
        "body_<wbr>mass",
    ):
        assert shown in text
    rows = text.split("<tr")
    assert [row.startswith(' class="last"') for row in rows[1:]] == [False, False, True, False, True]
    assert "last" not in frame(values)
    tiny = frame(pd.DataFrame({"p": [1.5e-9, 2.0]}))
    assert "<td>1.5e-09</td>" in tiny  # not 0.00


def test_constant_data_have_no_ratio(tmp_path: Path) -> None:
    """Data without variance: a Fréchet distance of 0 between two sets of them is no measure, so no ratio is given."""
    data = load_data(np.ones((60, 2), dtype="float32")).split(0.3)
    made = judge_of(data)
    figures = made(made.real + 1)
    assert figures["frechet"] == pytest.approx(2.0)  # |(1, 1)|^2, both covariances 0
    assert "frechet_ratio" not in figures
    assert "frechet_ratio" not in made.references()
    assert [goal.name for goal in judge.goals(figures, made.references())] == []
