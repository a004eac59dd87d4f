"""Feeds: the batch of each step, from tensors, a Dataset or a DataLoader, as a function of the seed and the step."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from .._types import Cond, State
from ..numerics.tree import check_batch, parts, tree_map
from ..random import Share, derive, generator

Batch: TypeAlias = tuple[State, Cond]


class Feed(ABC):
    """`feed(step, share)`: a share of the batch (x0, cond) of a step; steps are asked for in order, beginning anywhere.

    Batches run through the data in a new random order each epoch and across the ends of epochs, so every batch is full.
    """

    position: Sequence[int] = ()
    """Where the next batch stands, for feeds that cannot tell it from the step."""

    @abstractmethod
    def size(self, step: int) -> int:
        """The number of samples in the batch of `step`."""

    @abstractmethod
    def __call__(self, step: int, share: Share) -> Batch:
        """A share of the batch of `step`."""

    def share(self, step: int, piece: int, pieces: int) -> Share:
        """The piece-th of `pieces` equal shares of the batch of `step`."""
        total = self.size(step)
        if total % pieces:
            raise ValueError(
                f"a batch of {total} samples does not divide into {pieces} shares, one for each process and each pass "
                f"of accumulation: give batches of a multiple of {pieces}"
            )
        return Share(piece * total // pieces, (piece + 1) * total // pieces, total)

    def check(self, pieces: int) -> None:
        """Refuse batches that do not divide into `pieces`, where their size is known before the work starts."""
        return

    def rewind(self, position: Sequence[int]) -> None:
        """Return to a position where the feed has been."""
        self.position = position

    @abstractmethod
    def describe(self) -> str:
        """What the data are: a run is resumed only on the same."""

    def example(self) -> Batch | None:
        """A few samples that hold the extreme integers of every condition, or None where looking has effects."""
        return None


class _Shuffled(Feed):
    """Positions step * batch_size, ... in the endless sequence of the permutations of n items, one an epoch."""

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        if n == 0:
            raise ValueError("the data set is empty: there is nothing to learn from")
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def size(self, step: int) -> int:
        return self.batch_size

    def check(self, pieces: int) -> None:
        self.share(0, 0, pieces)

    def indices(self, step: int) -> Tensor:
        """The items of the batch of `step`, (batch_size,)."""
        pieces, start, end = [], step * self.batch_size, (step + 1) * self.batch_size
        while start < end:
            epoch, first = divmod(start, self.n)
            if epoch != self._epoch:
                order = generator(derive(self.seed, "order", epoch))
                self._epoch, self._order = epoch, torch.randperm(self.n, generator=order)
            piece = self._order[first : first + end - start]
            pieces.append(piece)
            start += len(piece)
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


class TensorFeed(_Shuffled):
    """Batches of a tensor or a named tuple of tensors (n, *event), and of a nest of conditions."""

    def __init__(self, data: State, cond: Cond, batch_size: int, seed: int, missing: bool = False) -> None:
        tensors = parts(data)
        if any(x.dim() == 0 or len(x) != len(tensors[0]) for x in tensors):
            raise ValueError(f"components of different lengths: {', '.join(str(tuple(x.shape)) for x in tensors)}")
        super().__init__(len(tensors[0]), batch_size, seed)
        for x in tensors:
            if not x.is_floating_point():
                raise ValueError(f"the data are {x.dtype}: give floating-point numbers, of about unit size")
            if missing:
                x = x.nan_to_num(0.0, posinf=math.inf, neginf=-math.inf)
            if not bool(x.isfinite().all()):
                bad = int((~x.isfinite().flatten(1).all(1) if x.dim() > 1 else ~x.isfinite()).nonzero()[0])
                raise ValueError(f"the data hold NaN or infinity, first in sample {bad}: remove such samples")
        check_batch(cond, self.n)
        for path, leaf in _pytree.tree_flatten_with_path(cond)[0]:
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(leaf.isfinite().all()):
                raise ValueError(f"cond{_pytree.keystr(path)} holds NaN or infinity: remove such samples")
        self.data, self.cond = data, cond

    def __call__(self, step: int, share: Share) -> Batch:
        return self._select(share(self.indices(step)))

    def _select(self, index: Tensor) -> Batch:
        def rows(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, index.to(tensor.device))

        return tree_map(rows, self.data), tree_map(rows, self.cond)

    def describe(self) -> str:
        tensors = [x for x in _pytree.tree_leaves((self.data, self.cond)) if isinstance(x, Tensor)]
        content = hashlib.sha256()
        for x in tensors:
            raw: Any = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            content.update(raw)
        return f"{', '.join(f'{tuple(x.shape)} {x.dtype}' for x in tensors)} ({content.hexdigest()[:8]})"

    def example(self) -> Batch:
        chosen = {0}
        for leaf in _pytree.tree_leaves(self.cond):
            if isinstance(leaf, Tensor) and leaf.dim() == 1 and not leaf.is_floating_point():
                chosen |= {int(leaf.argmin()), int(leaf.argmax())}
        return self._select(torch.tensor(sorted(chosen)))


class DatasetFeed(_Shuffled):
    """Batches of a map-style Dataset whose items are x or (x, cond)."""

    def __init__(self, data: Dataset[Any], batch_size: int, seed: int, missing: bool = False) -> None:
        if isinstance(data, IterableDataset):
            raise ValueError("an IterableDataset has no order to shuffle: wrap it in a DataLoader")
        items: Any = data  # torch's Dataset declares no length
        super().__init__(len(items), batch_size, seed)
        self.data, self.missing = items, missing

    def __call__(self, step: int, share: Share) -> Batch:
        items = []
        for place, index in zip(range(share.start, share.stop), share(self.indices(step)).tolist(), strict=True):
            # random augmentation is a function of the step too, and of the place in the whole batch
            torch.default_generator.manual_seed(derive(self.seed, "items", step, place))
            items.append(self.data[index])
        return _finite(split(default_collate(items)), step, self.missing)

    def describe(self) -> str:
        return f"{type(self.data).__name__} of {self.n}"


class LoaderFeed(Feed):
    """The batches of the user's own DataLoader, epoch after epoch.

    Each epoch begins with torch's global generator, and the loader's and its sampler's if they have one, seeded by
    (seed, epoch), so the loader's shuffling and the seeds of its workers are functions of the seed. A resumed run
    passes over the batches that were used. Each of several processes reads every batch, and takes its rows.
    """

    def __init__(self, loader: DataLoader[Any], seed: int, missing: bool = False) -> None:
        self.loader, self.seed, self.missing = loader, seed, missing
        self.position = (0, 0)  # epoch, batches used in it
        self._batches: Iterator[Any] | None = None
        self._read: tuple[int, Batch] | None = None

    def size(self, step: int) -> int:
        return len(parts(self._batch(step)[0])[0])

    def __call__(self, step: int, share: Share) -> Batch:
        x0, cond = self._batch(step)
        return tree_map(share, x0), tree_map(share, cond)

    def check(self, pieces: int) -> None:
        size, data = self.loader.batch_size, cast(Any, self.loader.dataset)
        if size is None:
            return
        last = len(data) % size if hasattr(data, "__len__") and not self.loader.drop_last else 0
        if size % pieces or last % pieces:
            raise ValueError(
                f"the DataLoader's batches of {size}{f', the last of {last},' if last else ''} do not divide into "
                f"{pieces} shares, one for each process and each pass of accumulation: choose batch_size and drop_last"
            )

    def rewind(self, position: Sequence[int]) -> None:
        self.position, self._batches, self._read = (position[0], position[1]), None, None

    def _batch(self, step: int) -> Batch:
        """The whole batch of a step, read once."""
        if self._read is None or self._read[0] != step:
            self._read = step, self._next(step)
        return self._read[1]

    def _next(self, step: int) -> Batch:
        while True:
            epoch, used = self.position
            if self._batches is None:
                self._batches = self._open(epoch, used)
            if used > 0:  # the first batch of an epoch follows the epoch's own seed, from which samplers draw
                torch.default_generator.manual_seed(derive(self.seed, "items", step))
            try:
                batch = next(self._batches)
            except StopIteration:
                if used == 0:
                    message = "the DataLoader gave no batch: its data set is empty, or smaller than a batch"
                    raise ValueError(message) from None
                self.position, self._batches = (epoch + 1, 0), None
                continue
            self.position = (epoch, used + 1)
            return _finite(split(batch), step, self.missing)

    def _open(self, epoch: int, used: int) -> Iterator[Any]:
        seed = derive(self.seed, "order", epoch)
        torch.default_generator.manual_seed(seed)
        batch_sampler = getattr(self.loader, "batch_sampler", None)
        for owner in (self.loader, self.loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
            if isinstance(own := getattr(owner, "generator", None), torch.Generator):
                own.manual_seed(seed)
        batches = iter(self.loader)
        for _ in range(used):
            next(batches)
        return batches

    def describe(self) -> str:
        data: Any = self.loader.dataset
        size = f" of {len(data)}" if hasattr(data, "__len__") else ""
        return f"{type(data).__name__}{size} in batches of {self.loader.batch_size}"


def split(batch: Any) -> Batch:
    """(x0, cond) of a collated batch: x, (x,) or (x, cond); a named tuple is a state."""
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        if len(batch) not in (1, 2):
            raise ValueError(f"an item of the data set is x or (x, cond): got {len(batch)} parts")
        return batch[0], batch[1] if len(batch) == 2 else None
    return batch, None


def _finite(batch: Batch, step: int, missing: bool) -> Batch:
    """The batch, if its samples on the host are finite: caught here, they have not touched the weights yet."""
    for x in () if missing else parts(batch[0]):
        if isinstance(x, Tensor) and x.device.type == "cpu" and x.is_floating_point() and not bool(x.isfinite().all()):
            raise ValueError(
                f"the batch of step {step + 1} holds NaN or infinity: remove such samples from the data set"
            )
    return batch


def feed_of(data: Any, cond: Cond, batch_size: int, seed: int, missing: bool = False) -> Feed:
    """The feed that fits the data; `missing` says that NaN stands for a missing value in them."""
    if isinstance(data, Tensor) or (isinstance(data, tuple) and hasattr(data, "_fields")):
        return TensorFeed(data, cond, batch_size, seed, missing)
    if cond is not None:
        raise ValueError("cond= goes with a tensor of data: the items of a Dataset or DataLoader are (x, cond)")
    if isinstance(data, DataLoader):
        return LoaderFeed(data, seed, missing)
    if isinstance(data, Dataset):
        return DatasetFeed(data, batch_size, seed, missing)
    raise ValueError(f"data is a tensor, a Dataset or a DataLoader: got {type(data).__name__}")
