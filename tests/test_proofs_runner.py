"""The slow tier's machinery: what a proof stands on, what makes it stale, and a runner that can be stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from proof_plugin import check
from proofs import shard
from sources import Sources

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"

LIBRARY = {
    "__init__.py": "from ornstein import rooms\nfrom ornstein.rooms import VP, Flow\nfrom ornstein.top import tidy\n",
    "rooms/__init__.py": "from .flow import Flow\nfrom ornstein.rooms.sample import sample\nfrom .vp import VP\n",
    "rooms/flow.py": "from ornstein._base import base\nclass Flow: pass\n",
    "rooms/vp.py": "class VP: pass\n",
    "rooms/sample.py": "def sample():\n    from ornstein.rooms.lazy import late\n    return late\n",
    "rooms/lazy.py": "late = 1\n",
    "_base.py": "base = 1\n",
    "top.py": "import torch\ntidy = 1\n",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    write(tmp_path / "src" / "ornstein", LIBRARY)
    return tmp_path


def stands_on(root: Path, text: str) -> set[str]:
    test = root / "tests" / "systems" / "test_it.py"
    write(root, {"tests/systems/test_it.py": text})
    return {path.name for path in Sources(root).closure(test)} - {"test_it.py"}


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("import ornstein as orn\norn.VP()", {"vp.py"}),
        ("import ornstein as orn\norn.Flow()", {"flow.py", "_base.py"}),
        ("import ornstein\nornstein.rooms.flow.Flow", {"flow.py", "_base.py"}),
        ("import ornstein as orn\norn.rooms.sample(1).x", {"sample.py", "lazy.py"}),
        ("from ornstein import VP, tidy", {"vp.py", "top.py"}),
        ("from ornstein.rooms import sample", {"sample.py", "lazy.py"}),
        ("from ornstein import rooms\nrooms.VP", {"vp.py"}),
        ("import torch\nimport math", set()),
    ],
)
def test_a_proof_stands_on_what_it_uses_and_no_more(library: Path, text: str, files: set[str]) -> None:
    assert stands_on(library, text) == files


@pytest.mark.parametrize(
    "text",
    [
        "import ornstein as orn\ngetattr(orn, name)",
        "import ornstein.rooms\n",
        "from ornstein.rooms import *",
        "import ornstein as orn\norn.rooms.unheard_of",
    ],
)
def test_what_cannot_be_traced_counts_as_the_whole_room(library: Path, text: str) -> None:
    assert stands_on(library, text) >= {"flow.py", "vp.py", "sample.py", "lazy.py", "_base.py"}


def test_a_proof_stands_on_the_helpers_beside_it(library: Path) -> None:
    write(library, {"tests/worlds.py": "from ornstein import VP", "tests/systems/near.py": "import ornstein.top"})
    assert stands_on(library, "import worlds\nworlds.x\nfrom near import x") == {
        "worlds.py",
        "near.py",
        "vp.py",
        "top.py",
    }


def test_the_hash_sees_code_and_not_words(library: Path) -> None:
    test = library / "tests" / "test_it.py"
    source = library / "src" / "ornstein" / "rooms" / "vp.py"

    def hash_with(text: str) -> str:
        source.write_text(text)
        return subprocess.run(
            [sys.executable, "-c", "import sys; from pathlib import Path; from sources import Sources\n"
             "print(Sources(Path(sys.argv[1])).hash(Path(sys.argv[2])))", str(library), str(test)],
            env=os.environ | {"PYTHONPATH": str(SCRIPTS)}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    write(library, {"tests/test_it.py": "from ornstein import VP"})
    plain = hash_with("class VP: beta = 1")
    assert hash_with('class VP:\n    """Words."""\n\n    beta = 1  # why\n') == plain
    assert hash_with("class VP: beta = 2") != plain


def test_thresholds_are_asserted() -> None:
    assert check({"order": 1.9}, {"order": (1.8, None)}) == {"order": [1.8, None]}
    assert check({"order": 1.9, "cost": 3.0}, {"order": (1.9, 1.9)}) == {"order": [1.9, 1.9]}
    for value, bound in (
        (1.7, (1.8, None)),
        (2.3, (1.8, 2.2)),
        (float("nan"), (1.8, 2.2)),
        (float("inf"), (1.8, None)),
    ):
        with pytest.raises(AssertionError, match="order is"):
            check({"order": value}, {"order": bound})
    with pytest.raises(ValueError, match="no figure is called cost"):
        check({"order": 1.9}, {"cost": (None, 1.0)})
    with pytest.raises(ValueError, match="has thresholds"):
        check({"order": 1.9}, {})
    with pytest.raises(ValueError, match="is a pair"):
        check({"order": 1.9}, {"order": (None, None)})


def test_the_shards_part_the_proofs_and_do_not_move() -> None:
    names = [f"proof-{i}" for i in range(100)]
    parts = [shard(names, (i, 4)) for i in (1, 2, 3, 4)]
    assert sum(map(len, parts)) == 100
    assert set.union(*parts) == set(names)
    # Binomial(100, 1/4), std 4.3: beyond five std of 25 the hash would not be spreading them
    assert all(4 <= len(part) <= 46 for part in parts)
    assert shard(names[:50], (1, 4)) == parts[0] & set(names[:50])


PROOF = """
import time, pytest
from ornstein import {uses}

@pytest.mark.proof
@pytest.mark.system("{name}", rival="euler")
def test_it(proof):
    {before}
    proof(figures={{"order": {order}}}, thresholds={{"order": (1.8, None)}}, seed=0)
