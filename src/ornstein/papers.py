"""The published systems that the library implements: the paper, the public name, the test and the state of each.

They live in `systems.toml` beside this file; `ornstein papers` and the page of systems are made from it.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["proven", "negative", "partial"]
STATUSES: tuple[Status, ...] = ("proven", "negative", "partial")

STALE = " (stale)"
"""What the page adds to a system whose recorded proof is older than the sources it depends on."""

_SHAPES = {
    "name": r"[a-z0-9]+(-[a-z0-9]+)*",
    "arxiv": r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}",
    "number": r"S\d+",
    "class": r"ornstein(\.[A-Za-z][A-Za-z0-9_]*)+",
    "test": r"tests/[\w/]+\.py(::\w+)+",
}
_NEEDED = ("title", "authors", "year", "number", "class", "test", "status")
_KEYS = {"class": "public"}  # `class` is a word of the language: the field goes by another name


@dataclass(frozen=True)
class System:
    """One published system.

    `public` is the dotted public name that implements it (`class` in the file), `test` the pytest node that proves it,
    `number` its number in the project's list, `missing` what a partial one lacks, `figure` what was measured.
    """

    name: str
    title: str
    authors: tuple[str, ...]
    year: int
    number: str
    public: str
    test: str
    status: Status
    arxiv: str = ""
    url: str = ""
    missing: str = ""
    figure: str = ""

    @property
    def link(self) -> str:
        """Where the paper is."""
        return self.url or f"https://arxiv.org/abs/{self.arxiv}"


def parse(text: str) -> dict[str, System]:
    """Read `systems.toml`: name -> System, in alphabetical order. A ValueError names the entry and what is wrong."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # a name given twice is one of these
        raise ValueError(f"systems.toml: {error}") from error
    entries = {name: _entry(name, table) for name, table in sorted(tables.items())}
    for key in ("number", "title"):
        owners: dict[str, str] = {}
        for name, system in entries.items():
            value = getattr(system, key)
            if (first := owners.setdefault(value, name)) != name:
                raise ValueError(f"systems.toml: {first!r} and {name!r} have the same {key} {value!r}")
    return entries


def _entry(name: str, table: Any) -> System:
    def refuse(problem: str) -> ValueError:
        return ValueError(f"systems.toml [{name}]: {problem}")

    if not isinstance(table, dict):
        raise refuse("a system is a table of keys")
    written = sorted({field.name for field in fields(System)} - {"name", *_KEYS.values()} | set(_KEYS))
    if unknown := [key for key in table if key not in written]:
        nearest = difflib.get_close_matches(unknown[0], written, n=1)
        raise refuse(f"unknown key {unknown[0]!r}; " + (f"{nearest[0]!r}?" if nearest else f"the keys are {written}"))
    if lacking := [key for key in _NEEDED if key not in table]:
        raise refuse(f"lacks {', '.join(lacking)}")

    authors, year = table["authors"], table["year"]
    if not isinstance(authors, list) or not authors or not all(isinstance(a, str) and a.strip() for a in authors):
        raise refuse(f"authors must be a list of names, not {authors!r}")
    if not isinstance(year, int) or isinstance(year, bool) or not 1900 <= year <= 2100:
        raise refuse(f"year must be a year, not {year!r}")
    for key, value in {"name": name, **table}.items():
        if key in ("authors", "year"):
            continue
        if not isinstance(value, str) or not value.strip():
            raise refuse(f"{key} must be text that is not empty, not {value!r}")
        if (shape := _SHAPES.get(key)) and not re.fullmatch(shape, value):
            raise refuse(f"{key} {value!r} does not look like one ({shape})")

    if table["status"] not in STATUSES:
        raise refuse(f"status {table['status']!r} is none of {', '.join(STATUSES)}")
    if ("arxiv" in table) == ("url" in table):
        raise refuse("give arxiv, or url where there is no arXiv number")
    if (table["status"] == "partial") != ("missing" in table):
        raise refuse("a partial system says what is missing, and no other does")
    if table["status"] == "negative" and "figure" not in table:
        raise refuse("a negative one gives its figure: what was measured, against what was claimed")
    values = {_KEYS.get(key, key): value for key, value in table.items()}
    return System(**values | {"name": name, "authors": tuple(authors)})


def systems() -> dict[str, System]:
    """Every system of the library: name -> System."""
    return parse(resources.files("ornstein").joinpath("systems.toml").read_text(encoding="utf-8"))


