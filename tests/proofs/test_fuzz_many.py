"""Ten thousand commands, valid and absurd, with --check: none breaks a rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuzzing import Case, cases, holds, make_data, room

EXAMPLES = 10_000


@pytest.mark.proof("fuzz")
def test_ten_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proof: Callable[..., None]) -> None:
    """The rules of tests/fuzzing.py, on each: accepted, or refused in one line; nothing written; no valid one refused.

    At least 40 % are accepted.
    """
    make_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    count: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), phases=[Phase.generate], deadline=None)
    @given(case=cases(tmp_path))
    def check(case: Case) -> None:
        accepted = holds(case, tmp_path)
        count["examples"] += 1
        count["accepted"] += accepted
        count["valid by construction"] += case.valid

    with room(monkeypatch):
        check()
    share = count["accepted"] / count["examples"]
    figures = {"examples": count["examples"], "accepted": share, "valid": count["valid by construction"]}
    proof(figures=figures, thresholds={"examples": (EXAMPLES, None), "accepted": (0.4, None)}, seed=0)
