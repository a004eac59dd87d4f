"""Commands of every kind for the fuzz tests: valid, at the edge, and absurd; and the rules that each answer keeps.

A case is drawn as fields first, from sets in which all combinations are valid by the rules that stand here and nowhere
in the library; each field is then given in one of the ways there are (an option, --set, the YAML file), and some cases
are spoilt: a field has an absurd value, a name is misspelt, the file is torn.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import strategies as st

from ornstein.cli.app import run as cli

ROOM = 20_000_000  # bytes that are said to be free, so that what is too large here is too large everywhere, and quickly


@dataclass(frozen=True)
class Case:
    """A command line, the text of its config file, and whether it is certainly valid."""

    arguments: tuple[str, ...]
    config: bytes | None
    valid: bool


def make_data(folder: Path) -> None:
    """Two labelled clouds, small grey images, and a table with a category and a gap; and a run of each of two kinds."""
    rng, y = np.random.default_rng(0), np.arange(40) % 2
    np.savez(folder / "points.npz", x=rng.normal(size=(40, 2)) + 6 * y[:, None], y=y)
    np.save(folder / "images.npy", rng.random((40, 1, 8, 8), dtype=np.float32))
    rows = "\n".join(f"{v:.3f},{'red' if k else 'blue'}" for v, k in zip(rng.normal(size=40), y, strict=True))
    (folder / "table.csv").write_text(f"height,colour\n{rows}\n,red\n", encoding="utf-8")
    (folder / "empty.csv").write_bytes(b"")
    (folder / "torn.npz").write_bytes(b"PK\3\4 no archive")
    (folder / "empty folder").mkdir()
    more = ["--net", "mlp", "--width", "8", "--depth", "1", "--steps", "2", "--batch-size", "8", "--set", "watch=0"]
    for name in ("points.npz", "images.npy"):
        out = str(folder / f"run {name[:6]}")
        assert cli(["train", "--data", str(folder / name), "--out", out, *more]) == 0


OPTIONS = {
    "data": "--data", "net.kind": "--net", "net.width": "--width", "net.depth": "--depth", "process": "--process",
    "predicts": "--predicts", "steps": "--steps", "batch_size": "--batch-size", "lr": "--lr", "ema": "--ema",
    "drop": "--drop", "precision": "--precision", "seed": "--seed", "read.label": "--label", "read.size": "--size",
}  # fmt: skip

PROCESSES, SOLVERS = (
    ("edm", "flow", "vp", "subvp", "ve", "cosine"),
    ("dpmpp", "dpmpp3", "heun", "ddim", "euler", "ddpm"),
)
PREDICTS = ("edm", "x0", "noise", "velocity", "v", "score")


@st.composite
def valid_fields(draw: st.DrawFn, folder: Path) -> dict[str, Any]:
    """Fields by dotted name, all of them certainly valid together, for networks that take milliseconds."""
    data = draw(st.sampled_from(["points.npz", "images.npy", "table.csv"]))
    accumulate = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kinds = ["mlp", "mlp", "mlp", "auto"] + (["dit"] if data == "images.npy" else [])
    kind = draw(st.sampled_from(kinds))
    fields: dict[str, Any] = {
        "data": str(folder / data),
        "net.kind": kind,
        "net.width": 8 if kind == "dit" else draw(st.integers(4, 16)),
        "net.depth": draw(st.integers(1, 2)),
        "batch_size": accumulate * draw(st.sampled_from([1, 2, 5])),
    }
    if kind == "dit":
        fields["net.width"], fields["net.patch"] = 16, draw(st.sampled_from([2, 4, 8]))
    optional: dict[str, Any] = {
        "process": st.sampled_from(PROCESSES),
        "predicts": st.sampled_from(PREDICTS),
        "held_out": st.floats(0.1, 0.8),
        "drop": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        "steps": st.sampled_from([1, 2, 3, 17, 10**9]) | st.integers(1, 10**9),
        "lr": st.floats(1e-8, 1.0),
        "schedule": st.sampled_from(["cosine", "constant"]),
        "warmup": st.integers(0, 10**9) | st.none(),
        "clip": st.floats(1e-3, 1e6) | st.none(),
        "ema": st.floats(0, 1, exclude_max=True) | st.lists(st.floats(0, 0.9999), min_size=1, max_size=3, unique=True),
        "lengths": st.lists(st.floats(0.01, 0.28), max_size=2, unique=True),
        "precision": st.sampled_from(["fp32", "bf16"]),
        "recompute": st.booleans(),
        "deterministic": st.booleans(),
        "sharding": st.sampled_from(["replicate", "shard"]),
        "every": st.integers(1, 10**9) | st.none(),
        "watch": st.integers(0, 2),
        "keep": st.integers(0, 3),
        "seed": st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1]),
        "loss.kind": st.just("plain"),
        "loss.time": st.sampled_from(["auto", "uniform", "logit_normal", "lognormal_sigma", "u_shaped"]),
        "loss.penalty": st.sampled_from(["square", "pseudo_huber"]),
        "loss.weighting": st.sampled_from(["auto", "min_snr"]),
        "trackers": st.just([]),
    }
    for name in draw(st.lists(st.sampled_from(sorted(optional)), max_size=6, unique=True)):
        fields[name] = draw(optional[name])
    if fields.get("process") in ("flow", "cosine") and fields.get("predicts") in ("noise", "score"):
        del fields["predicts"]  # where alpha is 0, these say nothing of x0
    fields["accumulate"] = accumulate
    if data == "table.csv" and draw(st.booleans()):
        fields["read.label"] = "colour"
    return fields


NUMBERS = st.sampled_from(
    [-1, 0, 2, -(2**63) - 1, 2**63, 10**7 + 1, 10**12, 10**30, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
     -float("inf"), 16384, 3.0000001]
)  # fmt: skip
TEXTS = st.sampled_from(
    ["", " ", "é\u202e\u0301", "\U0001f9ea", "x" * 3000, "null", "~", "~nobody/x.npz", "../../..", "/", ".", "1e400",
     "0x10", "2026-13-45", "a: b", "[", "[[[[1]]]]", "-", "--", "--out", "%s{0}", "flwo", "digits", "hf:", ":", "=",
     "line\nline", "\x1b[31m", "a\0b", "[" * 2000, "{a: 1, a: 2}", "!!python/object/apply:os.system [id]",
     "!!int ''", "!!timestamp x", "!!bool x", "!!float ''", "&a [*a]", "*a", "1" * 5000, "True", "nan", ".inf",
     "\ud800"]
)  # fmt: skip
NESTS: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, [], {}, [1, [2]], {"kind": {"kind": 1}}, [None], {1: 2}, [float("nan")], {"x": []}]
)
ABSURD = NUMBERS | TEXTS | NESTS
FIELDS = [
    "data", "read", "read.kind", "read.label", "read.drop", "read.size", "read.channels", "read.series", "read.time",
    "read.step", "read.split", "held_out", "net", "net.kind", "net.width", "net.depth", "net.patch", "process",
    "predicts", "loss", "loss.kind", "loss.time", "loss.penalty", "loss.weighting", "loss.perturb",
    "loss.shared_times", "drop", "steps", "batch_size", "accumulate", "lr", "schedule", "warmup", "clip", "ema",
    "lengths", "precision", "recompute", "deterministic", "sharding", "every", "watch", "keep", "trackers", "seed",
    "event", "labels", "stesp", "net.widht", "net.kind.x", "__class__", "é"
]  # fmt: skip
FILES = st.sampled_from(
    [b"\xff\xfe", b"steps: [", b"- steps", b"5", b"steps: 1\nsteps: 2\n", b"{[1]: 2}", b"1: 2", b"? {a: 1}\n: 2",
     b"!!python/object/apply:os.system ['touch owned']", b"steps: !!python/name:os.system", b"---\na: 1\n---\nb: 2",
     b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\nseed: [*d, *d]", b"[" * 3000, b"seed: &s [*s]",
     b"\0", b"net: {<<: {width: 1}, <<: {width: 2}}", b"<<: 1", b"a: !!binary x", b"%YAML 9.9\n---\n", b"\t"]
)  # fmt: skip


def plain(value: Any) -> str:
    """A value as a shell would give it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    """{"net.width": 8} as {"net": {"width": 8}}, and whatever is in the way stays."""
    made: dict[str, Any] = {}
    for name, value in fields.items():
        *parents, last = name.split(".")
        within = made
        for parent in parents:
            deeper = within.setdefault(parent, {})
            if not isinstance(deeper, dict):
                break
            within = deeper
        else:
            within[last] = value
    return made


