"""The trainer."""

from __future__ import annotations

import hashlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .._extras import require
from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..errors import CheckpointError
from ..guidance import Guided
from ..io import load_tensors, save_tensors
from ..numerics.tree import like, parts, tree_map
from ..progress import bar
from ..random import derive, fresh_seed
from .checkpoint import check_same, load_into, pack, unpack
from .drop import dropper
from .ema import averages_of
from .feeds import Batch, feed_of
from .forecast import Forecast, forecast
from .objective import Objective
from .power_ema import PowerEMA
from .precision import Arithmetic, Precision
from .recompute import recomputed
from .run import Training
from .schedule import Schedule, factor_of, rise_of
from .times import Remembering
from .workers import Sharding, Workers, cut_state, load_whole, whole

_BLOCK = 50  # steps whose losses stay on the device before they are looked at, so that no step waits for it


@dataclass(frozen=True)
class Fit:
    """What a training leaves besides the averaged weights in the model.

    history: "step" (1 to steps), "loss", "grad_norm" (before clipping) and "lr", each (steps,). raw: the weights as the
    optimizer left them, a state_dict. averages: of the parameters, "ema" and, for several decays, "ema 0.999" and so
    on for the further ones. seed: that of the run.
    """

    history: dict[str, Tensor]
    raw: dict[str, Tensor]
    steps: int
    seed: int
    averages: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def fit(
    model: BaseDenoiser,
    data: State | Dataset[Any] | DataLoader[Any],
    *,
    cond: Cond = None,
    drop: Mapping[str, float] | None = None,
    steps: int,
    batch_size: int = 256,
    accumulate: int = 1,
    lr: float = 1e-3,
    seed: int | None = 0,
    objective: Objective | None = None,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    schedule: Schedule = "cosine",
    warmup: int | None = None,
    ema: float | Sequence[float] | PowerEMA | None = 0.999,
    clip: float | None = 1.0,
    precision: Precision = "fp32",
    compile: bool | str = False,
    recompute: bool = False,
    deterministic: bool = False,
    sharding: Sharding = "replicate",
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 500,
    callbacks: Sequence[Callable[[int, Training], object]] = (),
    foresee: Callable[[Forecast], object] | None = None,
    progress: bool | None = None,
    device: str | torch.device | None = None,
) -> Fit:
    """theta_(k+1) = theta_k - lr_k AdamW(clip(grad loss_k(theta_k))); their average is left in `model`.

    Every random number of step k (data, times, noise, dropped conditions, dropout) is a function of (seed, k). A run
    killed at any moment and started again with the same arguments and checkpoint ends with the same weights, bit for
    bit on one device. A completed one returns at once.

    Started by `torchrun` or `accelerate launch` on several processes, each takes its rows of every batch, and the
    losses are those of one process to rounding (dropout aside, whose numbers each process draws for its rows, and batch
    norms, which see their rows alone). A checkpoint may be resumed on another number of processes.

    Args:
        model: a denoiser; its averaged weights are left in it, in evaluation mode.
        data: (n, *event) in the user's units, or a named tuple of such tensors; a Dataset whose items are x or
            (x, cond); or a DataLoader of such batches, which then decides the batch size.
        cond: with a tensor of data, a nest of tensors (n, ...).
        drop: probability, by name, with which a sample's condition is replaced by `model.null`'s.
        steps, batch_size, lr: of the optimizer; lr is the highest of the schedule. batch_size counts all processes.
        accumulate: passes in which a batch is taken, for memory; the gradient is the same to rounding.
        seed: names the run; None draws one, readable from the result.
        objective: `Objective()` by default.
        optimizer: makes one from the parameters; AdamW(betas=(0.9, 0.99), weight_decay=0) by default. The schedule
            multiplies its learning rates.
        schedule: "cosine" to 0, "constant", or a function of the steps done giving a factor of lr.
        warmup: steps of linear rise of lr from 0, by default min(100, steps // 10).
        ema: decay of the average of the weights, or several, of which the first is left in the model and all are in
            the result; a `PowerEMA`, whose length may be chosen after training; or None to leave the raw weights.
        clip: the highest norm of the gradient, or None.
        precision: "bf16" or "fp16" run the network under autocast; weights and averages stay in their dtype.
        compile: the network runs through torch.compile, by the backend named or, for True, its own.
        recompute: keep only the inputs of the network's blocks, and run the blocks again in the backward pass.
        deterministic: only algorithms that give the same bits every time; an operation that has none is an error.
        sharding: "replicate" or "shard" the model over the processes.
        checkpoint: a file to resume from, if it exists, and to write every `every` steps and at the end.
        callbacks: called as callback(step, training) every `every` steps and at the end, after the checkpoint, on every
            process, and for the last checkpoint again on resuming, since the kill may have come between the two;
            `training.average()` lends the averaged weights, `training.main` says who writes.
        foresee: called with the `Forecast` of time and memory before the first step; it may raise to stop there.
        progress: show a bar; by default on a terminal.
        device: where to train; by default where the model is.

    Raises:
        ValueError: on bad arguments or data, before the work starts. CheckpointError: on a checkpoint that is damaged
        or of another run. NonFiniteError: when loss or gradient is no longer finite, naming the step. A loss that rises
        far above what it was is a `DivergenceWarning`, naming the step.
    """
    if not isinstance(model, BaseDenoiser):
        raise ValueError(
            f"model is a {type(model).__name__}: give a denoiser, as orn.Denoiser(net, process, predicts=...)"
        )
    if isinstance(model, Guided):
        raise ValueError(f"fit trains one model: train the {type(model.model).__name__} inside {type(model).__name__}")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("every", every), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value}")
        if value != int(value):
            raise ValueError(f"{name} must be a whole number: got {value}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite: got {lr}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is the highest norm of the gradient, positive, or None: got {clip}")
    if checkpoint is not None:
        require("safetensors", extra="train")  # found missing now, not at the first checkpoint
    workers = Workers.here(sharding, device)
    seed = workers.agree(fresh_seed()) if seed is None else seed
    objective = objective or Objective()
    law = objective.time
    dropped = dropper(model, drop)
    feed = feed_of(data, cond, batch_size, seed, model.scaling is not None and model.scaling.missing)
    pieces = workers.count * accumulate
    mine = range(workers.rank * accumulate, (workers.rank + 1) * accumulate)
    feed.check(pieces)
    if device is not None:
        model.to(device)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("the model has no parameters to train")
    held, asked = workers.take(model)
    parameters = [p for p in held.parameters() if p.requires_grad]
    where, dtype = parameters[0].device, parameters[0].dtype
    arithmetic = Arithmetic(precision, where)
    maker = optimizer or _adamw(lr)
    optim = maker(parameters)
    rates: list[float] = [group["lr"] for group in optim.param_groups]
    rise = rise_of(steps, warmup)
    factor = factor_of(schedule, steps, rise)
    averages = averages_of(held, ema)
    training = Training(held, averages, lambda k: rates[0] * factor(k), steps, workers, model)
    path = None if checkpoint is None else Path(checkpoint)
    run = {
        "process": _name(model.process),
        "prediction": f"{model.predicts} {_name(getattr(model, 'precondition', None))}{_told(model)}",
        "network": _digest(model),
        "data": "" if path is None else feed.describe(),
        "objective": _name(objective),
        "optimizer": _hyperparameters(optim, rates),
        "steps and schedule": _name(schedule) + ("" if schedule == "constant" else f" over {steps}"),
        "warmup": str(warmup),
        "batch_size": str(batch_size),
        "seed": str(seed),
        "drop": str(dict(drop or {})),
        "ema": str(ema),
        "clip": str(clip),
        "precision": precision,
    }

    def save() -> None:
        assert path is not None
        tensors = {f"model/{name}": tensor for name, tensor in held.state_dict().items()}
        for key, average in averages.items():
            tensors |= {f"{key}/{name}": tensor for name, tensor in average.state_dict().items()}
        if isinstance(law, Remembering):
            tensors |= {f"time/{name}": tensor for name, tensor in law.state_dict().items()}
        tensors["history"] = training.seen
        state = pack(optim.state_dict(), tensors, "optimizer")
        metadata = {"run": run, "step": training.step, "optimizer": state, "position": list(feed.position)}
        metadata |= {"scale": arithmetic.state(), "rise": rise}
        tensors = whole(tensors)
        if workers.main:
            try:
                save_tensors(path, tensors, metadata, kind="checkpoint")
            except OSError as error:
                kept = f"{path} is that of an earlier step" if path.exists() else "there is none yet"
                message = f"the checkpoint of step {training.step} could not be written ({error.strerror}): {kept}"
                raise OSError(error.errno, f"{message}. Make room, and the same command goes on from there") from error
        workers.wait()

    def resume() -> None:
        nonlocal rise, factor
        tensors, metadata = load_tensors(str(path), kind="checkpoint")
        try:
            check_same(run, metadata["run"], str(path))
            if metadata["step"] > steps:
                raise _Beyond(f"{path} holds {metadata['step']} steps of this run: ask for that many, or more")
            rise = int(metadata["rise"])  # that of the first steps, where a constant schedule is prolonged
            factor = factor_of(schedule, steps, rise)
            load_into(held, _under("model/", tensors), str(path))
            for key, average in averages.items():
                average.load_state_dict(_under(f"{key}/", tensors), metadata["step"])
            optim.load_state_dict(cut_state(unpack(metadata["optimizer"], tensors), parameters))
            if isinstance(law, Remembering):
                law.load_state_dict(_under("time/", tensors))
            arithmetic.restore(metadata.get("scale", {}))
            training.restore(tensors["history"])
            if metadata["step"] != training.step:
                raise ValueError(f"step {metadata['step']} and a history of {training.step} steps")
            feed.position = tuple(metadata["position"])
        except (CheckpointError, _Beyond):
            raise
        except Exception as error:  # a file with a good checksum that says nonsense meets any error
            raise CheckpointError(
                f"{path} is damaged: it has no state to go on from ({type(error).__name__}); move it away to begin anew"
            ) from error

    def place(batch: Batch) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(where, dtype if tensor.is_floating_point() else tensor.dtype)

        x0, condition = tree_map(move, batch[0]), tree_map(move, batch[1])
        if model.scaling is not None:
            x0 = like(x0, [model.scaling.encode(x) for x in parts(x0)])
        return x0, condition

    def loss_at(step: int, piece: int) -> Tensor:
        share = feed.share(step, piece, pieces)
        x0, condition = place(feed(step, share))
        _seed(derive(seed, "net", step, share.start), where)
        with arithmetic.autocast():
            condition = dropped(condition, derive(seed, "drop", step), share)
            return objective(asked, x0, condition, seed=derive(seed, "loss", step), share=share) / accumulate

    with _own_randomness(where), _strict(deterministic), recomputed(held, recompute), _compiled(held, compile):
        example = feed.example()
        if example is not None:  # what does not fit (a shape, a label out of range) is known before the work starts
            model.eval()
            with torch.no_grad():
                objective(held, *place(example), seed=0)
        if path is not None and path.exists():
            resume()
        start = training.step
        held.train()
        if foresee is not None and start < steps:
            position, seen = feed.position, law.state_dict() if isinstance(law, Remembering) else {}
            buffers = [(buffer, buffer.clone()) for buffer in held.buffers()]
            coming = forecast(
                lambda: loss_at(start, mine[0]),
                parameters, maker, steps=steps - start, passes=accumulate, averages=len(averages),
            )  # fmt: skip
            feed.rewind(position)
            for buffer, kept in buffers:
                buffer.copy_(kept)
            if isinstance(law, Remembering):
                law.load_state_dict(seen)
            foresee(coming)
            if not coming.fits:
                warnings.warn(
                    f"the training takes {coming}, and {coming.free} bytes are free: lower batch_size, or give "
                    "accumulate=, recompute=True or sharding='shard'",
                    stacklevel=2,
                )
        if start > 0:
            for callback in callbacks:
                callback(start, training)
                held.train()
        with bar(steps - start, "fit", progress if workers.main else False) as advance:
            for step in range(start, steps):
                optim.zero_grad(set_to_none=True)
                loss: Any = 0
                for piece in mine:
                    with workers.last_only(asked, piece == mine[-1]):
                        part = loss_at(step, piece)
                        arithmetic.backward(part)
                    loss = loss + part.detach()
                for group, rate in zip(optim.param_groups, rates, strict=True):
                    group["lr"] = rate * factor(step)
                norm = arithmetic.step(optim, parameters, math.inf if clip is None else clip)
                for average in averages.values():
                    average.update()
                training.record(loss, norm)
                advance()
                stop = training.step % every == 0 or training.step == steps
                if stop or training.step % _BLOCK == 0:
                    training.look()
                if stop and path is not None:
                    save()
                if stop:
                    for callback in callbacks:
                        callback(training.step, training)
                        held.train()
    optim.zero_grad(set_to_none=True)
    raw = {name: tensor.detach().clone() for name, tensor in whole(held.state_dict()).items()}
    weights = {key: whole(average.state_dict()) for key, average in averages.items()}
    load_whole(model, held, next(iter(weights.values()), None))
    model.eval()
    return Fit(training.history, raw, steps, seed, weights)


