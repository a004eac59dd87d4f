"""A sampler is a table: a causal linear program over registers."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from .._types import View
from ..errors import TableError
from ..io.atomic import atomic_write
from ..processes import Level, LinearProcess, Matrix, PhaseLevel, Process, ProductLevel
from ..random import Interval

Coefficient: TypeAlias = float | Tensor | Matrix
"""A float64 scalar; or a tensor: 0-d (live, with a gradient), (batch,) (per-sample times), or any shape that
broadcasts to (batch, *event); or a matrix that mixes the components of a state."""

FORMAT = 1
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"hypot": torch.hypot}
"""The adaptive rows that a file can name."""


class _Linear(ABC):
    """The algebra in which solvers are written: sums of atoms with coefficients."""

    @abstractmethod
    def terms(self) -> dict[Atom, Coefficient]:
        """The coefficient of each atom."""

    def __add__(self, other: _Linear) -> Expression:
        total = dict(self.terms())
        for atom, c in other.terms().items():
            total[atom] = total[atom] + c if atom in total else c
        return Expression(total)

    def __mul__(self, c: Coefficient) -> Expression:
        c = _plain(c)  # once: floats are twenty times faster than scalar tensors
        return Expression({atom: c * own for atom, own in self.terms().items()})

    __rmul__ = __mul__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """c * atom, which a tensor c is asked for first: without this, it writes an error of 60 microseconds."""
        if function is Tensor.mul and len(args) == 2 and isinstance(args[1], _Linear):
            return args[1] * args[0]
        return NotImplemented

    def __truediv__(self, c: Coefficient) -> Expression:
        return self * (1 / c)

    def __neg__(self) -> Expression:
        return self * -1.0

    def __sub__(self, other: _Linear) -> Expression:
        return self + -other


@dataclass(frozen=True, eq=False)
class Expression(_Linear):
    """A sum of coefficients times registers, views of evaluations and noises."""

    summands: dict[Atom, Coefficient]

    def terms(self) -> dict[Atom, Coefficient]:
        return self.summands


class Atom(_Linear):
    """What rows are sums of: a `Register`, an `Output` or a `Gaussian`."""

    def terms(self) -> dict[Atom, Coefficient]:
        return {self: 1.0}


@dataclass(frozen=True)
class Register(Atom):
    """r_i: a state, or an auxiliary value."""

    index: int

    def __str__(self) -> str:
        return f"r{self.index}"


@dataclass(frozen=True)
class Output(Atom):
    """P[e, view]: one view of one head of evaluation e. The view "raw" is the head as it came."""

    evaluation: int
    view: View | Literal["raw"]
    head: str = "main"

    def __str__(self) -> str:
        return f"{self.view}(e{self.evaluation}{'' if self.head == 'main' else ', ' + self.head})"


@dataclass(frozen=True)
class Gaussian(Atom):
    """z_l: standard normal numbers; the same atom again is the same noise again."""

    index: int

    def __str__(self) -> str:
        return f"z{self.index}"


@dataclass(frozen=True)
class Evaluation:
    """P[e, .] = evaluate(r_i, tau): the views are formed at tau, which may differ from the register's time."""

    index: int
    register: int
    level: Level
    head_name: str = "main"

    def view(self, name: View | Literal["raw"]) -> Output:
        return Output(self.index, name, self.head_name)

    @property
    def x0(self) -> Output:
        return self.view("x0")

    @property
    def noise(self) -> Output:
        return self.view("noise")

    @property
    def score(self) -> Output:
        return self.view("score")

    @property
    def velocity(self) -> Output:
        return self.view("velocity")

    @property
    def v(self) -> Output:
        return self.view("v")

    @property
    def raw(self) -> Output:
        return self.view("raw")

    def head(self, name: str) -> Evaluation:
        """The same evaluation, read at another head."""
        return Evaluation(self.index, self.register, self.level, name)


@dataclass(frozen=True)
class Row:
    """One register and how it is made; the first row is the initial state and has no terms.

    An adaptive row, whose coefficients depend on the data, has a `function` of the registers `inputs` instead of terms.
    """

    terms: Mapping[Atom, Coefficient]
    level: Level | None
    on_grid: bool
    function: Callable[..., Tensor] | None = None
    inputs: tuple[Register, ...] = ()


