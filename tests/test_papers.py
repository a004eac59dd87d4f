"""The file of systems, what is made from it, and that every claim in it has its test."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from ornstein import papers
from proof_plugin import ITEMS
from proofs import records, stale

ROOT = Path(__file__).resolve().parent.parent
ENTRY = """
[ddim]
title = "Denoising Diffusion Implicit Models"
authors = ["Jiaming Song", "Chenlin Meng", "Stefano Ermon"]
year = 2020
arxiv = "2010.02502"
number = "S404"
class = "ornstein.DDIM"
test = "tests/systems/test_ddim.py::test_ddim"
status = "proven"
"""


def test_the_file_of_systems_is_sound() -> None:
    entries = papers.systems()
    assert list(entries) == sorted(entries)
    assert entries["ddim"].arxiv == "2010.02502"


@pytest.mark.parametrize("system", papers.systems().values(), ids=lambda system: system.name)
def test_every_system_is_a_public_documented_name(system: papers.System) -> None:
    try:
        room, _, name = system.public.rpartition(".")  # a function may be called as its file is
        found = getattr(importlib.import_module(room), name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{system.name}: {system.public} does not exist: {error}", pytrace=False)
    assert callable(found)
    assert found.__doc__, f"{system.public} has no docstring"


def test_every_system_mark_names_an_entry_and_a_rival(request: pytest.FixtureRequest) -> None:
    entries = papers.systems()
    problems = []
    for item in request.config.stash[ITEMS]:
        for mark in item.iter_markers("system"):
            if len(mark.args) != 1 or mark.args[0] not in entries:
                problems.append(f"{item.nodeid}: {mark.args} is no name in systems.toml")
            if set(mark.kwargs) != {"rival"} or not isinstance(mark.kwargs["rival"], str):
                problems.append(f"{item.nodeid}: name the nearest simpler relative: rival='...'")
    assert not problems, "\n".join(problems)


def test_every_claimed_system_has_its_test(request: pytest.FixtureRequest) -> None:
    """A proven or negative system's test exists and is marked with its name (in the files that this run collects)."""
    items = request.config.stash[ITEMS]
    files = {item.nodeid.partition("::")[0] for item in items}
    marked = {(mark.args[0], item.nodeid.partition("[")[0]) for item in items for mark in item.iter_markers("system")}
    for system in papers.systems().values():
        if system.status == "partial":
            continue
        file = system.test.partition("::")[0]
        assert (ROOT / file).is_file(), f"{system.name}: {file} does not exist"
        if file in files:
            assert (system.name, system.test) in marked, f"{system.name}: {system.test} is no test marked with its name"


def test_every_recorded_proof_has_its_test() -> None:
    for name, record in records(ROOT).items():
        assert record["name"] == name
        file, _, test = record["test"].partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {test.partition('[')[0].rpartition('::')[2]}(" in text, (
            f"docs/proofs/{name}.json: no {record['test']}"
        )


def test_the_page_of_systems_is_fresh() -> None:
    """Whether a proof is stale changes with every edit of the library: that alone may differ until `make docs`."""
    committed = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    made = papers.systems_page(records(ROOT), stale(ROOT))
    assert committed.replace(papers.STALE, "") == made.replace(papers.STALE, ""), "run `make docs`"


def test_a_sound_entry_is_read() -> None:
    (system,) = papers.parse(ENTRY).values()
    assert system.name == "ddim"
    assert system.authors[1] == "Chenlin Meng"
    assert system.link == "https://arxiv.org/abs/2010.02502"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("year = 2020", 'year = 2020\nfigur = "x"', "unknown key 'figur'; 'figure'?"),
        ("year = 2020", 'year = 2020\npublic = "ornstein.DDIM"', "unknown key 'public'"),
        ("year = 2020", 'year = "2020"', "year must be"),
        ("year = 2020\n", "", "lacks year"),
        ('class = "ornstein.DDIM"\n', "", "lacks class"),
        ("ornstein.DDIM", "ornstein._ddim.DDIM", "class 'ornstein._ddim.DDIM'"),
        ("S404", "404", "number '404'"),
        ("2010.02502", "2010-02502", "arxiv '2010-02502'"),
        ('arxiv = "2010.02502"\n', "", "give arxiv, or url"),
        ("[ddim]", "[DDIM]", "name 'DDIM'"),
        ('"proven"', '"done"', "status 'done'"),
        ('"proven"', '"partial"', "says what is missing"),
        ('"proven"', '"proven"\nmissing = "all"', "says what is missing"),
        ('"proven"', '"negative"', "gives its figure"),
        ('["Jiaming Song", "Chenlin Meng", "Stefano Ermon"]', '"Song"', "authors must be"),
        ("::test_ddim", "", "test 'tests/systems/test_ddim.py'"),
    ],
)
def test_an_unsound_entry_is_refused(before: str, after: str, message: str) -> None:
    assert before in ENTRY
    with pytest.raises(ValueError, match=re.escape(message)):
        papers.parse(ENTRY.replace(before, after))


def test_a_name_or_a_number_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="ddim"):
        papers.parse(ENTRY + ENTRY)
    with pytest.raises(ValueError, match="the same number 'S404'"):
        papers.parse(ENTRY + ENTRY.replace("[ddim]", "[ddim-two]"))


def test_an_unknown_name_gets_the_nearest_real_one() -> None:
    with pytest.raises(LookupError, match=r"did you mean .*ddim"):
        papers.paper("ddmi")
    with pytest.raises(LookupError, match="lists them all"):
        papers.paper("qqqqqq")
    assert papers.find("DPM_Solver++").name == "dpm-solver-pp"


def test_bibtex_is_well_formed() -> None:
    (system,) = papers.parse(ENTRY.replace("Implicit Models", "Implicit Models & More_50%")).values()
    assert papers.bibtex(system) == (
        "@misc{song2020ddim,\n"
        "  title         = {{Denoising Diffusion Implicit Models \\& More\\_50\\%}},\n"
        "  author        = {Jiaming Song and Chenlin Meng and Stefano Ermon},\n"
        "  year          = {2020},\n"
        "  eprint        = {2010.02502},\n"
        "  archivePrefix = {arXiv},\n"
        "  url           = {https://arxiv.org/abs/2010.02502}\n"
        "}"
    )
    everything = papers.papers_table(as_bibtex=True)
    keys = re.findall(r"^@misc\{(.+),$", everything, flags=re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(papers.systems())
    assert everything.count("{") == everything.count("}")


def test_the_table_lists_what_is_asked_for() -> None:
    whole = papers.papers_table()
    entries = papers.systems().values()
    assert all(system.name in whole and system.public in whole for system in entries)
    partial = papers.papers_table(status="partial")
    assert {line.split()[0] for line in partial.splitlines()[1:-2]} == {
        s.name for s in entries if s.status == "partial"
    }
    with pytest.raises(ValueError, match="status 'good'"):
        papers.papers_table(status="good")


def test_a_stale_proof_shows_as_stale() -> None:
    record = {"figures": {"order": 1.9812, "error": 0.02}, "thresholds": {"order": [1.8, None], "error": [0.0, 0.1]}}
    made = papers.systems_page({"ddim": record}, {"ddim"})
    row = next(line for line in made.splitlines() if line.startswith("| [ddim]"))
    assert "[order 1.981 (at least 1.8), error 0.02 (in 0 to 0.1)](proofs/ddim.json)" in row
    assert row.endswith(f"{papers.STALE} |")
    assert papers.STALE not in papers.systems_page({"ddim": record})
