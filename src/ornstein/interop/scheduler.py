"""Our solvers as a diffusers scheduler: any table, in unmodified pipelines."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .. import solvers
from ..errors import TableError
from ..processes import DiscreteTime, Flow, GaussianProcess, Level, broadcast
from ..random import Noise
from ..solvers import Grid, LogSNR, Solver, Stepper, Table, UniPC
from ..tuning import TunedTable
from .schedule import OWN, ConfigError, PublishedGrid, Schedule, config_of, schedule_of


class OrnsteinScheduler(SchedulerMixin, ConfigMixin):
    """A scheduler that runs the table of any of our solvers, stopping wherever the pipeline evaluates its network.

        pipe.scheduler = orn.interop.OrnsteinScheduler.from_config(pipe.scheduler)

    The model's process and question are read from the configuration of the scheduler that it came with (see
    `schedule_of`), and stay in this one's, so that the pipeline finds the fields it looks for. The state is that of the
    process: variance-preserving for discrete-time models, straight for flows, x0 + sigma noise for EDM. A state in half
    precision is carried in float32 between steps. One solver step may ask for several evaluations: `timesteps` lists
    them all, and `order` is their number a step.

    Args:
        solver: a `Solver` (default UniPC of order 2).
        grid: a `Grid` (default `LogSNR()`); "published" for the times of the scheduler that the model came with. Those
            alone follow what a pipeline says of sigmas and resolution; a list of timesteps is always followed.
        table, tables: a compiled or tuned table, or several by their numbers of steps, used instead of solver and grid.
        clip: whether to clip x0 where the published scheduler does.
        published: the configuration of the scheduler that the model came with.
    """

    config_name = "scheduler_config.json"
    _compatibles: list[str] = []

    def __init__(
        self,
        solver: Any = None,
        grid: Any = None,
        tables: Any = None,
        clip: bool = True,
        published: Mapping[str, Any] | None = None,
    ) -> None:
        if published is None:
            raise ConfigError("make one by OrnsteinScheduler.from_config(pipe.scheduler, solver=..., grid=...)")
        self.schedule: Schedule = schedule_of(published)
        self.solver = _object(solver, Solver) or UniPC()
        self.grid = self.schedule.grid if grid == "published" else _object(grid, Grid) or LogSNR()
        if tables is not None and not isinstance(tables, Mapping):
            raise ConfigError(f"tables is a mapping from numbers of steps to compiled tables: got {tables!r:.80}")
        self.tables = {int(n): _table(table) for n, table in (tables or {}).items()}
        for steps, table in self.tables.items():
            table.check_process(self.process)
            if table.steps != steps:
                raise ConfigError(f"tables has one of {table.steps} steps under {steps}")
        self.clip = self.schedule.clip if clip else None
        self.register_to_config(
            solver=_described(self.solver),
            grid="published" if self.grid == self.schedule.grid else _described(self.grid),
            tables={str(n): table.to_json() for n, table in self.tables.items()} or None,
            clip=clip,
            published_class=published["_class_name"],
            **{key: value for key, value in published.items() if not key.startswith("_")},
        )
        self.timesteps: Tensor | None = None
        self.num_inference_steps: int | None = None
        self.init_noise_sigma = 1.0
        self._rest()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From another scheduler or its configuration, with solver, grid, table, tables and clip; or from one's own."""
        if (table := kwargs.pop("table", None)) is not None:
            made = _table(table)
            kwargs["tables"] = {**(kwargs.get("tables") or {}), made.steps: made}
        given = config if isinstance(config, Mapping) else getattr(config, "config", {})
        own = {name: (kwargs if name in kwargs else given)[name] for name in OWN if name in kwargs or name in given}
        own.pop("published_class", None)
        published = config_of(config)
        published |= {name: value for name, value in kwargs.items() if name in published}
        unused = {name: value for name, value in kwargs.items() if name not in OWN and name not in published}
        if unused and not return_unused_kwargs:
            known = ", ".join(("table", *OWN[:-1], *published))
            raise ConfigError(f"{', '.join(unused)} is no option of this scheduler: it has {known}")
        made = cls(**own, published=published)
        return (made, unused) if return_unused_kwargs else made

    @property
    def process(self) -> GaussianProcess:
        return self.schedule.process

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    @property
    def order(self) -> int:
        """Evaluations a step: those that most steps of the table take."""
        if self.timesteps is None:
            return 1
        counts, count = [], 0
        for kind, index in self.table.order:
            if kind == "evaluate":
                count += 1
            elif self.table.rows[index].on_grid:
                counts.append(count)
                count = 0
        return max(1, statistics.mode(counts))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Compile the table of so many solver steps, or of given timesteps, or of given sigmas: lists of numbers, as
        this model's published scheduler reads them (before the shift for flows, else sigma/alpha, a last 0 or none)."""
        given = [v for v in (timesteps, sigmas) if v is not None]
        if len(given) > 1 or (not given and num_inference_steps is None):
            raise ValueError("give num_inference_steps, timesteps or sigmas: one of them")
        steps = num_inference_steps if num_inference_steps is not None else len(given[0])
        if steps in self.tables and timesteps is None:
            table = self.tables[steps]
        else:
            made = self.solver.compile(self.process, self._levels(steps, timesteps, sigmas, mu))
            assert isinstance(made, Table)
            table = made
        if table.nfe == 0 or table.evaluations[0].register != 0:
            raise TableError(
                f"{table.solver} does not begin by evaluating the state that it is given, as a pipeline does"
            )
        self.table = table
        told = self.schedule.timestep(table.levels).to(torch.float32)
        if isinstance(self.process, DiscreteTime) and bool((told == told.round()).all()):
            told = told.to(torch.int64)
        self.timesteps = told.to(device)
        self.num_inference_steps = table.steps
        self.sigmas = torch.cat([self._noise_level(table.levels), self._noise_level(table.end[None])]).float()
        self.init_noise_sigma = self.schedule.grid.start_scale(table.start)
        self._rest()

    def _rest(self) -> None:
        """Back to before the first step."""
        self._run: Any = None
        self._begin_index: int | None = None
        self._step_index: int | None = None
        self._returned: Tensor | None = None
        self._state: Tensor | None = None
        self._version = 0

    def __getstate__(self) -> dict[str, Any]:
        """Copies begin before the first step: a run cannot be copied."""
        running = ("_stepper", "_noise", "_run", "_state", "_returned", "_step_index")
        state = {name: value for name, value in self.__dict__.items() if name not in running}
        return state | {"_run": None, "_state": None, "_returned": None, "_step_index": None}

    def _noise_level(self, level: Level) -> Tensor:
        return level.t if isinstance(self.process, Flow) else level.sigma / level.alpha

    def _levels(self, steps: int, timesteps: Any, sigmas: Any, mu: float | None) -> Level:
        """The grid's levels, or those of given timesteps, or of given sigmas before data."""
        grid, process = self.grid, self.process
        if isinstance(grid, PublishedGrid) and mu is not None:
            grid = dataclasses.replace(grid, mu=mu)
        if timesteps is not None:
            told = torch.as_tensor(timesteps, dtype=torch.float64)
            if isinstance(process, DiscreteTime):
                t = process.time_of(told)
            elif isinstance(process, Flow):
                t = told / len(self)
            else:
                raise ValueError("this model's timesteps are functions of sigma: give sigmas")
        elif sigmas is not None and isinstance(grid, PublishedGrid):
            s = torch.as_tensor(sigmas, dtype=torch.float64)
            s = s[s > 0]
            t = grid.shifted(s) if isinstance(process, Flow) else process.time(-2 * s.log())
        else:
            levels: Level = grid(process, steps=steps)
            return levels
        return process.level(torch.cat([t, t.new_zeros(1)]))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this place of `timesteps` (image to image): the next `step` must be that one's."""
        if not 0 <= begin_index < len(self._known()):
            raise ValueError(f"begin_index={begin_index}: this run has timesteps 0 to {len(self._known()) - 1}")
        self._begin_index = begin_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The place in `timesteps` of the evaluation that `step` waits for."""
        return self._step_index

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The first place of a timestep in `timesteps`."""
        return self._places(timestep, schedule_timesteps)[0]

    def _places(self, timestep: float | Tensor, known: Tensor | None = None) -> list[int]:
        known = self._known() if known is None else known
        found: list[int] = (known == torch.as_tensor(timestep, device=known.device)).nonzero().flatten().tolist()
        if not found:
            raise ValueError(f"timestep {float(timestep):.6g} is none of this scheduler's {known.tolist()}")
        return found

    def _known(self) -> Tensor:
        if self.timesteps is None:
            raise RuntimeError("no timesteps yet: call set_timesteps(num_inference_steps) first")
        return self.timesteps

    def _level(self, timestep: float | Tensor) -> Level:
        index = self._step_index if self._step_index is not None else self.index_for_timestep(timestep)
        level: Level = self.table.levels[index]
        return level

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the network is to see of a state: the state itself, but c_in times it for EDM's scales."""
        if self.schedule.precondition is None:
            return sample
        level = self._level(self._known()[0] if timestep is None else timestep)
        return self.schedule.precondition.coefficients(level)[0] * sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """Take the network's answer at `timestep` to `sample`; return the state to be evaluated next, or the last one.

        Timesteps come in order. A sample that is not what the step before returned replaces it.
        """
        if others.get("eta"):
            raise ValueError(
                f"eta={others['eta']}: this scheduler's noise is its solver's; give solver=orn.DDIM(eta=...)"
            )
        known = self._known()
        if self._run is None:
            self._start(timestep, sample)
        index = self._step_index
        assert index is not None
        if index >= len(known):
            raise RuntimeError(f"all {len(known)} timesteps are done: call set_timesteps before another run")
        if float(timestep) != float(known[index]):
            raise RuntimeError(
                f"step was called with timestep {float(timestep):.6g}, but {float(known[index]):.6g} (number {index}) "
                "is next: steps come in the order of `timesteps`, after set_timesteps"
            )
        if self._state is not None and sample.shape != self._state.shape:
            raise ValueError(
                f"this run carries states of {tuple(self._state.shape)}, step was given {tuple(sample.shape)}: call "
                "set_timesteps before another batch"
            )
        self._noise.generator = generator
        state = self._state
        if state is None or sample is not self._returned or sample._version != self._version:
            state = self._stepper.replaced = sample.to(self._dtype)
        answer = self._answer(model_output.to(self._dtype), state, self.table.levels[index])
        try:
            _, following = self._run.send(answer)
        except StopIteration as stop:
            following = stop.value
            if index + 1 < len(known):
                raise RuntimeError("this run ended in an error: call set_timesteps before another") from stop
        self._step_index, self._state, self._returned = index + 1, following, following.to(sample.dtype)
        self._version = self._returned._version
        if not return_dict:
            return (self._returned,)
        return SchedulerOutput(prev_sample=self._returned)

    def _start(self, timestep: float | Tensor, sample: Tensor) -> None:
        """Begin the table at a timestep, which stands at a point of its grid."""
        begin = self._begin_index
        if begin is None:  # of two places of one time the first is a stage of the step before
            begin = 0 if float(timestep) == float(self._known()[0]) else self._places(timestep)[-1]
        if begin > 0 and any(self.table is table for table in self.tables.values()):
            raise ValueError("a table given by tables= begins at its first timestep: take a solver for image to image")
        if begin > 0:
            first = self.table.evaluations[begin].level
            points = [row.level for row in self.table.rows if row.on_grid and row.level is not None]
            rest = [level for level in points if float(level.t) <= float(first.t)]
            if not rest or float(rest[0].t) != float(first.t):
                raise ValueError(f"number {begin} of the timesteps stands between two points of the grid: begin at one")
            made = self.solver.compile(self.process, Level.stack(rest))
            assert isinstance(made, Table)
            asked = self.table.levels.t[begin:]  # a multistep solver that starts anew may ask differently
            if made.levels.t.shape != asked.shape or not bool((made.levels.t == asked).all()):
                raise ValueError(
                    f"{self.solver!r} asks for {made.nfe} evaluations from there, not {self.table.nfe - begin}"
                )
            table = made
        else:
            table = self.table
        self._dtype = torch.promote_types(sample.dtype, torch.float32)
        self._noise = _PipelineNoise(len(sample), self._dtype, sample.device)
        predicts = "x0" if self._reads_x0 else self.schedule.predicts
        heads: dict[str, Any] = {}
        self._stepper = Stepper(table, self.process, predicts, sample.to(self._dtype), heads=heads)
        self._run = self._stepper.stream(self._noise)
        next(self._run)
        self._step_index = begin

    @property
    def _reads_x0(self) -> bool:
        return self.clip is not None or self.schedule.precondition is not None

    def _answer(self, output: Tensor, x: Tensor, level: Level) -> Any:
        """The network's answer as the table reads it: with its sign, through the precondition, clipped; a second half
        is the head "variance"."""
        schedule = self.schedule
        if schedule.variance is not None and output.shape[1] == 2 * x.shape[1]:
            main, variance = output.chunk(2, dim=1)
            return {"main": self._main(main, x, level), "variance": variance}
        return self._main(output, x, level)

    def _main(self, output: Tensor, x: Tensor, level: Level) -> Tensor:
        schedule = self.schedule
        if schedule.sign < 0:
            output = -output
        if schedule.precondition is not None:
            _, skip, out, _ = schedule.precondition.coefficients(level)
            output = skip * x + out * output
        elif self._reads_x0:
            c_x, c_p = level.conversion(schedule.predicts, "x0")
            output = c_x * x + c_p * output
        return output if self.clip is None else output.clamp(-self.clip, self.clip)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise at timesteps (batch,): any of the model's for discrete time, else of this run's."""
        known = self._known() if not isinstance(self.process, DiscreteTime) else None
        told = timesteps.detach().to("cpu", torch.float64).reshape(-1)
        if isinstance(self.process, DiscreteTime):
            level = self.process.level(self.process.time_of(told))
        else:
            assert known is not None
            levels: Level = self.table.levels
            level = levels[[self.index_for_timestep(t, known.cpu()) for t in timesteps.reshape(-1).cpu()]]
        alpha, sigma = (broadcast(c, original_samples) for c in (level.alpha, level.sigma))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, as flow pipelines call it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha noise - sigma x0: what a network that predicts v is trained on."""
        return self.add_noise(noise, -sample, timesteps) if isinstance(self.process, DiscreteTime) else noise - sample