@dataclass(frozen=True)
class Table:
    """A fixed-step sampler as numbers.

        r_m = sum_i A[m,i] r_i + sum_{e,view} B[m,e,view] P[e,view] + sum_l C[m,l] z_l,    P[e,.] = evaluate(r_i, tau_e)

    in coordinates centred by the process's shift. `rows[m]` holds the coefficients of register m (register 0 is the
    initial state), `order` says when each row ("row", m) and evaluation ("evaluate", e) happens. `error` is the
    register that estimates the error of the last state, where a solver carries one. Made by
    `solver.compile(process, grid)`; printed by `str`, saved by `.save(path)`, read by `Table.load(path)`. A component
    of a product process has a table of its own: see `ProductTable`.

    Raises TableError if the program is not causal or a coefficient is not finite.
    """

    solver: str
    rows: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]
    noises: tuple[Interval, ...]
    order: tuple[tuple[str, int], ...]
    error: Register | None = None
    programs: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # kept by the loop

    def __post_init__(self) -> None:
        made: set[Atom] = {Register(0)}
        evaluated: set[int] = set()
        for kind, index in self.order:
            if kind == "evaluate":
                if Register(self.evaluations[index].register) not in made:
                    raise TableError(f"{self.solver}: evaluation e{index} reads a register that is not made yet")
                evaluated.add(index)
                continue
            for atom, c in self.rows[index].terms.items():
                if not _is_finite(c):
                    raise TableError(
                        f"{self.solver}: the coefficient of {atom} in r{index} is {c}: a step that begins where "
                        "alpha or sigma is 0 (inversion from data at t = 0) starts a little inside"
                    )
                match atom:
                    case Output():
                        known = atom.evaluation in evaluated
                    case Gaussian():
                        known = 0 <= atom.index < len(self.noises)
                    case Register():
                        known = atom in made
                if not known:
                    raise TableError(f"{self.solver}: row r{index} reads {atom} before it is made")
            for register in self.rows[index].inputs:
                if register not in made:
                    raise TableError(f"{self.solver}: row r{index} reads {register} before it is made")
            made.add(Register(index))
        every = [("row", m) for m in range(1, len(self.rows))] + [("evaluate", e) for e in range(len(self.evaluations))]
        if sorted(self.order) != sorted(every):
            raise TableError(f"{self.solver}: the order must name every row and every evaluation once")
        if self.error is not None and self.error not in made:
            raise TableError(f"{self.solver}: the error {self.error} is no register of this table")
        if self.rows[0].level is None or (self.error is None and self.result.index + 1 < len(self.rows)):
            raise TableError(f"{self.solver}: the first and the last register are states, each with a level")

    @property
    def components(self) -> tuple[Table, ...]:
        """The table of each component of the state: one for all where matrices mix them."""
        return (self,) * len(self.start.components)

    @cached_property
    def levels(self) -> Level:
        """The levels of all evaluations, stacked as one."""
        return Level.stack([e.level for e in self.evaluations]) if self.evaluations else self.start[None][:0]

    @cached_property
    def _all_levels(self) -> Level:
        levels = [row.level for row in self.rows if row.level is not None] + [e.level for e in self.evaluations]
        return Level.stack(levels)

    @property
    def start(self) -> Level:
        """The level of the initial state."""
        level = self.rows[0].level
        assert level is not None
        return level

    @property
    def result(self) -> Register:
        """The last state."""
        return Register(max((m for m, row in enumerate(self.rows) if row.level is not None), default=0))

    @property
    def end(self) -> Level:
        """The level of the last state."""
        level = self.rows[self.result.index].level
        assert level is not None
        return level

    @property
    def steps(self) -> int:
        return sum(row.on_grid for row in self.rows) - 1

    @property
    def nfe(self) -> int:
        """Evaluations of the denoiser."""
        return len(self.evaluations)

    @property
    def nonzeros(self) -> int:
        """Coefficients in all rows."""
        k = len(self.components)
        return sum(k * len(row.inputs) + sum(_count(c, k) for c in row.terms.values()) for row in self.rows)

    @property
    def adaptive(self) -> bool:
        """Whether some rows are functions of the data, so that the table is no list of numbers."""
        return any(row.function is not None for row in self.rows)

    def check_process(self, process: Process) -> None:
        """Refuse a process whose levels are not those that the table was written for."""
        ours, theirs = self._all_levels, process.level(self._all_levels.t)
        if not isinstance(theirs, Level):
            raise TableError(f"this table ({self.solver}) is for one component, {process!r} has several")
        if type(theirs) is not type(ours):
            raise TableError(f"this table ({self.solver}) is for states of a {type(ours).__name__}, not of {process!r}")
        for name in ours.defining:
            own, other = getattr(ours, name), getattr(theirs, name)
            wrong = (own - other).abs() > 1e-9 * (own.abs() + other.abs())
            if bool(wrong.any()):
                first = tuple(wrong.nonzero()[0].tolist())
                t = float(ours.t[first[: ours.t.dim()]])
                raise TableError(
                    f"this table ({self.solver}) was compiled for another process than {process!r}: at t = {t:.4g} "
                    f"it has {name} = {float(own[first]):.6g}, the process {float(other[first]):.6g}: compile it again"
                )

    def __str__(self) -> str:
        lines = [f"{self.solver}: {self.steps} steps, {self.nfe} evaluations"]
        for kind, index in self.order:
            if kind == "evaluate":
                e = self.evaluations[index]
                lines.append(f"  e{index} = evaluate(r{e.register}, t={_show(e.level.t)})")
            else:
                row = self.rows[index]
                sum_ = " ".join(f"{_show(c, '+')} {atom}" for atom, c in row.terms.items()) or "0"
                if row.function is not None:
                    sum_ = f"{_name(row.function)}({', '.join(map(str, row.inputs))})"
                time = "" if row.level is None else f"   at t={_show(row.level.t)}"
                lines.append(f"  r{index} = {sum_}{time}")
        return "\n".join(lines)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the table as JSON, exactly and atomically."""
        atomic_write(Path(path), json.dumps(self.to_json(), indent=1).encode())

    def to_json(self) -> dict[str, Any]:
        if any(row.function not in (None, *_FUNCTIONS.values()) for row in self.rows):
            raise TableError(f"{self.solver} has rows that depend on the data: save the solver and its grid instead")
        return {
            "format": "ornstein-table",
            "version": FORMAT,
            "solver": self.solver,
            "rows": [
                {
                    "terms": [[*_atom_json(atom), _number_json(c)] for atom, c in row.terms.items()],
                    "level": _level_json(row.level),
                    "on_grid": row.on_grid,
                    **(
                        {}
                        if row.function is None
                        else {"function": _name(row.function), "inputs": [r.index for r in row.inputs]}
                    ),
                }
                for row in self.rows
            ],
            "evaluations": [{"register": e.register, "level": _level_json(e.level)} for e in self.evaluations],
            "noises": [[n.clock, _times_json(n.start), _times_json(n.end)] for n in self.noises],
            "order": [list(item) for item in self.order],
            "error": None if self.error is None else self.error.index,
        }

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Table | ProductTable:
        """Read a table that `.save` wrote."""
        try:
            data = json.loads(Path(path).read_bytes())
        except ValueError as error:
            raise TableError(f"{path} is not a table of this library, or is damaged: {error}") from error
        if not isinstance(data, dict) or data.get("format") not in ("ornstein-table", "ornstein-product-table"):
            raise TableError(f"{path} is not a table of this library")
        version = data.get("version")
        if not isinstance(version, int) or version > FORMAT:
            raise TableError(f"{path} has table format {version}, this version reads 1 to {FORMAT}: upgrade")
        try:
            if data["format"] == "ornstein-product-table":
                return ProductTable(tuple(cls.from_json(part) for part in data["components"]))
            return cls.from_json(data)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TableError(f"{path} is a damaged table: {error}") from error

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        rows = tuple(
            Row(
                {_atom_from(kind, ident): _number_from(c) for kind, ident, c in row["terms"]},
                _level_from(row["level"]),
                row["on_grid"],
                _FUNCTIONS[row["function"]] if "function" in row else None,
                tuple(map(Register, row.get("inputs", ()))),
            )
            for row in data["rows"]
        )
        evaluations = []
        for index, e in enumerate(data["evaluations"]):
            level = _level_from(e["level"])
            assert level is not None
            evaluations.append(Evaluation(index, e["register"], level))
        noises = tuple(Interval(clock, _times_from(start), _times_from(end)) for clock, start, end in data["noises"])
        error = None if data.get("error") is None else Register(data["error"])
        return cls(data["solver"], rows, tuple(evaluations), noises, tuple((k, i) for k, i in data["order"]), error)


@dataclass(frozen=True)
class ProductTable:
    """One table for each component of a product process; all share the evaluations."""

    components: tuple[Table, ...]
    programs: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # kept by the loop

    def __post_init__(self) -> None:
        first = self.components[0]
        for other in self.components[1:]:
            same_times = all(
                torch.equal(a.level.t, b.level.t) and a.register == b.register
                for a, b in zip(first.evaluations, other.evaluations, strict=False)
            )
            if first.order != other.order or not same_times:
                raise TableError(
                    f"{first.solver} and {other.solver} cannot share evaluations: "
                    "they read different registers or times"
                )

    @cached_property
    def levels(self) -> ProductLevel:
        """The levels of all evaluations, stacked as one."""
        return ProductLevel(tuple(table.levels for table in self.components))

    @property
    def start(self) -> ProductLevel:
        return ProductLevel(tuple(table.start for table in self.components))

    @property
    def end(self) -> ProductLevel:
        return ProductLevel(tuple(table.end for table in self.components))

    @property
    def solver(self) -> str:
        return " x ".join(table.solver for table in self.components)

    @property
    def steps(self) -> int:
        return self.components[0].steps

    @property
    def nfe(self) -> int:
        return self.components[0].nfe

    @property
    def nonzeros(self) -> int:
        return sum(table.nonzeros for table in self.components)

    def check_process(self, process: Process) -> None:
        """Refuse a process whose components are not those that the tables were written for."""
        processes = getattr(process, "processes", ())
        if len(processes) != len(self.components):
            raise TableError(f"a table for {len(self.components)} components does not fit {process!r}")
        for table, component in zip(self.components, processes, strict=True):
            table.check_process(component)

    def __str__(self) -> str:
        return "\n".join(str(table) for table in self.components)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the tables as one JSON file, exactly and atomically."""
        parts = [table.to_json() for table in self.components]
        data = {"format": "ornstein-product-table", "version": FORMAT, "components": parts}
        atomic_write(Path(path), json.dumps(data, indent=1).encode())


