"""Nothing that a stranger hands over runs code: what may load code is not called, and crafted files are one error."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ornstein
from fuzzing import answer, make_data, one_line
from ornstein.errors import CheckpointError
from ornstein.io import inside, load_tensors, save_tensors
from ornstein.io.tensors import _ZERO
from ornstein.report.during import _path, watched
from ornstein.report.run import Run

SOURCES = Path(ornstein.__file__).parent

ALLOWED = {
    (
        "_extras.py",
        "importlib.import_module",
    ): "optional packages, each a constant where `require` is called",
    ("__init__.py", "import_module"): "the library's own modules, by its table of lazy names",
    ("interop/__init__.py", "import_module"): "one module of the library, by a constant name",
    ("interop/inception.py", "importlib.import_module"): "one module of torch-fidelity, by a constant name",
    ("interop/inception.py", "import pickle"): "for the class of the error that torch.load(weights_only=True) raises",
    ("referee/certify.py", "import pickle"): "for the class of the error that a sampler which cannot be sent raises",
    ("referee/certify.py", ".recv"): "from the process that it started itself, over their own pipe",
    (
        "referee/adaptors.py",
        "importlib.import_module",
    ): "`certify` runs what a person names: its task",
    ("referee/adaptors.py", "importlib.util.spec_from_file_location"): "the same, for a file that the person names",
    ("referee/adaptors.py", ".exec_module"): "the same",
}
"""All that may load code, each with the reason why no file of a stranger decides what."""

MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "subprocess",
    "code",
    "runpy",
    "ctypes",
}
CALLS = {
    "eval", "exec", "compile", "__import__", "import_module", "importlib.import_module", "importlib.__import__",
    "importlib.util.spec_from_file_location", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.full_load", "yaml.full_load_all", "os.system", "os.popen", "os.execv", "os.execvp", "torch.jit.load",
    "torch.package.PackageImporter", "torch.hub.load", "torch.export.load", "torch.ops.load_library",
}  # fmt: skip
METHODS = {"read_pickle", "to_pickle", "exec_module", "recv", "unsafe_load", "full_load", "Unpickler", "load_module"}


def dotted(node: ast.expr) -> str:
    """a.b.c of an expression; "" where it begins, if that is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def risks(tree: ast.AST) -> Iterator[str]:
    """What in a source could load code."""
    short = {"np": "numpy", "_np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name.split('.')[0]}" for a in node.names if a.name.split(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES and not node.level:
            yield f"import {(node.module or '').split('.')[0]}"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        root, _, rest = name.partition(".")
        name = f"{short.get(root, root)}.{rest}" if rest else root
        given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in node.keywords}
        if name in CALLS:
            yield name
        if name.split(".")[-1] in METHODS and "." in name:
            yield f".{name.split('.')[-1]}"
        if name == "torch.load" and given.get("weights_only") is not True:
            yield "torch.load without weights_only=True"
        if name in ("numpy.load", "numpy.lib.format.read_array") and given.get("allow_pickle") is not False:
            yield f"{name} without allow_pickle=False"
        if given.get("allow_pickle", False) is not False:
            yield "allow_pickle"
        if "trust_remote_code" in given:
            yield "trust_remote_code"
        if "use_safetensors" in given and given["use_safetensors"] is not True:
            yield "use_safetensors other than True"


def test_nothing_loads_code() -> None:
    """Every call that may is in ALLOWED with its reason, and every reason there is still needed."""
    found = set()
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        found |= {(name, risk) for risk in risks(ast.parse(path.read_text(encoding="utf-8")))}
    assert found - set(ALLOWED) == set()
    assert set(ALLOWED) - found == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "np.load('x')", "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)", "torch.load(f)", "torch.load(f, weights_only=False)", "yaml.load(t, Loader=L)",
        "eval(t)", "exec(t)", "__import__(t)", "importlib.import_module(t)", "pandas.read_pickle(f)", "os.system(t)",
        "load_dataset(t, trust_remote_code=True)", "P.from_pretrained(t, use_safetensors=False)",
    ],
)  # fmt: skip
def test_the_search_finds_it(source: str) -> None:
    assert list(risks(ast.parse(source)))