class _PipelineNoise(Noise):
    """The draws of a diffusers pipeline: its generator or generators, in the state's dtype."""

    def __init__(self, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.batch, self.dtype, self.device = batch, dtype, device
        self.generator: torch.Generator | list[torch.Generator] | None = None

    def normal(self, shape: Sequence[int]) -> Tensor:
        drawn: Tensor = randn_tensor(tuple(shape), generator=self.generator, device=self.device, dtype=self.dtype)
        return drawn


def _table(table: Any) -> Table:
    """A table, a tuned one's, or one as `Table.to_json` wrote it."""
    if isinstance(table, (Table, TunedTable)):
        return table if isinstance(table, Table) else table.table
    if not isinstance(table, Mapping):
        raise ConfigError(f"tables maps numbers of steps to compiled tables: got {table!r:.80}")
    try:
        return Table.from_json(table)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"tables holds a damaged table: {error!r}") from error


def _described(thing: Any) -> dict[str, Any]:
    """A solver or grid as JSON: its class and its options."""
    options = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing) if field.init}
    for name, value in options.items():
        if isinstance(value, (Solver, Grid)):
            options[name] = _described(value)
        elif _plain(value):
            options[name] = _listed(value)
        else:
            raise ConfigError(
                f"{thing!r} holds {name}={value!r:.80}, which no configuration can: compile it, and give "
                "tables={steps: table}"
            )
    return {"class": type(thing).__name__, "options": options}


def _object(described: Any, kind: type) -> Any:
    """The solver or grid that `_described` wrote; an object is passed through."""
    if described is None or isinstance(described, kind):
        return described
    if not isinstance(described, Mapping) or not hasattr(solvers, str(described.get("class"))):
        raise ConfigError(
            f"a {kind.__name__.lower()} is an object such as orn.DDIM() or orn.LogSNR(): got {described!r}"
        )
    options = {name: _value(v) for name, v in described.get("options", {}).items()}
    try:
        made = getattr(solvers, described["class"])(**options)
    except TypeError as error:
        raise ConfigError(f"{described['class']} cannot be made of {options}: {error}") from error
    if not isinstance(made, kind):
        raise ConfigError(f"{described['class']} is no {kind.__name__.lower()}")
    return made


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return isinstance(value, (int, float, str, bool, type(None)))


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, (tuple, list)) else value


def _value(value: Any) -> Any:
    """An option as it was: lists were tuples, mappings solvers or grids."""
    if isinstance(value, Mapping):
        return _object(value, Grid if hasattr(getattr(solvers, str(value.get("class")), None), "times") else Solver)
    return tuple(map(_value, value)) if isinstance(value, (tuple, list)) else value