@st.composite
def trainings(draw: st.DrawFn, folder: Path, spoilt: bool) -> Case:
    """`ornstein train --check`."""
    fields = draw(valid_fields(folder))
    arguments, config, left = ["train", "--check", "--out", str(folder / "new")], None, dict[str, Any]()
    twisted: list[str] = []
    if spoilt:
        twisted = draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3, unique=True))
        fields |= {name: draw(ABSURD) for name in twisted}
    for name, value in fields.items():
        way = draw(st.sampled_from(["option", "set", "file"]))
        simple = value is not None and not isinstance(value, (list, dict, tuple))
        if way == "option" and name in OPTIONS and simple:
            arguments.append(f"{OPTIONS[name]}={plain(value)}")
        elif way == "set":
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
            arguments += ["--set", f"{name}={plain(value) if name in twisted and draw(st.booleans()) else text}"]
        else:
            left[name] = value
    if left:
        config = yaml.safe_dump(nested(left), allow_unicode=draw(st.booleans())).encode(errors="surrogatepass")
    if spoilt:
        what = draw(st.integers(0, 9))
        if what == 0:
            config = draw(FILES)
        elif what == 1:
            config = (config or b"")[: draw(st.integers(0, 60))]
        elif what == 2:
            arguments += draw(st.sampled_from([["--set", "x"], ["--set", "=1"], ["--stesp", "3"], ["extra"],
                                               ["--width"],
                                               ["--set", "net..width=1"], ["--set", "a" * 4000 + "=1"]]))  # fmt: skip
        elif what == 3:
            arguments[3] = str(folder / draw(st.sampled_from(["points.npz", "empty folder", "run points", "x" * 300])))
    return Case(tuple(arguments), config, not spoilt)


