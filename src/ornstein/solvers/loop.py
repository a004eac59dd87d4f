"""The one loop: it runs any table."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._types import Cond, State, View
from ..denoiser import BaseDenoiser
from ..errors import NonFiniteError, TableError
from ..numerics.tree import like, parts
from ..prediction import Output, heads_of
from ..processes import AffineProcess, GaussianProcess, Level, LinearProcess, Process, ProductLevel, along, check_shift
from ..random import Noise
from .program import After, Apply, Combine, Draw, Evaluate, Form, program_of
from .table import Coefficient, ProductTable, Table


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


@dataclass(frozen=True)
class Resample:
    """What a hook returns to let sample i become a copy of the one at indices[i]: the state, and every register, answer
    and noise that is still to be read."""

    indices: Tensor


Hook: TypeAlias = Callable[[Moment], "State | Resample | None"]
"""Called after every row; what it returns, if not None, replaces the state, or all that is known of the samples."""


@runtime_checkable
class Recorder(Protocol):
    """Decides the value of each row that draws noise: see `transitions`."""

    def begin(self, table: Table | ProductTable, x_init: State, cond: Cond) -> None:
        """Called before a run."""
        ...

    def __call__(self, row: int, mean: Tensor, std: float, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(value, noise) of r_row, from its mean given what came before, its standard deviation and fresh noise."""
        ...


