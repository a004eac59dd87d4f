"""One prediction, every view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._types import VIEWS, Cond, State, View
from .errors import ViewError
from .numerics.tree import like, parts
from .processes import (
    AffineProcess,
    Level,
    LinearProcess,
    Phase,
    PhaseLevel,
    Process,
    ProductLevel,
    broadcast,
    check_shift,
    mix,
)

Output: TypeAlias = Any
"""What a denoiser's forward returns: a state in the predicted view, or a dict of named heads, "main" first."""


def heads_of(output: Output) -> Mapping[str, State]:
    """The named heads of an output; a plain state is the head "main"."""
    return output if isinstance(output, Mapping) else {"main": output}


def told_by(
    level: Level, predicts: View, heads: Mapping[str, View], name: View, process: object = None
) -> tuple[str, View]:
    """(head, its view) of the head from which a view follows: the main one wherever it can."""
    for head, native in {"main": predicts, **heads}.items():
        if level.tells(native, name):
            return head, native
    known = ", ".join(f"{native} ({head})" for head, native in {"main": predicts, **heads}.items())
    of = "" if process is None else f" of {process!r}"
    raise ViewError(f"{name} does not follow from what this model{of} answers, {known}: see orn.Heads")


class Prediction:
    """The answer of a denoiser to (x, t), in whichever view one asks for.

        target = c_x (x - shift) + c_p (answer),     (c_x, c_p) = level.conversion(predicts, target)

    Views are formed when first read and kept. `.x0`, `.noise`, `.score`, `.velocity`, `.v` have the shape of the state;
    one that does not exist at this level raises ViewError. `.head(name)` is the prediction of another named head of the
    network, and `.output` what came out.
    """

    def __init__(
        self,
        process: LinearProcess,
        level: Level,
        x: Tensor,
        output: Output,
        predicts: View,
        *,
        cond: Cond = None,
        heads: Mapping[str, View] | None = None,
    ) -> None:
        self.process, self.level, self.x, self.output, self.predicts = process, level, x, output, predicts
        self.cond, self.heads = cond, heads or {}
        self._views: dict[View, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a prediction has no {name!r}: its views are {', '.join(VIEWS)}")

    @property
    def x0(self) -> Tensor:
        """E[x0 | x_t]."""
        return self.view("x0")

    @property
    def noise(self) -> Tensor:
        """E[noise | x_t]."""
        return self.view("noise")

    @property
    def score(self) -> Tensor:
        """grad log p_t(x_t)."""
        return self.view("score")

    @property
    def velocity(self) -> Tensor:
        """dx/dt of the probability flow: E[alpha' x0 + shift' + sigma' noise | x_t]."""
        return self.view("velocity")

    @property
    def v(self) -> Tensor:
        """E[alpha noise - sigma x0 | x_t]."""
        return self.view("v")

    def view(self, name: View) -> Tensor:
        """The view called `name`."""
        if name not in self._views:
            self._views[name] = self._form(name)
        return self._views[name]

    def _form(self, name: View) -> Tensor:
        head, native = told_by(self.level, self.predicts, self.heads, name, self.process)
        answer = heads_of(self.output)[head]
        assert isinstance(answer, Tensor)
        if answer.shape != self.x.shape:
            raise ValueError(f"the network returned {tuple(answer.shape)} for a state of {tuple(self.x.shape)}")
        if name == native:
            return answer
        c_x, c_p = self.level.conversion(native, name)
        x, shift = self.x, self.process.shift(self.level.t, self.cond)
        if shift is not None:
            check_shift(shift, x)
            x = x - shift
            slope = self.process.d_shift(self.level.t, self.cond)
            if native == "velocity" and slope is not None:
                answer = answer - slope
        view = broadcast(c_x, x) * x + broadcast(c_p, x) * answer
        if shift is not None and name == "velocity" and slope is not None:
            view = view + slope
        if name == "score" and isinstance(self.process, AffineProcess):
            return self.process.precision(view, self.cond)
        return view

    def head(self, name: str) -> Prediction:
        """The prediction of another head; the one that a head makes is read in its own view."""
        heads = heads_of(self.output)
        if name not in heads:
            raise ViewError(f"this network has no head {name!r}: it returned {', '.join(heads)}")
        predicts = self.predicts if name == "main" else self.heads.get(name)
        if predicts is None:
            raise ViewError(f"head {name!r} is not a view of the state: read it as .output[{name!r}]")
        return type(self)(self.process, self.level, self.x, heads[name], predicts, cond=self.cond)


class PhasePrediction:
    """The answer of a denoiser of phase space: every view is a `Phase`, formed by matrices when first read.

    target = C_x z + C_p (answer),     (C_x, C_p) = level.conversion(predicts, target)
    """

    def __init__(self, level: PhaseLevel, x: State, output: Output, predicts: View, heads: Mapping[str, View]) -> None:
        self.level, self.x, self.output, self.predicts, self.heads = level, x, output, predicts, heads
        self._views: dict[View, Phase] = {}

    def __getattr__(self, name: str) -> Phase:
        if name not in VIEWS:
            raise AttributeError(f"a prediction has no {name!r}: its views are {', '.join(VIEWS)}")
        return self.view(name)

    def view(self, name: View) -> Phase:
        """The view called `name`."""
        if name not in self._views:
            answer = heads_of(self.output)["main"]
            if not isinstance(answer, tuple) or [p.shape for p in answer] != [p.shape for p in parts(self.x)]:
                raise ValueError("a network of phase space takes and returns a Phase like the state: see nets.Joined")
            view = Phase(*answer)
            if name != self.predicts:
                c_x, c_p = self.level.conversion(self.predicts, name)
                view = Phase(*map(torch.add, mix(c_x, Phase(*self.x)), mix(c_p, view)))
            self._views[name] = view
        return self._views[name]

    def head(self, name: str) -> PhasePrediction:
        """The prediction of another head, read in its own view."""
        predicts = self.predicts if name == "main" else self.heads.get(name)
        if name not in heads_of(self.output) or predicts is None:
            raise ViewError(f"no head {name!r} of this network is a view: it has {', '.join(heads_of(self.output))}")
        return PhasePrediction(self.level, self.x, {"main": heads_of(self.output)[name]}, predicts, {})


class ProductPrediction:
    """The predictions of all components of a state: every view is a named tuple."""

    def __init__(self, state: State, components: list[Prediction]) -> None:
        self._state, self.components = state, components

    def __getattr__(self, name: str) -> State:
        if name not in VIEWS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.view(name)

    def view(self, name: View) -> State:
        """The view called `name` of every component."""
        return like(self._state, [component.view(name) for component in self.components])

    def head(self, name: str) -> ProductPrediction:
        """The predictions of another head."""
        return ProductPrediction(self._state, [component.head(name) for component in self.components])


def predict(
    process: Process,
    level: Level | ProductLevel,
    x: State,
    output: Output,
    predicts: View,
    *,
    cond: Cond = None,
    heads: Mapping[str, View] | None = None,
) -> Any:
    """The prediction that belongs to the space of `process`."""
    if isinstance(level, PhaseLevel):
        return PhasePrediction(level, x, output, predicts, heads or {})
    if isinstance(level, Level):
        assert isinstance(process, LinearProcess)
        return Prediction(process, level, x, output, predicts, cond=cond, heads=heads)
    split: list[dict[str, Tensor]] = [{} for _ in parts(x)]
    for name, state in heads_of(output).items():
        for component, tensor in zip(split, parts(state), strict=True):
            component[name] = tensor
    own: Any = process
    components = [
        Prediction(p, part, xi, out, predicts, cond=cond, heads=heads)
        for p, part, xi, out in zip(own.processes, level.components, parts(x), split, strict=True)
    ]
    return ProductPrediction(x, components)