@st.composite
def samplings(draw: st.DrawFn, folder: Path, spoilt: bool) -> Case:
    """`ornstein sample --check` and `ornstein evaluate --check`."""
    command, run = draw(st.sampled_from(["sample"] * 9 + ["evaluate"])), draw(st.sampled_from(["points", "images"]))
    guidance = draw(st.floats(-10, 10)) if run == "points" else 1.0
    options: dict[str, Any] = {"--solver": st.sampled_from(SOLVERS), "--steps": st.integers(1, 60)}
    options |= {
        "--guidance": st.just(guidance),
        "--seed": st.integers(-(2**70), 2**70),
        "--batch": st.integers(1, 10**6),
    }
    if command == "sample":
        forms = ["x.npz", "x.csv", "x"] if run == "points" else ["x.npz", "x.png", "x"]
        options |= {"--number": st.integers(1, 10**4), "--out": st.sampled_from([str(folder / name) for name in forms])}
        if run == "points":
            options["--label"] = st.sampled_from(["0", "1", "held-out"])
        else:
            options["--format"] = st.none()
    names = draw(st.lists(st.sampled_from(sorted(options)), max_size=5, unique=True))
    given = {name: draw(options[name]) for name in names}
    if spoilt:
        known = ["--solver", "--steps", "--guidance", "--seed", "--batch", "--number", "--out", "--label", "--format"]
        for name in draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True)):
            given[name] = draw(NUMBERS | TEXTS)
    arguments = [f"{name}={plain(value)}" for name, value in given.items() if value is not None]
    place = (
        f"run {run}" if not spoilt else draw(st.sampled_from([f"run {run}"] * 4 + ["empty folder", "points.npz", ""]))
    )
    return Case((command, str(folder / place) if place else "", "--check", *arguments), None, not spoilt)


def cases(folder: Path) -> st.SearchStrategy[Case]:
    """Seven in ten of trainings, three of samples and evaluations; six in ten of each certainly valid."""
    kinds = [(make, spoilt) for make in (trainings, samplings) for spoilt in (False, True)]
    weighted = [kind for kind, weight in zip(kinds, (42, 28, 18, 12), strict=True) for _ in range(weight)]
    return st.sampled_from(weighted).flatmap(lambda kind: kind[0](folder, kind[1]))


def answer(arguments: tuple[str, ...] | list[str]) -> tuple[int, str, str]:
    """(exit code, what was printed, what was printed of errors) of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli(list(arguments))
    return code, out.getvalue(), err.getvalue()


BARE = re.compile(r"error: (\W*|\w*(Error|Exception|Interrupt)\b.*|'[^']*'|<.*|\[?Errno.*|None|\d+)", re.DOTALL)
"""What is no sentence: nothing, an exception's class, a KeyError's key, an object."""


def one_line(error: str) -> None:
    """Assert that an error is one line that a person can read."""
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    assert error.endswith("\n"), error
    assert not BARE.fullmatch(error.rstrip("\n")), error
    for word in ("Traceback", "object at 0x", "pydantic", "<class", "beartype"):
        assert word not in error, error
    assert len(error) < 2500, error[:300]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder, with its size and time."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def holds(case: Case, folder: Path) -> bool:
    """Assert the rules for one case; whether it was accepted."""
    arguments = list(case.arguments)
    if case.config is not None:
        (folder / "given.yaml").write_bytes(case.config)
        arguments[1:1] = ["--config", str(folder / "given.yaml")]
    before = tree(folder)
    code, out, err = answer(arguments)
    assert tree(folder) == before, f"--check wrote {sorted(set(tree(folder)) ^ set(before))}"
    if case.valid:
        assert code == 0, f"valid and refused: {err}"
    if code == 0:
        assert "ok" in out.splitlines()[-1], out
        assert err == ""
    else:
        assert code == 2, (code, err)
        one_line(err)
    return code == 0


@contextlib.contextmanager
def room(monkeypatch: pytest.MonkeyPatch, size: int = ROOM) -> Iterator[None]:
    """Only so many bytes are free inside."""
    with monkeypatch.context() as patch:
        patch.setattr("ornstein.report.model.free_memory", lambda device: size)
        yield
