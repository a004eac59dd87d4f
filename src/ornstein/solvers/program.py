"""From a table to instructions: views folded into coefficients or formed once, registers given slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from .._types import View
from ..errors import TableError
from ..prediction import told_by
from ..processes import Matrix, PhaseLevel
from .table import Atom, Coefficient, Gaussian, Output, ProductTable, Register, Table, _is_zero

Key: TypeAlias = tuple[Any, ...]
"""("r", component, m), ("p", component, e, head), ("z", component, l) or ("v", component, output), a view formed."""


@dataclass(frozen=True)
class Evaluate:
    """Call evaluation `index` on the state in `inputs`; keep its heads in `outputs`: (slot, component, head).

    `plain`: at most the head "main" of one component is kept.
    """

    index: int
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int, str], ...]
    plain: bool
    drop: tuple[int, ...]


@dataclass(frozen=True)
class Draw:
    """Draw noise `index` of the component, of its shape, into a slot."""

    slot: int
    component: int
    index: int


@dataclass(frozen=True)
class Form:
    """A view of an evaluation, up to a factor, in one call: first + ratio second, of the state and the answer."""

    slot: int
    first: int
    second: int
    ratio: float
    drop: tuple[int, ...]


@dataclass(frozen=True)
class Combine:
    """Register `row` of a component: the sum of coefficients times slots. A coefficient 1.0 stands first.

    `noise` is the (slot, std) of fresh noise, split off where transitions are recorded.
    """

    slot: int
    terms: tuple[tuple[int, Any], ...]
    plain: bool
    row: int
    component: int
    noise: tuple[int, float] | None
    drop: tuple[int, ...]


@dataclass(frozen=True)
class Apply:
    """Register `row` of a component: a function of the slots in `inputs`."""

    slot: int
    function: Callable[..., Tensor]
    inputs: tuple[int, ...]
    row: int
    drop: tuple[int, ...]


@dataclass(frozen=True)
class After:
    """Let hooks look at register `row` in `slots`, and at the live registers: (m, slots)."""

    row: int
    slots: tuple[int, ...]
    live: tuple[tuple[int, tuple[int, ...]], ...]


Instruction: TypeAlias = Evaluate | Draw | Form | Combine | Apply | After


@dataclass(frozen=True)
class Program:
    """Instructions over `size` slots; `inputs` hold the initial state, `result` the last, `error` the estimate of its
    error, if there is one."""

    steps: tuple[Instruction, ...]
    size: int
    inputs: tuple[int, ...]
    result: tuple[int, ...]
    error: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether all coefficients are floats."""
        return all(step.plain for step in self.steps if isinstance(step, Combine))


def program_of(
    table: Table | ProductTable, predicts: View, heads: Mapping[str, View], *, hooked: bool, recorded: bool
) -> Program:
    """The program of a table for a network that answers `predicts`; one of floats is kept with the table."""
    key = (predicts, tuple(heads.items()), hooked, recorded)
    program: Program | None = table.programs.get(key)
    if program is None:
        program = _allocate(table, _instructions(table, predicts, heads, hooked, recorded))
        if program.plain:
            table.programs[key] = program
    return program


def _conversions(
    table: Table, predicts: View, heads: Mapping[str, View]
) -> dict[Output, tuple[Coefficient, Coefficient, str]]:
    """(c_x, c_p, head) of every view that the rows read, each kind formed at all its levels at once."""
    asked: dict[tuple[str, View | Literal["raw"]], list[Output]] = {}
    for atom in dict.fromkeys(atom for row in table.rows for atom in row.terms if isinstance(atom, Output)):
        asked.setdefault((atom.head, atom.view), []).append(atom)
    found: dict[Output, tuple[Coefficient, Coefficient, str]] = {}
    for (head, view), atoms in asked.items():
        native = predicts if head == "main" else heads.get(head)
        if view == "raw" or view == native:
            found.update(dict.fromkeys(atoms, (0.0, 1.0, head)))
            continue
        if native is None:
            raise TableError(
                f"{table.solver} reads the head {head!r}, which this denoiser does not have: "
                f"it has {', '.join(('main', *heads))}"
            )
        levels = table.levels[[atom.evaluation for atom in atoms]]
        if head == "main":
            head, native = told_by(levels, predicts, heads, view)
        plain = _matrices if isinstance(levels, PhaseLevel) else _plain
        pairs = [plain(values) for values in levels.conversion(native, view)]
        found.update({atom: (*pair, head) for atom, *pair in zip(atoms, *pairs, strict=True)})
    return found


