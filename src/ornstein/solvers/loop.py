"""The one loop: it runs any table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..errors import NonFiniteError, TableError
from ..numerics.tree import like, parts
from ..prediction import heads_of
from ..processes import GaussianProcess, Level, ProductLevel
from ..random import Noise
from .table import Coefficient, Gaussian, ProductTable, Register, Table

Key: TypeAlias = tuple[Any, ...]  # ("r", component, m), ("p", component, e, head) or ("z", component, l)


@dataclass(frozen=True)
class Moment:
    """What a hook sees after a row: the new register, and every register and evaluation still in use.

    `row` is the index m of the register, `level` its level (None for auxiliary ones), `on_grid` whether it is a point
    of the grid, `x` its state in the process's own coordinates (model units), `registers` the live ones by index, in
    coordinates centred by the shift.
    """

    row: int
    level: Level | ProductLevel | None
    on_grid: bool
    x: State
    registers: Mapping[int, State]


Hook: TypeAlias = Callable[[Moment], State | None]
"""Called after every row; what it returns, if not None, replaces the state."""


@runtime_checkable
class Recorder(Protocol):
    """Decides the value of each row that draws noise: see `transitions`."""

    def begin(self, table: Table | ProductTable, x_init: State, cond: Cond) -> None:
        """Called before a run."""
        ...

    def __call__(self, row: int, mean: Tensor, std: float, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(value, noise) of r_row, from its mean given what came before, its standard deviation and fresh noise."""
        ...


@dataclass(frozen=True)
class _Evaluate:
    call: Callable[[State], Any]
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int, str], ...]  # (slot, component, head)
    index: int
    drop: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Draw:
    slot: int
    component: int


@dataclass(frozen=True)
class _Combine:
    slot: int
    terms: tuple[tuple[int, Any], ...]  # (slot, coefficient); a coefficient 1.0 comes first
    plain: bool
    row: int
    noise: tuple[int, float] | None  # (slot, std), split off for a recorder
    drop: tuple[int, ...] = ()


@dataclass(frozen=True)
class _After:
    row: int
    slots: tuple[int, ...]
    live: tuple[tuple[int, tuple[int, ...]], ...]


def levels_of(table: Table | ProductTable) -> Any:
    """The levels of all evaluations, stacked as one."""
    stacked = []
    for component in table.components:
        levels = [e.level for e in component.evaluations]
        stacked.append(Level(*(torch.stack([getattr(level, f.name) for level in levels]) for f in fields(Level))))
    return stacked[0] if isinstance(table, Table) else ProductLevel(tuple(stacked))


