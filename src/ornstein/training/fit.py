"""The trainer."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from .._extras import require
from .._types import Cond, State
from ..denoiser import BaseDenoiser
from ..guidance import Guided
from ..io import load_tensors, save_tensors
from ..numerics.tree import like, parts, tree_map
from ..progress import bar
from ..random import derive, fresh_seed
from .checkpoint import check_same, load_into, pack, unpack
from .drop import dropper
from .ema import EMA
from .feeds import Batch, feed_of
from .objective import Objective
from .run import Training
from .schedule import Schedule, factor_of

_BLOCK = 50  # steps whose losses stay on the device before they are looked at, so that no step waits for it


@dataclass(frozen=True)
class Fit:
    """What a training leaves besides the averaged weights in the model.

    history: "step" (1 to steps), "loss", "grad_norm" (before clipping) and "lr", each (steps,). raw: the weights as the
    optimizer left them, a state_dict. seed: that of the run.
    """

    history: dict[str, Tensor]
    raw: dict[str, Tensor]
    steps: int
    seed: int


def fit(
    model: BaseDenoiser,
    data: State | Dataset[Any] | DataLoader[Any],
    *,
    cond: Cond = None,
    drop: Mapping[str, float] | None = None,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int | None = 0,
    objective: Objective | None = None,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    schedule: Schedule = "cosine",
    warmup: int | None = None,
    ema: float | None = 0.999,
    clip: float | None = 1.0,
    precision: Literal["fp32", "bf16"] = "fp32",
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 500,
    callbacks: Iterable[Callable[[int, Training], object]] = (),
    progress: bool | None = None,
    device: str | torch.device | None = None,
) -> Fit:
    """theta_(k+1) = theta_k - lr_k AdamW(clip(grad loss_k(theta_k))); their average is left in `model`.

    Every random number of step k (data, times, noise, dropped conditions, dropout) is a function of (seed, k). A run
    killed at any moment and started again with the same arguments and checkpoint ends with the same weights, bit for
    bit on one device. A completed one returns at once.

    Args:
        model: a denoiser; its averaged weights are left in it, in evaluation mode.
        data: (n, *event) in the user's units, or a named tuple of such tensors; a Dataset whose items are x or
            (x, cond); or a DataLoader of such batches, which then decides the batch size.
        cond: with a tensor of data, a nest of tensors (n, ...).
        drop: probability, by name, with which a sample's condition is replaced by `model.null`'s.
        steps, batch_size, lr: of the optimizer; lr is the highest of the schedule.
        seed: names the run; None draws one, readable from the result.
        objective: `Objective()` by default.
        optimizer: makes one from the parameters; AdamW(betas=(0.9, 0.99), weight_decay=0) by default. The schedule
            multiplies its learning rates.
        schedule: "cosine" to 0, "constant", or a function of the steps done giving a factor of lr.
        warmup: steps of linear rise of lr from 0, by default min(100, steps // 10).
        ema: decay of the average of the weights, or None to leave the raw ones in the model.
        clip: the highest norm of the gradient, or None.
        precision: "bf16" runs the network under autocast; weights and averages stay in their dtype.
        checkpoint: a file to resume from, if it exists, and to write every `every` steps and at the end.
        callbacks: called as callback(step, training) every `every` steps and at the end, after the checkpoint;
            `training.average()` lends the averaged weights.
        progress: show a bar; by default on a terminal.
        device: where to train; by default where the model is.

    Raises:
        ValueError: on bad arguments or data, before the work starts. CheckpointError: on a checkpoint that is damaged
        or of another run. NonFiniteError: when loss or gradient is no longer finite, naming the step.
    """
    if not isinstance(model, BaseDenoiser):
        raise ValueError(
            f"model is a {type(model).__name__}: give a denoiser, as orn.Denoiser(net, process, predicts=...)"
        )
    if isinstance(model, Guided):
        raise ValueError(f"fit trains one model: train the {type(model.model).__name__} inside {type(model).__name__}")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: got {value}")
        if value != int(value):
            raise ValueError(f"{name} must be a whole number: got {value}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite: got {lr}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is the highest norm of the gradient, positive, or None: got {clip}")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is 'fp32' or 'bf16': got {precision!r}")
    if checkpoint is not None:
        require("safetensors", extra="train")  # found missing now, not at the first checkpoint
    seed = fresh_seed() if seed is None else seed
    objective = objective or Objective()
    dropped = dropper(model, drop)
    feed = feed_of(data, cond, batch_size, seed)
    if device is not None:
        model.to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameters to train")
    where, dtype = parameters[0].device, parameters[0].dtype
    maker = optimizer or _adamw(lr)
    optim = maker(parameters)
    rates: list[float] = [group["lr"] for group in optim.param_groups]
    factor = factor_of(schedule, steps, warmup)
    average = None if ema is None else EMA(model, ema)
    training = Training(model, average, lambda k: rates[0] * factor(k), steps)
    path = None if checkpoint is None else Path(checkpoint)
    run = {
        "process": _name(model.process),
        "prediction": f"{model.predicts} {_name(getattr(model, 'precondition', None))}",
        "network": _digest(model),
        "data": "" if path is None else feed.describe(),
        "objective": _name(objective),
        "optimizer": _hyperparameters(optim, rates),
        "steps and schedule": f"{_name(schedule)} over {steps}, warm-up {warmup}" if schedule != "constant" else "any",
        "batch_size": str(batch_size),
        "seed": str(seed),
        "drop": str(dict(drop or {})),
        "ema": str(ema),
        "clip": str(clip),
        "precision": precision,
    }

    def save() -> None:
        assert path is not None
        tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        if average:
            tensors |= {f"ema/{name}": tensor for name, tensor in average.state_dict().items()}
        tensors["history"] = training.seen
        state = pack(optim.state_dict(), tensors, "optimizer")
        metadata = {"run": run, "step": training.step, "optimizer": state, "position": list(feed.position)}
        save_tensors(path, tensors, metadata, kind="checkpoint")

    def resume() -> None:
        tensors, metadata = load_tensors(str(path), kind="checkpoint")
        check_same(run, metadata["run"], str(path))
        load_into(model, _under("model/", tensors), str(path))
        if average:
            average.load_state_dict(_under("ema/", tensors), metadata["step"])
        optim.load_state_dict(unpack(metadata["optimizer"], tensors))
        training.restore(tensors["history"])
        feed.position = tuple(metadata["position"])

    def place(batch: Batch) -> Batch:
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(where, dtype if tensor.is_floating_point() else tensor.dtype)

        x0, condition = tree_map(move, batch[0]), tree_map(move, batch[1])
        if model.scaling is not None:
            x0 = like(x0, [model.scaling.encode(x) for x in parts(x0)])
        return x0, condition

    def loss_at(step: int, batch: Batch) -> Tensor:
        x0, condition = batch
        with torch.autocast(where.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            return objective(model, x0, dropped(condition, derive(seed, "drop", step)), seed=derive(seed, "loss", step))

    with _own_randomness(where):
        example = feed.example()
        if example is not None:  # what does not fit (a shape, a label out of range) is known before the work starts
            model.eval()
            with torch.no_grad():
                objective(model, *place(example), seed=0)
        if path is not None and path.exists():
            resume()
        start = training.step
        if start > steps:
            raise ValueError(f"{path} holds {start} steps of this run: ask for steps={start} or more")
        model.train()
        with bar(steps - start, "fit", progress) as advance:
            for step in range(start, steps):
                batch = place(feed(step))
                _seed(derive(seed, "net", step), where)
                loss = loss_at(step, batch)
                optim.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
                for group, rate in zip(optim.param_groups, rates, strict=True):
                    group["lr"] = rate * factor(step)
                optim.step()
                if average:
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
                        model.train()
    optim.zero_grad(set_to_none=True)
    raw = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if average:
        average.copy()
    model.eval()
    return Fit(training.history, raw, steps, seed)


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
