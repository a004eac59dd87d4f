"""The code that a test stands on: which files, and the hash of what they say."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Binding(NamedTuple):
    """A name that an import binds in a file: `import a.b as x`, `from a import b`."""

    target: str
    module: bool  # bound by `import`: certainly a module, of which only what is used counts


class Sources:
    """The files of code that a file stands on, read from its imports and never by running it.

    A package's `__init__` that only passes names on is looked through: a test that uses `ornstein.DDIM` stands on the
    file that defines DDIM and on what that imports, not on everything the package exports. Whatever cannot be traced
    counts as the whole package.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        tests = root / "tests"
        self.paths = (root / "src", tests, *sorted(path for path in tests.rglob("*") if path.is_dir()), root)
        self._traced: dict[Path, frozenset[Path]] = {}

    def hash(self, test: Path) -> str:
        """The hash of the code of `test` and of all it stands on; comments, docstrings and layout do not count."""
        digest = hashlib.sha256()
        for path in sorted(self.closure(test)):
            digest.update(f"{path.relative_to(self.root).as_posix()}\n{code(path)}\n".encode())
        return digest.hexdigest()

    def closure(self, start: Path) -> set[Path]:
        """`start` and every file it stands on, through any number of imports."""
        seen, waiting = {start}, [start]
        while waiting:
            found = self.direct(waiting.pop()) - seen
            seen |= found
            waiting += found
        return seen

    def direct(self, path: Path) -> frozenset[Path]:
        """The files that `path` itself uses."""
        if path not in self._traced:
            self._traced[path] = frozenset(self._direct(path)) - {path}
        return self._traced[path]

    def _direct(self, path: Path) -> Iterator[Path]:
        bound, whole = imports(tree(path), self._module(path), path.name == "__init__.py")
        for target in whole:
            yield from self.trace(target)
        for name, uses in attributes(tree(path), bound).items():
            binding = bound[name]
            if not uses and not binding.module:
                yield from self.trace(binding.target)
            for chain in uses:
                yield from self.trace(binding.target + chain)

    def trace(self, target: str, asked: frozenset[str] = frozenset()) -> set[Path]:
        """The files that define the dotted name `target`; nothing if it is not ours."""
        parts = target.split(".")
        folder = next((path for path in self.paths if (path / parts[0]).is_dir()), None)
        if folder is None or not (folder / parts[0] / "__init__.py").is_file():
            alone = (path / f"{parts[0]}.py" for path in self.paths)
            return {path for path in alone if path.is_file()}
        for i, part in enumerate(parts):
            folder = folder / part
            init = folder / "__init__.py"
            if not init.is_file():  # a module: the rest is inside it
                return {folder.with_suffix(".py")}
            if i + 1 == len(parts):  # the package itself
                return {init}
            here, below = ".".join(parts[: i + 1]), parts[i + 1]
            bound, _ = imports(tree(init), here, True)
            name = f"{here}.{below}"
            if below in bound and name not in asked:  # passed on from where it is defined
                return self.trace(".".join([bound[below].target, *parts[i + 2 :]]), asked | {name})
            if not (folder / below / "__init__.py").is_file() and not (folder / f"{below}.py").is_file():
                return {init} if below in defined(tree(init)) else set(folder.rglob("*.py"))
        raise AssertionError(target)

    def _module(self, path: Path) -> str:
        base = next(base for base in self.paths if path.is_relative_to(base))
        parts = path.relative_to(base).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    """The syntax of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def code(path: Path) -> str:
    """The code of a file: without comments, docstrings and layout."""
    parsed = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in ast.walk(parsed):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kept: list[ast.stmt] = [s for s in node.body if not _is_text(s)]
            node.body = kept or [ast.Pass()]
    return ast.unparse(parsed)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


@cache
def imports(parsed: ast.Module, module: str, package: bool) -> tuple[Mapping[str, Binding], Sequence[str]]:
    """The names that a file's imports bind (anywhere in it), and the modules imported for themselves or with `*`."""
    bound: dict[str, Binding] = {}
    whole: list[str] = []
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    bound[alias.asname] = Binding(alias.name, True)
                else:
                    bound[alias.name.partition(".")[0]] = Binding(alias.name.partition(".")[0], True)
                    whole += [alias.name] if "." in alias.name else []
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                up = module.split(".")
                up = up[: len(up) - node.level + package]
                source = ".".join(filter(None, [*up, source]))
            for alias in node.names:
                if alias.name == "*":
                    whole.append(source)
                else:
                    bound[alias.asname or alias.name] = Binding(f"{source}.{alias.name}", False)
    return bound, whole


def attributes(parsed: ast.Module, bound: Collection[str]) -> dict[str, set[str]]:
    """For each bound name the chains of attributes it is used with: `orn.exact.Gaussian` gives ".exact.Gaussian"."""
    uses: dict[str, set[str]] = {name: set() for name in bound}

    def visit(node: ast.AST, chain: str) -> None:
        if isinstance(node, ast.Attribute):
            visit(node.value, f".{node.attr}{chain}")
            return
        if isinstance(node, ast.Name) and node.id in uses:
            uses[node.id].add(chain)
        for child in ast.iter_child_nodes(node):
            visit(child, "")

    visit(parsed, "")
    return uses


def defined(parsed: ast.Module) -> set[str]:
    """The names that a file itself defines at its top."""
    names: set[str] = set()
    for node in parsed.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names