def find(name: str) -> System:
    """The system called `name`; a LookupError gives the nearest real names."""
    entries = systems()
    key = name.strip().lower().replace("_", "-").replace("++", "-pp")
    if key in entries:
        return entries[key]
    near = difflib.get_close_matches(key, entries, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`ornstein papers` lists them all"
    raise LookupError(f"no system is called {name!r}: {hint}")


def bibtex(system: System) -> str:
    """The BibTeX entry of a system's paper, under the key `<first author><year><name>`."""
    surname = re.sub(r"[^a-z]", "", system.authors[0].split()[-1].lower())
    lines = {
        "title": f"{{{_latex(system.title)}}}",  # the inner braces keep the capitals
        "author": _latex(" and ".join(system.authors)),
        "year": str(system.year),
    }
    if system.arxiv:
        lines |= {"eprint": system.arxiv, "archivePrefix": "arXiv"}
    lines["url"] = system.link
    body = ",\n".join(f"  {key:<13} = {{{value}}}" for key, value in lines.items())
    return f"@misc{{{surname}{system.year}{system.name.replace('-', '')},\n{body}\n}}"


def _latex(text: str) -> str:
    return re.sub(r"([&%$#_])", r"\\\1", text)


def paper(name: str, *, as_bibtex: bool = False) -> str:
    """Everything known of one system, as plain text (or its BibTeX entry); a LookupError gives the nearest names."""
    system = find(name)
    if as_bibtex:
        return bibtex(system)
    lines = {
        "title": system.title,
        "authors": ", ".join(system.authors),
        "year": str(system.year),
        "paper": system.link,
        "class": system.public,
        "test": system.test,
        "figure": system.figure,
        "status": system.status,
        "missing": system.missing,
    }
    return "\n".join([system.name] + [f"  {key:<8} {value}" for key, value in lines.items() if value])


def papers_table(*, status: str | None = None, as_bibtex: bool = False) -> str:
    """All systems as a plain table, or their BibTeX entries; `status` keeps only those that have it."""
    if status is not None and status not in STATUSES:
        raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
    chosen = [system for system in systems().values() if status in (None, system.status)]
    if as_bibtex:
        return "\n\n".join(map(bibtex, chosen))
    rows = [(s.name, s.status, s.public, str(s.year), s.title) for s in chosen]
    return _columns([("name", "status", "class", "year", "title"), *rows]) + f"\n\n{_count(chosen)}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _count(chosen: Collection[System]) -> str:
    counts = {status: sum(system.status == status for system in chosen) for status in STATUSES}
    noun = "system" if len(chosen) == 1 else "systems"
    return f"{len(chosen)} {noun}: " + ", ".join(f"{number} {status}" for status, number in counts.items())


def systems_page(records: Mapping[str, Mapping[str, Any]] | None = None, stale: Collection[str] = ()) -> str:
    """The page of systems, in Markdown.

    `records` holds the recorded proofs by name (`docs/proofs/<name>.json`); those named in `stale` show as stale.
    """
    records = records or {}
    entries = systems()
    lines = [
        "# Systems",
        "",
        "<!-- made by `make docs` from src/ornstein/systems.toml and docs/proofs: change those -->",
        "",
        "Each published system that Ornstein implements, and how far it is proven.",
        "**Proven**: its test shows the defining property against ground truth, and the same assertion fails for its",
        "nearest simpler relative. **Negative**: the published claim does not hold on our ground truth. **Partial**:",
        "something is missing, and is named. Only the first counts.",
        "*Stale*: the sources have changed since the recorded figures were measured.",
        "",
        f"{_count(entries.values())}.",
        "",
        "| system | paper | class | test | figure | status |",
        "|---|---|---|---|---|---|",
    ]
    for system in entries.values():
        cells = (
            f"[{system.name}](#bibtex-{system.name})",
            f"[{system.title}]({system.link}), {_short(system.authors)}, {system.year}",
            f"`{system.public}`",
            f"`{system.test}`",
            "; ".join(filter(None, (system.figure, _figures(system.name, records.get(system.name))))) or "-",
            f"**{system.status}**"
            + (f": missing {system.missing}" if system.missing else "")
            + (STALE if system.name in stale else ""),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if others := sorted(set(records) - set(entries)):
        lines += ["", "## Other proofs", "", "| proof | test | figure |", "|---|---|---|"]
        for name in others:
            mark = STALE if name in stale else ""
            lines.append(f"| {name}{mark} | `{records[name]['test']}` | {_figures(name, records[name])} |")
    lines += ["", "## BibTeX", ""]
    for system in entries.values():
        lines += [f'<a id="bibtex-{system.name}"></a>', "", "```bibtex", bibtex(system), "```", ""]
    return "\n".join(lines)


def _short(authors: Sequence[str]) -> str:
    return " and ".join(authors) if len(authors) <= 2 else f"{authors[0]} et al."


def _figures(name: str, record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    parts = []
    for key, value in record["figures"].items():
        low, high = record["thresholds"].get(key, (None, None))
        if low is not None and high is not None:
            bound = f" (in {low:g} to {high:g})"
        elif low is not None:
            bound = f" (at least {low:g})"
        elif high is not None:
            bound = f" (at most {high:g})"
        else:
            bound = ""
        parts.append(f"{key} {value:.4g}{bound}")
    return f"[{', '.join(parts)}](proofs/{name}.json)"
