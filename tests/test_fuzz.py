"""Two hundred commands, valid and absurd, with --check: each is accepted or refused in one line, and writes nothing."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from fuzzing import Case, answer, cases, holds, make_data, nested, one_line, room, valid_fields

QUICK = {"suppress_health_check": list(HealthCheck), "phases": [Phase.generate]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and runs."""
    made = tmp_path_factory.mktemp("fuzz")
    make_data(made)
    return made


def test_each_is_accepted_or_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At least 40 % are accepted: half are valid by construction, and the rest would have to be refused."""
    monkeypatch.chdir(folder)
    count: Counter[bool] = Counter()

    @settings(max_examples=200, **QUICK)
    @given(case=cases(folder))
    def check(case: Case) -> None:
        count[holds(case, folder)] += 1

    with room(monkeypatch):
        check()
    assert count.total() >= 200
    assert count[True] >= 0.4 * count.total()