class _Beyond(ValueError):
    """A checkpoint of more steps than are asked for."""


def _adamw(lr: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
        return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=fused)

    return make


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """The global generators are used inside, and given back as they were."""
    devices: Sequence[torch.device] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _strict(on: bool) -> Iterator[None]:
    """Only deterministic algorithms inside."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS asks for
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


@contextmanager
def _compiled(model: nn.Module, on: bool | str) -> Iterator[None]:
    """The network runs through torch.compile inside; its weights keep their names."""
    net: Any = getattr(model, "net", model)
    if on:
        net.compile(backend=on if isinstance(on, str) else "inductor")
    try:
        yield
    finally:
        if on:
            net._compiled_call_impl = None


def _seed(seed: int, device: torch.device) -> None:
    # torch.manual_seed would format a stack trace at every call where CUDA is not in use
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _name(thing: object) -> str:
    """How a thing prints, less the address that another process would print differently."""
    if callable(thing) and hasattr(thing, "__qualname__"):
        return f"{thing.__module__}.{thing.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))


def _told(model: BaseDenoiser) -> str:
    timestep = getattr(model, "timestep", None)
    return "" if timestep is None else f", told {_name(timestep)}"


def _digest(model: BaseDenoiser) -> str:
    """The make of a model: its modules, the shapes of its weights, and the values of its scaling."""
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.state_dict().items()]
    scaling = [] if model.scaling is None else [b.tolist() for b in model.scaling.buffers()]
    digest = hashlib.sha256(repr((_name(model), shapes, scaling)).encode()).hexdigest()[:8]
    net = type(getattr(model, "net", model)).__name__
    return f"{net} of {sum(p.numel() for p in model.parameters())} parameters ({digest})"


def _hyperparameters(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> str:
    skip = ("params", "lr", "foreach", "fused", "capturable", "differentiable")  # how, not what, it computes
    groups = [{key: value for key, value in group.items() if key not in skip} for group in optimizer.param_groups]
    return f"{type(optimizer).__name__}, lr {list(rates)}, {groups}"
