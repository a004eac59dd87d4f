"""A process for each component of a state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import VIEWS, Cond, State, View
from ..numerics.tree import like, parts
from ..random import Noise, Seed, as_noise
from .affine import Draw
from .gaussian import GaussianProcess
from .level import Level
from .linear import check_one_end


@dataclass(frozen=True)
class ProductLevel:
    """The levels of all components at one time (or at the times of one grid)."""

    components: tuple[Level, ...]

    @property
    def t(self) -> Tensor:
        return self.components[0].t

    @property
    def shape(self) -> torch.Size:
        return self.t.shape

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: int | slice | list[int] | None) -> ProductLevel:
        return ProductLevel(tuple(level[index] for level in self.components))

    def tile(self, copies: int) -> ProductLevel:
        """The levels for a batch repeated `copies` times."""
        return ProductLevel(tuple(level.tile(copies) for level in self.components))


@dataclass(frozen=True)
class ProductDraw:
    """A draw of every component: x, x0 and noise are named tuples, and so is every target."""

    draws: Any

    def __getattr__(self, name: str) -> Any:
        if name not in ("x", "x0", "x1", "noise"):
            raise AttributeError(name)
        return like(self.draws, [getattr(draw, name) for draw in self.draws])

    @property
    def level(self) -> ProductLevel:
        return ProductLevel(tuple(draw.level for draw in self.draws))

    def target(self, view: View) -> State:
        return like(self.draws, [draw.target(view) for draw in self.draws])


class Product:
    """Components that are corrupted each by its own process, at a common time, and denoised together.

        x_t = (x_t^1, x_t^2, ...),    x_t^c = alpha_c(t) x0^c + shift_c + sigma_c(t) noise^c

    Args:
        processes: a named tuple of Gaussian processes; states are named tuples of the same type.
        project: optional linear projection `project(state, cond) -> state` that commutes with scaling, for spaces that
            need one: zeros at padded entries of a mask in `cond`, a centre of mass at the origin. It is applied to
            data, to noise, and to the state after every update.
    """

    views: tuple[View, ...] = VIEWS

    def __init__(self, processes: Any, *, project: Callable[[State, Cond], State] | None = None) -> None:
        if not (isinstance(processes, tuple) and hasattr(processes, "_fields")):
            raise ValueError(f"Product takes a named tuple of processes: got {type(processes).__name__}")
        for name, process in zip(processes._fields, processes, strict=True):
            if not isinstance(process, GaussianProcess):
                raise ValueError(f"component {name!r} is no GaussianProcess: got {process!r}")
        self.processes = processes
        self.project = project

    def __repr__(self) -> str:
        return f"Product({self.processes!r})"

    def level(self, t: float | Tensor | ProductLevel) -> ProductLevel:
        """The level(s) of every component at t."""
        return t if isinstance(t, ProductLevel) else ProductLevel(tuple(p.level(t) for p in self.processes))

    def data_of(self, state: State) -> State:
        """What of a state are data: all of it."""
        return state

    def prior(
        self,
        shape: Any,
        *,
        seed: Seed | Noise = None,
        cond: Cond = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> State:
        """A draw of the end laws; `shape` is a named tuple of shapes."""
        stream = as_noise(seed, batch=shape[0][0], dtype=dtype, device=device)
        drawn = [p.prior(s, seed=stream, cond=cond) for p, s in zip(self.processes, shape, strict=True)]
        return self._projected(like(self.processes, drawn), cond)

    def corrupt(
        self,
        x0: State,
        t: float | Tensor | ProductLevel,
        x1: State | None = None,
        cond: Cond = None,
        *,
        noise: State | None = None,
        seed: Seed | Noise = None,
    ) -> ProductDraw:
        """Draw every component of x_t given x0, a named tuple of (batch, *event) tensors."""
        check_one_end(self, x1)
        level = self.level(t)
        if noise is None:
            stream = as_noise(seed, batch=x0[0].shape[0], dtype=x0[0].dtype, device=x0[0].device)
            noise = like(x0, [stream.normal(x.shape) for x in parts(x0)])
        x0, noise = self._projected(x0, cond), self._projected(noise, cond)
        draws: Sequence[Draw] = [
            process.corrupt(x, component, cond=cond, noise=n)
            for process, x, component, n in zip(self.processes, x0, level.components, noise, strict=True)
        ]
        return ProductDraw(like(self.processes, draws))

    def _projected(self, state: State, cond: Cond) -> State:
        return state if self.project is None else self.project(state, cond)