def _plain(values: Tensor) -> Sequence[Coefficient]:
    """Values (E,) as floats; those with a gradient, or of shape (E, batch, ...), stay tensors."""
    return values.unbind(0) if values.dim() > 1 or values.requires_grad else values.tolist()


def _matrices(values: Tensor) -> Sequence[Coefficient]:
    """Values (E, ..., k, k) as matrices."""
    return [Matrix(value) for value in values]


def _terms(
    c: int, table: Table, predicts: View, heads: Mapping[str, View]
) -> tuple[list[dict[Key, Coefficient]], dict[Key, tuple[Key, Key, float]]]:
    """All rows of component c over registers, native outputs, formed views and noises; and how those are formed.

    A view is linear in the state and the native output, target = c_x x + c_p P, so a coefficient b of a view adds
    b c_x to the coefficient of the evaluated register and b c_p to that of the output. A row that does not hold the
    register pays a call for that; where two or more do, the view is formed, in one call with its larger coefficient
    taken out: x + (c_p/c_x) P or P + (c_x/c_p) x. Rows that hold the register fold it still, which is more exact too.
    """
    views = _conversions(table, predicts, heads)
    factors: dict[Output, float] = {}
    made: dict[Key, tuple[Key, Key, float]] = {}
    alone = [_alone(row.terms, table, views) for row in table.rows]
    for view, readers in Counter(view for unheld in alone for view in unheld).items():
        c_x, c_p, head = views[view]
        if readers > 1 and isinstance(c_x, float) and isinstance(c_p, float):
            keys = ("r", c, table.evaluations[view.evaluation].register), ("p", c, view.evaluation, head)
            pairs = sorted(zip((c_x, c_p), keys, strict=True), key=lambda pair: -abs(pair[0]))
            (factors[view], first), (other, second) = pairs
            made["v", c, view] = first, second, other / factors[view]
    rows: list[dict[Key, Coefficient]] = []
    for row, unheld in zip(table.rows, alone, strict=True):
        total: dict[Key, Coefficient] = {}
        for atom, b in row.terms.items():
            if isinstance(atom, Register):
                total["r", c, atom.index] = total.get(("r", c, atom.index), 0.0) + b
            elif isinstance(atom, Gaussian):
                total["z", c, atom.index] = b
            elif isinstance(atom, Output) and atom in factors and atom in unheld:
                total["v", c, atom] = b * factors[atom]
            elif isinstance(atom, Output):
                c_x, c_p, head = views[atom]
                state, out = ("r", c, table.evaluations[atom.evaluation].register), ("p", c, atom.evaluation, head)
                total[state] = total.get(state, 0.0) + b * c_x
                total[out] = total.get(out, 0.0) + b * c_p
        rows.append({key: value for key, value in _entries(c, len(table.components), total) if not _is_zero(value)})
    return rows, made


def _entries(c: int, components: int, total: Mapping[Key, Coefficient]) -> Iterator[tuple[Key, Coefficient]]:
    """The terms of component c: where a matrix mixes them, one for each component that its row c reads."""
    for key, value in total.items():
        if isinstance(value, Matrix):
            for j in range(components):
                yield (key[0], j, *key[2:]), value.entry(c, j)
        else:
            yield key, value


def _alone(
    terms: Mapping[Atom, Coefficient], table: Table, views: Mapping[Output, tuple[Coefficient, Coefficient, str]]
) -> list[Output]:
    """The outputs of a row that bring in a register which nothing else in the row does."""

    brought = {
        atom: table.evaluations[atom.evaluation].register
        for atom in terms
        if isinstance(atom, Output) and not _is_zero(views[atom][0])
    }
    held = Counter([*brought.values(), *(atom.index for atom in terms if isinstance(atom, Register))])
    return [atom for atom, register in brought.items() if held[register] == 1]


