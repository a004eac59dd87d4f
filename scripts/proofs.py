"""The slow tier of proof: which proofs there are, which are stale, and running those.

A proof is a test marked `proof` that hands its figures to the fixture `proof` (proof_plugin.py). A pass writes
`docs/proofs/<name>.json`, whole or not at all, so a run that is stopped has lost only the proofs it was in.
A proof is stale when the code it stands on (sources.py) is no longer the code it ran on.

    python scripts/proofs.py [--list | --all] [--shard i/n] [--refresh i/n] [--budget SECONDS] [--jobs N] [names...]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from sources import Sources

HOME = Path(__file__).resolve().parent.parent
NOTHING_COLLECTED = 5  # pytest's exit status for it

State: TypeAlias = Literal["fresh", "stale", "missing"]


@dataclass
class Proof:
    """One proof: its name, its test, and what is recorded of it."""

    name: str
    test: str
    root: Path
    record: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        path = record_path(self.root, self.name)
        self.record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def state(self, sources: Sources) -> State:
        """fresh: it passed on the code as it is now; stale: on other code; missing: it never passed."""
        if not self.record:
            return "missing"
        same = self.record["test"] == self.test and self.record["hash"] == sources.hash(file_of(self.root, self.test))
        return "fresh" if same else "stale"

    @property
    def seconds(self) -> float:
        """What it took when last it ran; 0 if it never did."""
        return float(self.record.get("seconds", 0.0))


def record_path(root: Path, name: str) -> Path:
    """Where the record of a proof lives."""
    return root / "docs" / "proofs" / f"{name}.json"


def file_of(root: Path, test: str) -> Path:
    """The file of a pytest node."""
    return root / test.partition("::")[0]


def records(root: Path) -> dict[str, dict[str, Any]]:
    """Every recorded proof by name."""
    paths = sorted(record_path(root, "*").parent.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def stale(root: Path) -> set[str]:
    """The names of the recorded proofs whose code has changed, or whose test is gone."""
    sources = Sources(root)
    old = set()
    for name, record in records(root).items():
        file = file_of(root, record["test"])
        if not file.is_file() or sources.hash(file) != record["hash"]:
            old.add(name)
    return old


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def write_page(root: Path) -> None:
    """Write docs/systems.md from systems.toml and the recorded proofs."""
    from ornstein import papers

    write_whole(root / "docs" / "systems.md", papers.systems_page(records(root), stale(root)))


def commit(root: Path) -> str:
    """The commit that is checked out, with "-dirty" if files differ from it."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def collect(root: Path) -> list[Proof]:
    """The proofs of the test suite, in the order of their names; files without the mark are not even imported."""
    files = [path for path in sorted((root / "tests").rglob("test_*.py")) if "mark.proof" in path.read_text("utf-8")]
    if not files:
        return []
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "proofs.json"
        command = _pytest("--collect-only", "--proofs-to", str(found), *map(str, files))
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if not found.is_file() or done.returncode not in (0, NOTHING_COLLECTED):
            sys.exit(f"the proofs cannot be collected:\n{done.stdout}{done.stderr}")
        return [Proof(name, test, root) for name, test in sorted(json.loads(found.read_text("utf-8")).items())]


def _pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "-m", "proof", *arguments]


def shard(names: Sequence[str], part: tuple[int, int] | None) -> set[str]:
    """The i-th of n parts, the same whatever other proofs there are: a name's part is a hash of it."""
    if part is None:
        return set(names)
    index, count = part
    return {name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % count == index - 1}


