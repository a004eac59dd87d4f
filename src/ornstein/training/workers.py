"""Processes that train one model together: what each takes of a batch, and how they agree."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from .._extras import require
from ..denoiser import BaseDenoiser
from ..errors import CheckpointError
from .recompute import blocks_of

Sharding: TypeAlias = Literal["replicate", "shard"]


@dataclass(frozen=True)
class Workers:
    """grad = (1/count) sum_r grad_r over the processes r, each with its own rows of every batch.

    Every process draws the numbers of the whole batch and keeps those of its rows, so the loss of a step is that of one
    process to the rounding of the sum. "replicate" keeps the model on every process (DistributedDataParallel), "shard"
    cuts weights, gradients, optimizer and averages into `count` parts (fully_shard, block by block). Processes are
    started by `torchrun` or `accelerate launch`; alone, nothing of this is imported.

    Source: Rajbhandari et al. 2019 (1910.02054), for sharding.
    """

    count: int = 1
    rank: int = 0
    device: torch.device | None = None
    sharding: Sharding = "replicate"

    @classmethod
    def here(cls, sharding: Sharding = "replicate", device: str | torch.device | None = None) -> Workers:
        """The processes among which this one was started, with the device that it should use."""
        if sharding not in ("replicate", "shard"):
            raise ValueError(f"sharding is 'replicate' or 'shard': got {sharding!r}")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(device=None if device is None else torch.device(device))
        wanted = None if device is None else torch.device(device).type
        on_host = wanted == "cpu" or (wanted is None and not _accelerated())
        state = require("accelerate", extra="train").PartialState(cpu=on_host)
        return cls(state.num_processes, state.process_index, state.device, sharding)

    @staticmethod
    def best() -> torch.device:
        """The device on which one process works best."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def take(self, model: BaseDenoiser) -> tuple[BaseDenoiser, BaseDenoiser]:
        """(the model that holds the weights to train, the same as the objective shall call it)."""
        if self.count == 1:
            return model, model
        model.to(self.device)
        if self.sharding == "replicate":
            ddp = nn.parallel.DistributedDataParallel(model)
            return model, cast(BaseDenoiser, _Replica(model, ddp))
        from torch.distributed import device_mesh, fsdp  # slow to import, and not needed by one process

        if not hasattr(fsdp, "fully_shard"):
            raise ValueError(f"sharding='shard' needs torch 2.6, and this is {torch.__version__}: use 'replicate'")
        kind = cast(torch.device, self.device).type
        mesh = device_mesh.init_device_mesh(kind, (self.count,))
        work = copy.deepcopy(model)  # the caller's model stays whole
        for module in (*blocks_of(work), work):
            fsdp.fully_shard(module, mesh=mesh)
        return work, work

    @contextmanager
    def last_only(self, asked: BaseDenoiser, last: bool) -> Iterator[None]:
        """Gradients are averaged over the processes in the last pass of a step alone."""
        if self.count == 1 or last:
            yield
        elif isinstance(asked, _Replica):
            with asked.ddp.no_sync():
                yield
        else:
            cast(Any, asked).set_requires_gradient_sync(False)
            yield
            cast(Any, asked).set_requires_gradient_sync(True)

    def agree(self, number: int) -> int:
        """The first process's number, for all."""
        if self.count == 1:
            return number
        shared = torch.tensor(number, device=self.device)
        torch.distributed.broadcast(shared, 0)
        return int(shared)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.count == 1:
            return values
        values = values.clone()
        torch.distributed.all_reduce(values)
        return values / self.count

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            torch.distributed.barrier()


class _Replica:
    """A denoiser called through DistributedDataParallel, which averages the gradients as they are made."""

    def __init__(self, model: BaseDenoiser, ddp: nn.parallel.DistributedDataParallel) -> None:
        self.model, self.ddp = model, ddp

    def __call__(self, *arguments: Any) -> Any:
        return self.ddp(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def _accelerated() -> bool:
    return torch.cuda.is_available() or (hasattr(torch, "xpu") and torch.xpu.is_available())


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sharded tensors gathered, on every process; the others as they are."""
    pieces: Mapping[str, Any] = tensors
    return {name: piece.full_tensor() if _sharded(piece) else piece for name, piece in pieces.items()}


@torch.no_grad()
def load_whole(model: nn.Module, held: nn.Module, average: Mapping[str, Tensor] | None) -> None:
    """Give a model the weights and buffers of another of its make, which may be sharded, and the average over them."""
    own, given = model.state_dict(), whole(held.state_dict())
    for name, tensor in own.items():
        tensor.copy_(given[name])
    parameters = dict(model.named_parameters())  # each once: a weight of two names has its average under the first
    for name, tensor in whole(average or {}).items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise CheckpointError(f"an average of {name!r}, {tuple(tensor.shape)}, is of another model: build the same")
        parameters[name].copy_(tensor)


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as `like` is: sharded in the same way, or as it is."""
    if not _sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    dtensor: Any = like
    made: Tensor = distribute_tensor(tensor.to(dtensor.device), dtensor.device_mesh, dtensor.placements)
    return made


def cut_state(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """A whole optimizer's state as that of these parameters is: each tensor of a parameter's shape cut as it is."""
    each = {
        i: {k: cut(x, parameters[i]) if getattr(x, "shape", None) == parameters[i].shape else x for k, x in own.items()}
        for i, own in state["state"].items()
    }
    return {**state, "state": each}


def _sharded(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")
