"""Train, sample and evaluate, each killed at twenty random moments, end as if nobody had killed them."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from ornstein.cli.app import run as cli

KILLS = 20


def content(path: Path) -> Any:
    """What a file says: its bytes; of safetensors, whose header is in no fixed order, every tensor's and the text."""
    if path.suffix != ".safetensors":
        return re.sub(rb'<p class="times">.*?</p>', b"", path.read_bytes())
    with safe_open(path, framework="np") as file:
        tensors = {
            name: (str(file.get_tensor(name).dtype), file.get_tensor(name).tobytes()) for name in sorted(file.keys())
        }
        return tensors, {key: value for key, value in file.metadata().items() if key != "sha256"}


def tree(folder: Path) -> dict[str, Any]:
    """Every file of a folder, less the hidden neighbours that a killed writer leaves behind, and less how long the
    training took, which no two runs agree on."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".tmp"))
    files = (path for path in files if path.name != "timing.json")
    return {str(path.relative_to(folder)): content(path) for path in files}


def forked(work: Callable[[], object], hook: Any) -> int:
    """Run `work` in a forked process whose every call, in Python or out of it, `hook` sees; how it ended."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.setprofile(hook)
            work()
            status = 0
        finally:
            sys.setprofile(None)
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.proof("kills")
def test_random_kills(tmp_path: Path, proof: Callable[..., None]) -> None:
    """A moment is one of the some hundred thousand calls of a command, drawn uniformly; SIGKILL ends the process there.

    Then the same command is given again, and all that the run's folder holds is, bit for bit, that of a run that nobody
    killed: config, checkpoint, shards, manifest, merged file, figures and report. The count of calls is taken in a
    process of its own. A run may make a few calls fewer than were counted, and then ends before its kill: so at least
    18 of the 20 must have been killed.
    """
    rng, y, run = np.random.default_rng(0), np.arange(40) % 2, tmp_path / "run"
    np.savez(tmp_path / "small.npz", x=rng.normal(size=(40, 2)) + 6 * y[:, None], y=y)
    config = tmp_path / "config.yaml"
    config.write_text("net: {width: 16, depth: 1}\nbatch_size: 8\nsteps: 20\n")
    commands = {
        "train": ["train", "--data", str(tmp_path / "small.npz"), "--config", str(config), "--out", str(run)],
        "sample": ["sample", str(run), "-n", "30", "--batch", "4", "--steps", "3", "--out", str(run / "x.npz")],
        "evaluate": ["evaluate", str(run), "--batch", "2", "--steps", "3"],
    }
    figures: dict[str, float] = {}
    for name, arguments in commands.items():
        before, moments = tmp_path / f"before {name}", random.Random(name)
        if run.exists():
            shutil.copytree(run, before)
        else:
            before.mkdir()

        def anew(before: Path = before) -> None:
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(before, run)

        def work(arguments: list[str] = arguments) -> None:
            assert cli(arguments) == 0

        if name == "train":
            run.mkdir()
        work()
        whole = tree(run)
        anew()
        calls, told = [0], tmp_path / "calls"

        def count(frame: Any, event: str, arg: Any, calls: list[int] = calls) -> None:
            calls[0] += 1

        def counted(work: Callable[[], object] = work, calls: list[int] = calls, told: Path = told) -> None:
            work()
            told.write_text(str(calls[0]))

        assert forked(counted, count) == 0
        total, killed, identical = int(told.read_text()), 0, 0
        for _ in range(KILLS):
            anew()
            moment, seen = moments.randrange(total), [0]

            def killer(frame: Any, event: str, arg: Any, moment: int = moment, seen: list[int] = seen) -> None:
                seen[0] += 1
                if seen[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

            ended = forked(work, killer)
            assert ended in (0, -signal.SIGKILL)
            killed += ended != 0
            work()
            identical += tree(run) == whole
        figures |= {f"{name}_killed": killed, f"{name}_identical": identical}
    bounds = {f"{name}_{what}": (at_least, None) for name in commands for what, at_least in
              (("killed", 18.0), ("identical", float(KILLS)))}  # fmt: skip
    proof(figures=figures, thresholds=bounds, seed=0)
