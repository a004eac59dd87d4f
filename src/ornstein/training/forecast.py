"""What a training will take, in time and memory, before it starts."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_MOST = 100_000_000  # parameters of which a trial update is made


@dataclass(frozen=True)
class Forecast:
    """seconds = steps (passes + update),    bytes = weights + gradients + optimizer + averages + activations.

    Each part is measured by a trial on this machine, that leaves no trace: a pass forward and backward (after one to
    warm up), in which the bytes kept for the backward pass are counted, and one update of copies. `free` is the memory
    that the device has left for all of it, None where that cannot be known.
    """

    seconds: float
    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    free: int | None

    @property
    def bytes(self) -> int:
        """All parts together."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations

    @property
    def fits(self) -> bool:
        """Whether what is not there yet (weights and averages are) has room."""
        return self.free is None or self.gradients + self.optimizer + self.activations <= self.free

    def __str__(self) -> str:
        names = ("weights", "gradients", "optimizer", "averages", "activations")
        parts = ", ".join(f"{name} {shown(getattr(self, name))}" for name in names)
        return f"about {_duration(self.seconds)} and {shown(self.bytes)} of memory ({parts})"


def forecast(
    loss: Callable[[], Tensor],
    parameters: Sequence[nn.Parameter],
    maker: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    *,
    steps: int,
    passes: int = 1,
    averages: int = 1,
) -> Forecast:
    """The forecast of `steps` steps, each of `passes` calls of `loss` and one update of `parameters`.

    `maker` makes the optimizer, `averages` counts the averages of the weights. Gradients are given back as they were.
    """
    device, count = parameters[0].device, sum(p.numel() for p in parameters)
    free, kept = free_memory(device), [p.grad for p in parameters]
    for p in parameters:
        p.grad = None  # else the trial would add to what is kept
    saved = _Counted(parameters)
    with saved:
        value = loss()
    torch.autograd.backward([value])
    seconds = passes * _time(lambda: torch.autograd.backward([loss()]), device)
    for p, grad in zip(parameters, kept, strict=True):
        p.grad = grad
    weights = sum(_local(p).nbytes for p in parameters)
    sample = parameters if count <= _MOST else [min(parameters, key=lambda p: p.numel())]
    copies = [nn.Parameter(p.detach().clone()) for p in sample]
    for copy, p in zip(copies, sample, strict=True):
        copy.grad = torch.zeros_like(p)
    optimizer = maker(copies)
    given, own = [p for group in optimizer.param_groups for p in group["params"]], {id(p) for p in copies}
    update, state = 0.0, 2 * weights  # where `maker` takes the model's own parameters no trial is made: as for Adam
    if all(id(p) in own for p in given):
        optimizer.step()
        update = _time(optimizer.step, device)
        state = sum(_local(x).nbytes for s in optimizer.state.values() for x in s.values() if isinstance(x, Tensor))
    share = weights / sum(_local(p).nbytes for p in copies)
    return Forecast(
        seconds=steps * (seconds + share * update),
        weights=weights,
        gradients=weights,
        optimizer=round(share * state),
        averages=averages * weights,
        activations=saved.bytes,
        free=free,
    )


def weigh(make: Callable[[], nn.Module], *inputs: Callable[[], Any]) -> tuple[int, int]:
    """(bytes of the weights, bytes that autograd keeps of one pass) of a network that is not built: all its tensors,
    and what `inputs` make for it, have shapes and no memory."""
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        net = make()
        given = [each() for each in inputs]
        weights = list(net.parameters())
        saved = _Counted(weights)
        with saved:
            net(*given)
    return sum(p.nbytes for p in weights), saved.bytes


class _Counted(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of what autograd keeps inside the block, each storage once, and the weights not at all."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.bytes, self._seen = 0, {_storage(weight) for weight in weights}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._seen:
            self._seen.add(_storage(tensor))
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def _local(tensor: Tensor) -> Any:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _storage(tensor: Tensor) -> int:
    return int(_local(tensor).untyped_storage()._cdata)  # not its address, which tensors without memory share


def _time(work: Callable[[], object], device: torch.device, tries: int = 3) -> float:
    """The least of a few times, in seconds: what else the machine does only adds."""
    taken = []
    for _ in range(tries):
        begun = _now(device)
        work()
        taken.append(_now(device) - begun)
    return min(taken)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def free_memory(device: torch.device) -> int | None:
    """Bytes that the device has left, None where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:  # what Linux would give back of its caches is free too
        told = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        told = None
    if told:
        return 1024 * int(told[1])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return None


def shown(count: int) -> str:
    """Bytes in words."""
    for power, name in ((15, "PB"), (12, "TB"), (9, "GB")):
        if count >= 5 * 10 ** (power - 1):
            return f"{count / 10**power:.1f} {name}"
    return f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
