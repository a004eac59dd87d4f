"""One page, whole in itself: no script, no font and no picture from anywhere else, in light and in dark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from ornstein.report.judge import Goal

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #dfe3e9; --page: #fff; --card: #f6f7f9;
  --good: #1c7c54; --bad: #b3362b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa4b2; --line: #303845; --page: #14181f;
  --card: #1b212a; --good: #5cc795; --bad: #f08a7e; } .ink { filter: invert(1); } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2.5rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.02em; }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: 1.4rem; border-top: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 46rem; } .soft, figcaption { color: var(--soft); font-size: .92rem; }
figure { margin: 1.4rem 0; } figcaption { margin-top: .5rem; max-width: 46rem; }
svg { display: block; width: 100%; max-width: 42rem; height: auto; }
svg.small { display: inline-block; width: auto; max-width: none; vertical-align: middle; }
svg text { font-family: inherit !important; fill: currentColor; }
.pixels { display: block; image-rendering: pixelated; max-width: 100%; height: auto; }
.goals { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: 1rem; margin: 1.4rem 0; }
.goal { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem;
  display: flex; flex-direction: column; justify-content: space-between; }
.goal b { display: block; font-size: 1.9rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.goal span { font-size: .88rem; color: var(--soft); display: block; }
.met { color: var(--good); } .missed { color: var(--bad); }
.wide { overflow-x: auto; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; margin: .4rem 0; }
.strip svg { background: var(--card); border: 1px solid var(--line); border-radius: .3rem; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 0 2rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0; font-size: .92rem; }
a { color: inherit; text-underline-offset: .2em; }
table table { margin: 0; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .93rem; }
th { text-align: right; font-weight: 600; padding: .35rem .9rem; border-bottom: 2px solid var(--line); }
td { text-align: right; padding: .3rem .9rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.reference td { font-style: italic; color: var(--soft); }
table.plates { width: auto; } .plates td, .plates th { border: 0; padding: .2rem 1.6rem .2rem 0; text-align: left; }
th:first-child, td:first-child { white-space: nowrap; }
table.rows { font-size: .85rem; } .rows th, .rows td { padding: .3rem .45rem; } .rows :first-child { padding-left: 0; }
.rows th, .rows th:first-child { white-space: normal; vertical-align: bottom; }
.rows tr.last td { border-bottom-color: var(--soft); }
table.words th, table.words td { text-align: left; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: 1.5rem 1rem 3rem; } figure { overflow-x: auto; }
  figure svg:not(.small) { min-width: 24rem; } th, td { padding-left: .5rem; padding-right: .5rem; } }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
"""


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """The whole document."""
    body = "\n".join(sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p class="soft">{lead}</p>\n{body}\n</body>\n</html>\n'
    )


def section(heading: str, *parts: str) -> str:
    """A heading and what stands under it; text that is not yet markup becomes a paragraph."""
    written = [part if part.startswith("<") else f"<p>{part}</p>" for part in parts if part]
    return "\n".join([f'<section id="{_slug(heading)}">', f"<h2>{escape(heading)}</h2>", *written, "</section>"])


def contents(sections: Iterable[str]) -> str:
    """Links to these sections by their headings."""
    heads = [found for part in sections for found in re.findall(r'<section id="([^"]*)">\s*<h2>(.*?)</h2>', part)]
    return "<nav>" + "".join(f'<a href="#{name}">{heading}</a>' for name, heading in heads) + "</nav>"


def side_by_side(*parts: str) -> str:
    """Parts in one row where there is room, else below one another."""
    return f'<div class="side">{"".join(parts)}</div>'


def _slug(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


def figure(content: str, caption: str) -> str:
    """A figure with its caption."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


class Markup(str):
    """What is markup already: a cell of a table that is not escaped."""


def _cell(content: str) -> str:
    return content if isinstance(content, Markup) else escape(content)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], reference: Sequence[str] | None = None) -> str:
    """A table of texts, or of `Markup`; the last row, set apart, is what to read the others beside."""
    lines = ["<tr>" + "".join(f"<th>{_cell(cell)}</th>" for cell in head) + "</tr>"] if any(head) else []
    lines += ["<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    if reference is not None:
        lines.append('<tr class="reference">' + "".join(f"<td>{_cell(cell)}</td>" for cell in reference) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def words(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of words more than of numbers: all its columns begin at the left."""
    return table(head, rows).replace("<table>", '<table class="words">')


def rows(head: Sequence[str], body: Sequence[Sequence[str]], group: int = 0) -> str:
    """A table of many columns, narrow: names break at underscores; a line stands under every `group` rows."""
    names = [Markup(escape(name).replace("_", "_<wbr>")) for name in head]
    parts = table(names, body).replace("<table>", '<table class="rows">').split("<tr>")
    ends = [group and i > 1 and (i - 1) % group == 0 for i in range(len(parts))]  # the first part is the table's tag
    return parts[0] + "".join(
        f'<tr class="last">{part}' if end else f"<tr>{part}" for part, end in zip(parts[1:], ends[1:], strict=True)
    )


def plates(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """Pictures in rows and columns, with their names."""
    return table(head, rows).replace("<table>", '<table class="plates">')


def goal_cards(goals: Iterable[Goal]) -> str:
    """A card for each goal: the figure, the bound, and whether it is met."""
    cards = []
    for goal in goals:
        state = "met" if goal.met else "missed"
        cards.append(
            f'<div class="goal"><span>{escape(goal.name)}</span><b class="{state}">{goal.value:.3f}</b>'
            f"<span>{escape(goal.bound)}: {state}</span></div>"
        )
    return f'<div class="goals">{"".join(cards)}</div>'