@dataclass
class Writer:
    """What a solver writes its table with: `evaluate`, `noise`, `register` and `step`, in the order they happen."""

    solver: str
    start: Level
    process: LinearProcess | None = None
    _rows: list[Row] = field(init=False)
    _evaluations: list[Evaluation] = field(default_factory=list, init=False)
    _noises: list[Interval] = field(default_factory=list, init=False)
    _order: list[tuple[str, int]] = field(default_factory=list, init=False)
    _error: Register | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._rows = [Row({}, self.start, True)]

    @property
    def state(self) -> Register:
        """The initial state."""
        return Register(0)

    def level(self, t: Tensor) -> Level:
        """The level at a time of the process, for stages between the grid's points."""
        if self.process is None:
            raise TableError(f"{self.solver} needs the process for levels between the grid's points")
        return self.process.level(t)

    def evaluate(self, register: Register, level: Level) -> Evaluation:
        """Evaluate the denoiser on a register, at a level."""
        self._evaluations.append(Evaluation(len(self._evaluations), register.index, level))
        self._order.append(("evaluate", len(self._evaluations) - 1))
        return self._evaluations[-1]

    def noise(self, start: Level, end: Level) -> Gaussian:
        """Fresh standard normal numbers for the interval between two levels, on the clock SNR = alpha^2/sigma^2.

        The exact noise of a step with constant x0 is an increment of a Brownian motion on this clock: x alpha/sigma^2
        gathers the variance SNR_s - SNR_t. So one path serves all solvers and step counts.
        """
        self._noises.append(Interval("snr", *(_times(level.log_snr.exp()) for level in (start, end))))
        return Gaussian(len(self._noises) - 1)

    def register(self, value: _Linear, level: Level | None = None, *, on_grid: bool = False) -> Register:
        """A new register: a stage (a state at a level between the grid's points), or auxiliary (no level)."""
        terms = {atom: _plain(c) for atom, c in value.terms().items()}
        self._rows.append(Row({a: c for a, c in terms.items() if not _is_zero(c)}, level, on_grid))
        self._order.append(("row", len(self._rows) - 1))
        return Register(len(self._rows) - 1)

    def step(self, value: _Linear, level: Level) -> Register:
        """A new register that is the state at the next point of the grid."""
        return self.register(value, level, on_grid=True)

    def apply(
        self, function: Callable[..., Tensor], *values: _Linear, level: Level | None = None, on_grid: bool = False
    ) -> Register:
        """An adaptive row: a new register function(*values), for coefficients that depend on the data.

        The function takes the values and returns the register, (batch, *event) each and centred by the shift; it runs
        on the device and must not synchronise.
        """
        inputs = tuple(v if isinstance(v, Register) else self.register(v) for v in values)
        self._rows.append(Row({}, level, on_grid, function, inputs))
        self._order.append(("row", len(self._rows) - 1))
        return Register(len(self._rows) - 1)

    def error(self, value: _Linear) -> None:
        """State the estimate of the last state's error, a vector like the state."""
        self._error = value if isinstance(value, Register) else self.register(value)

    @property
    def reads(self) -> list[str]:
        """The views that the rows read, of whatever evaluation and head."""
        return list(dict.fromkeys(atom.view for row in self._rows for atom in row.terms if isinstance(atom, Output)))

    @property
    def draws(self) -> bool:
        """Whether any noise is drawn."""
        return bool(self._noises)

    def table(self) -> Table:
        rows, evaluations, noises, order = self._rows, self._evaluations, self._noises, self._order
        return Table(self.solver, tuple(rows), tuple(evaluations), tuple(noises), tuple(order), self._error)