# --- tensors -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of two tensors."""
    path = tmp_path_factory.mktemp("blob") / "good.safetensors"
    save_tensors(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)}, {"step": 1}, kind="checkpoint")
    return path.read_bytes()


def sealed(header: bytes, body: bytes) -> bytes:
    """A file with this header, in which the checksum is zeros and then its own: whoever can compute can write it."""
    whole = struct.pack("<Q", len(header)) + header + body
    return whole.replace(_ZERO.encode(), hashlib.sha256(whole).hexdigest().encode(), 1)


def crafted(blob: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """That file with another header, and the right checksum."""
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:end])
    header["__metadata__"]["sha256"] = _ZERO
    replaced = change(header)
    return sealed(json.dumps(header if replaced is None else replaced, separators=(",", ":")).encode(), blob[end:])


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one place of a header."""

    def change(header: dict[str, Any]) -> None:
        *parents, last = path
        for parent in parents:
            header = header[parent]
        header[last] = value

    return change


HUGE = 2**62
CHANGES: list[Callable[[dict[str, Any]], Any]] = [
    put("a", "data_offsets", value=[0, HUGE]), put("a", "data_offsets", value=[HUGE, 2 * HUGE]),
    put("a", "data_offsets", value=[8, 0]), put("a", "data_offsets", value=[-4, 20]), put("a", "shape", value=[HUGE]),
    put("a", "shape", value=[HUGE, 0]), put("a", "shape", value=[2**32, 2**32]), put("a", "shape", value=[-1]),
    put("a", "shape", value=[]), put("a", "shape", value="x"), put("a", "dtype", value="PICKLE"),
    put("a", "dtype", value="C64"), put("a", "dtype", value="F4"), put("a", "dtype", value=None), put("a", value=None),
    put("a", value=[]), put("c", value={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
    put("__metadata__", "metadata", value="[" * 100_000), put("__metadata__", "metadata", value="[]"),
    put("__metadata__", "metadata", value="{"), put("__metadata__", "metadata", value="NaN"),
    put("__metadata__", "version", value="1e9"), put("__metadata__", "version", value="9" * 5000),
    put("__metadata__", "version", value=None), put("__metadata__", "bytes", value="-1"),
    put("__metadata__", "bytes", value=str(HUGE)), put("__metadata__", "kind", value="model"),
    put("__metadata__", value={}), put("__metadata__", value=[]), lambda header: header["__metadata__"].pop("metadata"),
    lambda header: [header],
]  # fmt: skip


def refused(path: Path) -> None:
    """One CheckpointError of one line."""
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path, kind="checkpoint")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("index", range(len(CHANGES)))
def test_a_crafted_header_is_refused(index: int, blob: bytes, tmp_path: Path) -> None:
    """Its checksum is right: the content has to be checked all the same. The file unchanged is read."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(crafted(blob, lambda header: None))
    assert load_tensors(path, kind="checkpoint")[1] == {"step": 1}
    path.write_bytes(crafted(blob, CHANGES[index]))
    if index in HARMLESS:
        load_tensors(path, kind="checkpoint")
    else:
        refused(path)


HARMLESS = {24}
"""bytes="-1": fewer are promised than there are, which safetensors itself then checks."""