def _instructions(
    table: Table | ProductTable, predicts: View, heads: Mapping[str, View], hooked: bool, recorded: bool
) -> list[tuple[str, Any, list[Key], list[Key]]]:
    """(kind, payload, keys read, keys written) in order; noise is drawn just before its first use."""
    components = range(len(table.components))
    rows, made = zip(*(_terms(c, part, predicts, heads) for c, part in enumerate(table.components)), strict=True)
    forms: dict[int, list[tuple[str, Any, list[Key], list[Key]]]] = {}
    for key, (first, second, ratio) in (item for component in made for item in component.items()):
        forms.setdefault(key[2].evaluation, []).append(("form", ratio, [first, second], [key]))
    read = [*(terms for component in rows for terms in component), *(f[2] for own in forms.values() for f in own)]
    used = dict.fromkeys(key for keys in read for key in keys if key[0] == "p")
    outputs: dict[int, list[Key]] = {}
    for key in used:
        outputs.setdefault(key[2], []).append(key)
    program: list[tuple[str, Any, list[Key], list[Key]]] = []
    drawn: set[Key] = set()
    for kind, index in table.components[0].order:
        if kind == "evaluate":
            register = table.components[0].evaluations[index].register
            program.append(("evaluate", index, [("r", c, register) for c in components], outputs.get(index, [])))
            program.extend(forms.get(index, []))
            continue
        for c in components:
            row = table.components[c].rows[index]
            if row.function is not None:
                if recorded:
                    raise TableError(f"row r{index} depends on the data: its transition has no density of its own")
                reads = [("r", c, register.index) for register in row.inputs]
                program.append(("apply", (row.function, index), reads, [("r", c, index)]))
                continue
            terms = rows[c][index]
            fresh = [key for key in terms if key[0] == "z" and key not in drawn]
            drawn.update(fresh)
            program.extend(("draw", (key[1], key[2]), [], [key]) for key in fresh)
            if recorded and len(fresh) > 1:
                raise TableError(f"row r{index} draws {len(fresh)} noises: a transition has one")
            noise = fresh[0] if recorded and fresh else None
            if noise is not None and isinstance(terms[noise], Tensor):
                raise TableError(f"row r{index} has a std for each sample: a transition has one, so share the times")
            program.append(("combine", (terms, index, c, noise), list(terms), [("r", c, index)]))
        if hooked:
            program.append(("after", index, [("r", c, index) for c in components], []))
    return program


def _allocate(table: Table | ProductTable, program: list[tuple[str, Any, list[Key], list[Key]]]) -> Program:
    """Slots for keys, each freed after its last use: the window of registers that a step needs and no more."""
    components = range(len(table.components))
    final: list[Key] = [("r", c, table.components[0].result.index) for c in components]
    marked = [component.error for component in table.components]
    error: list[Key] = [("r", c, register.index) for c, register in enumerate(marked) if register is not None]
    last: dict[Key, int] = {}
    for position, (_, _, reads, writes) in enumerate(program):
        for key in (*writes, *reads):
            last[key] = position
    last.update(dict.fromkeys((*final, *error), len(program)))
    inputs = tuple(components)
    slot_of: dict[Key, int] = {("r", c, 0): c for c in components}
    free: list[int] = []
    size = len(components)
    steps: list[Instruction] = []
    for position, (kind, payload, reads, writes) in enumerate(program):
        read = tuple(slot_of[key] for key in reads)
        for key in writes:
            if not free:
                free.append(size)
                size += 1
            slot_of[key] = free.pop()
        done = [key for key in dict.fromkeys((*reads, *writes)) if last[key] <= position]
        drop = tuple(slot_of[key] for key in done)
        if kind == "evaluate":
            kept = tuple((slot_of[key], key[1], key[3]) for key in writes)
            only_main = len(components) == 1 and all(head == "main" for _, _, head in kept)
            steps.append(Evaluate(payload, read, kept, only_main, drop))
        elif kind == "draw":
            steps.append(Draw(slot_of[writes[0]], *payload))
        elif kind == "form":
            first, second = read
            steps.append(Form(slot_of[writes[0]], first, second, payload, drop))
        elif kind == "apply":
            function, row = payload
            steps.append(Apply(slot_of[writes[0]], function, read, row, drop))
        elif kind == "combine":
            terms, row, c, noise = payload
            split = None if noise is None else (slot_of[noise], float(terms[noise]))
            summands = [(slot_of[key], value) for key, value in terms.items() if key != noise]
            summands.sort(key=lambda term: not (isinstance(term[1], float) and term[1] == 1.0))
            floats = all(isinstance(value, float) for _, value in summands)
            steps.append(Combine(slot_of[writes[0]], tuple(summands), floats, row, c, split, drop))
        else:
            live: dict[int, list[int]] = {}
            for key, slot in slot_of.items():
                if key[0] == "r" and last.get(key, -1) >= position:
                    live.setdefault(key[2], []).append(slot)
            steps.append(After(payload, read, tuple((m, tuple(slots)) for m, slots in live.items())))
        for key in done:
            free.append(slot_of.pop(key))
    result, estimate = (tuple(slot_of[key] for key in keys) for keys in (final, error))
    return Program(tuple(steps), size, inputs, result, estimate)