def _times(values: Tensor) -> float | tuple[Any, ...]:
    if values.numel() == 1:
        return float(values)
    return tuple(values.tolist()) if values.dim() == 1 else tuple(map(_times, values))


def _times_json(value: float | tuple[Any, ...]) -> Any:
    return [_times_json(v) for v in value] if isinstance(value, tuple) else _number_json(value)


def _times_from(value: Any) -> float | tuple[Any, ...]:
    return tuple(_times_from(v) for v in value) if isinstance(value, list) else float(value)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _plain(c: Coefficient) -> Coefficient:
    if isinstance(c, Matrix) or (isinstance(c, Tensor) and (c.dim() > 0 or c.requires_grad)):
        return c
    return float(c) if isinstance(c, Tensor) else 1.0 * c  # which refuses text


def _is_zero(c: Coefficient) -> bool:
    return isinstance(c, float) and c == 0


def _is_finite(c: Coefficient) -> bool:
    if isinstance(c, float):
        return math.isfinite(c)
    return bool(torch.as_tensor(c.value if isinstance(c, Matrix) else c).detach().isfinite().all())


def _show(c: Coefficient, sign: str = "") -> str:
    if isinstance(c, Matrix):
        rows = c.value.reshape(-1, c.value.shape[-1]).tolist()
        return f"{sign and '+ '}[{'; '.join(' '.join(f'{v:.4g}' for v in row) for row in rows)}]"
    if isinstance(c, Tensor) and c.dim():
        return f"[{tuple(c.shape)}]"
    return f"{float(c):{sign}.6g}"


