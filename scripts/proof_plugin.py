"""The pytest plugin of the slow tier: the fixture `proof`, which asserts a proof's figures and records them."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from proofs import commit, file_of, record_path, write_whole
from sources import Sources

Bound: TypeAlias = tuple[float | None, float | None]
ITEMS = pytest.StashKey[list[pytest.Item]]()
REPORTS = pytest.StashKey[dict[str, pytest.TestReport]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--proofs-to FILE` writes the collected proofs there, for the runner."""
    parser.addoption("--proofs-to", default=None, metavar="FILE", help="write the collected proofs to FILE, as JSON")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep all that was collected, before any of it is deselected: tests/test_papers.py checks the marks of all."""
    config.stash[ITEMS] = list(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write the collected proofs where the runner asked for them; a name used twice is an error."""
    found: dict[str, str] = {}
    for item in session.items:
        if item.get_closest_marker("proof"):
            name = proof_name(item)
            if "proof" not in getattr(item, "fixturenames", ()):
                raise pytest.UsageError(f"{item.nodeid}: a proof tells its figures to the fixture `proof`")
            if name in found:
                raise pytest.UsageError(f"two proofs are called {name!r}: {found[name]} and {item.nodeid}")
            found[name] = item.nodeid
    if target := session.config.getoption("--proofs-to"):
        Path(target).write_text(json.dumps(found), encoding="utf-8")


def proof_name(item: pytest.Item) -> str:
    """The name of a proof: the mark's own, or that of the system it proves."""
    marks = (item.get_closest_marker("proof"), item.get_closest_marker("system"))
    name = next((mark.args[0] for mark in marks if mark and mark.args), None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise pytest.UsageError(f'{item.nodeid}: name what it proves: @pytest.mark.system("short-name", rival="...")')
    return name


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the report of each phase, so that the fixture knows whether the test passed."""
    report = yield
    item.stash.setdefault(REPORTS, {})[report.when] = report
    return report


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """`proof(figures={"order": 1.98}, thresholds={"order": (1.8, None)}, seed=0)`: assert the figures, and record them.

    A threshold is a pair (at least, at most), None where that side is open. The record is written when the test has
    passed; when it fails, an older record is removed, for it no longer stands.
    """
    root, name = request.config.rootpath, proof_name(request.node)
    system = request.node.get_closest_marker("system")
    told: dict[str, Any] = {}
    begun = time.monotonic()

    def tell(*, figures: Mapping[str, float], thresholds: Mapping[str, Bound], seed: int | Sequence[int]) -> None:
        if told:
            raise RuntimeError(f"{name}: one proof tells its figures once")
        values = {key: float(value) for key, value in figures.items()}
        bounds = check(values, thresholds)
        told.update(figures=values, thresholds=bounds, seed=seed)

    yield tell

    report = request.node.stash[REPORTS].get("call")
    path = record_path(root, name)
    if report is not None and report.failed:
        path.unlink(missing_ok=True)
    elif report is not None and report.passed:
        if not told:
            pytest.fail(f"{name} passed without telling its figures: call proof(figures=..., thresholds=..., seed=...)")
        record = {
            "name": name,
            "test": request.node.nodeid,
            "rival": system.kwargs.get("rival") if system else None,
            **told,
            "hash": Sources(root).hash(file_of(root, request.node.nodeid)),
            "commit": commit(root),
            "seconds": round(time.monotonic() - begun, 1),
        }
        write_whole(path, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check(figures: Mapping[str, float], thresholds: Mapping[str, Bound]) -> dict[str, list[float | None]]:
    """Assert that every figure is finite and every threshold is met; return the thresholds as they are recorded."""
    if not thresholds or (unknown := set(thresholds) - set(figures)):
        missing = f"; no figure is called {', '.join(sorted(unknown))}" if thresholds else ""
        raise ValueError(f"a proof has thresholds, each on one of its figures ({', '.join(figures)}){missing}")
    problems = [f"{key} is {value}" for key, value in figures.items() if not math.isfinite(value)]
    bounds: dict[str, list[float | None]] = {}
    for key, bound in thresholds.items():
        if not isinstance(bound, tuple) or len(bound) != 2 or bound == (None, None):
            raise ValueError(
                f"the threshold of {key!r} is a pair (at least, at most), one of them may be None: {bound!r}"
            )
        low, high = (None if side is None else float(side) for side in bound)
        value = figures[key]
        if low is not None and not value >= low:
            problems.append(f"{key} is {value:.6g}, not at least {low:.6g}")
        if high is not None and not value <= high:
            problems.append(f"{key} is {value:.6g}, not at most {high:.6g}")
        bounds[key] = [low, high]
    assert not problems, "; ".join(problems)
    return bounds