class Stepper:
    """A table made ready for one run, whoever evaluates the network: coefficients on the device, a place to stop at.

        stepper = Stepper(table, process, "noise", x)
        run = stepper.stream(Noise(seed, batch=len(x)))
        index, x = next(run)                          # evaluation `index` is asked for, at the level
        index, x = run.send(network(x, ...))          # table.levels[index]; StopIteration.value is the last state

    The views that a solver asks for are folded into its coefficients, or formed once where several rows read them (see
    `program`); a tensor is dropped after its last use. `predicts` and `heads` say how answers are read. Whoever has
    changed the state that was evaluated (a pipeline that paints into it) sets `replaced` to it before the answer.
    """

    def __init__(
        self,
        table: Table | ProductTable,
        process: Process,
        predicts: View,
        x: State,
        cond: Cond = None,
        *,
        heads: Mapping[str, View] | None = None,
        differentiable: bool = False,
        hooks: Sequence[Hook] = (),
        recorder: Recorder | None = None,
    ) -> None:
        self.table, self.predicts, self.x, self.cond, self.heads = table, predicts, x, cond, heads or {}
        self.differentiable, self.hooks, self.recorder = differentiable, tuple(hooks), recorder
        self.error: list[Any] = []
        self.replaced: State | None = None
        own: Any = process
        self.processes: tuple[LinearProcess, ...] = getattr(own, "processes", (own,))
        if recorder is not None and any(_coloured(p) for p in self.processes):
            raise TableError(f"a transition is recorded with noise N(0, I): {process!r} has another")
        project = getattr(process, "project", None)
        if project is not None:
            self.hooks = (lambda moment: project(moment.x, cond), *self.hooks)
        reflect = getattr(process, "reflect", None)
        if reflect is not None:  # of states alone: an auxiliary register is no point of the space
            self.hooks = (lambda moment: None if moment.level is None else reflect(moment.x), *self.hooks)
        shifts = self._shifts(table.start)
        for shift, part in zip(shifts, parts(x), strict=True):
            check_shift(shift, part)
        self._shifted = any(shift is not None for shift in shifts)
        self._program = program_of(table, predicts, self.heads, hooked=bool(self.hooks), recorded=recorder is not None)
        self._steps = self._program.steps
        if not self._program.plain:
            self._steps = tuple(
                replace(step, terms=tuple((slot, self._lower(c, step.component)) for slot, c in step.terms))
                if isinstance(step, Combine)
                else step
                for step in self._steps
            )

    def _lower(self, c: Coefficient, component: int) -> Any:
        """A float for scalars; else a tensor on the state's device, in its dtype, shaped to multiply it."""
        if not isinstance(c, Tensor):
            return c
        x = parts(self.x)[component]
        return along(c.to(device=x.device, dtype=x.dtype), x) if c.dim() else c.to(device=x.device, dtype=x.dtype)

    def stream(
        self, noise: Noise, *, debug: bool = False, tick: Callable[[], object] | None = None
    ) -> Generator[tuple[int, State], Output, State]:
        """The run from `x` at the table's start: it yields (evaluation, state), takes the network's answer, and returns
        the final state. `tick` is called after each step of the grid."""
        x, table = self.x, self.table.components[0]
        slots: list[Any] = [None] * self._program.size
        if self.recorder is not None:
            self.recorder.begin(self.table, x, self.cond)
        for slot, part in zip(self._program.inputs, self._centred(x, self.table.start), strict=True):
            slots[slot] = part
        shapes = [part.shape for part in parts(x)]
        noises = [component.noises for component in self.table.components]
        colours: list[Any] = [
            p.colouring(part, self.cond) if drawn and isinstance(p, AffineProcess) and _coloured(p) else None
            for p, part, drawn in zip(self.processes, parts(x), noises, strict=True)
        ]
        single = len(self.processes) == 1 and not self._shifted
        add, differentiable, first = torch.add, self.differentiable, True
        for step in self._steps:
            if isinstance(step, Combine):
                if not step.terms:
                    value = torch.zeros_like(parts(x)[step.component])
                elif step.plain and not differentiable:
                    (slot, c), *rest = step.terms
                    if c == 1.0 and rest:
                        value = add(slots[slot], slots[rest[0][0]], alpha=rest[0][1])
                        del rest[0]
                    else:
                        value = slots[slot] * c
                    for slot, c in rest:
                        value.add_(slots[slot], alpha=c)
                else:
                    (slot, c), *rest = step.terms
                    value = slots[slot] * c
                    for slot, c in rest:
                        term = slots[slot]
                        value = add(value, term, alpha=c) if isinstance(c, float) else torch.addcmul(value, term, c)
                if step.noise is not None:
                    assert self.recorder is not None
                    value, slots[step.noise[0]] = self.recorder(step.row, value, step.noise[1], slots[step.noise[0]])
                if debug:
                    self._check_finite(step.row, value)
                slots[step.slot] = value
                if tick is not None and table.rows[step.row].on_grid:
                    tick()
            elif isinstance(step, Evaluate):
                if single:
                    output = yield step.index, slots[step.inputs[0]]
                    if self.replaced is not None:
                        slots[step.inputs[0]], self.replaced = self.replaced, None
                    if first or not step.plain or not isinstance(output, Tensor):
                        first = self._check_output(output, step, x)
                        for slot, _, head in step.outputs:
                            slots[slot] = heads_of(output)[head]
                    elif step.outputs:
                        slots[step.outputs[0][0]] = output
                else:
                    level = [component.evaluations[step.index].level for component in self.table.components]
                    output = yield step.index, self._uncentred([slots[slot] for slot in step.inputs], level)
                    self._keep(output, step, level, slots)
            elif isinstance(step, Form):
                slots[step.slot] = add(slots[step.first], slots[step.second], alpha=step.ratio)
            elif isinstance(step, Draw):
                z = noise.increment(shapes[step.component], noises[step.component][step.index])
                slots[step.slot] = z if colours[step.component] is None else colours[step.component](z)
                continue
            elif isinstance(step, Apply):
                value = slots[step.slot] = step.function(*[slots[slot] for slot in step.inputs])
                if debug:
                    self._check_finite(step.row, value)
                if tick is not None and table.rows[step.row].on_grid:
                    tick()
            else:
                self._after(step, slots)
                if debug:
                    for slot in step.slots:
                        self._check_finite(step.row, slots[slot])
                continue
            for slot in step.drop:
                slots[slot] = None
        self.error = [slots[slot] for slot in self._program.error]
        return self._uncentred([slots[slot] for slot in self._program.result], self.table.end)

    def _keep(self, output: Any, step: Evaluate, level: list[Level], slots: list[Any]) -> None:
        """Keep an answer in the process's own coordinates, centred."""
        self._check_output(output, step, self.x)
        for slot, c, head in step.outputs:
            value = parts(heads_of(output)[head])[c]
            native = self.predicts if head == "main" else self.heads.get(head)
            slope = self.processes[c].d_shift(level[c].t, self.cond) if native == "velocity" else None
            slots[slot] = value if slope is None else value - slope

    def _shifts(self, level: Any) -> list[Tensor | None]:
        levels = level if isinstance(level, list) else parts(getattr(level, "components", level))
        return [p.shift(part.t, self.cond) for p, part in zip(self.processes, levels, strict=True)]

    def _centred(self, x: State, level: Any) -> list[Tensor]:
        return [p if m is None else p - m for p, m in zip(parts(x), self._shifts(level), strict=True)]

    def _uncentred(self, centred: Sequence[Tensor], level: Any) -> State:
        return like(self.x, [p if m is None else p + m for p, m in zip(centred, self._shifts(level), strict=True)])

    def _after(self, step: After, slots: list[Any]) -> None:
        rows = [component.rows[step.row] for component in self.table.components]
        level: Any = rows[0].level
        if level is not None and isinstance(self.table, ProductTable):
            level = ProductLevel(tuple(row.level for row in rows if row.level is not None))
        state = [slots[slot] for slot in step.slots]
        registers = {m: like(self.x, [slots[s] for s in held]) for m, held in step.live}
        for hook in self.hooks:
            own = like(self.x, state) if level is None else self._uncentred(state, level)
            new = hook(Moment(step.row, level, rows[0].on_grid, own, registers))
            if isinstance(new, Resample):
                state = [part[new.indices] for part in state]
                slots[:] = [None if value is None else value[new.indices] for value in slots]
                registers = {m: like(self.x, [slots[s] for s in held]) for m, held in step.live}
            elif new is not None:
                for part, value in zip(parts(new), state, strict=True):
                    if part.shape != value.shape:
                        raise ValueError(
                            f"a hook returned {tuple(part.shape)} for a state of {tuple(value.shape)} at row {step.row}"
                        )
                state = list(parts(new))
                if level is not None:
                    state = self._centred(new, level)
        for slot, value in zip(step.slots, state, strict=True):
            slots[slot] = value

    def _check_output(self, output: Any, step: Evaluate, x: State) -> bool:
        """Refuse an output that lacks a head or has another shape than the state; shapes are known on the host."""
        heads = heads_of(output)
        for _, c, head in step.outputs:
            if head not in heads:
                raise TableError(
                    f"{self.table.solver} reads the head {head!r}, the network returned {', '.join(heads)}"
                )
            if len(parts(heads[head])) != len(parts(x)):
                raise ValueError(
                    f"the network returned a {type(heads[head]).__name__} for a state of {len(parts(x))} components: "
                    "it takes and returns a named tuple (see nets.Joined)"
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
                f"{len(samples)} of {len(value)} samples (the first is {samples[0]}): the network's answer, a "
                "hook's or the state before it is not finite"
            )


def _coloured(process: LinearProcess) -> bool:
    """Whether its noise is another than N(0, I)."""
    return isinstance(process, AffineProcess) and not isinstance(process, GaussianProcess)


class Loop(Stepper):
    """A stepper that asks a denoiser, bound to the table's levels before the run."""

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
        super().__init__(
            table,
            denoiser.process,
            denoiser.predicts,
            x,
            cond,
            heads=denoiser.heads,
            differentiable=differentiable,
            hooks=hooks,
            recorder=recorder,
        )
        levels, evaluated = table.levels, bool(table.nfe)
        self._calls = denoiser.bind(levels, x, cond) if evaluated else []
        if differentiable:
            self._calls = [partial(checkpoint, call, use_reentrant=False) for call in self._calls]
        self.nfe = sum(denoiser.cost(levels)) if evaluated else 0

    def run(self, noise: Noise, *, debug: bool = False, tick: Callable[[], object] | None = None) -> State:
        """The final state, from `x` at the table's start. `tick` is called after each step of the grid."""
        calls, stream = self._calls, self.stream(noise, debug=debug, tick=tick)
        try:
            index, x = next(stream)
            while True:
                index, x = stream.send(calls[index](x))
        except StopIteration as stop:
            return stop.value
