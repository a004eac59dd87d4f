"""Record each Gaussian step of a run, and replay it with gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._types import Cond
from ..denoiser import BaseDenoiser
from ..errors import TableError
from ..random import Noise
from .loop import Loop
from .sample import Samples, evaluation, sample
from .table import ProductTable, Table


@dataclass(frozen=True)
class Transitions:
    """The Gaussian steps of a run: r_m = mean_m + std_m noise_m.

        log_prob[m] = log N(r_m; mean_m, std_m^2 I) = -|r_m - mean_m|^2/(2 std_m^2) - d log(std_m sqrt(2 pi))

    summed over the event. rows: the M registers that drew noise, in order. state, mean, noise: (M, batch, *event), in
    coordinates centred by the shift; std: (M,); log_prob: (M, batch). x_init: the state that the run began with.
    """

    table: Table
    x_init: Tensor
    cond: Cond
    rows: tuple[int, ...]
    state: Tensor
    mean: Tensor
    std: Tensor
    noise: Tensor
    log_prob: Tensor

    def replay(self, denoiser: BaseDenoiser) -> Transitions:
        """The same states under another (or a changed) denoiser, with gradient: new means and log-probabilities.

        Each stochastic register takes its recorded value, everything between is computed again, so that
        `replay(...).log_prob` is what a policy gradient, a trajectory balance or a path-space loss needs. Evaluations
        are checkpointed: memory is that of the states.
        """
        self.table.check_process(denoiser.process)
        recorder = _Recorder(self.state)
        loop = Loop(denoiser, self.table, self.x_init, self.cond, differentiable=True, recorder=recorder)
        first = self.x_init
        with evaluation(denoiser), torch.enable_grad():
            loop.run(Noise(0, batch=len(first), dtype=first.dtype, device=first.device))
            return recorder.transitions()


class _Recorder:
    """Keeps what each stochastic row did; given states, makes the rows end in them."""

    def __init__(self, states: Tensor | None = None) -> None:
        self.states = states

    def begin(self, table: Table | ProductTable, x_init: Tensor, cond: Cond) -> None:
        if not isinstance(table, Table):
            raise TableError("transitions are recorded for processes of one component")
        if not table.noises:
            raise TableError(f"{table.solver} draws no noise: record a stochastic solver, such as DDIM(eta=1)")
        self.table, self.x_init, self.cond = table, x_init, cond
        self.kept: list[tuple[int, Tensor, Tensor, float, Tensor]] = []

    def __call__(self, row: int, mean: Tensor, std: float, noise: Tensor) -> tuple[Tensor, Tensor]:
        if self.states is None:
            state = torch.add(mean, noise, alpha=std)
        else:
            state = self.states[len(self.kept)]
            noise = (state - mean) / std
        self.kept.append((row, state, mean, std, noise))
        return state, noise

    def transitions(self) -> Transitions:
        rows, states, means, stds, noises = zip(*self.kept, strict=True)
        noise, std = torch.stack(noises), torch.tensor(stds, dtype=torch.float64)
        constant = noise[0, 0].numel() * (std.log() + math.log(2 * math.pi) / 2)
        log_prob = -(noise**2).flatten(2).sum(-1) / 2 - constant.to(noise)[:, None]
        return Transitions(
            self.table, self.x_init, self.cond, rows, torch.stack(states), torch.stack(means), std, noise, log_prob
        )


def record(denoiser: BaseDenoiser, shape: Any = None, **options: Any) -> tuple[Samples, Transitions]:
    """`orn.sample` with its options, and the transitions of the run. Deterministic steps have no density and are not
    listed.

    Particle steering, reinforcement learning, trajectory balance and path-space losses stand on this and nothing else.
    """
    if options.get("hooks"):
        raise TableError("a hook that changes states has no density: record without hooks")
    recorder = _Recorder()
    out = sample(denoiser, shape, recorder=recorder, **options)
    return out, recorder.transitions()