def _atom_json(atom: Atom) -> list[Any]:
    match atom:
        case Output():
            return ["P", [atom.evaluation, atom.view, atom.head]]
        case Register():
            return ["r", [atom.index]]
        case Gaussian():
            return ["z", [atom.index]]
    raise TableError(f"{atom!r} cannot be saved")


def _atom_from(kind: str, ident: list[Any]) -> Atom:
    return Output(*ident) if kind == "P" else (Register if kind == "r" else Gaussian)(*ident)


def _count(c: Coefficient, components: int) -> int:
    """How many terms a coefficient is, over all components."""
    return components**2 if isinstance(c, Matrix) else components


def _number_json(c: Coefficient) -> Any:
    if isinstance(c, Matrix):
        return {"matrix": c.value.tolist()}
    value = c.detach().tolist() if isinstance(c, Tensor) else c
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number_from(value: Any) -> Coefficient:
    if isinstance(value, dict):
        return Matrix(torch.tensor(value["matrix"], dtype=torch.float64))
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else float(value)


def _level_json(level: Level | None) -> list[Any] | None:
    if level is None:
        return None
    values = [getattr(level, f.name) for f in fields(level)]
    numbers: list[Any] = [_number_json(v) if level.shape == () else list(map(_number_json, v)) for v in values]
    return numbers if type(level) is Level else [type(level).__name__, *numbers]


def _level_from(data: list[Any] | None) -> Level | None:
    if data is None:
        return None
    kind: type[Level] = Level
    if isinstance(data[0], str):
        kind = next(level for level in Level.__subclasses__() if level.__name__ == data[0])
        data = data[1:]
    elif len(data) == len(fields(PhaseLevel)):  # as files of the first days have it
        kind = PhaseLevel
    return kind(*(torch.tensor(_floats(values), dtype=torch.float64) for values in data))


def _floats(value: Any) -> Any:
    return [_floats(v) for v in value] if isinstance(value, list) else float(value)