@dataclass
class Running:
    """A proof that is running, in a process group of its own."""

    proof: Proof
    log: Path
    begun: float = field(default_factory=time.monotonic)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                _pytest("--durations=0", self.proof.test),
                cwd=self.proof.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def passed(self) -> bool:
        """Say how it ended, with its output if it failed. A pass has left a record of the code as it is."""
        proof = Proof(self.proof.name, self.proof.test, self.proof.root)
        quiet = self.process.returncode == 0
        good = quiet and proof.state(Sources(proof.root)) == "fresh"
        print(f"{'proven' if good else 'FAILED'}  {proof.name}  {time.monotonic() - self.begun:.0f} s", flush=True)
        if quiet and not good:  # it was skipped, or its code was changed while it ran
            print(f"{proof.test} left no record of the code as it is now", flush=True)
        if not good:
            print(self.log.read_text(encoding="utf-8", errors="replace"), flush=True)
        return good

    def stop(self) -> None:
        """End it with all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run(chosen: Sequence[Proof], *, budget: float, jobs: int) -> tuple[list[str], list[str]]:
    """Run the proofs, `jobs` at a time, and stop at `budget` seconds: (names that failed, names not reached).

    A proof that would not fit, by what it took before, is not begun; one that is still running at the end is stopped,
    and has neither failed nor passed.
    """
    end = time.monotonic() + budget
    waiting, running = list(chosen), list[Running]()
    failed: list[str] = []
    unreached: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            while (waiting or running) and time.monotonic() < end:
                while waiting and len(running) < jobs:
                    proof = waiting.pop(0)
                    if time.monotonic() + proof.seconds > end:
                        unreached.append(proof.name)
                    else:
                        running.append(Running(proof, Path(folder) / proof.name))
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    if not job.passed():
                        failed.append(job.proof.name)
                time.sleep(0.05)
        finally:
            for job in running:
                job.stop()
    return failed, [*unreached, *(job.proof.name for job in running), *(proof.name for proof in waiting)]


def show(proofs: Sequence[Proof], states: Mapping[str, State]) -> None:
    """Print each proof with its state."""
    width = max((len(proof.name) for proof in proofs), default=0)
    for proof in proofs:
        took = f"{proof.seconds:.0f} s" if proof.record else ""
        print(f"{proof.name:<{width}}  {states[proof.name]:<7}  {took:>7}  {proof.test}")
    counts = {state: list(states.values()).count(state) for state in ("fresh", "stale", "missing")}
    print(f"{len(proofs)} proofs: " + ", ".join(f"{number} {state}" for state, number in counts.items()))


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"a part is i/n with 1 <= i <= n, not {text!r}")
    return int(match[1]), int(match[2])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stale proofs, or what the options choose; 1 if any failed. Running out of time is no failure."""
    parser = argparse.ArgumentParser(description="Run the proofs whose code has changed since they last passed.")
    parser.add_argument("names", nargs="*", help="only these proofs")
    parser.add_argument("--list", action="store_true", help="show the state of each proof, and run none")
    parser.add_argument("--all", action="store_true", help="run the fresh ones too")
    parser.add_argument(
        "--shard", type=_part, metavar="i/n", help="only part i of n, to share the work between machines"
    )
    parser.add_argument("--refresh", type=_part, metavar="i/n", help="run also the fresh ones of part i of n")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="SECONDS", help="stop cleanly after so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="proofs at a time (default: cores)")
    parser.add_argument("--page", action="store_true", help="only write docs/systems.md anew")
    parser.add_argument("--root", type=Path, default=HOME, help="the repository (default: this one)")
    asked = parser.parse_args(arguments)
    if asked.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {asked.jobs}")
    root = asked.root.resolve()
    if asked.page:
        write_page(root)
        return 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is stopped with us
    begun = time.monotonic()
    proofs, sources = collect(root), Sources(root)
    if unknown := set(asked.names) - {proof.name for proof in proofs}:
        parser.error(f"no proof is called {', '.join(sorted(unknown))}; --list shows them")
    inside = shard([proof.name for proof in proofs], asked.shard) & set(asked.names or [proof.name for proof in proofs])
    proofs = [proof for proof in proofs if proof.name in inside]
    states = {proof.name: proof.state(sources) for proof in proofs}
    if asked.list:
        show(proofs, states)
        return 0

    again = shard([proof.name for proof in proofs], asked.refresh) if asked.refresh else set()
    if asked.all:
        again = inside
    old = [proof for proof in proofs if states[proof.name] != "fresh"]
    fresh = [proof for proof in proofs if states[proof.name] == "fresh" and proof.name in again]
    chosen = [*sorted(old, key=lambda proof: proof.seconds), *fresh]
    print(f"{len(proofs)} proofs: {len(old)} stale or missing, {len(fresh)} fresh ones again", flush=True)
    failed, unreached = run(chosen, budget=asked.budget - (time.monotonic() - begun), jobs=asked.jobs)
    if (root / "src" / "ornstein" / "systems.toml").is_file():
        write_page(root)
    if unreached:
        print(f"out of time; left for the next run: {', '.join(unreached)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