"""
INI = f"[pytest]\npythonpath = {SCRIPTS} src\nmarkers =\n    proof\n    system\n"


@pytest.fixture
def house(library: Path) -> Path:
    """A small house of three proofs: `flow` and `vp` pass, `bad` fails; without torch, so that runs are quick."""
    files = {
        "pytest.ini": INI,
        "tests/conftest.py": "pytest_plugins = ['proof_plugin']\n",
        "tests/test_flow.py": PROOF.format(uses="Flow", name="flow", before="", order=2.0),
        "tests/test_vp.py": PROOF.format(uses="VP", name="vp", before="", order=2.0),
        "tests/test_fast.py": "def test_fast(): pass\n",
        "src/ornstein/top.py": "tidy = 1\n",
    }
    write(library, files)
    return library


def proofs(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "proofs.py"), "--root", str(root), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment())


def environment() -> dict[str, str]:
    """As a shell has it, without what pytest and xdist tell their own workers, and without plugins that load slowly."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_"))}
    return plain | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def states(root: Path) -> dict[str, str]:
    lines = proofs(root, "--list").stdout.splitlines()[:-1]
    return {line.split()[0]: line.split()[1] for line in lines}


def test_only_what_is_stale_runs(house: Path) -> None:
    assert states(house) == {"flow": "missing", "vp": "missing"}
    first = proofs(house)
    assert first.returncode == 0, first.stdout + first.stderr
    assert states(house) == {"flow": "fresh", "vp": "fresh"}

    record = json.loads((house / "docs/proofs/vp.json").read_text())
    expected = {"name": "vp", "test": "tests/test_vp.py::test_it", "rival": "euler", "figures": {"order": 2.0}}
    assert record.items() >= (expected | {"thresholds": {"order": [1.8, None]}, "seed": 0}).items()
    assert len(record["hash"]) == 64
    assert record["commit"]

    write(house, {"src/ornstein/_base.py": "base = 2\n"})  # flow stands on it, vp does not
    assert states(house) == {"flow": "stale", "vp": "fresh"}
    again = proofs(house)
    assert "proven  flow" in again.stdout
    assert "vp" not in again.stdout
    assert "proven  vp" in proofs(house, "--all").stdout
    assert "proven  vp" in proofs(house, "--refresh", "1/1").stdout


def test_a_failed_proof_fails_the_run_and_loses_its_record(house: Path) -> None:
    assert proofs(house).returncode == 0
    write(house, {"tests/test_vp.py": PROOF.format(uses="VP", name="vp", before="", order=1.0)})
    done = proofs(house)
    assert done.returncode == 1
    assert "order is 1, not at least 1.8" in done.stdout
    assert done.stdout.splitlines()[-1] == "failed: vp"
    assert states(house) == {"flow": "fresh", "vp": "missing"}


def test_the_budget_stops_it_cleanly_and_the_next_run_goes_on(house: Path) -> None:
    assert proofs(house, "flow").returncode == 0
    write(house, {"tests/test_vp.py": PROOF.format(uses="VP", name="vp", before="time.sleep(1000)", order=2.0)})
    done = proofs(house, "--budget", "2")  # it would never end otherwise
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "out of time; left for the next run: vp"
    assert states(house) == {"flow": "fresh", "vp": "missing"}

    write(house, {"tests/test_vp.py": PROOF.format(uses="VP", name="vp", before="", order=2.0)})
    done = proofs(house)
    assert "proven  vp" in done.stdout
    assert "flow" not in done.stdout


def test_what_would_not_fit_is_not_begun(house: Path) -> None:
    assert proofs(house, "vp").returncode == 0
    path = house / "docs/proofs/vp.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 1000.0, "hash": "old"}))
    assert "left for the next run: vp" in proofs(house, "vp", "--budget", "500").stdout
    assert "proven  vp" in proofs(house, "vp", "--budget", "5000").stdout


def test_a_run_that_is_ended_leaves_nothing_running_and_no_half_record(house: Path) -> None:
    sleep = "open('began', 'w').close(); time.sleep(100); open('ended', 'w').close()"
    write(house, {"tests/test_vp.py": PROOF.format(uses="VP", name="vp", before=sleep, order=2.0)})
    command = [sys.executable, str(SCRIPTS / "proofs.py"), "--root", str(house), "vp"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    while not (house / "began").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    assert states(house) == {"flow": "missing", "vp": "missing"}
    assert not list((house / "docs").rglob("*"))
    assert not (house / "ended").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PROOF.format(uses="VP", name="flow", before="", order=2.0), "two proofs are called 'flow'"),
        ("import pytest\n@pytest.mark.proof\ndef test_it(proof): pass\n", "name what it proves"),
        ("import pytest\n@pytest.mark.proof('vp')\ndef test_it(): pass\n", "tells its figures to the fixture"),
    ],
)
def test_a_proof_that_cannot_be_recorded_is_refused(house: Path, text: str, message: str) -> None:
    write(house, {"tests/test_vp.py": text})
    done = proofs(house, "--list")
    assert done.returncode != 0
    assert message in done.stderr


def test_a_pass_without_figures_is_no_proof(house: Path) -> None:
    write(house, {"tests/test_vp.py": "import pytest\n@pytest.mark.proof('vp')\ndef test_it(proof): pass\n"})
    done = proofs(house, "vp")
    assert done.returncode == 1
    assert "passed without telling its figures" in done.stdout


def test_an_unknown_proof_or_part_is_refused(house: Path) -> None:
    assert "no proof is called nobody" in proofs(house, "nobody").stderr
    assert "a part is i/n" in proofs(house, "--shard", "5/4").stderr
