"""Data: samples, labels and their space, and the split into what is trained on and what judges."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..denoiser import Codec
from ..random import derive, generator
from .space import Space

FITTED_ON = 4096
"""Samples that are decoded to fit a codec when the data do not lie in memory."""


class Lazy(Dataset[Tensor]):
    """Samples that are decoded when asked for."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, i: int) -> Tensor:
        raise NotImplementedError

    def take(self, index: Tensor) -> Lazy:
        """Those of these places."""
        raise NotImplementedError

    def marks(self) -> Iterable[str]:
        """What tells each sample from another without decoding it; nothing, if nothing does."""
        return ()


@dataclass(frozen=True)
class Data:
    """Samples in the user's numbers, their labels, and the space they live in.

    Args:
        samples: (n, *event) in float32, NaN where a value is missing; or a `Lazy` data set of n such events.
        labels: (n,) in int64, or None.
        space: what they are.
        name: what they are called in messages.
        notes: what was done to the user's data in reading them, in words.
    """

    samples: Tensor | Lazy
    labels: Tensor | None
    space: Space
    name: str = "data"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.space.event

    def take(self, index: Tensor) -> Data:
        """The samples of these places, (k,), in their order."""
        samples = self.samples[index] if isinstance(self.samples, Tensor) else self.samples.take(index)
        return replace(self, samples=samples, labels=None if self.labels is None else self.labels[index])

    def rows(self, index: Tensor | slice | None = None) -> tuple[Tensor, Tensor | None]:
        """(x, labels) of these places in memory; all of them by default."""
        if not isinstance(index, Tensor):
            index = torch.arange(len(self))[slice(None) if index is None else index]
        chosen = self.take(index)
        if isinstance(chosen.samples, Tensor):
            return chosen.samples, chosen.labels
        if len(chosen) == 0:
            return torch.empty(0, *self.event), chosen.labels
        return torch.stack([chosen.samples[i] for i in range(len(chosen))]), chosen.labels

    def codec(self) -> Codec:
        """The codec of the space, fitted to these samples (to 4096 of them, spread evenly, if they are lazy)."""
        if isinstance(self.samples, Tensor):
            return self.space.codec(self.samples)
        return self.space.codec(self.rows(torch.linspace(0, len(self) - 1, min(len(self), FITTED_ON)).long())[0])

    def feed(self) -> tuple[Tensor | Dataset[Any], dict[str, Tensor] | None]:
        """(data, cond) as `orn.fit` takes them: a tensor and its conditions, or a Dataset of (x, cond) and None."""
        labels = {} if self.labels is None else {"label": self.labels}
        if isinstance(self.samples, Tensor):
            return self.samples, labels | self.space.cond(self.samples) or None
        return (_Labelled(self.samples, self.labels) if labels else self.samples), None

    def fingerprint(self) -> str:
        """SHA-256 of samples and labels in their order; of samples on demand, of their number and `Lazy.marks`."""
        digest = sha256(f"{len(self)} {self.event}".encode())
        for tensor in (self.samples, self.labels):
            if isinstance(tensor, Tensor):
                digest.update(tensor.contiguous().numpy().data)
        if isinstance(self.samples, Lazy):
            digest.update("\n".join(self.samples.marks()).encode())
        return digest.hexdigest()

    def split(self, held_out: float, seed: int = 0) -> Split:
        """A random share `held_out` of each class apart from the rest, the same every time.

        Where held-out samples in memory equal training ones, `notes` say how many: rows that
        repeat are the law of discrete data, and splitting by different rows would hold out another law.

        Errors: ValueError for fewer than 10 samples, or a share that leaves fewer than 2 on either side.
        """
        n, y = len(self), self.labels
        if n < 10:
            raise ValueError(f"{self.name} holds {n} samples: at least 10 are needed to train and to judge")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a share between 0 and 1: got {held_out}")
        order = torch.randperm(n, generator=generator(derive(seed, "split")))
        groups = [order] if y is None else [order[y[order] == label] for label in sorted(set(y.tolist()))]
        shares = [round(held_out * len(group)) for group in groups]
        test = torch.cat([group[:share] for group, share in zip(groups, shares, strict=True)])
        fit = torch.cat([group[share:] for group, share in zip(groups, shares, strict=True)])
        if min(len(test), len(fit)) < 2:
            raise ValueError(
                f"held_out={held_out} of {n} samples of {self.name} leaves {len(fit)} to train and {len(test)} to judge"
            )
        test, fit = (part[torch.randperm(len(part), generator=generator(derive(seed, "mix")))] for part in (test, fit))
        parts = Split(self.take(fit), self.take(test))
        if isinstance(parts.train.samples, Tensor) and isinstance(parts.held_out.samples, Tensor):
            known = {row.tobytes() for row in parts.train.samples.numpy()}
            if again := sum(row.tobytes() in known for row in parts.held_out.samples.numpy()):
                note = f"{again:,} of {len(test):,} held-out samples are in training too: they repeat in the data"
                return Split(*(replace(part, notes=(*self.notes, note)) for part in (parts.train, parts.held_out)))
        return parts


@dataclass(frozen=True)
class Split:
    """Training and held-out data of one space."""

    train: Data
    held_out: Data

    def fingerprint(self) -> str:
        """Of both parts."""
        return f"{self.train.fingerprint()} {self.held_out.fingerprint()}"

    @property
    def space(self) -> Space:
        """The space of both."""
        return self.train.space

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.space.event

    @property
    def labels(self) -> int:
        """The number of classes, 0 without labels."""
        return len(self.space.labels)


class _Labelled(Dataset[Any]):
    def __init__(self, samples: Lazy, labels: Tensor | None) -> None:
        assert labels is not None
        self.samples, self.labels = samples, labels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        return self.samples[i], {"label": self.labels[i]}