def test_deep_and_huge_headers(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    deep = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    for content in (
        struct.pack("<Q", len(deep)) + deep,
        struct.pack("<Q", 2**63) + b"{",
        struct.pack("<Q", 2**40) + b"{}",
    ):
        path.write_bytes(content)
        refused(path)


def test_random_bytes_are_refused(blob: bytes, tmp_path: Path) -> None:
    """Random files, and headers of which some bytes are changed and the checksum made right: an error of ours, or the
    tensors; and no more memory than a few times the file takes (2 kB here; what libraries take is within 64 MB)."""
    path, end = tmp_path / "x.safetensors", 8 + int.from_bytes(blob[:8], "little")
    head = blob[8:end].replace(blob[8:end][blob[8:end].index(b'"sha256":"') + 10 :][:64], _ZERO.encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def read(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            load_tensors(path, kind="checkpoint")

    @settings(max_examples=150)
    @given(content=st.binary(max_size=200))
    def anything(content: bytes) -> None:
        read(content)
        read(struct.pack("<Q", len(content)) + content)

    anything()
    rng = random.Random(0)
    for _ in range(600):
        changed = bytearray(head)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(changed))
            how = rng.randrange(3)
            if how == 0:
                changed[at] = rng.choice(b'{}[]",:0123456789eE-+.\\tfnu\x00\xff ')
            elif how == 1:
                changed[at:at] = rng.choice([b"9" * 20, b"[" * 50, b"{}", b'"', b"-", b"e99"])
            else:
                del changed[at : at + rng.randint(1, 8)]
        read(sealed(bytes(changed), blob[end:]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64_000


# --- run folders -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and runs."""
    made = tmp_path_factory.mktemp("crafted")
    make_data(made)
    return made


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A copy of a run of points, the data included."""
    import shutil

    shutil.copytree(runs / "run points", tmp_path / "run")
    return tmp_path / "run"


def commands(run: Path) -> list[list[str]]:
    return [["sample", str(run), "-n", "2", "--steps", "2"], ["evaluate", str(run), "--check"], ["export", str(run)]]


def all_refuse(run: Path) -> None:
    """Every command that reads the run refuses in one line."""
    for arguments in commands(run):
        code, _, err = answer(arguments)
        assert code == 2, (arguments, err)
        one_line(err)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch owned']", "steps: !!python/name:os.system",
        "steps: !!python/tuple [1]",
        "net: !!python/object:ornstein.report.config.Net {}", "[" * 5000, "event: [1000000000000]", "event: [-1]",
        "event: [2]\nlabels: 1000000000000", "event: [2]\nnet: {width: 16384, depth: 1024}",
        "event: [" + "9" * 40 + "]",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]", "\0",
    ],
    ids=range(12),
)  # fmt: skip
def test_a_crafted_config(text: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    (run / "config.yaml").write_text(text, encoding="utf-8")
    all_refuse(run)
    assert not (run.parent / "owned").exists()


def test_billions_of_aliases_are_not_printed(run: Path) -> None:
    """Thirty lists, each of the one before nine times, take no memory in YAML, and must not be written out."""
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (run / "config.yaml").write_text("\n".join([*lines, "seed: *a29"]), encoding="utf-8")
    all_refuse(run)


@pytest.mark.parametrize(
    "value",
    [
        [], None, 5, {}, {"kind": "pickle"}, {"kind": "array"}, {"kind": "array", "event": ["x"]},
        {"kind": "array", "event": [2], "dtype": "object"}, {"kind": ["array"], "event": [2]},
        {"kind": "table", "event": [1], "columns": [{"name": "a", "kind": "number", "dtype": "os.system"}]},
        {"kind": "array", "event": [2], "bounds": [1]}, {"kind": "array", "event": [2], "more": 1}, "deep", "bytes",
    ],
    ids=range(14),
)  # fmt: skip
def test_a_crafted_space(value: Any, run: Path) -> None:
    plain = {"deep": b"[" * 100_000, "bytes": b"\xff\xfe\x00"}
    content = plain.get(value) if isinstance(value, str) else None
    (run / "space.json").write_bytes(content or json.dumps(value).encode())
    all_refuse(run)


def test_a_crafted_checkpoint(run: Path) -> None:
    """Tensors and metadata that are sealed and wrong, in every part that a resumed training reads."""
    path = run / "checkpoint.safetensors"
    tensors, metadata = load_tensors(path, kind="checkpoint")
    resume = ["train", "--out", str(run), "--set", "watch=0"]
    for name in list(metadata):
        nonsense: list[Any] = [None, {"tensor": "absent"}, -1, {"dict": 5}]
        for value in nonsense:
            save_tensors(path, tensors, {**metadata, name: value}, kind="checkpoint")
            code, _, err = answer(resume)
            assert code == 2 or name in ("position", "scale"), (name, value)  # which a run of this kind does not read
            if code:
                one_line(err)
    for name in (next(name for name in tensors if name.startswith(start)) for start in ("history", "model/", "ema/")):
        for other in (None, torch.zeros(3), torch.zeros(2, 2, dtype=torch.complex64)):
            changed = {key: tensor for key, tensor in tensors.items() if key != name}
            save_tensors(path, changed | ({} if other is None else {name: other}), metadata, kind="checkpoint")
            for arguments in [resume, commands(run)[0]]:
                code, _, err = answer(arguments)
                if code:
                    one_line(err)
                else:
                    assert name == "history" or arguments != resume, (name, other)


def test_crafted_watch_files(run: Path) -> None:
    folder = run / "watch"
    folder.mkdir(exist_ok=True)
    for name in ("step-x.safetensors", "step-.safetensors", "step--1.safetensors", "step-\u00b2.safetensors"):
        (folder / name).write_bytes(b"\x80\x04")
    assert watched(folder) == []
    (folder / "step-000007.safetensors").write_bytes(b"\x80\x04 pickled")
    with pytest.raises(CheckpointError):
        watched(folder)
    save_tensors(folder / "step-000007.safetensors", {"y": torch.zeros(1)}, {"step": 7}, kind="samples")
    with pytest.raises(CheckpointError, match="no samples x"):
        watched(folder)


def test_crafted_manifests(run: Path) -> None:
    arguments = commands(run)[0]
    assert answer(arguments)[0] == 0
    (path,) = (run / "samples").glob("*/manifest.json")
    good = json.loads(path.read_text())
    shard = good["shards"][0]
    changes: list[dict[str, Any]] = [
        {"shards": [{**shard, "file": "../../config.yaml"}]}, {"shards": [{**shard, "file": "/etc/passwd"}]},
        {"shards": []}, {"size": 0}, {"size": 1e9}, {"size": True}, {"request": []}, {"version": 99},
        {"version": "1"}, {"request": {"n": 10**30}}, {"format": None}, {"shards": 5},
    ]  # fmt: skip
    for change in changes:
        path.write_text(json.dumps({**good, **change}))
        code, _, err = answer(arguments)
        assert code == 2, change
        one_line(err)
    for content in (b"[" * 100_000, b"\xff", b"", b"null"):
        path.write_bytes(content)
        code, _, err = answer(arguments)
        assert code == 2
        one_line(err)
    path.write_text(json.dumps(good))
    assert answer(arguments)[0] == 0


class _Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_opened(runs: Path, tmp_path: Path) -> None:
    """In an array, an archive, and in place of a checkpoint."""
    import pickle
    import shutil

    owned = tmp_path / "owned"
    evil = np.array([_Touch(owned)] * 20, dtype=object)
    np.save(tmp_path / "x.npy", evil, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=evil, allow_pickle=True)
    buffer = io.BytesIO()
    pickle.dump(_Touch(owned), buffer)
    (tmp_path / "raw.npy").write_bytes(buffer.getvalue())
    shutil.copytree(runs / "run points", tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(buffer.getvalue())
    for arguments in [["train", "--check", "--data", str(tmp_path / name)] for name in ("x.npy", "x.npz", "raw.npy")]:
        code, _, err = answer([*arguments, "--out", str(tmp_path / "new")])
        assert code == 2
        one_line(err)
    all_refuse(tmp_path / "run")
    assert not owned.exists()
    pickle.loads(buffer.getvalue())  # it would have
    assert owned.exists()


EVALUATE = ["evaluate", "--quick", "--steps", "2"]
FIXED = {
    "report.html": EVALUATE, "metrics.json": EVALUATE, "cost.safetensors": ["evaluate", "--steps", "2"],
    "samples": ["sample", "-n", "2", "--steps", "2"], "model.safetensors": ["export"],
    "checkpoint.safetensors": ["sample", "-n", "2", "--steps", "2"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "there"), [(name, i % 2 == 0) for i, name in enumerate(FIXED)])
def test_links_of_a_strangers_run_are_not_written_through(name: str, there: bool, run: Path, tmp_path: Path) -> None:
    """A fixed name of a run as a link to a place outside, which is there or is not: refused, and nothing changes."""
    outside, own = tmp_path / "outside", run / name
    outside.mkdir()
    if own.exists():
        own.rename(tmp_path / "gone")
    if there:
        (outside / name).mkdir() if name == "samples" else (outside / name).write_bytes(b"{}")
    own.symlink_to(outside / name)
    command, *options = FIXED[name]
    code, _, err = answer([command, str(run), *options])
    assert (code, "leads out of" in err) == (2, True), err
    one_line(err)
    assert [path.name for path in outside.rglob("*")] == ([name] if there else [])
    if there and name != "samples":
        assert (outside / name).read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["config.yaml", "space.json", "timing.json", "watch"])
def test_training_writes_through_no_link(name: str, tmp_path: Path) -> None:
    """A folder in which a stranger has laid links, before the run is made."""
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, 2)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    net = {"kind": "mlp", "width": 8, "depth": 1}
    values = {"data": str(tmp_path / "x.npz"), "steps": 2, "batch_size": 8, "net": net, "watch": 2}
    with pytest.raises(ValueError, match="leads out of"):
        Run.create(tmp_path / "run", values).train(progress=False)
    assert not (tmp_path / "outside").exists()


def test_a_link_within_the_run_is_followed(run: Path, tmp_path: Path) -> None:
    (run / "real").mkdir()
    (run / "link").symlink_to("real")
    assert inside(run, "link", "a") == run / "link" / "a"
    (tmp_path / "alias").symlink_to(run)
    assert inside(tmp_path / "alias", "report.html") == tmp_path / "alias" / "report.html"
    for names in (("..", "x"), ("/etc/passwd",), ("",)):
        with pytest.raises(ValueError, match="leads out of"):
            inside(run, *names)


def test_links_deeper_in_a_run(run: Path, tmp_path: Path) -> None:
    """The folder of a request, its parts, and a stop of the watch: the names are known to who has the checkpoint."""
    arguments = ["sample", str(run), "-n", "2", "--steps", "2"]
    assert answer(arguments)[0] == 0
    (made,) = (run / "samples").iterdir()
    made.rename(tmp_path / "outside")
    made.symlink_to(tmp_path / "outside")
    for path in (tmp_path / "outside").iterdir():
        path.unlink()
    code, _, err = answer(arguments)
    assert (code, "leads out of" in err) == (2, True)
    assert not list((tmp_path / "outside").iterdir())
    (run / "stops").mkdir()
    (run / "stops" / "step-000004.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="leads out of"):
        _path(run / "stops", 4)


def test_a_strangers_figures_are_no_control_codes(run: Path) -> None:
    """What `runs` prints of a metrics.json are figures that are ours: no lines or terminal codes of a stranger."""
    figures = {"a\n\x1b[31mowned": 1.0, "frechet_all": 2.0, "nearest_ratioX": 3.0}
    (run / "metrics.json").write_text(json.dumps({"figures": figures}))
    code, out, _ = answer(["runs", str(run)])
    assert code == 0
    assert "Fréchet distance, all samples 2" in out
    assert "owned" not in out
    assert "\x1b" not in out
    assert "ratioX" not in out
