"""The code in README and CONTRIBUTING runs as printed, top to bottom (the number of training steps aside)."""

import importlib.util
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

import conformance
import ornstein as orn
from ornstein.cli import app as cli
from phases import ALONE

ROOT = Path(__file__).parent.parent
QUICK = [
    ("steps=2_000", "steps=30"),
    ("steps=300", "steps=20"),
    ("steps=200,", "steps=20,"),
    ("batch_size=512", "batch_size=64"),
    ("sample(10_000", "sample(1_000"),
    ("sample(20_000", "sample(2_000"),
]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/guide.md",
        "docs/processes.md",
        "docs/inverse.md",
        "docs/inverse-methods.md",
        "docs/solvers.md",
        "docs/diffusers.md",
        "docs/choosing-a-solver.md",
        "docs/referee.md",
        "docs/training.md",
        "docs/tuning.md",
        "docs/reference.md",
    ],
)
def test_documents_run_as_printed(name, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)
    assert blocks
    code = "\n".join(blocks)
    for slow, quick in QUICK:
        code = code.replace(slow, quick)
    names: dict[str, object] = {}
    exec(compile(code, name, "exec"), names)
    assert "evaluations" in capsys.readouterr().out
    if name == "README.md":
        out, prediction = names["out"], names["p"]
        assert out.x.shape == (1_000, 2)
        assert out.nfe == 10
        assert prediction.score.shape == (1_000, 2)
        assert bool(torch.isfinite(prediction.noise).all())


def test_the_designs_sample_is_in_the_readme_line_by_line():
    """The lines of the design's code sample, which promises to run as written."""
    text = (ROOT / "README.md").read_text()
    for line in (
        "world = orn.exact.GaussianMixture(means, stds, weights)",
        "x, y = world.sample(10_000, seed=0, labels=True)",
        'model = orn.Denoiser(net, process, predicts="velocity", null={"label": orn.nets.NULL})',
        'orn.fit(model, x, cond={"label": y}, drop={"label": 0.1}, steps=2_000, batch_size=512, seed=0)',
        "guided = orn.CFG(model, scale=3.0)",
        "table = orn.DPMSolverPP(order=2).compile(process, orn.LogSNR()(process, steps=10))",
        "out = orn.sample(oracle, x_init=x_init, table=table)",
        "p.x0, p.noise, p.score, p.velocity",
    ):
        assert line in text


def test_the_commands_that_are_spelled_out_are_those_of_make():
    text, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for part in ('-m pytest -n 2 --dist loadfile -m "not proof"', "-c constraints.txt", "'.[all]'", "'.[dev]'"):
        assert part in text
        assert part in makefile


def commands(text):
    """The commands of this library that a document prints, as their words."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for line in "".join(block for language, block in blocks if language in ("", "sh")).splitlines():
        found = re.match(r"(?:\$ )?(?:(?:torchrun|accelerate) .*-m |[\w./]*bin/)?ornstein (.*)", line)
        if found:
            words = shlex.split(found[1].partition(" && ")[0].partition(" > ")[0], comments=True)
            if words:
                yield words


def test_printed_commands_are_understood(capsys):
    """Every command of the documents has the options, and every training the fields, that there are."""
    known, seen = typer.main.get_command(cli.app).commands, set()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for name, *words in commands(path.read_text()):
            seen.add(name)
            if not {"--help", "--list"} & set(words):  # which answer at once
                known[name].make_context(name, list(words))
            if name == "train" and "--help" not in words:
                if "--config" in words:  # a file of the reader's
                    first = words.index("--config")
                    del words[first : first + 2]
                assert cli.run([name, *words, "--show"]) == 0, (path.name, words, capsys.readouterr().err)
    assert seen == set(known)


def test_every_name_of_these_rooms_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    told = set(re.findall(r"`\.?(\w+)", text))
    for room in (orn.training, orn.data, orn.density):
        names = getattr(room, "__all__", [n for n, v in vars(room).items() if n[0] != "_" and not inspect.ismodule(v)])
        assert set(names) - {"annotations"} <= told, room.__name__


# The orders that the classes are named for, where the option `order` is not the order itself
NAMED = {
    "UniPC": lambda s: s.order + s.corrector,
    "DPMSolverV3": lambda s: s.order + s.corrector,
    "DEIS": lambda s: s.order + 1,
    "PNDM": lambda s: min(s.order, 2),
    "HB": lambda s: 1,
    "GHVB": lambda s: s.order,
    "SASolver": lambda s: min(s.predictor + 1, s.corrector + 1, 3) if s.tau == 0 else 2,
}


def test_the_conformance_table_is_of_the_solvers_that_there_are():
    """Every exported solver has a row; the orders claimed are the classes'; the page is what the data say."""
    data = json.loads((ROOT / "docs" / "conformance.json").read_text())["rows"]
    exported = {
        name
        for name in orn.solvers.__all__
        if inspect.isclass(value := getattr(orn.solvers, name)) and issubclass(value, orn.Solver)
    }
    assert {row["class"] for row in data} == exported - {"Solver"} - ALONE  # those are in tests/test_phase_space.py
    assert [(row["solver"], row["claimed"]) for row in data] == [
        (conformance.label(claim.solver), claim.order) for claim in conformance.CLAIMS
    ]
    for claim in conformance.CLAIMS:
        name = type(claim.solver).__name__
        if hasattr(claim.solver, "order") and claim.order is not None and name != "Doubled":
            assert claim.order == NAMED.get(name, lambda s: s.order)(claim.solver), claim
    text = (ROOT / "docs" / "solvers.md").read_text()
    assert conformance.page(data) in text
    assert all(name in text for name in ALONE)
    assert str(ROOT) not in text


def test_the_conformance_table_bears_its_claims_out():
    """Each claim holds to 0.2 for both slopes on one world at least: on another an error may change its sign."""
    for row in json.loads((ROOT / "docs" / "conformance.json").read_text())["rows"]:
        for own in (row, row.get("published", row)):
            if own["claimed"] is not None:
                worst = [max(abs(v - own["claimed"]) for v in found) for found in own["measured"].values()]
                assert min(worst) <= 0.2, own


def test_names_in_prose_exist():
    """Every `orn.a.b` and `ornstein.a.b` that docstrings and documents name is there."""
    texts = [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    missing = set()
    for path in texts:
        for found in re.finditer(r"\b(?:orn|ornstein)((?:\.[A-Za-z_]\w*)+)", path.read_text()):
            place = orn
            for part in found[1][1:].split("."):
                if not inspect.ismodule(place) and not inspect.isclass(place):
                    break  # an attribute of an object that a line of code makes
                if inspect.ismodule(place) and not hasattr(place, part):
                    if importlib.util.find_spec(f"{place.__name__}.{part}") is None:
                        missing.add(f"{found[0]} in {path.relative_to(ROOT)}")
                        break
                    importlib.import_module(f"{place.__name__}.{part}")
                if not hasattr(place, part):
                    missing.add(f"{found[0]} in {path.relative_to(ROOT)}")
                    break
                place = getattr(place, part)
    assert not missing