class Loop:
    """A table made ready for one run: views folded into coefficients, coefficients lowered, registers given slots.

    A view is linear in the state and the native output, target = c_x x + c_p P, so each coefficient b of a view adds
    b c_x to the coefficient of the evaluated register and b c_p to that of the output: the solver asks for its view,
    the network answers in its own, and no step pays for the conversion. A tensor is dropped after its last use.
    """

    def __init__(
        self,
        denoiser: BaseDenoiser,
        table: Table | ProductTable,
        x: State,
        cond: Cond = None,
        *,
        differentiable: bool = False,
        hooks: Sequence[Hook] = (),
        recorder: Recorder | None = None,
    ) -> None:
        self.denoiser, self.table, self.x, self.cond = denoiser, table, x, cond
        self.differentiable, self.hooks, self.recorder = differentiable, tuple(hooks), recorder
        own: Any = denoiser.process
        self.processes: tuple[GaussianProcess, ...] = getattr(own, "processes", (own,))
        project = getattr(denoiser.process, "project", None)
        if project is not None:
            self.hooks = (lambda moment: project(moment.x, cond), *self.hooks)
        self._evaluations = table.components[0].evaluations
        levels = levels_of(table) if self._evaluations else None
        calls = denoiser.bind(levels, x, cond) if self._evaluations else []
        if differentiable:
            calls = [partial(checkpoint, c, use_reentrant=False) for c in calls]
        self.nfe = sum(denoiser.cost(levels)) if self._evaluations else 0
        self._shifts = [p.shift(table.components[c].start.t, cond) for c, p in enumerate(self.processes)]
        self._program = self._allocate(self._instructions(calls))

    def _terms(self, c: int, m: int) -> dict[Key, Coefficient]:
        """Row m of component c over registers, native outputs and noises."""
        table, summands = self.table.components[c], list[tuple[Key, Coefficient]]()
        for atom, coefficient in table.rows[m].terms.items():
            if isinstance(atom, Register):
                summands.append((("r", c, atom.index), coefficient))
            elif isinstance(atom, Gaussian):
                summands.append((("z", c, atom.index), coefficient))
            elif atom.view == "raw":
                summands.append((("p", c, atom.evaluation, atom.head), coefficient))
            else:
                native = self.denoiser.predicts if atom.head == "main" else self.denoiser.heads.get(atom.head)
                if native is None:
                    raise TableError(
                        f"{table.solver} reads the head {atom.head!r}, which this denoiser does not have: "
                        f"it has {', '.join(('main', *self.denoiser.heads))}"
                    )
                e = table.evaluations[atom.evaluation]
                c_x, c_p = e.level.conversion(native, atom.view)  # type: ignore[arg-type]
                summands.append((("r", c, e.register), coefficient * _value(c_x)))
                summands.append((("p", c, atom.evaluation, atom.head), coefficient * _value(c_p)))
        total: dict[Key, Coefficient] = {}
        for key, coefficient in summands:
            total[key] = total[key] + coefficient if key in total else coefficient
        return {key: value for key, value in total.items() if not (isinstance(value, float) and value == 0)}

    def _instructions(self, calls: Sequence[Callable[[State], Any]]) -> list[tuple[str, Any, list[Key], list[Key]]]:
        """(kind, payload, keys read, keys written) in order; noise is drawn just before its first use."""
        components = range(len(self.processes))
        rows = [[self._terms(c, m) for m in range(len(self.table.components[c].rows))] for c in components]
        heads: dict[tuple[int, int], dict[str, None]] = {}
        for per_row in rows:
            for terms in per_row:
                for key in terms:
                    if key[0] == "p":
                        heads.setdefault((key[1], key[2]), {})[key[3]] = None
        program: list[tuple[str, Any, list[Key], list[Key]]] = []
        drawn: set[Key] = set()
        for kind, index in self.table.components[0].order:
            if kind == "evaluate":
                register = self._evaluations[index].register
                outputs: list[Key] = [("p", c, index, h) for c in components for h in heads.get((c, index), {})]
                program.append(("evaluate", (calls[index], index), [("r", c, register) for c in components], outputs))
                continue
            for c in components:
                terms = rows[c][index]
                fresh = [key for key in terms if key[0] == "z" and key not in drawn]
                drawn.update(fresh)
                program.extend(("draw", c, [], [key]) for key in fresh)
                if self.recorder is not None and len(fresh) > 1:
                    raise TableError(f"row r{index} draws {len(fresh)} noises: a transition has one")
                noise = fresh[0] if self.recorder is not None and fresh else None
                program.append(("combine", (terms, index, noise), list(terms), [("r", c, index)]))
            if self.hooks:
                program.append(("after", index, [("r", c, index) for c in components], []))
        return program

    def _allocate(self, program: list[tuple[str, Any, list[Key], list[Key]]]) -> list[Any]:
        """Slots for keys, each freed after its last use: the window of registers that a step needs and no more."""
        components = range(len(self.processes))
        last: dict[Key, int] = {}
        for position, (_, _, reads, writes) in enumerate(program):
            last.update(dict.fromkeys([*writes, *reads], position))
        final = len(self.table.components[0].rows) - 1
        last.update({("r", c, final): len(program) for c in components})
        slot_of: dict[Key, int] = {}
        free: list[int] = []
        self._size = 0

        def take(key: Key) -> int:
            if not free:
                free.append(self._size)
                self._size += 1
            slot_of[key] = free.pop()
            return slot_of[key]

        self._inputs = tuple(take(("r", c, 0)) for c in components)
        lowered: list[Any] = []
        for position, (kind, payload, reads, writes) in enumerate(program):
            read = {key: slot_of[key] for key in reads}
            for key in writes:
                take(key)
            done = [key for key in {**dict.fromkeys(reads), **dict.fromkeys(writes)} if last[key] <= position]
            drop = tuple(slot_of[key] for key in done)
            if kind == "evaluate":
                outputs = tuple((slot_of[key], key[1], key[3]) for key in writes)
                lowered.append(_Evaluate(payload[0], tuple(read.values()), outputs, payload[1], drop))
            elif kind == "draw":
                lowered.append(_Draw(slot_of[writes[0]], payload))
            elif kind == "combine":
                terms, row, noise = payload
                split = None if noise is None else (slot_of[noise], float(terms[noise]))
                sum_ = [(slot_of[key], self._lower(c, writes[0][1])) for key, c in terms.items() if key != noise]
                sum_.sort(key=lambda term: not (isinstance(term[1], float) and term[1] == 1.0))
                plain = not self.differentiable and all(isinstance(c, float) for _, c in sum_)
                lowered.append(_Combine(slot_of[writes[0]], tuple(sum_), plain, row, split, drop))
            else:
                live: dict[int, list[int]] = {}
                for key, slot in slot_of.items():
                    if key[0] == "r" and last.get(key, -1) >= position:
                        live.setdefault(key[2], []).append(slot)
                lowered.append(_After(payload, tuple(read.values()), tuple((m, tuple(s)) for m, s in live.items())))
            for key in done:
                free.append(slot_of.pop(key))
        self._result = tuple(slot_of[("r", c, final)] for c in components)
        return lowered

    def _lower(self, c: Coefficient, component: int) -> Any:
        """A float for scalars; else a tensor on the state's device, in its dtype, shaped to multiply it."""
        if isinstance(c, float):
            return c
        x = parts(self.x)[component]
        c = c.to(device=x.device, dtype=x.dtype)
        return c.reshape(-1, *(1,) * (x.dim() - 1)) if c.dim() == 1 else c

    def run(self, noise: Noise, *, debug: bool = False, tick: Callable[[], object] | None = None) -> State:
        """The final state, from `x` at the table's start. `tick` is called after each step of the grid."""
        x, table = self.x, self.table.components[0]
        slots: list[Any] = [None] * self._size
        if self.recorder is not None:
            self.recorder.begin(self.table, x, self.cond)
        for slot, part, shift in zip(self._inputs, parts(x), self._shifts, strict=True):
            slots[slot] = part if shift is None else part - shift
        shapes = [part.shape for part in parts(x)]
        single = len(self.processes) == 1 and self._shifts[0] is None
        add, first = torch.add, True
        for step in self._program:
            kind = type(step)
            if kind is _Combine:
                if not step.terms:
                    value = torch.zeros_like(parts(x)[0])
                elif step.plain:
                    (slot, c), *rest = step.terms
                    if c == 1.0 and rest:
                        value = add(slots[slot], slots[rest[0][0]], alpha=rest[0][1])
                        del rest[0]
                    else:
                        value = slots[slot] * c
                    for slot, c in rest:
                        value.add_(slots[slot], alpha=c)
                else:
                    value = sum(c * slots[slot] for slot, c in step.terms)
                if step.noise is not None:
                    assert self.recorder is not None
                    value, slots[step.noise[0]] = self.recorder(step.row, value, step.noise[1], slots[step.noise[0]])
                if debug:
                    self._check_finite(step.row, value)
                slots[step.slot] = value
                if tick is not None and table.rows[step.row].on_grid:
                    tick()
            elif kind is _Evaluate:
                if single:
                    output = step.call(slots[step.inputs[0]])
                    if first or isinstance(output, Mapping):
                        first = self._check_output(output, step, x)
                        for slot, _, head in step.outputs:
                            slots[slot] = heads_of(output)[head]
                    elif step.outputs:
                        slots[step.outputs[0][0]] = output
                else:
                    self._evaluate(step, slots)
            elif kind is _Draw:
                slots[step.slot] = noise.normal(shapes[step.component])
                continue
            else:
                self._after(step, slots)
                continue
            for slot in step.drop:
                slots[slot] = None
        return self._uncentred([slots[slot] for slot in self._result], self.table.end)

    def _evaluate(self, step: _Evaluate, slots: list[Any]) -> None:
        """An evaluation in the process's own coordinates; outputs come back centred."""
        level = [component.evaluations[step.index].level for component in self.table.components]
        output = step.call(self._uncentred([slots[slot] for slot in step.inputs], level))
        self._check_output(output, step, self.x)
        for slot, c, head in step.outputs:
            value = parts(heads_of(output)[head])[c]
            native = self.denoiser.predicts if head == "main" else self.denoiser.heads.get(head)
            slope = self.processes[c].d_shift(level[c].t, self.cond) if native == "velocity" else None
            slots[slot] = value if slope is None else value - slope

    def _uncentred(self, centred: Sequence[Tensor], level: Any) -> State:
        levels = level if isinstance(level, list) else parts(getattr(level, "components", level))
        shifts = [p.shift(part.t, self.cond) for p, part in zip(self.processes, levels, strict=True)]
        own = [x if shift is None else x + shift for x, shift in zip(centred, shifts, strict=True)]
        return like(self.x, own)

    def _after(self, step: _After, slots: list[Any]) -> None:
        rows = [component.rows[step.row] for component in self.table.components]
        level: Any = rows[0].level
        if level is not None and isinstance(self.table, ProductTable):
            level = ProductLevel(tuple(row.level for row in rows if row.level is not None))
        state = [slots[slot] for slot in step.slots]
        registers = {m: like(self.x, [slots[s] for s in held]) for m, held in step.live}
        for hook in self.hooks:
            own = like(self.x, state) if level is None else self._uncentred(state, level)
            new = hook(Moment(step.row, level, rows[0].on_grid, own, registers))
            if new is not None:
                state = list(parts(new))
                if level is not None:
                    levels = parts(getattr(level, "components", level))
                    shifts = [p.shift(part.t, self.cond) for p, part in zip(self.processes, levels, strict=True)]
                    state = [x if m is None else x - m for x, m in zip(state, shifts, strict=True)]
        for slot, value in zip(step.slots, state, strict=True):
            slots[slot] = value

    def _check_output(self, output: Any, step: _Evaluate, x: State) -> bool:
        """Refuse an output that lacks a head or has another shape than the state; shapes are known on the host."""
        heads = heads_of(output)
        for _, c, head in step.outputs:
            if head not in heads:
                raise TableError(
                    f"{self.table.solver} reads the head {head!r}, the network returned {', '.join(heads)}"
                )
            shape, state = parts(heads[head])[c].shape, parts(x)[c].shape
            if shape != state:
                raise ValueError(f"the network returned {tuple(shape)} for a state of {tuple(state)}")
        return False

    def _check_finite(self, row: int, value: Tensor) -> None:
        if not bool(value.isfinite().all()):
            level = self.table.components[0].rows[row].level
            at = "" if level is None else f" (t = {float(level.t.reshape(-1)[0]):.4g})"
            steps = sum(r.on_grid for r in self.table.components[0].rows[: row + 1]) - 1
            samples = (~value.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
            raise NonFiniteError(
                f"NaN or infinity first appears in step {steps} of {self.table.steps}, register r{row}{at}, in "
                f"{len(samples)} of {len(value)} samples (the first is {samples[0]}): the network's answer or the "
                "state before it is not finite"
            )


def _value(c: Tensor) -> Coefficient:
    return float(c) if c.dim() == 0 and not c.requires_grad else c
